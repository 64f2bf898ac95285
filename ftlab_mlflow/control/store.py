"""The seam to the tracking store: what control needs of MLflow, and a store in memory for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal, NamedTuple, Protocol

from ftlab_mlflow.control.tags import MAX_VALUE_LENGTH, STATUS
from ftlab_mlflow.control.wire import new_id
from ftlab_mlflow.errors import RunNotFound

RunStatus = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]
NOT_ENDED: tuple[RunStatus, ...] = ("RUNNING", "SCHEDULED")


class Point(NamedTuple):
    """One value of a metric: at an optimizer step, logged at a time in ms since the epoch."""

    key: str
    value: float
    step: int
    timestamp: int


@dataclass(frozen=True)
class RunData:
    """A run as the tracking store knows it now.

    Attributes:
        started, ended: UTC; `ended` is None while it runs.
        tags: All tags. metrics: The last value (not the best) by key.
        steps: The step of each of these values.
        logged_at: When each of them was logged, in ms since the epoch.
    """

    run_id: str
    name: str
    experiment_id: str
    status: str
    started: datetime | None = None
    ended: datetime | None = None
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    logged_at: dict[str, int] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What to call the run: its name, or how its id begins where that is blank."""
        return label_of(self.run_id, self.name)

    @property
    def is_live(self) -> bool:
        """Whether a trainer of this protocol has ever written to it."""
        return STATUS in self.tags


def label_of(run_id: str, name: str) -> str:
    """`RunData.label`."""
    return name if name.strip() else run_id[:8]


class RunStore(Protocol):
    """What control needs of a tracking store. Every call may be made from any thread.

    All methods raise `StoreUnavailable` when the store does not answer and may later, `RunNotFound` for an
    unknown run, `NotPermitted` where its user may not do this and `StoreError` for what it will not do.
    """

    def get(self, run_id: str) -> RunData:
        """The run with its tags and last metrics."""

    def write(self, run_id: str, tags: Mapping[str, str], points: Sequence[Point] = ()) -> None:
        """Writes tags (at most 100) and adds values to the histories of metrics (at most 800), in one call.

        Writing the same again changes nothing, so a call that may have failed can be repeated.
        """

    def why_read_only(self, run_id: str) -> str | None:
        """Why this user may not write to the run, or None. Writes nothing; one call, of a server only."""

    def set_status(self, run_id: str, status: RunStatus) -> None:
        """Sets the run's own status; an ending one sets its end time."""

    def find(
        self, *, prefix: str = "", name: str | None = None, live: bool = False, limit: int = 20
    ) -> list[RunData]:
        """Runs that are not deleted, newest first.

        Args:
            prefix: Only those whose id starts with it.
            name: Only those with this name.
            live: Only those that a trainer of this protocol has written to.
            limit: At most so many.
        """

    def metric_history(self, run_id: str, key: str) -> list[Point]:
        """All values of a metric, by step and then by time; empty when there is none, or no such run."""


class MemoryRunStore:
    """A `RunStore` in memory, for tests and for trying things out in one process."""

    def __init__(self) -> None:
        self._runs: dict[str, RunData] = {}
        self._points: dict[str, list[Point]] = {}
        self._lock = threading.RLock()

    def create_run(self, name: str = "run", tags: dict[str, str] | None = None) -> str:
        """Adds a running run and returns its id."""
        with self._lock:
            run_id = new_id().replace("-", "")
            now = datetime.now(UTC)
            self._runs[run_id] = RunData(run_id, name, "0", "RUNNING", now, tags=dict(tags or {}))
            self._points[run_id] = []
            return run_id

    def delete_tag(self, run_id: str, key: str) -> None:
        """Removes a tag, as a person does in the MLflow UI."""
        with self._lock:
            self._run(run_id).tags.pop(key, None)

    def _run(self, run_id: str) -> RunData:
        try:
            return self._runs[run_id]
        except KeyError:
            raise RunNotFound(f"no run {run_id}") from None

    def get(self, run_id: str) -> RunData:
        with self._lock:
            run = self._run(run_id)
            points = sorted(self._points[run_id], key=lambda p: (p.step, p.timestamp))
            return replace(
                run,
                tags=dict(run.tags),
                metrics={p.key: p.value for p in points},
                steps={p.key: p.step for p in points},
                logged_at={p.key: p.timestamp for p in points},
            )

    def write(self, run_id: str, tags: Mapping[str, str], points: Sequence[Point] = ()) -> None:
        with self._lock:
            cut = {key: value[:MAX_VALUE_LENGTH] for key, value in tags.items()}
            self._run(run_id).tags.update(cut)
            known = self._points[run_id]
            known += [point for point in points if point not in known]

    def why_read_only(self, run_id: str) -> str | None:
        return None

    def set_status(self, run_id: str, status: RunStatus) -> None:
        with self._lock:
            ended = None if status in NOT_ENDED else datetime.now(UTC)
            self._runs[run_id] = replace(self._run(run_id), status=status, ended=ended)

    def find(
        self, *, prefix: str = "", name: str | None = None, live: bool = False, limit: int = 20
    ) -> list[RunData]:
        with self._lock:
            runs = [
                self.get(run.run_id)
                for run in reversed(self._runs.values())
                if run.run_id.startswith(prefix)
                and (name is None or run.name == name)
                and (run.is_live or not live)
            ]
            return runs[:limit]

    def metric_history(self, run_id: str, key: str) -> list[Point]:
        with self._lock:
            points = [point for point in self._points.get(run_id, []) if point.key == key]
            return sorted(points, key=lambda p: (p.step, p.timestamp))


def now_ms() -> int:
    """The time now as MLflow counts it: ms since the epoch."""
    return time.time_ns() // 1_000_000
