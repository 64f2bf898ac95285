"""Runs a `Trainer`'s epochs: as the trainer would alone, and in segments once something was changed.

A segment is a call of the trainer's own `_run_epoch` with a dataloader over what is left of the epoch. It is
left by an exception, before a batch of the next step is fetched.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers import DefaultFlowCallback, Trainer

from ftlab_mlflow.training.epoch_data import EpochData

_OWN = ("epoch", "is_touched", "_rounds", "_is_cut", "_is_back", "_checkpoint")


class _CutAnew(Exception):
    """What is left of the epoch is to be cut into other batches."""


class _PartOfEpoch(int):
    """The number of an epoch of which a share is done; the trainer adds to it the share of the rest."""

    left: float

    def __new__(cls, epoch: int, done: float) -> _PartOfEpoch:
        part = super().__new__(cls, epoch)
        part.left = 1 - done
        return part

    def __add__(self, share: float) -> float:  # type: ignore[override]
        return int(self) + 1 - self.left * (1 - share)


class EpochLoop:
    """The epochs of one training.

    Args:
        trainer: In training. data: Its data; None if its batches cannot be cut.
        updates: Optimizer steps in an epoch as launched.

    Attributes:
        epoch: The epoch now, from 0.
        is_touched: Whether something was changed: then all further epochs are run here.
        is_short: Whether an epoch was ended early: then its steps are missing at the end, as without us.
    """

    def __init__(self, trainer: Trainer, data: EpochData | None, updates: int) -> None:
        self._trainer = trainer
        self.data = data
        self._updates = updates
        self.epoch = 0
        self.is_touched = False
        # Batches a rank since the data were cut last; samples over all ranks in this training.
        self._rounds = self._seen = 0
        # Whether the rest of the epoch must be cut anew; whether the step done was taken back.
        self._is_cut = self._is_back = False
        self.is_short = False
        # Where the random state of the next batch is.
        self._checkpoint: str | None = None

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self._trainer.state.global_step)

    @property
    def max_steps(self) -> int:
        """The step that training ends with."""
        return int(self._trainer.state.max_steps)

    @property
    def accumulation(self) -> int:
        """Batches of a step."""
        return int(self._trainer.args.gradient_accumulation_steps)

    @property
    def done(self) -> float:
        """The share of the epoch that is done."""
        if self.data:
            return self.data.used(self._rounds) / self.data.total
        return min(1.0, self._rounds / (self._updates * self.accumulation))

    def steps_left(self, done: float) -> int:
        """Steps of what is left of an epoch."""
        if self.data is None:
            return math.ceil(round((1 - done) * self._updates, 9))
        samples = self.data.total - round(done * self.data.total)
        rounds = self.data.rounds(samples, self._size)
        return max(math.ceil(rounds / self.accumulation), 0 if done else 1)

    def capture(self) -> Any:
        """Everything that `restore` needs to undo later changes."""
        data = copy.copy(self.data.__dict__) if self.data else {}
        return {name: self.__dict__[name] for name in _OWN}, data

    def restore(self, captured: Any) -> None:
        """Puts back what was in force at `capture`."""
        own, data = captured
        self.__dict__.update(own)
        if self.data:
            self.data.__dict__.update(data)

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint must hold of the data, as JSON values."""
        if self.data is None:
            return None
        is_over = self._trainer.control.should_epoch_stop
        return self.data.state(self.epoch, self.data.total if is_over else self.data.used(self._rounds))

    def cut(self, change: Callable[[], None]) -> None:
        """Makes a change of what a batch or a step is, and the next step the first that follows it."""
        assert self.data is not None
        used = self.data.used(self._rounds)
        if not self.data.rounds(self.data.total - used, self._size):
            used = self.data.total  # the epoch ends with this step: a rest that makes no batch is dropped
        change()
        self.data.begin(used, self._size)
        self._rounds = 0
        self._is_cut = self.is_touched = True

    def go_to(self, data_state: Mapping[str, Any], checkpoint: str) -> None:
        """Goes on at the sample that a checkpoint was written at, with its random state."""
        assert self.data is not None
        self.epoch = self.data.load(data_state, self._size, self.epoch)
        self._checkpoint = checkpoint
        self._is_cut = True
        self._rounds = 0

    def take_back(self) -> None:
        """The step done was taken back by `go_to`: nothing is logged, evaluated or saved for it."""
        # At once: a checkpoint that is written before the next batch must hold it.
        self._trainer._load_rng_state(self._checkpoint)
        self._checkpoint = None
        self._is_back = True
        control = self._trainer.control
        control.should_log = control.should_evaluate = control.should_save = False
        control.should_training_stop = control.should_epoch_stop = False

    @property
    def _size(self) -> int:
        return int(self._trainer.args.train_batch_size)

    # --- in place of the trainer's own methods, which are given as `plain` -------------------------------

    def run_epoch(self, plain: Callable[..., None], **given: Any) -> None:
        """The trainer runs an epoch. Once something was changed, also all those that come after."""
        if self.step >= self.max_steps:  # resumed from the last step: the trainer alone would train one more
            self._trainer.control.should_training_stop = True
            return
        if not self._is_cut:
            if not self.is_touched:
                self.epoch = given["epoch"]
            resumes = given["resume_from_checkpoint"] and given["epoch"] == given["epochs_trained"]
            skipped = given["steps_trained_in_current_epoch"] if resumes else 0
            self._rounds = skipped
            if self.data:
                self.data.begin(0, self._size)
            if self.is_touched and resumes:
                given["epochs_trained"] = self.epoch
            try:
                plain(**given | {"epoch": self.epoch})
            except _CutAnew:
                pass
            else:
                if not self._next_epoch():
                    return
        while self.step < self.max_steps:
            self._rest_of_epoch(plain, given)
            if not self._next_epoch():
                return
        self._trainer.control.should_training_stop = True

    def _next_epoch(self) -> bool:
        """Whether another epoch is ours to run; then it has begun."""
        trainer = self._trainer
        self.is_short |= trainer.control.should_epoch_stop
        is_last = self.is_short and self.epoch + 1 >= trainer.state.num_train_epochs
        over = trainer.control.should_training_stop or self.step >= self.max_steps or is_last
        if over or not self.is_touched:
            trainer.control.should_training_stop |= over
            return False
        self.epoch += 1
        self._rounds = 0
        if self.data:
            self.data.begin(0, self._size)
        trainer.control = trainer.callback_handler.on_epoch_begin(
            trainer.args, trainer.state, trainer.control
        )
        return True

    def _rest_of_epoch(self, plain: Callable[..., None], given: Mapping[str, Any]) -> None:
        trainer = self._trainer
        anew: dict[str, Any] = {"resume_from_checkpoint": None, "epoch": self.epoch}
        if self.data is None:
            plain(**{**given, **anew})
            return
        while True:
            self._is_cut = self._is_back = False
            if self._checkpoint:
                trainer._load_rng_state(self._checkpoint)
                self._checkpoint = None
            rest = self.data.rest(self.epoch)
            updates = math.ceil(len(rest) / self.accumulation)
            if not updates:  # the new batches are larger than what is left, which is dropped
                self._end_epoch(given)
                return
            anew |= {
                "train_dataloader": rest,
                "steps_in_epoch": len(rest),
                "num_update_steps_per_epoch": updates,
            }
            try:
                plain(**{**given, **anew, "epoch": _PartOfEpoch(self.epoch, self.done)})
                return
            except _CutAnew:
                rest.drop()

    def _end_epoch(self, given: Mapping[str, Any]) -> None:
        trainer = self._trainer
        trainer.control = trainer.callback_handler.on_epoch_end(trainer.args, trainer.state, trainer.control)
        rest = (given[name] for name in ("model", "trial", "epoch", "ignore_keys_for_eval", "start_time"))
        trainer._maybe_log_save_evaluate(trainer._tr_loss, None, *rest)

    def batches(self, plain: Callable[..., Any], *given: Any) -> Any:
        """The trainer fetches the batches of a step; it leaves the epoch where the rest is to be cut anew."""
        if self._is_cut:
            raise _CutAnew
        batches, items = plain(*given)
        before = self.data.used(self._rounds) if self.data else 0
        self._rounds += len(batches)
        self._seen += self.data.used(self._rounds) - before if self.data else 0
        return batches, items

    def step_done(self, plain: Callable[..., None], *given: Any, **named: Any) -> None:
        """The trainer has done a step, and may log, evaluate and save."""
        trainer = self._trainer
        if not trainer.control.should_training_stop:
            if self._is_back:
                raise _CutAnew
            if self._is_cut and self.step >= self.max_steps:
                # A change made it the last step, after all had looked.
                DefaultFlowCallback().on_step_end(trainer.args, trainer.state, trainer.control)
        plain(*given, **named)

    def finalize(self, plain: Callable[..., Any], trial: Any, samples: float, start_time: float) -> Any:
        """The trainer sums up: its samples are those that were really used."""
        if self.is_touched and self.data:
            # The trainer takes its share of what was planned at launch.
            steps = max(1, self.step - self._trainer._initial_global_step)
            samples = self._seen * max(self.max_steps, 1) / steps
        return plain(trial, samples, start_time)
