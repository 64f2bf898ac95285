"""What a page that shows one run keeps between two looks: the record, and series that only grow."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from ftlab_mlflow.analytics.reader import RunReader, RunRecord
from ftlab_mlflow.analytics.series import Series, joined, reduce, unsettled_from
from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.messages import Status
from ftlab_mlflow.control.tags import STATUS
from ftlab_mlflow.control.view import RunView
from ftlab_mlflow.errors import MessageError, RunNotFound, StoreError, StoreUnavailable

NEWS = 5000
"""News of up to so many values are put behind what is known; for more the series is read again."""
ENDED_FRESH_S = 30.0
"""A run that has ended is looked at so seldom, for it may be resumed."""
_POOL = ThreadPoolExecutor(10, "read series")
"""Reads series side by side, for all feeds: by as many connections as MLflow keeps to a server, since one
that has just been used answers 40 ms late (benchmarks/README.md)."""
_FIRST = threading.BoundedSemaphore(4)
"""Whole series at once: each may keep the store busy for half a second, and pages draw them as they come."""


@dataclass(frozen=True)
class _Look:
    """The record with what tells whether series have moved.

    Attributes:
        moved: Differs when values may have come that leave the last one as it was.
        step: The trainer's, where it says so.
        course: Differs when steps may come again: after a restart, after a rollback.
    """

    record: RunRecord
    at: datetime
    moved: object
    step: int | None
    course: object


@dataclass(frozen=True)
class _Kept:
    """A series: what is `settled` below the step `start`, and all of it as it is `shown`."""

    settled: Series
    start: int
    shown: Series
    points: int
    seen: object
    course: object


class RunFeed:
    """One run for any number of viewers. Every call may be made from any thread.

    Args:
        fresh_s: Looks within so many seconds of the last one find what that one found.
    """

    def __init__(self, reader: RunReader, run_id: str, fresh_s: float = 1.0) -> None:
        self.run_id = run_id
        self._reader = reader
        self._fresh_s = fresh_s
        self._look: _Look | None = None
        self._asked: float | None = None
        self._trouble: StoreError | None = None
        self._kept: dict[str, _Kept] = {}
        self._looking = threading.Lock()
        self._reading: dict[str, threading.Lock] = {}

    @property
    def record(self) -> RunRecord | None:
        """The run at the last look that succeeded."""
        return self._look.record if self._look else None

    def view(self) -> RunView:
        """The run as it was at `read_at`: a heartbeat that was not read yet does not make it lost.

        Raises:
            RunNotFound: It was never read.
        """
        if self._look is None:
            raise RunNotFound(f"run {self.run_id} was not read yet")
        return replace(RunView.of(self._look.record.data), now=self._look.at)

    @property
    def read_at(self) -> datetime | None:
        """When that was, in UTC."""
        return self._look.at if self._look else None

    @property
    def trouble(self) -> StoreError | None:
        """Why the last read failed, of the record or of a series; None if it did not."""
        return self._trouble

    def refresh(self) -> None:
        """Looks at the run again.

        Raises:
            StoreUnavailable: The tracking store does not answer. What was read before stays.
            RunNotFound, StoreError: As the reader does.
        """
        with self._looking:
            if self._asked is not None and time.monotonic() - self._asked < self._patience():
                if self._trouble:
                    raise type(self._trouble)(str(self._trouble)) from self._trouble
                return
            try:
                record = self._reader.record(self.run_id)
            except StoreError as error:
                self._trouble = error
                raise
            finally:
                self._asked = time.monotonic()
            self._look = _look(record)
            self._trouble = None

    def _patience(self) -> float:
        is_over = self._look is not None and self._look.record.data.ended is not None
        return max(self._fresh_s, ENDED_FRESH_S) if is_over and not self._trouble else self._fresh_s

    def series(self, key: str, points: int = 1000) -> Series | None:
        """A metric as of the last `refresh`, or a little newer; None if the run has none of this name.

        Args:
            points: How many values at most; more are reduced as `analytics.series.reduce` does.

        Raises:
            StoreUnavailable: It was never read, and the tracking store does not answer. What was read before
                is given all the same, and `trouble` says why it is old.
            RunNotFound, StoreError: As the reader does.
        """
        if self._look is None:
            self.refresh()
        with self._reading.setdefault(key, threading.Lock()):
            look, kept = self._look, self._kept.get(key)
            assert look is not None
            value = look.record.data.metrics.get(key)
            if value is None:
                return None
            seen = (repr(value), look.record.data.logged_at.get(key), look.moved, look.course)
            is_enough = kept is not None and kept.points >= points
            if kept and ((is_enough and kept.seen == seen) or self._trouble):
                return reduce(kept.shown, points)
            if self._trouble:  # one wait for a store that is away is enough
                raise type(self._trouble)(str(self._trouble)) from self._trouble
            try:
                news = self._continued(key, kept, look, seen) if kept and is_enough else None
                if news is None:
                    with _FIRST:
                        news = self._begun(key, points, look, seen)
                kept = news
            except StoreUnavailable as error:
                self._trouble = error
                if kept is None:
                    raise
            if kept is None:
                return None
            self._kept[key] = kept
            return reduce(kept.shown, points)

    def read_ahead(self, keys: Iterable[str], points: int = 1000) -> dict[str, Future[Series | None]]:
        """Begins to read several metrics side by side; each one's result is what `series` gives or raises."""
        return {key: _POOL.submit(self.series, key, points) for key in keys}

    def _read(self, key: str, points: int, after: int | None = None) -> Series | None:
        return self._reader.series([self.run_id], key, points=points, after=after).get(self.run_id)

    def _begun(self, key: str, points: int, look: _Look, seen: object) -> _Kept | None:
        whole = self._read(key, points)
        if whole is None:
            return None
        start = _unsettled_from(whole, look.step)
        settled = _part(whole, whole.steps < start)
        if whole.total > len(whole.steps) and (rest := self._read(key, points, start - 1)):
            settled = replace(settled, total=max(settled.total, whole.total - rest.total))
        return _Kept(settled, start, whole, points, seen, look.course)

    def _continued(self, key: str, kept: _Kept, look: _Look, seen: object) -> _Kept | None:
        """With what came since; None where the series is to be read again."""
        if kept.course != look.course:
            return None
        rest = self._read(key, NEWS, kept.start - 1)
        if rest is None or rest.total > len(rest.steps):
            return None
        start = max(kept.start, _unsettled_from(rest, look.step))
        settled = joined(kept.settled, _part(rest, rest.steps < start))
        if len(settled.steps) > 2 * kept.points:
            settled = reduce(settled, kept.points)
        shown = reduce(joined(settled, _part(rest, rest.steps >= start)), kept.points)
        return _Kept(settled, start, shown, kept.points, seen, look.course)


def _look(record: RunRecord) -> _Look:
    tags, now = record.data.tags, datetime.now(UTC)
    status = None
    if STATUS in tags:
        with suppress(MessageError):  # as good as none: values are then read at every look
            status = Status.decode(tags[STATUS])
    entries = Ledger.read(tags).entries
    rollbacks = frozenset(
        entry.id
        for entry in entries
        if entry.update and entry.update.command == "rollback" and entry.ack and entry.ack.status == "applied"
    )
    moved: object = "ended" if record.data.ended else status.step if status else now
    step = status.step if status else None
    return _Look(record, now, moved, step, (status and status.session, rollbacks))


def _unsettled_from(series: Series, step: int | None) -> int:
    start = unsettled_from(series)
    return start if step is None else min(start, step)


def _part(series: Series, where: NDArray[np.bool_]) -> Series:
    return replace(series.taken(where), total=int(where.sum()))
