"""Runs as trainers, people and other programs leave them in a real MLflow; a reader that counts its reads."""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric

from ftlab_mlflow.analytics.reader import RunPage, RunReader, RunRecord
from ftlab_mlflow.analytics.run_table import RunRow, RunTable
from ftlab_mlflow.analytics.series import Series
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.messages import Ack, Status, Update
from ftlab_mlflow.control.surface import Param, Surface
from ftlab_mlflow.control.wire import new_id, utc_now
from ftlab_mlflow.errors import StoreUnavailable

SURFACE = Surface({"learning_rate": Param("float", 8.7e-05, 1e-4, 0, 1)}, ("pause",))


class Runs:
    """Writes runs to a tracking store, through MLflow's own client."""

    def __init__(self, uri: str) -> None:
        self.client = MlflowClient(uri)

    def plain(
        self,
        name: str = "plain",
        *,
        experiment: str = "0",
        status: str = "RUNNING",
        run_tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        **series: Sequence[float],
    ) -> str:
        """A run of another program. `series`: the values of each metric, at steps 1, 2, … now."""
        run_id: str = self.client.create_run(experiment, run_name=name, tags=dict(run_tags or {})).info.run_id
        for key, value in (params or {}).items():
            self.client.log_param(run_id, key, value)
        for key, values in series.items():
            self.log(run_id, key, values)
        if status != "RUNNING":
            self.client.set_terminated(run_id, status)
        return run_id

    def live(
        self,
        name: str = "live",
        *,
        state: Any = "running",
        heartbeat_s: float = 0.0,
        step: int = 130,
        method: str = "sft",
        status: str = "RUNNING",
        run_tags: Mapping[str, str] | None = None,
        **others: Any,
    ) -> str:
        """A run of a trainer that listens (or did)."""
        written = {tags.SURFACE: SURFACE.encode(), tags.STATUS: status_text(state, heartbeat_s, step, method)}
        return self.plain(name, status=status, run_tags=written | dict(run_tags or {}), **others)

    def beat(self, run_id: str, state: Any = "running", **changed: Any) -> None:
        """A heartbeat."""
        self.client.set_tag(run_id, tags.STATUS, status_text(state, **changed))

    def applied(self, run_id: str, step: int, old: float, new: float) -> None:
        """A request for another rate and its answer, as client and trainer write them."""
        request = new_id()
        update = Update(at=utc_now(), set={"learning_rate": new}, by="eve", via="cli", reason="why not")
        ack = Ack("applied", step, utc_now(), "s1", changes={"learning_rate": (old, new)})
        self.client.set_tag(run_id, tags.UPDATE_PREFIX + request, update.encode())
        self.client.set_tag(run_id, tags.ACK_PREFIX + request, ack.encode())

    def log(
        self, run_id: str, key: str, values: Iterable[float], *, first: int = 1, age_s: float = 0.0
    ) -> None:
        """Values of a metric at steps `first`, `first` + 1, …, so many seconds ago."""
        at = int((utc_now() - timedelta(seconds=age_s)).timestamp() * 1000)
        points = [Metric(key, value, at, step) for step, value in enumerate(values, first)]
        for start in range(0, len(points), 1000):
            self.client.log_batch(run_id, metrics=points[start : start + 1000])


def status_text(
    state: Any = "running", heartbeat_s: float = 0.0, step: int = 130, method: str = "sft"
) -> str:
    at = utc_now() - timedelta(seconds=heartbeat_s)
    return Status(state, step, 1000, 0.41, at, 10, "s1", "node7", 4242, method).encode()


class Counting:
    """A reader that passes everything on to another one and counts what it is asked.

    Attributes:
        calls: How often `page`, `active`, `record` and `series` were called. asked: Run ids, by metric.
        is_away: Makes every call fail, as a store does that is away.
        gate: Every call waits until it is set.
    """

    def __init__(self, reader: RunReader) -> None:
        self.tracking_uri = reader.tracking_uri
        self.calls: Counter[str] = Counter()
        self.asked: list[tuple[str, frozenset[str]]] = []
        self.is_away = False
        self.gate = threading.Event()
        self.gate.set()
        self._reader = reader
        self._lock = threading.Lock()

    def _count(self, what: str) -> None:
        with self._lock:
            self.calls[what] += 1
        assert self.gate.wait(60)
        if self.is_away:
            raise StoreUnavailable("the tracking store is away")

    def forget(self) -> None:
        self.calls.clear()
        self.asked.clear()

    def experiments(self) -> dict[str, str]:
        self._count("experiments")
        return self._reader.experiments()

    def page(self, token: str | None = None, *, active: bool = False, **others: Any) -> RunPage:
        self._count("active" if active else "page")
        return self._reader.page(token, active=active, **others)

    def record(self, run_id: str) -> RunRecord:
        self._count("record")
        return self._reader.record(run_id)

    def series(self, run_ids: Sequence[str], key: str, **others: Any) -> dict[str, Series]:
        self._count("series")
        self.asked.append((key, frozenset(run_ids)))
        return self._reader.series(run_ids, key, **others)


def read_all(table: RunTable) -> dict[str, RunRow]:
    """Refreshes until two whole sweeps are over."""
    table.refresh()
    for _ in range(3 + 3 * (len(table.rows()) // 100)):
        table.refresh()
    assert table.problem is None
    assert table.is_complete
    return {row.name: row for row in table.rows()}


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def many_runs(uri: str, count: int) -> list[str]:
    """Finished runs straight into MLflow's tables, the first one the newest."""
    ids = [uuid.uuid4().hex for _ in range(count)]
    start = int(utc_now().timestamp() * 1000) - 1000
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database, database:
        database.executemany(
            "INSERT INTO runs (run_uuid, name, status, start_time, end_time, lifecycle_stage, experiment_id, "
            "source_type, artifact_uri) VALUES (?, ?, 'FINISHED', ?, ?, 'active', 0, 'LOCAL', '')",
            [(run_id, f"run {n}", start - n, start - n + 500) for n, run_id in enumerate(ids)],
        )
    return ids
