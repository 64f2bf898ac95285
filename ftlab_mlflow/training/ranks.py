"""Several ranks, one training: how they meet, and do the same at the same step because the leader says so.

They meet at steps that the leader names: one all-reduce of three numbers each time, nothing in between.
At a meeting the leader may have the others do what it does itself, as often as it likes, before all go on.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from ftlab_mlflow.errors import RankError, RanksDiverged, RanksLost
from ftlab_mlflow.training.host import Host, WentBack
from ftlab_mlflow.training.signals import StopSignals
from ftlab_mlflow.training.tunable import Tunable
from ftlab_mlflow.training.values import error_text

logger = logging.getLogger("ftlab_mlflow")

KEEP_ALIVE_S = 5.0
"""How often a paused leader lets all hear of it, and hears of their signals; oftener with a short timeout."""
_PATIENCE_S = 60.0
"""Seconds after which a rank that waits for the others at the beginning says so."""

_WAIT, _DO, _GO_ON = range(3)
_SPLITS = frozenset({"restore", "stop", "rollback"})
"""What leaves the ranks with different weights or rates if only some of them can do it."""


class Agreement(NamedTuple):
    """How the ranks of a training agree.

    Attributes:
        sync_steps: Optimizer steps between two meetings at most.
        timeout_s: Seconds after which a rank that does not answer is given up.
    """

    sync_steps: int
    timeout_s: float


class Hand:
    """What one rank does when the leader says so. Every public method can be called by its name.

    Attributes:
        stopped: Whether the training was told to end.
        refused: Why the training must not begin, or None.
    """

    def __init__(self, tunables: Mapping[str, Tunable], host: Host) -> None:
        self._tunables = tunables
        self._host = host
        self._captured: dict[str, Any] = {}
        self._written: str | None = None
        self.stopped = False
        self.refused: str | None = None

    def capture(self, name: str) -> None:
        self._captured[name] = self._tunables[name].capture()

    def restore(self, name: str) -> None:
        self._tunables[name].restore(self._captured[name])

    def apply(self, name: str, value: Any) -> Any:
        tunable = self._tunables[name]
        tunable.apply(value)
        return tunable.read()

    def load(self, name: str, saved: Any) -> Any:
        tunable = self._tunables[name]
        (tunable.load or tunable.apply)(saved)
        return tunable.read()

    def checkpoint(self) -> str:
        self._written = None
        self._written = self._host.checkpoint()
        return self._written

    def discard(self) -> None:
        """Removes the checkpoint just written, because another rank's part of it is missing."""
        if self._written is not None:
            shutil.rmtree(self._written, ignore_errors=True)

    def evaluate(self) -> Mapping[str, float]:
        return self._host.evaluate()

    def stop(self) -> None:
        self._host.stop()
        self.stopped = True

    def rollback(self, checkpoint: str | None) -> WentBack:
        assert self._host.rollback is not None, "rollback is not offered"
        return self._host.rollback(checkpoint)

    def refuse(self, reason: str) -> None:
        self.refused = reason


class Ranks:
    """All ranks of a training, seen from one of them. They talk over a gloo group of their own.

    Attributes:
        leads: Whether this rank is the one that decides.

    Args:
        hand: What this rank can do. signals: Of this rank; one that it hears of is told to all.
        timeout_s: Seconds after which a rank that does not answer is given up.
    """

    def __init__(self, hand: Hand, signals: StopSignals, timeout_s: float) -> None:
        self.leads = dist.get_rank() == 0
        self._hand = hand
        self._signals = signals
        self._keep_alive_s = min(KEEP_ALIVE_S, timeout_s / 3)
        self._spoke_at = time.monotonic()
        self._lost: str | None = None
        self._diverged: str | None = None
        self._group: dist.ProcessGroup | None = None
        with suppress(RanksLost), said_if_it_takes_long(), self._line():
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    # --- the leader ------------------------------------------------------------------------------

    def call(self, what: str, *args: Any) -> Any:
        """Does the same on every rank, and returns this rank's result when all are done.

        Raises:
            RankError: A rank could not, or what is in force afterwards differs from rank to rank.
            RanksLost: A rank does not answer.
        """
        self._meet(_DO)
        return self._do((what, args))

    def keep_alive(self) -> None:
        """Keeps the waiting ranks from giving up. Call it often; mostly it does nothing."""
        if time.monotonic() - self._spoke_at >= self._keep_alive_s:
            self._meet(_WAIT)

    def go_on(self, meet_at: int) -> None:
        """Lets all ranks train on, to meet again at a step.

        Raises:
            RanksLost: A rank does not answer.
            RanksDiverged: The ranks are no longer in the same state: the training must end.
        """
        self._meet(_GO_ON, meet_at)
        self._raise_if_diverged()

    # --- the others ------------------------------------------------------------------------------

    def follow(self) -> int:
        """Does what the leader says, until it says to go on; returns the step of the next meeting.

        Raises:
            RanksLost, RanksDiverged: As `go_on`.
        """
        while True:
            what, meet_at = self._meet()
            if what == _GO_ON:
                self._raise_if_diverged()
                return meet_at
            if what == _DO:
                self._do()

    # --- both ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Gives the group back."""
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)

    def _meet(self, what: int = -1, number: int = -1) -> tuple[int, int]:
        """The leader's word to all, and all ranks' signals to all."""
        message = torch.tensor([what, number, self._signals.received or 0], dtype=torch.int64)
        with self._line():
            dist.all_reduce(message, dist.ReduceOp.MAX, group=self._group)
        what, number, received = message.tolist()
        self._spoke_at = time.monotonic()
        if received:
            self._signals.hear(received)
        return what, number

    def _do(self, order: tuple[str, tuple[Any, ...]] | None = None) -> Any:
        orders = [order]
        with self._line():
            dist.broadcast_object_list(orders, 0, group=self._group)
        assert orders[0] is not None
        what, args = orders[0]
        result = error = None
        try:
            result = getattr(self._hand, what)(*args)
        except Exception as raised:
            error = raised
            if not self.leads:
                logger.exception("Rank %d: %s failed", dist.get_rank(), what)
        answer = (error and error_text(error), repr(result) if what in ("apply", "load") else "")
        answers: list[Any] = [None] * dist.get_world_size(self._group)
        with self._line():
            dist.all_gather_object(answers, answer, group=self._group)
        problem = self._judge(what, answers)
        if problem and self.leads:
            raise RankError(problem) from error
        return result

    def _judge(self, what: str, answers: list[tuple[str | None, str]]) -> str | None:
        """What is wrong with the ranks' answers to one call, the same on every rank."""
        errors = {rank: error for rank, (error, _) in enumerate(answers) if error is not None}
        if errors:
            same = len(errors) == len(answers) and len(set(errors.values())) == 1
            problem = errors[0] if same else "; ".join(f"rank {i}: {text}" for i, text in errors.items())
            if what in _SPLITS and len(errors) < len(answers):
                self._diverged = f"{what} failed on some ranks only: {problem}"
            return problem
        if len({read for _, read in answers}) > 1:
            return "differs: " + ", ".join(
                f"rank {rank} has {read}" for rank, (_, read) in enumerate(answers)
            )
        return None

    def _raise_if_diverged(self) -> None:
        if self._diverged:
            raise RanksDiverged(self._diverged)

    @contextmanager
    def _line(self) -> Iterator[None]:
        if self._lost:
            raise RanksLost(self._lost)
        try:
            yield
        except RuntimeError as error:  # torch's for a connection that is closed, and for a timeout
            self._lost = f"the ranks cannot be reached any more: {error}"
            self._signals.remove()  # nothing would be done about one
            raise RanksLost(self._lost) from error


@contextmanager
def said_if_it_takes_long() -> Iterator[None]:
    """A rank that waits for the others at the beginning says so after a while: they may never come."""
    text = "Live control waits for the other ranks: is it attached on every one of them?"
    timer = threading.Timer(_PATIENCE_S, logger.warning, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
