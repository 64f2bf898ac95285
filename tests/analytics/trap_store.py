"""Stores full of traps, written straight into MLflow's tables, and read back with pandas alone.

The same seed gives the same runs in every database. The oracle shares no code with the package.
"""

from __future__ import annotations

import random
from typing import Any

import pandas as pd
import sqlalchemy as sa

INFINITE = 1.7976931348623157e308
BEGIN_MS = 1_795_000_000_000
METRICS = ("eval_loss", "rewards/margins", "my metric", "kl")
RATES = ("1e-4", "0.0001", "1E-04", "0.00010", "3e-4", "0.001", "auto", "NaN")
STATUSES = ("FINISHED", "FINISHED", "FINISHED", "FAILED", "KILLED", "RUNNING")
VALUES = (0.5, 0.5, 0.25, 1.0, 2.0, -1.0, 3.5)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))


LONG = 6000
"""Values of a history that no store gives in one piece, whose extremes lie between what a sample sees."""


def fill(database: str, seed: int, runs: int = 60, *, order: int = 0, long: bool = False) -> None:
    """Adds the experiments ``traps`` and ``other`` with so many runs to a database with MLflow's tables.

    Args:
        order: Of insertion; it changes nothing else. long: With one more run of `LONG` values.
    """
    dice = random.Random(seed)
    engine = sa.create_engine(database)
    tables = sa.MetaData()
    tables.reflect(engine, only=["experiments", "runs", "params", "tags", "metrics", "latest_metrics"])
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in tables.tables}
    for number, name in ((101, "traps"), (102, "other"), (103, "gone")):
        stage = "deleted" if name == "gone" else "active"
        rows["experiments"].append(
            {"experiment_id": number, "name": name, "lifecycle_stage": stage, "artifact_location": "mem:/"}
        )
    ids: list[str] = []
    for number in range(runs):
        ids.append(_add(dice, number, ids, rows))
    if long:
        _add_long(dice, ids[0], rows)
    for some in rows.values():
        random.Random(order).shuffle(some)
    with engine.begin() as connection:
        for name in ("experiments", "runs", "params", "tags", "metrics", "latest_metrics"):
            if rows[name]:
                table = tables.tables[name]
                known = [{k: v for k, v in row.items() if k in table.c} for row in rows[name]]
                if name == "experiments" and "workspace" in table.c:
                    known = [row | {"workspace": "default"} for row in known]
                connection.execute(table.insert(), known)
    engine.dispose()


def _add(dice: random.Random, number: int, before: list[str], rows: dict[str, list[dict[str, Any]]]) -> str:
    run_id = f"{dice.getrandbits(128):032x}"
    status = dice.choice(STATUSES)
    start = BEGIN_MS + dice.choice((0, 0, 1000 * number))  # many begin in the same millisecond
    rows["runs"].append(
        {
            "run_uuid": run_id,
            "name": dice.choice((f"run {number}", "twin", "twin")),
            "source_type": "LOCAL",
            "source_name": "",
            "entry_point_name": "",
            "user_id": "me",
            "status": status,
            "start_time": start,
            "end_time": None if status == "RUNNING" else start + dice.choice((1000, 60_000)),
            "source_version": "",
            "lifecycle_stage": "deleted" if dice.random() < 0.1 else "active",
            "artifact_uri": "mem:/",
            "experiment_id": dice.choice((101, 101, 101, 101, 102, 103)),
        }
    )
    rows["tags"].append({"run_uuid": run_id, "key": "mlflow.runName", "value": rows["runs"][-1]["name"]})
    if dice.random() < 0.85:
        rows["params"].append({"run_uuid": run_id, "key": "learning_rate", "value": dice.choice(RATES)})
    rows["params"].append({"run_uuid": run_id, "key": "use cache", "value": dice.choice(("True", "False"))})
    if dice.random() < 0.9:
        rows["params"].append({"run_uuid": run_id, "key": "layers", "value": dice.choice(("2", "4.0", "8"))})
    if dice.random() < 0.5:
        rows["tags"].append({"run_uuid": run_id, "key": "team", "value": dice.choice(("red", "Blue", "7"))})
    if before and dice.random() < 0.3:  # a nested run
        rows["tags"].append({"run_uuid": run_id, "key": "mlflow.parentRunId", "value": dice.choice(before)})
    for key in METRICS:
        if dice.random() < 0.85:
            _log(dice, run_id, key, start, rows)
    return run_id


def _add_long(dice: random.Random, like: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    run_id = f"{dice.getrandbits(128):032x}"
    (run,) = (dict(row) for row in rows["runs"] if row["run_uuid"] == like)
    run |= {"run_uuid": run_id, "name": "long", "status": "FINISHED", "lifecycle_stage": "active"}
    rows["runs"].append(run | {"experiment_id": 101, "end_time": BEGIN_MS + 60_000})
    rows["tags"].append({"run_uuid": run_id, "key": "mlflow.runName", "value": "long"})
    values = [dice.uniform(1, 2) for _ in range(LONG)]
    values[LONG // 3 + 1], values[LONG // 2 + 1] = -50.0, 50.0
    logged = [
        {"run_uuid": run_id, "key": "eval_loss", "step": step, "timestamp": BEGIN_MS + step} | _kept(value)
        for step, value in enumerate(values)
    ]
    rows["metrics"] += logged
    rows["latest_metrics"].append(logged[-1])


def _log(
    dice: random.Random, run_id: str, key: str, start: int, rows: dict[str, list[dict[str, Any]]]
) -> None:
    """A history whose last value is seldom the best; in any order, some steps twice."""
    steps = [dice.randrange(0, 30) for _ in range(dice.randrange(1, 12))]
    points = {
        (step, start + 1000 * at): dice.choice(NOT_FINITE) if dice.random() < 0.15 else dice.choice(VALUES)
        for at, step in enumerate(steps)
    }
    logged = [
        {"run_uuid": run_id, "key": key, "step": step, "timestamp": time} | _kept(value)
        for (step, time), value in points.items()
    ]
    dice.shuffle(logged)
    rows["metrics"] += logged
    rows["latest_metrics"].append(max(logged, key=lambda point: (point["step"], point["timestamp"])))


def _kept(value: float) -> dict[str, Any]:
    """As MLflow keeps it: NaN as a mark, infinity as the largest float."""
    if value != value:
        return {"value": 0.0, "is_nan": True}
    return {"value": max(-INFINITE, min(INFINITE, value)), "is_nan": False}


class Oracle:
    """The truth about an experiment, by pandas on the raw tables."""

    def __init__(self, database: str, experiment: str = "traps") -> None:
        engine = sa.create_engine(database)
        with engine.connect() as connection:
            tables = {
                name: pd.read_sql(sa.text(f"SELECT * FROM {name}"), connection)
                for name in ("experiments", "runs", "params", "tags", "metrics")
            }
        engine.dispose()
        ids = tables["experiments"].set_index("name")["experiment_id"]
        runs = tables["runs"]
        runs = runs[(runs["lifecycle_stage"] == "active") & (runs["experiment_id"] == ids[experiment])]
        runs = runs.sort_values(["start_time", "run_uuid"], ascending=[False, True])
        self.runs = runs.set_index("run_uuid")
        self.params = self._wide(tables["params"])
        self.tags = self._wide(tables["tags"])
        points = tables["metrics"].query("run_uuid in @self.runs.index").copy()
        points.loc[points["is_nan"].astype(bool), "value"] = float("nan")
        points["value"] = points["value"].where(points["value"].abs() < 1e308, points["value"] * 10)
        self.points = points.sort_values(["step", "timestamp"])

    def _wide(self, long: pd.DataFrame) -> pd.DataFrame:
        return long.pivot(index="run_uuid", columns="key", values="value").reindex(self.runs.index)

    def column(self, field: str) -> pd.Series:
        """A param, a tag or the status of every run."""
        kind, _, name = field.partition(".")
        return {"params": self.params, "tags": self.tags}[kind][name] if name else self.runs[kind]

    def values(self, metric: str, agg: str) -> pd.DataFrame:
        """value and step of every run, NaN where there is no finite one; newest run first."""
        points = self.points[self.points["key"] == metric]
        if agg == "last":
            found = points.drop_duplicates("run_uuid", keep="last").set_index("run_uuid")[["value", "step"]]
        elif agg.startswith("mean"):
            last = points.groupby("run_uuid").tail(int(agg.rpartition("_")[2]))
            grouped = last.groupby("run_uuid")
            found = grouped["step"].max().to_frame()
            found["value"] = grouped["value"].apply(
                lambda x: x.mean() if (x.abs() < INFINITE).all() else None
            )
        else:
            finite = points[points["value"].abs() < float("inf")]
            best = finite.sort_values(["value", "step"], ascending=[agg == "min", True])
            found = best.drop_duplicates("run_uuid").set_index("run_uuid")[["value", "step"]]
        found = found.reindex(self.runs.index)
        found["logged"] = found.index.isin(points["run_uuid"])
        found.loc[~(found["value"].abs() < float("inf")), "value"] = float("nan")
        return found.join(self.runs[["status", "name"]])
