"""How long answers over many runs take, beside `mlflow.search_runs` and pandas, in one process.

A generated store of 10,000 runs with 30 metrics each, 1,000 of them with a history of 1,000 values; read from
the SQLite file itself, and over a real `mlflow server`. The obvious way reads all runs into a DataFrame and
goes on with pandas; both ways give the same answer, which is checked. The DataFrame is read once a store, and
its time is counted for each question.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pandas as pd
from mlflow import MlflowClient
from report import publish, table
from run_store import build
from servers import mlflow_server

from ftlab_mlflow.analytics import call_tool

RUNS, METRICS, PARAMS, DEEP, POINTS = 10_000, 30, 20, 1000, 1000
EXPERIMENT, METRIC = "sweep", "eval_loss"
RATE = "learning_rate"
WORKERS = 4
"""What `mlflow server` starts when nobody says how many."""
GOAL_S = 0.3
FASTER = {"SQLite": 50, "HTTP": 3}
"""The goals."""


class Question(NamedTuple):
    """A question, and how to ask it in the two ways; both give what is compared."""

    name: str
    ours: Callable[[str], Any]
    obvious: Callable[[pd.DataFrame], Any]


def frame() -> pd.DataFrame:
    """All runs, as one would read them."""
    found = mlflow.search_runs(experiment_names=[EXPERIMENT], max_results=10 * RUNS)
    assert isinstance(found, pd.DataFrame)
    return found


def rank_ours(uri: str, agg: str = "last") -> list[float]:
    asked = {"experiment": EXPERIMENT, "metric": METRIC, "agg": agg}
    return [row["value"] for row in call_tool("rank_runs", asked, uri)["rows"]]


def rank_obvious(runs: pd.DataFrame) -> list[float]:
    done = runs[runs["status"] == "FINISHED"]
    return done.nsmallest(10, f"metrics.{METRIC}")[f"metrics.{METRIC}"].tolist()


def aggregate_ours(uri: str) -> dict[float, int]:
    asked = {"experiment": EXPERIMENT, "metric": METRIC, "group_by": [f"params.{RATE}"]}
    rows = call_tool("aggregate", asked, uri)["rows"]
    return {float(row["group"][f"params.{RATE}"]): row["n"] for row in rows}


def aggregate_obvious(runs: pd.DataFrame) -> dict[float, int]:
    done = runs[runs["status"] == "FINISHED"]
    rates = done[f"params.{RATE}"].astype(float)
    found = done.groupby(rates)[f"metrics.{METRIC}"].agg(["count", "mean", "std", "min", "max"])
    return {float(rate): int(n) for rate, n in found["count"].items()}


def search_ours(uri: str) -> int:
    where = [{"field": f"params.{RATE}", "op": ">", "value": 1e-5}]
    asked = {"experiment": EXPERIMENT, "where": where, "order_by": f"metrics.{METRIC}"}
    return int(call_tool("search_runs", asked, uri)["total"])


def search_obvious(runs: pd.DataFrame) -> int:
    fit = runs[runs[f"params.{RATE}"].astype(float) > 1e-5].sort_values(f"metrics.{METRIC}")
    return len(fit)


def history_ours(uri: str) -> tuple[int, float]:
    found = call_tool("metric_history", {"run": NAME, "metrics": ["loss"]}, uri)["series"]["loss"]
    return found["total"], found["min"][1]


def history_obvious(runs: pd.DataFrame) -> tuple[int, float]:
    (run_id,) = runs[runs["tags.mlflow.runName"] == NAME]["run_id"]
    values = pd.Series([point.value for point in MlflowClient().get_metric_history(run_id, "loss")])
    return len(values), values.min()


NAME = "run-0009"
"""One with a long history."""
QUESTIONS = (
    Question("`rank_runs`: the ten best", rank_ours, rank_obvious),
    Question("`aggregate` by learning rate", aggregate_ours, aggregate_obvious),
    Question("`search_runs` by a number in a param, ordered", search_ours, search_obvious),
    Question("`metric_history` of a run given by name", history_ours, history_obvious),
)


def seconds(call: Callable[[str], Any], uri: str, rounds: int) -> tuple[list[float], Any]:
    """How long each of some calls took, and what the last one gave."""
    times, found = [], None
    for _ in range(rounds):
        began = time.perf_counter()
        found = call(uri)
        times.append(time.perf_counter() - began)
    return times, found


def measure(kind: str, uri: str, rounds: int) -> list[list[str]]:
    mlflow.set_tracking_uri(uri)
    (read,), runs = seconds(lambda _: frame(), uri, 1)
    lines = []
    for question in QUESTIONS:
        ours, found = seconds(question.ours, uri, rounds)
        began = time.perf_counter()
        expected = question.obvious(runs)
        other = read + time.perf_counter() - began
        if found != expected:
            raise RuntimeError(f"{question.name}: {found} is not {expected}")
        mine = statistics.median(ours)
        goals = [f"≥ {FASTER[kind]}×: {_met(other / mine >= FASTER[kind])}"]
        if kind == "SQLite":
            goals.insert(0, f"≤ {GOAL_S} s: {_met(mine <= GOAL_S)}")
        line = [
            kind,
            question.name,
            _s(mine),
            _s(max(ours)),
            _s(other),
            f"{other / mine:,.0f}×",
            ", ".join(goals),
        ]
        lines.append(line)
        print(" | ".join(line), flush=True)
    times, _ = seconds(lambda uri: rank_ours(uri, "min"), uri, rounds)
    best = [
        kind,
        "`rank_runs` by the smallest value",
        _s(times[0]),
        _s(statistics.median(times[1:])),
        "",
        "",
        "",
    ]
    print(" | ".join(best), flush=True)
    return [*lines, best]


def _met(is_met: bool) -> str:
    return "met" if is_met else "missed"


def _s(value: float) -> str:
    return f"{value:.3f} s" if value < 10 else f"{value:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs, README untouched")
    quick = parser.parse_args().quick
    runs = RUNS // 10 if quick else RUNS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = build(
            folder / "mlflow.db",
            runs,
            params=PARAMS,
            metrics=METRICS,
            extra_tags=4,
            deep_runs=DEEP * runs // RUNS,
            deep_history=POINTS,
            experiments=(EXPERIMENT,),
            live_share=0,  # a request is a tag of its own: to a DataFrame a column, and each takes seconds
        )
        rows = measure("SQLite", store.uri, 11)
        with mlflow_server(folder, store.uri, WORKERS) as (uri, _):
            rows += measure("HTTP", uri, 3)
    head = ["store", "question", "median", "worst", "the obvious way", "faster by", "goal"]
    note = (
        "The row without the obvious way, which has only last values: its first call, then the median of the "
        "others, which over HTTP keep the values of finished runs."
    )
    publish("analytics", f"{table(head, rows)}\n\n{note}", quick=quick)


if __name__ == "__main__":
    main()
