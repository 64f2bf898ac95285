"""What is true of a store, worked out with pandas from MLflow's raw tables.

It shares no code with `ftlab_mlflow.analytics`, which is what the answers come from: not the reading, not the
choice of values, not the sums.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd

_LARGEST = 1.7976931348623157e308


class Oracle:
    """One store, read whole.

    Attributes:
        runs: Of every run that is not deleted, by id: `name`, `experiment`, `status`, `minutes` (NaN where it
            has not ended), `parent`.
        params, tags: Texts by run and key.
        points: All values of all metrics: `run`, `key`, `step`, `value`.
    """

    def __init__(self, path: Path, prices: Mapping[str, float]) -> None:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            runs = pd.read_sql("SELECT * FROM runs WHERE lifecycle_stage = 'active'", database)
            experiments = pd.read_sql("SELECT experiment_id, name AS experiment FROM experiments", database)
            params = pd.read_sql("SELECT run_uuid, key, value FROM params", database)
            tags = pd.read_sql("SELECT run_uuid, key, value FROM tags", database)
            points = pd.read_sql(
                "SELECT run_uuid, key, step, timestamp, value, is_nan FROM metrics", database
            )
        runs = runs.merge(experiments, on="experiment_id").set_index("run_uuid")
        runs["minutes"] = (runs["end_time"] - runs["start_time"]) / 60_000
        self.params = params.pivot(index="run_uuid", columns="key", values="value").reindex(runs.index)
        self.tags = tags.pivot(index="run_uuid", columns="key", values="value").reindex(runs.index)
        runs["parent"] = self.tags.get("mlflow.parentRunId")
        self.runs = runs[["name", "experiment", "status", "minutes", "parent"]]
        points.loc[points["is_nan"] == 1, "value"] = np.nan
        points.loc[points["value"] >= _LARGEST, "value"] = np.inf
        points = points.rename(columns={"run_uuid": "run"}).sort_values(["step", "timestamp"], kind="stable")
        self.points = points[points["run"].isin(runs.index)]
        self.prices = prices

    # --- which runs --------------------------------------------------------------------------------------

    def of(self, experiment: str, *statuses: str) -> pd.Index:
        """Ids of an experiment's runs; without statuses of all of them."""
        fits = self.runs["experiment"] == experiment
        if statuses:
            fits &= self.runs["status"].isin(statuses)
        return self.runs.index[fits]

    def id(self, name: str) -> str:
        """Of the only run of that name."""
        (found,) = self.runs.index[self.runs["name"] == name]
        return str(found)

    def names(self, ids: Collection[str]) -> list[str]:
        """Names of runs, in the same order."""
        return [str(name) for name in self.runs.loc[list(ids), "name"]]

    def number(self, param: str) -> pd.Series:
        """A param as numbers, by run."""
        return pd.to_numeric(self.params[param], errors="coerce")

    # --- metrics -----------------------------------------------------------------------------------------

    def series(self, name: str, metric: str) -> pd.Series:
        """The values of a run, by step."""
        run = self.points[(self.points["run"] == self.id(name)) & (self.points["key"] == metric)]
        return run.set_index("step")["value"]

    def last(self, metric: str, ids: Collection[str] | None = None) -> pd.Series:
        """The value of the highest step, by run that has logged it; NaN and infinity too."""
        return self._points(metric, ids).groupby("run").tail(1).set_index("run")["value"]

    def finite(self, metric: str, ids: Collection[str]) -> pd.Series:
        """The same, of runs where it is finite."""
        last = self.last(metric, ids)
        return last[np.isfinite(last)]

    def least(self, metric: str, ids: Collection[str]) -> pd.Series:
        """The smallest finite value, by run."""
        points = self._points(metric, ids)
        return points[np.isfinite(points["value"])].groupby("run")["value"].min()

    def mean_of_last(self, metric: str, count: int, ids: Collection[str]) -> pd.Series:
        """The mean of so many last values, by run."""
        return self._points(metric, ids).groupby("run").tail(count).groupby("run")["value"].mean()

    def _points(self, metric: str, ids: Collection[str] | None) -> pd.DataFrame:
        points = self.points[self.points["key"] == metric]
        return points if ids is None else points[points["run"].isin(ids)]

    # --- live changes ------------------------------------------------------------------------------------

    def requests(self, name: str) -> pd.DataFrame:
        """The requests to a run: `status`, `step`, `by`, `reason`, `via`, by step."""
        own = self.tags.loc[self.id(name)].dropna()
        rows = []
        for key, text in own.items():
            if str(key).startswith("ftlab.update."):
                asked = json.loads(text)
                said = json.loads(own[f"ftlab.ack.{str(key).removeprefix('ftlab.update.')}"])
                rows.append(
                    {
                        "status": said["status"],
                        "step": said["step"],
                        "by": asked.get("by"),
                        "via": asked.get("via"),
                        "reason": asked.get("reason"),
                        "set": asked.get("set"),
                    }
                )
        return pd.DataFrame(rows).sort_values("step")

    def slope(self, name: str, metric: str, low: int, high: int) -> float:
        """The least-squares slope of a metric over the steps above `low`, up to `high`, per 100 steps."""
        series = self.series(name, metric)
        part = series[(series.index > low) & (series.index <= high)].dropna()
        return float(np.polyfit(part.index.to_numpy(float), part.to_numpy(), 1)[0] * 100)

    # --- costs -------------------------------------------------------------------------------------------

    def accelerators(self, run_id: str) -> list[str] | None:
        """Those of a run's machine; None where nobody has said."""
        said = self.tags.loc[run_id, "ftlab.accelerators"]
        if pd.isna(said):
            return None
        return [] if said == "none" else [name.strip() for name in said.split(",")]

    def gpu_hours(self, run_id: str) -> float | None:
        """Hours of all accelerators of a run."""
        there = self.accelerators(run_id)
        return None if there is None else len(there) * float(self.runs.loc[run_id, "minutes"]) / 60

    def dollars(self, run_id: str) -> float | None:
        """What a run has cost; None where that is not known."""
        there = self.accelerators(run_id)
        if not there or any(name not in self.prices for name in there):
            return None
        hours = float(self.runs.loc[run_id, "minutes"]) / 60
        return sum(self.prices[name] for name in there) * hours

    def outermost(self, ids: Collection[str]) -> list[str]:
        """Without runs that are nested in one of them."""
        return [run_id for run_id in ids if self.runs.loc[run_id, "parent"] not in set(ids)]
