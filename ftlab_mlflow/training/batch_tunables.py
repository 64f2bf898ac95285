"""Batch size, accumulation, number of steps and warm-up as parameters that can be changed while training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ftlab_mlflow.control.surface import ParamType
from ftlab_mlflow.control.wire import Scalar
from ftlab_mlflow.training.tunable import Build, Trainee, Tunable

if TYPE_CHECKING:
    from ftlab_mlflow.training.batching import LiveBatches

_MOST_STEPS, _MOST_EPOCHS = 1_000_000_000, 1_000_000
UNSEEN = "needs attach(trainer): LiveControl alone in callbacks=[…] does not see the data"


def _of_data(build: Callable[[LiveBatches, Any], Tunable | str]) -> Build:
    """A parameter of how the data become batches."""

    def built(trainee: Trainee) -> Tunable | str:
        batches = trainee.batches
        return UNSEEN if batches is None else batches.no_batches or build(batches, trainee.trainer)

    return built


def _of_steps(build: Callable[[LiveBatches], Tunable | str]) -> Build:
    """A parameter of how many steps there are."""

    def built(trainee: Trainee) -> Tunable | str:
        batches = trainee.batches
        return UNSEEN if batches is None else batches.no_steps or build(batches)

    return built


def _tunable(
    batches: LiveBatches,
    name: str,
    type: ParamType,
    help: str,
    apply: Callable[[Any], None],
    read: Callable[[], Scalar],
    check: Callable[[Any, Mapping[str, Scalar]], str | None] = lambda value, proposed: None,
    *,
    min: float = 1,
    max: float | None = None,
) -> Tunable:
    def problem(proposed: Mapping[str, Scalar]) -> str | None:
        if batches.loop.step >= batches.loop.max_steps:
            return "the last step of the training is done"
        if name == "max_steps" and "num_train_epochs" in proposed:
            return "max_steps and num_train_epochs both say when training ends: set one of them"
        return check(proposed[name], proposed)

    return Tunable(
        name=name,
        type=type,
        help=help,
        read=read,
        apply=apply,
        capture=batches.capture,
        restore=batches.restore,
        asked=read(),
        min=min,
        max=max,
        check=problem,
        # A checkpoint holds all of `LiveBatches`, which is back before the parameters are.
        load=lambda value: None,
    )


def _batch_size(batches: LiveBatches, trainer: Any) -> Tunable:
    # KTO estimates a KL divergence over a batch, and TRL wants more than one sample for it.
    smallest = 2 if getattr(trainer, "calculate_KL", False) else 1
    return _tunable(
        batches,
        "per_device_train_batch_size",
        "int",
        "Samples of a batch on one device. Whether they fit into its memory is not checked.",
        batches.set_batch_size,
        lambda: batches.batch_size,
        min=smallest,
        max=max(smallest, batches.samples),
    )


def _accumulation(batches: LiveBatches, trainer: Any) -> Tunable:
    return _tunable(
        batches,
        "gradient_accumulation_steps",
        "int",
        "Batches of an optimizer step.",
        batches.set_accumulation,
        lambda: batches.loop.accumulation,
        max=batches.samples,
    )


def _max_steps(batches: LiveBatches) -> Tunable:
    return _tunable(
        batches,
        "max_steps",
        "int",
        "The step that training ends with; the rest of the schedule is stretched to it.",
        batches.set_max_steps,
        lambda: batches.loop.max_steps,
        lambda steps, proposed: _above(steps > batches.loop.step, batches.loop.step, "steps"),
        max=_MOST_STEPS,
    )


def _num_train_epochs(batches: LiveBatches) -> Tunable:
    return _tunable(
        batches,
        "num_train_epochs",
        "float",
        "The epochs that training ends with; the rest of the schedule is stretched to them.",
        batches.set_epochs,
        lambda: batches.epochs,
        lambda epochs, proposed: _above(
            batches.steps_of(epochs) > batches.loop.step, batches.epochs_done, "epochs"
        ),
        min=0,
        max=_MOST_EPOCHS,
    )


def _warmup_steps(batches: LiveBatches) -> Tunable | str:
    if not batches.warmup:
        return "the learning rate has no warm-up of a known length"
    if batches.warmup >= batches.schedule_total:
        return "the schedule is over before its warm-up is"

    def check(step: int, proposed: Mapping[str, Scalar]) -> str | None:
        last = int(proposed.get("max_steps", batches.loop.max_steps))
        if step > last and proposed.keys() <= {"warmup_steps", "max_steps"}:
            return f"must be at most {last}, the last step"
        return _above(step > batches.loop.step, batches.loop.step, "steps")

    tunable = _tunable(
        batches,
        "warmup_steps",
        "int",
        "The step that the warm-up ends with; the rest of the schedule follows.",
        batches.set_warmup_steps,
        lambda: batches.loop.step + batches.warmup_left,
        check,
    )
    over = "the warm-up of the learning rate is over"
    return replace(
        tunable, asked=batches.warmup, unavailable=lambda: None if batches.warmup_left > 0 else over
    )


def _above(is_above: bool, done: float, what: str) -> str | None:
    return None if is_above else f"must be above {done:g}, the {what} that are done"


BATCH_TABLE: Mapping[str, Build] = {
    "per_device_train_batch_size": _of_data(_batch_size),
    "gradient_accumulation_steps": _of_data(_accumulation),
    "max_steps": _of_steps(_max_steps),
    "num_train_epochs": _of_steps(_num_train_epochs),
    "warmup_steps": _of_steps(_warmup_steps),
}
"""The parameters by name, in the order in which they are applied: a warm-up is part of what is left."""
