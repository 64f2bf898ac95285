"""An MLflow database as a team leaves it, made in bulk: many runs and, if asked for, one with long metrics.

Most runs are live ones (status, surface, requests and answers), the rest plain MLflow runs. Rows are written
past MLflow, whose API would take hours for what takes a minute here.
"""

from __future__ import annotations

import argparse
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from ftlab_mlflow import MlflowRunStore
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.messages import Ack, State, Status, Update
from ftlab_mlflow.control.surface import Param, Surface

EXPERIMENTS = ("summaries", "preferences", "rewards", "dialogues")
METHODS = ("sft", "dpo", "kto", "reward")
MODELS = ("Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.2-1B", "HuggingFaceTB/SmolLM2-135M")
LIVE_SHARE = 0.8
STEPS = 1000
"""Optimizer steps of each of the many runs."""
_PARAMS = ("learning_rate", "weight_decay", "per_device_train_batch_size", "num_train_epochs", "seed")
_METRICS = (
    "loss", "eval_loss", "learning_rate", "grad_norm", "epoch", "num_tokens", "mean_token_accuracy",
    "rewards/margins", "rewards/accuracies", "train_samples_per_second", "system/gpu_0 memory",
    "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "logits/chosen",
    "logits/rejected", "entropy", "tokens_per_second", "samples_per_second", "step_time_s",
)  # fmt: skip
_INDEXES = {
    "index_metrics_run_uuid": "CREATE INDEX index_metrics_run_uuid ON metrics (run_uuid)",
    "index_metrics_run_uuid_key_step": (
        "CREATE INDEX index_metrics_run_uuid_key_step ON metrics (run_uuid, key, step)"
    ),
}
_ENDS: dict[State, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


@dataclass(frozen=True)
class Store:
    """What was made. `run_ids` are newest first; `long_run` is one more, the newest of all, or None."""

    uri: str
    run_ids: tuple[str, ...]
    long_run: str | None
    long_keys: tuple[str, ...]


def build(
    path: Path,
    runs: int = 1000,
    *,
    params: int = 150,
    metrics: int = 40,
    extra_tags: int = 12,
    history: int = 40,
    long_metrics: int = 0,
    long_points: int = 100_000,
    deep_runs: int = 0,
    deep_history: int = 1000,
    experiments: Sequence[str] = EXPERIMENTS,
    live_share: float = LIVE_SHARE,
    seed: int = 0,
    now: datetime | None = None,
) -> Store:
    """Fills the SQLite file at `path`, whose tables MLflow makes where there are none.

    Args:
        runs: How many, one started every minute up to `now`; the newest tenth still trains.
        params, metrics, extra_tags: How many each run has; tags of this project come on top.
        history: Values that a run has of its loss; other metrics have one value.
        long_metrics, long_points: One more run, which trains, with so many metrics of so many values each.
        deep_runs, deep_history: So many runs, spread evenly, have a history of so many values.
        experiments: Names; the runs take turns.
        live_share: Of the runs, those of trainers of this project, whose requests are tags of their own.
        seed: The same seed and `now` give the same rows.
        now: UTC; None is the present, so that heartbeats are fresh.
    """
    uri = f"sqlite:///{path}"
    MlflowRunStore(uri)
    writer = _Writer(np.random.default_rng(seed), now or datetime.now(UTC), live_share)
    with closing(sqlite3.connect(path)) as database:
        database.executescript("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY;")
        for name in _INDEXES:
            database.execute(f"DROP INDEX {name}")
        places = writer.experiments(database, experiments)
        ids = []
        for number in range(runs):
            is_deep = (number + 1) * deep_runs // runs > number * deep_runs // runs
            values = deep_history if is_deep else history
            place = places[number % len(places)]
            ids.append(writer.run(database, number, place, params, metrics, extra_tags, values))
        long_run, keys = None, tuple(_names(_METRICS, long_metrics))
        if long_metrics:
            long_run = writer.long_run(database, places[0], keys, long_points)
        for statement in _INDEXES.values():
            database.execute(statement)
        database.executescript("ANALYZE; PRAGMA journal_mode = DELETE;")
    return Store(uri, tuple(ids), long_run, keys)


def _names(known: Sequence[str], count: int) -> list[str]:
    return [*known, *(f"other/value {number}" for number in range(len(known), count))][:count]


def _insert(database: sqlite3.Connection, table: str, columns: str, rows: Iterable[Sequence[Any]]) -> None:
    marks = ", ".join("?" for _ in columns.split(","))
    with database:
        database.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)


class _Writer:
    def __init__(self, random: np.random.Generator, now: datetime, live_share: float) -> None:
        self._random = random
        self._now = now
        self._live_share = live_share

    def _id(self) -> str:
        return self._random.bytes(16).hex()

    def experiments(self, database: sqlite3.Connection, names: Sequence[str]) -> list[int]:
        """Adds the experiments and gives their ids."""
        first = database.execute("SELECT MAX(experiment_id) + 1 FROM experiments").fetchone()[0]
        ms = _ms(self._now)
        rows = [
            (first + place, name, f"./mlartifacts/{name}", "active", ms, ms, "default")
            for place, name in enumerate(names)
        ]
        columns = "experiment_id, name, artifact_location, lifecycle_stage, creation_time, last_update_time"
        _insert(database, "experiments", f"{columns}, workspace", rows)
        return [row[0] for row in rows]

    def run(
        self,
        database: sqlite3.Connection,
        number: int,
        experiment: int,
        params: int,
        metrics: int,
        extra_tags: int,
        history: int,
    ) -> str:
        """Adds one of the many runs, the `number`-th newest, and gives its id."""
        run_id, name = self._id(), f"run-{number:04d}"
        started = self._now - timedelta(minutes=number)
        state = self._state(number)
        status = _ENDS.get(state, "RUNNING")
        step = STEPS if state == "finished" else max(history, int(self._random.integers(1, STEPS)))
        self._insert_run(database, run_id, name, status, started, experiment)
        values = self._random.choice([0.0, 1e-5, 5e-5, 1e-4], len(_names(_PARAMS, params)))
        texts = [
            (key, str(value), run_id) for key, value in zip(_names(_PARAMS, params), values, strict=True)
        ]
        texts[-1] = ("model_name_or_path", MODELS[number % len(MODELS)], run_id)
        _insert(database, "params", "key, value, run_uuid", texts)
        self._insert_points(database, run_id, metrics, history, step, _ms(started))
        found = {"mlflow.user": "alice", "mlflow.source.type": "LOCAL", "mlflow.runName": name}
        found |= {f"team.note_{place}": f"note {place} of {name}" for place in range(extra_tags)}
        if self._random.random() < self._live_share:
            method = METHODS[number % len(METHODS)]
            found |= self._live_tags(started, state, step, method)
        _insert(database, "tags", "key, value, run_uuid", [(k, v, run_id) for k, v in found.items()])
        return run_id

    def _state(self, number: int) -> State:
        if number % 10 == 0:
            return "paused" if number % 50 == 0 else "running"
        return str(self._random.choice(list(_ENDS), p=[0.85, 0.1, 0.05]))  # type: ignore[return-value]

    def _insert_run(
        self,
        database: sqlite3.Connection,
        run_id: str,
        name: str,
        status: str,
        started: datetime,
        experiment: int,
    ) -> None:
        began = _ms(started)
        ended = None if status == "RUNNING" else began + 45_000
        columns = "run_uuid, name, source_type, user_id, status, start_time, end_time, lifecycle_stage"
        row = (run_id, name, "LOCAL", "alice", status, began, ended, "active", f"./mlartifacts/{run_id}")
        _insert(database, "runs", f"{columns}, artifact_uri, experiment_id", [(*row, experiment)])

    def _insert_points(
        self, database: sqlite3.Connection, run_id: str, metrics: int, history: int, step: int, began: int
    ) -> None:
        steps = np.unique(np.linspace(1, step, history).astype(int)).tolist()
        losses = (2.0 * np.exp(-np.array(steps) / 400) + self._random.normal(0, 0.05, len(steps))).tolist()
        points = [
            ("loss", value, began + 40 * at, at, False) for at, value in zip(steps, losses, strict=True)
        ]
        last = self._random.random(metrics).tolist()
        rest = [
            (key, value, began + 40 * step, step, False)
            for key, value in zip(_names(_METRICS, metrics), last, strict=True)
            if key != "loss"
        ]
        rows = [(*point, run_id) for point in points + rest]
        columns = "key, value, timestamp, step, is_nan, run_uuid"
        _insert(database, "metrics", columns, rows)
        _insert(database, "latest_metrics", columns, [rows[len(points) - 1], *rows[len(points) :]])

    def _live_tags(self, started: datetime, state: State, step: int, method: str) -> dict[str, str]:
        """What a trainer of this project has written to a run, with up to six requests and their answers."""
        session = self._id()
        beat = self._now if state not in _ENDS else started + timedelta(seconds=45)
        status = Status(state, step, STEPS, step / STEPS * 3, beat, 10, session, "node7", 4242, method)
        rate = Param("float", 5e-5, 5e-5, 0.0, 1.0, help="The rate of the next optimizer step.")
        surface = Surface({"learning_rate": rate, "weight_decay": rate}, ("pause", "stop", "checkpoint"))
        found = {
            tags.STATUS: status.encode(),
            tags.SURFACE: surface.encode(),
            tags.HOST: "node7",
            tags.GIT_COMMIT: self._id(),
            tags.COMMAND_LINE: f"ftlab train {method}",
        }
        for place in range(int(self._random.integers(0, 7))):
            at = started + timedelta(seconds=place + 1)
            request = f"0190{self._id()[4:]}"
            update = Update(at=at, set={"learning_rate": 1e-5 * (place + 1)}, by="alice", via="cli")
            ack = Ack("applied", place + 1, at, session, {"learning_rate": (5e-5, 1e-5 * (place + 1))})
            found |= {tags.UPDATE_PREFIX + request: update.encode(), tags.ACK_PREFIX + request: ack.encode()}
        return found

    def long_run(
        self, database: sqlite3.Connection, experiment: int, keys: Sequence[str], points: int
    ) -> str:
        """Adds a run that has trained for `points` steps, and its values of each step; gives its id."""
        run_id = self._id()
        started = self._now - timedelta(milliseconds=100 * points)
        self._insert_run(database, run_id, "long", "RUNNING", started, experiment)
        database.execute("UPDATE runs SET start_time = ? WHERE run_uuid = ?", (_ms(self._now) + 1, run_id))
        _insert(database, "metrics", "key, value, timestamp, step, is_nan, run_uuid",
                self._long_points(run_id, sorted(keys), points, _ms(started)))  # fmt: skip
        database.execute(
            "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)"
            " SELECT key, value, timestamp, step, is_nan, run_uuid FROM metrics"
            " WHERE run_uuid = ? AND step = ?",
            (run_id, points),
        )
        found = self._live_tags(started, "running", points, "sft")
        _insert(database, "tags", "key, value, run_uuid", [(k, v, run_id) for k, v in found.items()])
        return run_id

    def _long_points(
        self, run_id: str, keys: Sequence[str], points: int, began: int
    ) -> Iterator[tuple[str, float, int, int, bool, str]]:
        steps = np.arange(1, points + 1)
        trend = np.exp(-3 * steps / points)
        for key in keys:  # in the order of the primary key, where SQLite only appends
            values = trend + self._random.normal(0, 0.1, points)
            values[self._random.integers(0, points, 3)] = (25.0, -25.0, 40.0)
            rows = zip(steps.tolist(), values.tolist(), strict=True)
            yield from ((key, value, began + 100 * step, step, False, run_id) for step, value in rows)


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="the SQLite file")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--long-metrics", type=int, default=60)
    parser.add_argument("--long-points", type=int, default=100_000)
    options = parser.parse_args()
    began = time.monotonic()
    store = build(
        options.path, options.runs, long_metrics=options.long_metrics, long_points=options.long_points
    )
    size = options.path.stat().st_size / 2**20
    print(
        f"{store.uri}: {size:.0f} MiB in {time.monotonic() - began:.0f} s; the long run is {store.long_run}"
    )


if __name__ == "__main__":
    main()
