"""How long the dashboard makes people wait: first paint and refresh of its pages, in a store of some size.

The real pages, run by Streamlit's own test harness in a warm process (an empty page costs it 5 ms), on the
SQLite file itself and over a real `mlflow server`. A first paint is that of the process's first visitor:
nothing of the tracking store is cached. Between two refreshes of a run's page every metric that its charts
show gets a new value. What MLflow's own API takes for the same is measured beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import mlflow
import streamlit as st
from mlflow import MlflowClient
from report import publish, table
from run_store import build
from servers import mlflow_server
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.runtime.forward_msg_queue import ForwardMsgQueue
from streamlit.testing.v1 import AppTest

import streamlit_app
from ftlab_mlflow import MlflowRunStore
from ftlab_mlflow.analytics.metric_table import charts
from ftlab_mlflow.analytics.sql_reader import SqlReader
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.messages import Status
from ftlab_mlflow.control.plan import Plan
from ftlab_mlflow.control.store import Point, now_ms
from ftlab_mlflow.control.surface import Param, Surface
from ftlab_mlflow.control.wire import utc_now
from streamlit_app.components import plot

EMPTY = "sqlite:///empty.db"
"""A store without runs, in the working directory of the benchmark."""
APP = Path(streamlit_app.__file__).with_name("app.py")
LIMIT_S = 120
CHARTS = 12
"""So many the page of a run draws unless others are chosen."""
RUNS, PARAMS, LONG_METRICS, LONG_POINTS = 1000, 130, 60, 100_000
LOOK_S = 0.1
"""Seconds between two looks whether all runs have been read."""
INTERVAL_S = 2.0
"""Seconds between two refreshes, as in the dashboard's settings."""
WORKERS = 2
"""Of the `mlflow server`: as many as this machine has cores."""
FIRST_PAINT_S, REFRESH_S = 2.0, 0.3
"""The goals."""


class Paint(NamedTuple):
    """Seconds from the begin of a script run to what it sent to the browser on the way, and at last.

    Attributes:
        cpu: Seconds of CPU of this process.
    """

    head: float
    charts: list[float]
    whole: float
    cpu: float


class Row(NamedTuple):
    """Times of one thing and the CPU time of this process, in seconds, and the goal if there is one."""

    what: str
    times: Sequence[float]
    cpu: Sequence[float] = ()
    goal: float | None = None


class Page:
    """A page of the dashboard in a browser session of its own, the first one of a warm process."""

    def __init__(self, name: str = "runs", **query: str) -> None:
        self._app = AppTest.from_file(APP, default_timeout=LIMIT_S)
        if name != "runs":
            # The first page tells the app's pages: of a store that leaves nothing to read beside the other.
            uri, os.environ["MLFLOW_TRACKING_URI"] = os.environ["MLFLOW_TRACKING_URI"], EMPTY
            self._app.run()
            os.environ["MLFLOW_TRACKING_URI"] = uri
            self._app.switch_page(f"views/{name}.py")
            self._app.query_params = query
        st.cache_resource.clear()

    def run(self) -> Paint:
        """Runs the page's script once. Raises: RuntimeError: the page says that something is wrong."""
        sent: list[tuple[str, float]] = []

        def note(message: ForwardMsg) -> None:
            element = message.delta.new_element
            kind = element.bidi_component.component_name or element.WhichOneof("type") or ""
            sent.append((kind, time.perf_counter()))

        ForwardMsgQueue.on_before_enqueue_msg(note)
        began, cpu = time.perf_counter(), time.process_time()
        self._app.run()
        whole, cpu = max(at for _, at in sent) - began, time.process_time() - cpu
        ForwardMsgQueue.on_before_enqueue_msg(None)
        if wrong := [*self._app.exception, *self._app.error, *self._app.warning]:
            raise RuntimeError(f"the page says: {[each.value for each in wrong]}")

        def times(kind: str) -> list[float]:
            return [at - began for element, at in sent if element == kind]

        return Paint(max(times("metric"), default=math.nan), times(plot.NAME), whole, cpu)

    def says(self, text: str) -> bool:
        """Whether a caption says this."""
        return any(text in caption.value for caption in self._app.caption)


class Trainer:
    """The running training of the store: writes what a trainer of this project writes."""

    def __init__(self, uri: str, run_id: str) -> None:
        self._store = MlflowRunStore(uri)
        self._run_id = run_id
        run = self._store.get(run_id)
        self._status = Status.decode(run.tags[tags.STATUS])
        self.charts = charts(run.metrics)[:CHARTS]
        self.keys = [key for chart in self.charts for key in chart.keys]
        self._store.write(run_id, {tags.SURFACE: _surface(self._status.step).encode()})

    def log(self) -> None:
        """One more value of every metric that is charted, and a heartbeat."""
        self._status = replace(
            self._status, step=self._status.step + 1, at=utc_now(), max_steps=2 * LONG_POINTS
        )
        points = [Point(key, 1 / self._status.step, self._status.step, now_ms()) for key in self.keys]
        self._store.write(self._run_id, {tags.STATUS: self._status.encode()}, points)


def _surface(step: int) -> Surface:
    """What the trainer of a language model offers."""
    steps = tuple(range(step, 2 * LONG_POINTS, LONG_POINTS // 100))
    plan = Plan(steps, tuple(1e-4 * (1 + math.cos(at / (2 * LONG_POINTS) * math.pi)) for at in steps))
    bounded = Param("float", 0.1, 0.1, 0.0, 1.0, help="What it is, in one sentence.")
    names = (
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "beta",
        "label_smoothing",
    )
    params = {
        "learning_rate": Param("float", 5e-5, 5e-5, 0.0, 1.0, plan=plan),
        "lr_schedule": Param("enum", "keep", "keep", choices=("keep", "hold")),
        **dict.fromkeys(names, bounded),
        **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), Param("int", 10, 10, 1, 10_000)),
    }
    return Surface(params, ("pause", "resume", "stop", "checkpoint", "evaluate", "rollback", "cancel"))


def _row(what: str, paints: Sequence[Paint], goal: float | None = None) -> Row:
    return Row(what, [paint.whole for paint in paints], [paint.cpu for paint in paints], goal)


def of_runs(rounds: int) -> list[Row]:
    """The page of all runs: first paint, all read, refreshed."""
    first, complete, refresh = [], [], []
    for _ in range(rounds):
        page = Page()
        began = time.perf_counter()
        first.append(page.run())
        while page.says("reading more"):
            time.sleep(LOOK_S)
            page.run()
        complete.append(time.perf_counter() - began)
    for _ in range(rounds):
        time.sleep(INTERVAL_S)
        refresh.append(page.run())
    return [
        _row(f"Runs: first paint, {RUNS:,} runs", first, FIRST_PAINT_S),
        Row("Runs: until all of them are read, beside the page", complete),
        _row("Runs: a refresh", refresh),
    ]


def of_run(trainer: Trainer, run_id: str, rounds: int) -> list[Row]:
    """The page of a running run: first paint, and refreshed when new values have come."""
    looks = []
    for _ in range(rounds):
        page = Page("run", id=run_id)
        trainer.log()
        looks.append(page.run())
        if len(looks[-1].charts) <= len(trainer.charts):  # and the preview
            raise RuntimeError(f"{len(looks[-1].charts)} charts are drawn")
    refresh = []
    for _ in range(2 * rounds):
        trainer.log()
        time.sleep(INTERVAL_S)
        refresh.append(page.run())
    return [
        Row("Run: first paint, until its head is there", [look.head for look in looks]),
        Row("Run: until the first chart", [look.charts[1] for look in looks]),
        _row(f"Run: until all {len(trainer.charts)} charts", looks),
        _row("Run: a refresh, new values in all charts", refresh, REFRESH_S),
    ]


def of_mlflow(uri: str, run_id: str, keys: Sequence[str], rounds: int) -> list[Row]:
    """The same queries by MLflow's own API."""
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)

    def search(limit: int, query: str = "") -> None:
        mlflow.search_runs(search_all_experiments=True, max_results=limit, filter_string=query)

    def read_run() -> None:
        search(1, f"attributes.run_id = '{run_id}'")
        client.get_metric_history(run_id, keys[0])

    return [
        Row("`mlflow.search_runs`, 50 runs", _timed(lambda: search(50), rounds)),
        Row(f"`mlflow.search_runs`, {RUNS:,} runs", _timed(lambda: search(RUNS), min(rounds, 3))),
        Row(
            f"`search_runs` of the run, `get_metric_history` of 1 of its {len(keys)} metrics",
            _timed(read_run, 1),
        ),
    ]


def _timed(call: Callable[[], object], rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return times


def measure(name: str, uri: str, run_id: str, rounds: int) -> list[list[str]]:
    """The table's rows for one kind of tracking store."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    _timed(MlflowClient(uri).search_experiments, 4 * WORKERS)  # each worker of a server has once to wake up
    trainer = Trainer(uri, run_id)
    Page().run()
    rows = of_runs(rounds) + of_run(trainer, run_id, rounds) + of_mlflow(uri, run_id, trainer.keys, rounds)
    lines = []
    for row in rows:
        median, worst = statistics.median(row.times), max(row.times)
        goal = f"≤ {_ms(row.goal)}: {'met' if median <= row.goal else 'missed'}" if row.goal else ""
        cpu = _ms(statistics.median(row.cpu)) if row.cpu else ""
        lines.append([name, row.what, str(len(row.times)), _ms(median), _ms(worst), cpu, goal])
        print(", ".join(lines[-1]), flush=True)
    return lines


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms"


def stored(path: Path) -> tuple[str, str]:
    """The store's URI and its running run, the newest; made if it is not there."""
    uri = f"sqlite:///{path}"
    if not path.exists():
        build(path, RUNS, params=PARAMS, long_metrics=LONG_METRICS, long_points=LONG_POINTS)
    (run,) = SqlReader(uri).page(limit=1).records
    return uri, run.data.run_id


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, README untouched")
    parser.add_argument("--store", type=Path, help="the SQLite file (1.7 GB), kept for the next time")
    options = parser.parse_args()
    rounds = 3 if options.quick else 10
    store = options.store.absolute() if options.store else Path("mlflow.db")
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        os.environ["FTLAB_DATABASE_URL"] = f"sqlite:///{folder}/app.db"
        backend, run_id = stored(store.absolute())
        rows = measure("SQLite", backend, run_id, rounds)
        with mlflow_server(folder, backend, WORKERS) as (uri, _):
            rows += measure("HTTP", uri, run_id, rounds)
    text = table(["store", "what", "rounds", "median", "worst", "CPU: median", "goal"], rows)
    note = (
        f"HTTP: `mlflow server` with {WORKERS} workers on the same SQLite file, on this machine. "
        "CPU: of the dashboard's process."
    )
    publish("dashboard", f"{text}\n\n{note}", quick=options.quick)


if __name__ == "__main__":
    main()
