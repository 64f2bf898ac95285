"""Live batch size, accumulation and number of steps, with exact data accounting, for a `Trainer`.

The order of an epoch's samples is fixed when the epoch begins; a change cuts what is left of it into other
batches. Until something is asked for, the trainer runs as it would alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from accelerate.utils import broadcast_object_list
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import IterableDataset
from transformers import ProgressCallback, SchedulerType, Trainer

from ftlab_mlflow.control.wire import new_id
from ftlab_mlflow.errors import ConfigError
from ftlab_mlflow.training.epoch_data import EpochData, why_fixed
from ftlab_mlflow.training.epoch_loop import EpochLoop
from ftlab_mlflow.training.ranks import said_if_it_takes_long
from ftlab_mlflow.training.schedule import LiveSchedule

logger = logging.getLogger("ftlab_mlflow")

_STEPS = ("max_steps", "num_train_epochs")


class LiveBatches:
    """How a trainer's samples become optimizer steps, and how many of those there are.

    Args:
        trainer: Before ``trainer.train()``; some of its methods are wrapped.

    Attributes:
        loop: The epochs of this training: steps done and to do.
        no_steps, no_batches: Why the number of steps, why the batches cannot be changed; None if they can.
        warmup: Steps of the schedule's warm-up as launched; 0 for one without, or of unknown length.
        schedule_total: Steps that the learning-rate schedule was built for.
        training: An id, the same on all ranks, that a training which resumes this one takes over.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._begin_as_launched()
        hooks: dict[str, Callable[..., Any]] = {
            "set_initial_training_values": self._on_values,
            "_init_training_state": self._on_state,
            "_prepare_for_training": self._on_prepare,
            "_run_epoch": lambda plain, **given: self.loop.run_epoch(plain, **given),
            "get_batch_samples": lambda plain, *given: self.loop.batches(plain, *given),
            "_maybe_log_save_evaluate": lambda plain, *a, **k: self.loop.step_done(plain, *a, **k),
            "_finalize_training": lambda plain, *given: self.loop.finalize(plain, *given),
        }
        for name, hook in hooks.items():
            setattr(trainer, name, partial(hook, getattr(trainer, name)))

    def _begin_as_launched(self) -> None:
        self.no_steps: str | None = None
        self.no_batches: str | None = None
        self.warmup = 0
        self.training = ""
        self._schedule: LiveSchedule | None = None
        self.schedule_total = 0
        self.loop = EpochLoop(self._trainer, None, 0)
        # The epochs that training ends with; None while the number of steps says it.
        self._epochs: float | None = None
        # What was asked for while training, of the four arguments that `_launch` holds.
        self._asked: frozenset[str] = frozenset()
        self._saved: Mapping[str, Any] | None = None
        self._launch: dict[str, Any] = {}
        self._relaunched: dict[str, Any] = {}
        # Whether the data have another length than before the resume.
        self._is_recounted = False

    # --- what is in force, and how it changes ------------------------------------------------------

    @property
    def batch_size(self) -> int:
        """Samples of a batch on one device."""
        return int(self._trainer.args.per_device_train_batch_size)

    @property
    def epochs(self) -> float:
        """The epochs that training ends with; those that its steps will take if their number was given."""
        if self._epochs is not None:
            return self._epochs
        left, of_this = self.loop.max_steps - self.loop.step, self.loop.steps_left(self.loop.done)
        if left > of_this:
            return self.loop.epoch + 1 + (left - of_this) / self.loop.steps_left(0)
        return self.epochs_done + ((1 - self.loop.done) * left / of_this if of_this else 0)

    @property
    def epochs_done(self) -> float:
        """Epochs done, with the share of the one that runs."""
        return self.loop.epoch + self.loop.done

    @property
    def warmup_left(self) -> int:
        """Steps until the warm-up has ended; 0 or less once it has, or without one."""
        return self._schedule.warmup_left if self._schedule else 0

    @property
    def samples(self) -> int:
        """Samples of an epoch."""
        return self.loop.data.total if self.loop.data else 0

    def set_batch_size(self, size: int) -> None:
        """Makes the next step use batches of this many samples on each device."""
        self._asked |= {"per_device_train_batch_size"}
        self._cut(lambda: self._write_batch_size(size))

    def set_accumulation(self, batches: int) -> None:
        """Makes the next step use this many batches."""
        self._asked |= {"gradient_accumulation_steps"}
        self._cut(lambda: setattr(self._trainer.args, "gradient_accumulation_steps", batches))

    def set_max_steps(self, steps: int) -> None:
        """Makes training end with this step."""
        self._asked |= {"max_steps"}
        self._epochs = None
        self._end_with(steps)

    def set_epochs(self, epochs: float) -> None:
        """Makes training end with this many epochs."""
        self._asked |= {"num_train_epochs"}
        self._epochs = epochs
        self._end_with(self.steps_of(epochs))

    def set_warmup_steps(self, step: int) -> None:
        """Makes the warm-up end with this step."""
        assert self._schedule is not None
        if not self.loop.step < step <= self.loop.max_steps:
            raise ValueError(
                f"must be above {self.loop.step}, the steps done, and at most {self.loop.max_steps}, the last"
            )
        self.loop.is_touched = True
        self._schedule.warm_up(step - self.loop.step, self.loop.max_steps - self.loop.step)

    def steps_of(self, epochs: float) -> int:
        """The step that training would end with after so many epochs."""
        part, whole = math.modf(epochs)
        in_epoch = self.loop.steps_left(0)
        if self.loop.epoch < whole:
            others = int(whole) - self.loop.epoch - 1
            return (
                self.loop.step
                + self.loop.steps_left(self.loop.done)
                + others * in_epoch
                + math.ceil(part * in_epoch)
            )
        return self.loop.step + max(0, math.ceil(round((epochs - self.epochs_done) * in_epoch, 9)))

    def capture(self) -> Any:
        """Everything that `restore` needs to undo later changes."""
        state = self._trainer.state
        arguments = (self.batch_size, self.loop.accumulation)
        steps = (state.max_steps, state.num_train_epochs)
        schedule = self._schedule.capture() if self._schedule else None
        return self.loop.capture(), self._epochs, self._asked, arguments, steps, schedule

    def restore(self, captured: Any) -> None:
        """Puts back what was in force at `capture`."""
        loop, self._epochs, self._asked, (size, batches), steps, schedule = captured
        self.loop.restore(loop)
        self._write_batch_size(size)
        self._trainer.args.gradient_accumulation_steps = batches
        self._trainer.state.max_steps, self._trainer.state.num_train_epochs = steps
        if self._schedule:
            self._schedule.restore(schedule)
        self._show_steps()

    # --- what a checkpoint holds, and how training goes on from it ---------------------------------

    def begin(self, schedule: LiveSchedule | None) -> None:
        """Training begins: the schedule's clock goes on, launch arguments that are new come into force."""
        self._schedule = schedule
        if schedule and self._saved:
            schedule.go_on(self._saved["clock"])
        apply: dict[str, Callable[[Any], None]] = {
            "per_device_train_batch_size": self.set_batch_size,
            "gradient_accumulation_steps": self.set_accumulation,
            "max_steps": self.set_max_steps,
            "num_train_epochs": self.set_epochs,
        }
        for name, value in self._relaunched.items():
            logger.warning("%s: the launch argument is new, %s is in force from here on", name, value)
            apply[name](value)
        if self._is_recounted and self._epochs is not None:
            logger.warning("There are %d samples now, in another order than before", self.samples)
            self._end_with(self.steps_of(self._epochs))
        self._asked -= set(self._relaunched)

    def give_back(self) -> None:
        """The next training of this trainer begins as this one was launched."""
        self._write_batch_size(self._launch["per_device_train_batch_size"])
        self._trainer.args.gradient_accumulation_steps = self._launch["gradient_accumulation_steps"]

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on, as JSON values."""
        trainer = self._trainer
        return {
            "data": self.loop.state(),
            "batch_size": self.batch_size,
            "accumulation": self.loop.accumulation,
            "max_steps": self.loop.max_steps,
            "epochs": self._epochs,
            "touched": self.loop.is_touched,
            "short": self.loop.is_short,
            "clock": self._schedule.clock_state() if self._schedule else None,
            "schedule_total": self.schedule_total,
            "launch": self._launch,
            "asked": sorted(self._asked),
            "training": self.training,
            "since": trainer._initial_global_step,
            "loss": trainer._total_loss_scalar + float(trainer._tr_loss),
        }

    def go_back(self, checkpoint: str, saved: Mapping[str, Any]) -> None:
        """The trainer was brought back to a checkpoint of this training: its data go back too."""
        trainer = self._trainer
        self._go_to(saved, checkpoint)
        self.loop.take_back()
        if self._schedule:
            self._schedule.go_on(saved["clock"])
        trainer._tr_loss.zero_()
        trainer._globalstep_last_logged = self.loop.step
        same = saved["since"] == trainer._initial_global_step
        trainer._total_loss_scalar = saved["loss"] if same else 0.0
        trainer._initial_global_step = saved["since"] if same else self.loop.step
        self._show_steps()

    def _go_to(self, saved: Mapping[str, Any], checkpoint: str) -> None:
        self._trainer.state.max_steps = saved["max_steps"]
        self._epochs = saved["epochs"]
        self._asked = frozenset(saved["asked"])
        self.loop.is_touched = True
        self.loop.is_short = saved["short"]
        if self.loop.data:
            self._write_batch_size(saved["batch_size"])
            self._trainer.args.gradient_accumulation_steps = saved["accumulation"]
            self.loop.go_to(saved["data"], checkpoint)

    # --- hooks of the trainer, in the order of a training --------------------------------------------

    def _on_values(self, plain: Callable[..., Any], args: Any, loader: Any) -> Any:
        """Training begins, perhaps not for the first time: everything is as launched."""
        values = plain(args, loader)
        self._begin_as_launched()
        with said_if_it_takes_long():
            self.training = broadcast_object_list([new_id()])[0]
        self._launch = {
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "max_steps": args.max_steps,
            "num_train_epochs": args.num_train_epochs,
        }
        self._epochs = None if args.max_steps > 0 else float(args.num_train_epochs)
        streamed = isinstance(loader.dataset, IterableDataset) or not hasattr(loader, "__len__")
        self.no_steps = "the training data are a stream without a length" if streamed else None
        self.no_batches = self.no_steps or self._why_fixed(loader)
        self.loop = EpochLoop(self._trainer, None if self.no_batches else EpochData(loader), values[1])
        return values

    def _why_fixed(self, loader: Any) -> str | None:
        trainer = self._trainer
        if hasattr(trainer, "num_generations"):
            return "the completions that are generated for several steps at once are tied to the batches"
        if trainer.args.auto_find_batch_size:
            return "auto_find_batch_size chooses the size of a batch"
        if trainer.is_deepspeed_enabled:
            return "DeepSpeed is set up for one batch size"
        return why_fixed(loader, trainer._train_batch_size)

    def _on_state(
        self, plain: Callable[..., Any], max_steps: int, updates: int, epochs: int, *rest: Any
    ) -> tuple[int, int]:
        """The trainer reads a checkpoint's state: where the data go on is known exactly by our own."""
        begun: tuple[int, int] = plain(max_steps, updates, epochs, *rest)
        self.schedule_total = max_steps
        self.loop.epoch = begun[0]
        checkpoint, data = rest[0], self.loop.data
        saved = saved_control(self._trainer.state).get("batches") if checkpoint else None
        self.training = (saved or {}).get("training", self.training)
        if not saved or self.no_steps:
            return begun
        if (saved["data"] is None) != (data is None):
            if saved["touched"] and saved["data"]:
                raise ConfigError(
                    f"the batches were changed, and cannot go on where they were: {self.no_batches}"
                )
            return begun
        self._relaunched = self._new_arguments(saved["launch"], set(saved["asked"]))
        skips = not self._trainer.args.ignore_data_skip
        if not saved["touched"] and not self._relaunched:
            if data and skips:
                data.load(saved["data"], self._trainer.args.train_batch_size, self.loop.epoch)
            return begun
        self._saved = saved
        self.schedule_total = saved["schedule_total"]
        self._go_to(saved, checkpoint)
        self._is_recounted = data is not None and saved["data"]["total"] != data.total
        if self.loop.step >= self.loop.max_steps and not set(_STEPS).isdisjoint(self._relaunched):
            # It had ended, and so has its schedule: what is launched now has one of its own.
            steps = self._relaunched.get("max_steps")
            self.schedule_total = steps or self.steps_of(self._relaunched["num_train_epochs"])
            self._saved = {**saved, "clock": None}
        if data and not skips:
            data.begin(0, self._trainer.args.train_batch_size)
        # The trainer's own range of epochs is that of the launch arguments: `EpochLoop` counts its own.
        return min(self.loop.epoch, epochs - 1), begun[1]

    def _new_arguments(self, before: Mapping[str, Any], changed: set[str]) -> dict[str, Any]:
        """Launch arguments that differ from those before, where nothing asked for since wins over them."""
        known = self._launch if self.loop.data else _STEPS  # else they are what the dataloader was made with
        new = {name: self._launch[name] for name in known if self._launch[name] != before[name]}
        for name in set(new) & changed:
            logger.warning("%s: what was asked for while it trained wins over the launch argument", name)
            del new[name]
        if not set(_STEPS).isdisjoint(new):
            new = {name: value for name, value in new.items() if name not in _STEPS}
            if changed.isdisjoint(_STEPS):
                governs = "max_steps" if self._launch["max_steps"] > 0 else "num_train_epochs"
                new[governs] = self._launch[governs]
        return new

    def _on_prepare(self, plain: Callable[..., Any], max_steps: int, *rest: Any) -> Any:
        # All that depends on this number is the schedule, which a checkpoint may know better.
        prepared = plain(self.schedule_total, *rest)
        trainer = self._trainer
        ours = trainer._created_lr_scheduler and isinstance(trainer.lr_scheduler, LambdaLR)
        if ours and trainer.args.lr_scheduler_type != SchedulerType.CONSTANT:
            self.warmup = trainer.args.get_warmup_steps(self.schedule_total)
        return prepared

    # --- inside ------------------------------------------------------------------------------------

    def _cut(self, change: Callable[[], None]) -> None:
        self.loop.cut(change)
        self._end_with(self.loop.max_steps if self._epochs is None else self.steps_of(self._epochs))

    def _write_batch_size(self, size: int) -> None:
        trainer = self._trainer
        trainer.args.per_device_train_batch_size = size
        trainer._train_batch_size = trainer.state.train_batch_size = trainer.args.train_batch_size

    def _end_with(self, steps: int) -> None:
        state = self._trainer.state
        left_before, left = state.max_steps - self.loop.step, steps - self.loop.step
        self.loop.is_touched = True
        if left != left_before:
            state.max_steps = steps
            if self._schedule and left_before > 0:
                self._schedule.stretch(left_before, left)
        state.num_train_epochs = math.ceil(round(self.epochs, 9))
        self._show_steps()

    def _show_steps(self) -> None:
        for callback in self._trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
                callback.training_bar.total = self.loop.max_steps
                callback.training_bar.n = callback.current_step = min(callback.current_step, self.loop.step)
                callback.training_bar.refresh()


def saved_control(state: Any) -> dict[str, Any]:
    """What a trainer's state, as read from a checkpoint, holds of live control; empty without."""
    stored = state.stateful_callbacks.get("LiveControl") or {}
    if isinstance(stored, list):
        stored = stored[0]
    return dict(stored.get("attributes", {}).get("saved") or {})
