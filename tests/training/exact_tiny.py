"""A tiny training with dropout, which shows where it is in its random numbers: every sample, every weight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from training_tiny import Lab, Watched, data, weights
from transformers import TrainerCallback

ROWS = 22


class Wet(Watched):
    """With dropout."""

    def __init__(self) -> None:
        super().__init__(ROWS)
        self.drop = torch.nn.Dropout(0.4)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(super().hidden(x))


class Trace(TrainerCallback):
    """What every optimizer step took and left, in the order in which they were done.

    Attributes:
        steps: Their numbers; a training that goes back does some of them twice.
        samples, weights, rates: Of each: its batches, the weights after it, its rate.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.samples: list[list[list[int]]] = []
        self.weights: list[list[torch.Tensor]] = []
        self.rates: list[float] = []
        self.ends: list[int] = []
        self._taken = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.steps.append(state.global_step)
        self.samples.append(model.seen[self._taken :])
        self._taken = len(model.seen)
        self.weights.append(weights(model))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(state.global_step)

    def same_as(self, other: Trace, begin: int, of_other: int) -> bool:
        """Whether the rest from index `begin` is, bit for bit, what `other` did from its index `of_other`."""
        if self.steps[begin:] != other.steps[of_other:] or self.samples[begin:] != other.samples[of_other:]:
            return False
        if self.rates[begin:] != other.rates[of_other:]:
            return False
        pairs = zip(self.weights[begin:], other.weights[of_other:], strict=True)
        return all(torch.equal(a, b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))

    def sizes(self, begin: int = 0) -> list[list[int]]:
        """The sizes of the batches of each step."""
        return [[len(batch) for batch in step] for step in self.samples[begin:]]


class ExactLab(Lab):
    """A `Lab` of a `Wet` net, attached, that writes a checkpoint at every step."""

    def __init__(self, folder: Path, before: ExactLab | None = None) -> None:
        super().__init__(folder, before.store if before else None, before.run_id if before else None)
        self.trace = Trace()

    def train(
        self,
        *,
        resume: str | None = None,
        attached: bool = True,
        callbacks: Sequence[TrainerCallback] = (),
        **options: Any,
    ) -> Trace:
        """Trains; 22 samples, three epochs in batches of four unless `options` say otherwise."""
        chosen: dict[str, Any] = {
            "max_steps": -1, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1,
            "weight_decay": 0.01, **options,
        }  # fmt: skip
        self.make(attached=attached, rows=ROWS, model=Wet(), callbacks=(self.trace, *callbacks), **chosen)
        if "train_sampling_strategy" in options:  # which look at the lengths of the samples
            rows = [{**row, "input_ids": [0] * (1 + i % 7)} for i, row in enumerate(data(ROWS))]
            self.trainer.train_dataset = rows  # type: ignore[assignment]
        self.trainer.train(resume_from_checkpoint=resume)
        return self.trace

    def checkpoint(self, step: int) -> str:
        return str(self.folder / "out" / f"checkpoint-{step}")
