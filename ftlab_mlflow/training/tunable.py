"""What a parameter of a running training is, and what the tables of parameters make them from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ftlab_mlflow.control.plan import Plan
from ftlab_mlflow.control.surface import Param, ParamType
from ftlab_mlflow.control.wire import Scalar
from ftlab_mlflow.training.schedule import LiveSchedule

if TYPE_CHECKING:
    from ftlab_mlflow.training.batching import LiveBatches  # it loads transformers, a plain loop does not


def _no_check(proposed: Mapping[str, Scalar]) -> str | None:
    return None


def _never() -> str | None:
    return None


@dataclass(frozen=True)
class Tunable:
    """One parameter of a running training.

    Attributes:
        type, min, max, choices, help: As on the surface.
        read: The value in force, from where the trainer uses it.
        apply: Brings a checked value into force from the next optimizer step on.
        capture: Everything that `restore` needs to put back what was.
        check: What is wrong with all values of one request together, or None.
        asked: The value that the training was launched with.
        save, load: What a checkpoint holds of it once it was changed; `read` and `apply` if None.
        unavailable: Why it cannot be changed now, or None while it can.
        plan: Of the learning rate: what its schedule will do. It takes milliseconds.
    """

    name: str
    type: ParamType
    help: str
    read: Callable[[], Scalar]
    apply: Callable[[Any], None]
    capture: Callable[[], Any]
    restore: Callable[[Any], None]
    asked: Scalar
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()
    check: Callable[[Mapping[str, Scalar]], str | None] = _no_check
    save: Callable[[], Any] | None = None
    load: Callable[[Any], None] | None = None
    unavailable: Callable[[], str | None] = _never
    plan: Callable[[], Plan] | None = None

    def accepts(self, value: object) -> bool:
        """Whether a value has the right type, whatever the bounds are now."""
        return Param(self.type, self.asked, self.asked, choices=self.choices).problem(value) is None

    def param(self, asked: Scalar, *, planned: bool = False) -> Param:
        """The parameter as the surface shows it now; `planned`: with its plan, if it has one."""
        plan = self.plan() if planned and self.plan else None
        return Param(self.type, self.read(), asked, self.min, self.max, self.choices, self.help, plan)


@dataclass(frozen=True)
class Trainee:
    """What a transformers training consists of, for the table below.

    Attributes:
        args: ``TrainingArguments``. state: ``TrainerState``. Both None in a plain loop.
        optimizer: As the trainer steps it.
        schedule: The live learning rate; None where the trainer's optimizer has no rate of its own.
        decays: Whether a parameter tensor is one that weight decay is meant for.
        evaluates: Whether there is something to evaluate on.
        no_optimizer: Why the optimizer's parameters cannot be changed, or None.
        trainer: The trainer, for the parameters of its method; None leaves them out.
        batches: Its data and number of steps; None where they cannot be changed.
        steps: Optimizer steps done, and the step that training ends with.
    """

    args: Any
    state: Any
    optimizer: torch.optim.Optimizer
    schedule: LiveSchedule | None
    decays: Callable[[torch.nn.Parameter], bool]
    evaluates: bool
    no_optimizer: str | None = None
    trainer: Any = None
    batches: LiveBatches | None = None
    steps: Callable[[], tuple[int, int]] | None = None


Build = Callable[[Trainee], "Tunable | str"]
"""Makes a tunable for a training, or says why this training has none."""
