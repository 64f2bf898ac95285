"""A training whose batches and steps are changed, as the protocol defines it: counted sample by sample."""

import math
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from training_tiny import Lab, Watched
from transformers import TrainerCallback

Change = dict[str, Any]
RATE = 0.01


class Diary(TrainerCallback):
    """What the trainer says of itself after every step, and at the end of every epoch."""

    def __init__(self, model: Watched) -> None:
        self.model = model
        self.steps: list[list[list[int]]] = []
        self.epochs: list[float] = []
        self.ends: list[tuple[int, float]] = []
        self.events: list[tuple[str, int]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        taken = sum(map(len, self.steps))
        self.steps.append(self.model.seen[taken:])
        self.epochs.append(state.epoch)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append((state.global_step, state.epoch))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(("evaluate", state.global_step))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(("save", state.global_step))


@dataclass
class Plan:
    """A training as the protocol defines it, counted sample by sample.

    Attributes:
        rows, size, batches, epochs, steps: Samples, batch size, accumulation, and what says when it ends.
        total: The step that it ends with. time: Of its schedule.
        warm_end: The step that its warm-up ends with, once that was changed.
    """

    rows: int
    size: int
    batches: int
    epochs: float | None
    steps: int | None
    drop_last: bool = False
    warmup: int = 0
    step: int = 0
    epoch: int = 0
    used: int = 0
    time: float = 0.0
    warm_end: float | None = None
    total: int = field(init=False)
    launched: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = self.launched = self._end()

    def _steps_from(self, used: int) -> int:
        """Steps that the samples from `used` on make, one by one."""
        count = 0
        while sizes := self._next(used):
            used += sum(sizes)
            count += 1
        return count

    def _next(self, used: int) -> list[int]:
        """Sizes of the batches of the next step in an epoch of which `used` samples are used."""
        sizes = []
        for _ in range(self.batches):
            size = min(self.size, self.rows - used)
            if size == 0 or (self.drop_last and size < self.size):
                break
            sizes.append(size)
            used += size
        return sizes

    def _end(self) -> int:
        if self.epochs is None:
            assert self.steps is not None
            return self.steps
        whole = max(1, self._steps_from(0))
        left = self.epochs - self.epoch
        if left < 1:
            return self.step + math.ceil(round((left - self.used / self.rows) * whole, 9))
        rest = self._steps_from(self.used)
        return self.step + rest + int(left - 1) * whole + math.ceil(round((left - int(left)) * whole, 9))

    def change(self, change: Change) -> bool:
        """Makes a change, or leaves everything as it is: then it cannot be made."""
        before = dict(self.__dict__)
        if self.step < self.total and self._change(change):
            return True
        self.__dict__.update(before)
        return False

    def _change(self, change: Change) -> bool:
        if "num_train_epochs" in change:
            now = dict(self.__dict__)
            self.epochs = change["num_train_epochs"]
            late = self._end() <= self.step
            self.__dict__.update(now)
            if late:
                return False
        left = self.total - self.step
        cuts = {"per_device_train_batch_size", "gradient_accumulation_steps"} & set(change)
        if cuts and not self._next(self.used):
            self.used = self.rows  # what made no batch is dropped
        self.size = change.get("per_device_train_batch_size", self.size)
        self.batches = change.get("gradient_accumulation_steps", self.batches)
        if "max_steps" in change:
            self.steps, self.epochs = change["max_steps"], None
        self.epochs = change.get("num_train_epochs", self.epochs)
        self.total = self._end()
        if self.warm_end is not None:
            self.warm_end = self.step + (self.warm_end - self.step) * (self.total - self.step) / left
        if "warmup_steps" in change:
            never = not self.warmup < self.launched
            if never or self.time >= self.warmup or not self.step < change["warmup_steps"] <= self.total:
                return False
            self.warm_end = change["warmup_steps"]
        return True

    def advance(self) -> tuple[list[int], float]:
        """Does a step: the sizes of its batches, and its rate under a linear schedule."""
        if not self._next(self.used):
            self.epoch, self.used = self.epoch + 1, 0
        sizes = self._next(self.used)
        rate = RATE * self._shape(self.time)
        self._tick(1.0, self.step)
        self.used += sum(sizes)
        self.step += 1
        return sizes, rate

    def _tick(self, length: float, at: float) -> None:
        """Lets time pass, in a straight line to the end of the warm-up or of the run."""
        warms = self.warm_end is not None and at < self.warm_end
        end, time = (self.warm_end, self.warmup) if warms else (self.total, self.launched)
        part = min(length, end - at) if warms else length
        self.time = time if part == end - at else self.time + (time - self.time) * part / (end - at)
        if part < length:
            self._tick(length - part, at + part)

    def _shape(self, time: float) -> float:
        if time < self.warmup or self.launched <= self.warmup:
            return time / self.warmup
        return max(0.0, (self.launched - time) / (self.launched - self.warmup))


def train(
    lab: Lab, rows: int, changes: dict[int, list[Change]], resume: str | None = None, **options: Any
) -> tuple[Watched, Diary]:
    """Trains with requests at the ends of the given steps; `resume` is a checkpoint to go on from."""
    model = Watched(rows)
    diary = Diary(model)
    for step, asked in changes.items():
        for i, change in enumerate(asked):
            lab.tell(step, f"r{step}-{i}", set=change)
    chosen = {"learning_rate": RATE, "lr_scheduler_type": "linear", "weight_decay": 0.0, **options}
    lab.make(attached=True, rows=rows, model=model, callbacks=(diary,), **chosen)
    lab.trainer.train(resume_from_checkpoint=resume)
    return model, diary


def requests(rows: int) -> st.SearchStrategy[Change]:
    parameters: dict[str, st.SearchStrategy[Any]] = {
        "per_device_train_batch_size": st.integers(1, rows),
        "gradient_accumulation_steps": st.integers(1, 4),
    }
    return st.fixed_dictionaries({}, optional=parameters)


@st.composite
def trainings(draw: st.DrawFn) -> tuple[Plan, dict[int, list[Change]], dict[str, Any]]:
    rows = draw(st.integers(3, 24))
    size, batches = draw(st.integers(1, rows)), draw(st.integers(1, 3))
    drop_last = draw(st.booleans())
    epochs = draw(st.sampled_from([1, 2, 2.5, 3]))
    by_steps = draw(st.booleans())
    warmup = draw(st.integers(0, 4))
    options: dict[str, Any] = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": batches,
        "dataloader_drop_last": drop_last,
        "warmup_steps": warmup,
        "max_steps": draw(st.integers(2, 16)) if by_steps else -1,
        "num_train_epochs": epochs,
    }
    steps, ends = options["max_steps"], None if by_steps else epochs
    plan = Plan(rows, size, batches, ends, steps if by_steps else None, drop_last, warmup)
    asked: dict[int, list[Change]] = {}
    at = 0
    for _ in range(draw(st.integers(1, 4))):
        at += draw(st.integers(0 if at else 1, 4))
        change = draw(requests(rows))
        change |= {} if change else {"gradient_accumulation_steps": 1}
        kind = draw(st.integers(0, 5))
        if kind == 0:
            change["max_steps"] = at + draw(st.integers(1, 12))
        if kind == 1:
            change["num_train_epochs"] = draw(st.sampled_from([0.5, 1.25, 2, 3.5, 4]))
        if kind <= 2:
            change["warmup_steps"] = at + draw(st.integers(0, 5))
        asked.setdefault(at, []).append(change)
    return plan, asked, options
