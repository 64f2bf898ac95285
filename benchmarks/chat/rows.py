"""Runs written into an MLflow database in bulk, as MLflow itself would have: what made-up stores are of."""

from __future__ import annotations

import logging
import math
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np

from ftlab_mlflow import MlflowRunStore

Points = Sequence[tuple[int, float]]
"""(optimizer step, value), NaN and infinity too."""
RunStatus = Literal["FINISHED", "FAILED", "RUNNING", "KILLED"]
PARENT = "mlflow.parentRunId"
_LARGEST = 1.7976931348623157e308
"""What MLflow keeps in place of infinity."""
_COLUMNS = {
    "experiments": "experiment_id, name, artifact_location, lifecycle_stage, creation_time, "
    "last_update_time, workspace",
    "runs": "run_uuid, name, source_type, user_id, status, start_time, end_time, lifecycle_stage, "
    "artifact_uri, experiment_id",
    "params": "key, value, run_uuid",
    "tags": "key, value, run_uuid",
    "metrics": "key, value, timestamp, step, is_nan, run_uuid",
    "latest_metrics": "key, value, timestamp, step, is_nan, run_uuid",
}


@dataclass
class Run:
    """A run to be written.

    Attributes:
        name: Unique in its store, but for those that are meant not to be.
        minutes: From its start to its end; of one that goes on, to its last values.
        parent: The name of the run that it is nested in.
        is_deleted: In MLflow's bin.
    """

    name: str
    experiment: str
    started: datetime
    minutes: float
    status: RunStatus = "FINISHED"
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Points] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    parent: str | None = None
    is_deleted: bool = False


def empty(path: Path) -> None:
    """A new SQLite file with MLflow's tables."""
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    MlflowRunStore(f"sqlite:///{path}")


def write(path: Path, runs: Sequence[Run], random: np.random.Generator) -> None:
    """Fills a SQLite file that has MLflow's tables."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA synchronous = OFF")
        began = min(_ms(run.started) for run in runs)
        names = dict.fromkeys(run.experiment for run in runs)
        places = {name: place for place, name in enumerate(names, 1)}
        rows = [(id, name, f"./{name}", "active", began, began, "default") for name, id in places.items()]
        _insert(database, "experiments", rows)
        ids: dict[str, str] = {}
        for run in runs:
            run_id = ids[run.name] = random.bytes(16).hex()
            _write_run(database, run, run_id, places[run.experiment], ids)


def _write_run(
    database: sqlite3.Connection, run: Run, run_id: str, experiment: int, ids: Mapping[str, str]
) -> None:
    began, end = _ms(run.started), _ms(run.started + timedelta(minutes=run.minutes))
    ended = None if run.status == "RUNNING" else end
    stage = "deleted" if run.is_deleted else "active"
    row = (run_id, run.name, "LOCAL", "ada", run.status, began, ended, stage, f"./{run_id}", experiment)
    _insert(database, "runs", [row])
    tags = run.tags | {"mlflow.runName": run.name, "mlflow.user": "ada"}
    if run.parent:
        tags[PARENT] = ids[run.parent]
    _insert(database, "params", [(key, value, run_id) for key, value in run.params.items()])
    _insert(database, "tags", [(key, value, run_id) for key, value in tags.items()])
    for key, points in run.metrics.items():
        last_step = max((step for step, _ in points), default=0) or 1
        kept: list[tuple[str, float, int, int, bool, str]] = []
        for step, value in points:
            at = began + (end - began) * step // last_step
            number, is_nan = _stored(value)
            kept.append((key, number, at, step, is_nan, run_id))
        _insert(database, "metrics", kept)
        newest = max(kept, key=lambda point: point[3])
        _insert(database, "latest_metrics", [newest])


def _stored(value: float) -> tuple[float, bool]:
    """A value as MLflow keeps it, and whether it is NaN."""
    if math.isnan(value):
        return 0.0, True
    return max(-_LARGEST, min(_LARGEST, value)), False


def _insert(database: sqlite3.Connection, table: str, rows: Sequence[Sequence[object]]) -> None:
    columns = _COLUMNS[table]
    marks = ", ".join("?" for _ in columns.split(","))
    with database:
        database.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)
