"""`RunTable`: all runs of a tracking store as rows, kept fresh with few reads, for all who look at it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import datetime

from ftlab_mlflow.analytics.reader import RunReader, RunRecord
from ftlab_mlflow.analytics.run_rows import (
    MODEL_PARAMS,
    GroupBy,
    Options,
    RunRow,
    filtered,
    grouped,
    logged_best,
    options,
    ordered,
    row_of,
)
from ftlab_mlflow.analytics.run_series import FromSeries, finite, smallest
from ftlab_mlflow.control.store import NOT_ENDED
from ftlab_mlflow.control.view import RunView
from ftlab_mlflow.control.wire import utc_now
from ftlab_mlflow.errors import RunNotFound, StoreError

__all__ = ["GroupBy", "Options", "RunRow", "RunTable", "filtered", "grouped", "options", "ordered"]

SPARKLINE_POINTS = 40
_REREAD = 5
"""A series of a run that goes on is read again after so many times the seconds between two refreshes."""
_FIRST_PAGE = 50
_PAGE = 100
_NEWEST = 20
_LINES_AT_ONCE = 25
_AT_ONCE = 100
"""Runs that are read in one go, where each costs."""
_BUDGET_S = 0.5
"""Seconds after which a refresh leaves the rest of a long reading to the next one."""
_POOL = ThreadPoolExecutor(8, "read runs")
"""Reads beside the pages; for all tables."""
_VISIT_S = 5.0
"""Seconds after the last look for which a long reading goes on."""


class RunTable:
    """All runs of a tracking store that are not deleted. Every call may be made from any thread.

    The first refresh reads the newest runs and the next ones read the others, page by page. Then a refresh
    reads the newest runs, those that go on, and those that have ended since the last one; every minute a
    sweep begins to read all of them again, one page a refresh.

    Args:
        reader: The tracking store.
        fresh_s: Seconds for which what was read is fresh enough: refreshes within it read nothing.
        sweep_s: Seconds after which all runs are read again, for those that were deleted, renamed or tagged.
        patience_s: Seconds that `look` and `series_for` wait for what they read where there is something to
            show.

    Attributes:
        problem: Why the last read failed; None if it did not. The rows are those of the read before.
        read_at: When the store was last read; None before.
        is_complete: Whether every run has been read once.
    """

    def __init__(
        self, reader: RunReader, *, fresh_s: float = 2.0, sweep_s: float = 60.0, patience_s: float = 0.5
    ) -> None:
        self.problem: StoreError | None = None
        self.read_at: datetime | None = None
        self.is_complete = False
        self._reader = reader
        self._fresh_s = fresh_s
        self._sweep_s = sweep_s
        self._lock = threading.Lock()
        self._looking = _Beside(patience_s)
        self._drawing = _Beside(patience_s)
        self._looked_at = self._visited_at = -math.inf
        self._known: dict[str, _Known] = {}  # replaced as a whole, so that it can be read without the lock
        self._sweep: _Sweep | None = _Sweep()
        self._sweep_due = 0.0
        reread_s = _REREAD * fresh_s
        self._bests = FromSeries(reader, ("eval_loss",), 20, reread_s, smallest)
        self._lines = FromSeries(reader, ("loss", "train_loss"), SPARKLINE_POINTS, reread_s, finite)

    def refresh(self) -> None:
        """Reads what may have changed. Never raises for the store: that is `problem`.

        While another thread reads, it returns at once, unless nothing has been read yet.
        """
        if not self._lock.acquire(blocking=self.read_at is None):
            return
        try:
            is_fresh = time.monotonic() - self._looked_at < self._fresh_s
            if is_fresh and (self.is_complete or self.problem):
                return
            self._read(look=not is_fresh)
            self.problem, self.read_at = None, utc_now()
        except StoreError as error:
            self.problem, self._looked_at = error, time.monotonic()
        finally:
            self._lock.release()

    def look(self) -> None:
        """Refreshes in a thread of its own, until everything has been read or nobody looks any more.

        It waits for the first rows; later for that thread, if it began it, while its patience lasts.
        """
        self._visited_at = time.monotonic()
        if self.read_at is None:
            self.refresh()
        if self.problem is None and not self.is_complete:
            self._looking.begin(self._read_on)
        else:
            self._looking.run(self._read_on)

    def _read_on(self) -> None:
        self.refresh()
        while not self.is_complete and self.problem is None:
            if time.monotonic() - self._visited_at > _VISIT_S:
                return
            self.refresh()

    def rows(self) -> list[RunRow]:
        """All runs that have been read, newest first; ages and ETAs are those of `read_at`.

        Not of now: a heartbeat that was not read yet makes no run lost.
        """
        rows = [self._row(known) for known in self._known.values()]
        return sorted(rows, key=lambda row: (-row.started.timestamp() if row.started else 0.0, row.run_id))

    def view(self, run_id: str) -> RunView:
        """A run of the table, without its requests. Raises: RunNotFound: it is not in the table."""
        if known := self._known.get(run_id):
            return self._view(known)
        raise RunNotFound(f"no run {run_id} in the table")

    def _view(self, known: _Known) -> RunView:
        return replace(known.view, now=self.read_at or known.view.now)

    def series_for(self, run_ids: Iterable[str]) -> dict[str, tuple[float, ...]]:
        """About 40 finite losses of each of these runs (as many as are shown), read if need be.

        They keep the extremes. Empty where there are none, and where they are not read yet, which goes on in
        a thread of its own. A failure becomes `problem`.
        """
        records = [known.record for run_id in run_ids if (known := self._known.get(run_id))]
        if self.problem is None and self._lines.due(records):  # a store that is away is not waited for again
            self._drawing.run(lambda: self._read_lines(records))
        return {record.data.run_id: self._lines.of(record.data.run_id) or () for record in records}

    def _read_lines(self, records: Sequence[RunRecord]) -> None:
        due = self._lines.due(records)
        try:
            for begin in range(0, len(due), _LINES_AT_ONCE):
                self._lines.read(due[begin : begin + _LINES_AT_ONCE])
        except StoreError as error:
            self.problem = error

    def _row(self, known: _Known) -> RunRow:
        run_id = known.record.data.run_id
        return row_of(
            known.record,
            self._view(known),
            best_eval_loss=self._bests.of(run_id),
        )

    # --- reading, with the lock held -----------------------------------------------------------------

    def _read(self, *, look: bool) -> None:
        end = time.monotonic() + _BUDGET_S
        if look:
            if self.read_at is not None:
                self._look()
            self._looked_at = time.monotonic()
        if self._sweep is None and time.monotonic() >= self._sweep_due:
            self._sweep = _Sweep()
        while True:
            if self._sweep is not None:
                self._sweep_page(self._sweep)
            known = self._known.values()
            if self.is_complete or self._sweep is None:  # the first rows do not wait for it
                due = self._bests.due(k.record for k in known if logged_best(k.record) is None)
                self._bests.read(due[:_AT_ONCE])
                self.is_complete = self.is_complete or len(due) <= _AT_ONCE
            if self.is_complete or time.monotonic() >= end:
                return

    def _look(self) -> None:
        """Reads the newest runs, those that go on, and those that did so the last time."""
        newest = self._reader.page(limit=_NEWEST, params=MODEL_PARAMS)
        active: list[RunRecord] = []
        token = None
        while True:
            page = self._reader.page(token, limit=_PAGE, active=True, params=MODEL_PARAMS)
            active += page.records
            token = page.next
            if token is None:
                break
        self._take([*newest.records, *active], listed=True)
        go_on = {record.data.run_id for record in active}
        ended = [i for i, k in self._known.items() if k.record.data.status in NOT_ENDED and i not in go_on]
        for run_id in ended[:_AT_ONCE]:
            try:
                self._take([self._reader.record(run_id)], listed=False)
            except RunNotFound:
                self._forget({run_id})

    def _sweep_page(self, sweep: _Sweep) -> None:
        limit = _PAGE if self._known else _FIRST_PAGE  # the first rows are to be seen at once
        page = self._reader.page(sweep.token, limit=limit, params=MODEL_PARAMS)
        self._take(page.records, listed=True)
        sweep.token = page.next
        if page.next is not None:
            return
        self._sweep = None
        self._sweep_due = time.monotonic() + self._sweep_s
        self._forget(self._known.keys() - sweep.met)

    def _take(self, records: Iterable[RunRecord], *, listed: bool) -> None:
        """Keeps what was read. `listed`: in a page, so the run is not deleted."""
        known = dict(self._known)
        for record in records:
            run_id = record.data.run_id
            if run_id not in known or known[run_id].record != record:
                known[run_id] = _Known(record, RunView.of(record.data))
            if listed and self._sweep is not None:
                self._sweep.met.add(run_id)
        self._known = known

    def _forget(self, run_ids: set[str]) -> None:
        self._known = {i: known for i, known in self._known.items() if i not in run_ids}
        for cache in (self._bests, self._lines):
            cache.forget(run_ids)


class _Beside:
    """One task at a time in the pool, waited for with patience. What it raises, the next call raises."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._task: Future[None] | None = None

    def begin(self, task: Callable[[], None]) -> Future[None] | None:
        """Begins it, unless the one before goes on."""
        with self._lock:
            if self._task is not None and not self._task.done():
                return None
            before, self._task = self._task, None
            if before is not None:
                before.result()
            self._task = _POOL.submit(task)
            return self._task

    def run(self, task: Callable[[], None]) -> None:
        """Begins it, and waits."""
        if begun := self.begin(task):
            wait([begun], self._patience_s)


@dataclass(frozen=True)
class _Known:
    record: RunRecord
    view: RunView


@dataclass
class _Sweep:
    """A reading of all runs, page by page. met: Runs that were read since it began."""

    token: str | None = None
    met: set[str] = field(default_factory=set)
