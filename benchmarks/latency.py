"""How long a change takes: from the tag written to the first optimizer step that runs with it.

A training process notes, at the begin of each step, the time and the optimizer's rate; this process asks
for a new rate again and again and notes when its write began and returned. The moments of asking are random
but cover the second evenly (one in each 1/n of it, shuffled), so that chance does not move the median.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from report import publish, quantile, table
from servers import mlflow_server

from ftlab_mlflow import LiveRun, MlflowRunStore, NotLive
from ftlab_mlflow.control.store import Point

POLL_INTERVAL = 1.0
REQUESTS = 40
GAP_S = 1.15
"""At least so long between two requests, so that none is overtaken by the next before it is in force."""


class TimedStore(MlflowRunStore):
    """Notes when the last write began and returned."""

    began = returned = 0.0

    def write(self, run_id: str, tags: Mapping[str, str], points: Sequence[Point] = ()) -> None:
        self.began = time.time()
        super().write(run_id, tags, points)
        self.returned = time.time()


def train(uri: str, folder: str, parent: Connection) -> None:
    """The training process: sends its run id; at the end the mean step, and each rate's first use."""
    # Here, because it loads torch, which the asking process does without.
    import mlflow
    from trainings import STEP_2_MS, make_trainer
    from transformers import TrainerCallback

    from ftlab_mlflow import attach

    first_use: dict[float, float] = {}

    class Recorder(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            first_use.setdefault(kwargs["optimizer"].param_groups[0]["lr"], time.time())

    mlflow.set_tracking_uri(uri)
    trainer = make_trainer(STEP_2_MS, 10**6, folder)
    trainer.add_callback(Recorder())
    attach(trainer, poll_interval=POLL_INTERVAL)
    with mlflow.start_run() as run:
        parent.send(run.info.run_id)
        started = time.perf_counter()
        trainer.train()
        mean_step = (time.perf_counter() - started) / trainer.state.global_step
    parent.send((mean_step, first_use))


def ask(run: LiveRun, store: TimedStore, requests: int) -> dict[float, tuple[float, float]]:
    """Asks for so many rates; gives when the write of each began and returned."""
    phases = [(i + random.random()) / requests * POLL_INTERVAL for i in range(requests)]
    random.shuffle(phases)
    written = {}
    for number, phase in enumerate(phases, 1):
        earliest = time.time() + GAP_S
        moment = earliest + (phase - earliest) % POLL_INTERVAL
        time.sleep(max(0.0, moment - time.time()))
        rate = number * 1e-6
        run.update(learning_rate=rate)
        written[rate] = (store.began, store.returned)
    return written


def measure(name: str, uri: str, folder: str, requests: int) -> list[str]:
    """The table's row for one kind of tracking store."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=train, args=(uri, folder, there))
    process.start()
    there.close()  # so that a training that dies ends the wait
    run_id = here.recv()
    store = TimedStore(uri)
    run = LiveRun(run_id, store=store)
    wait_until_running(run)
    written = ask(run, store, requests)
    time.sleep(2 * POLL_INTERVAL)
    run.stop(save=False)
    mean_step, first_use = here.recv()
    process.join()
    unused = [rate for rate in written if rate not in first_use]
    if unused:
        raise RuntimeError(f"{len(unused)} of {requests} requests were never in force alone: {unused}")
    begun = [first_use[rate] - began for rate, (began, _) in written.items()]
    done = [first_use[rate] - returned for rate, (_, returned) in written.items()]
    write = [returned - began for began, returned in written.values()]
    goal = POLL_INTERVAL / 2 + mean_step + 0.05
    middle = statistics.median(done)
    return [
        name,
        str(requests),
        f"{1000 * mean_step:.1f} ms",
        f"{1000 * statistics.median(write):.0f} ms",
        *(f"{1000 * value:.0f} ms" for value in (middle, quantile(done, 0.95), max(done))),
        f"{1000 * statistics.median(begun):.0f} ms",
        f"≤ {1000 * goal:.0f} ms: {'met' if middle <= goal else 'missed'}",
    ]


def wait_until_running(run: LiveRun) -> None:
    """Returns when the training takes requests."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            if run.status().state == "running":
                return
        except NotLive:  # it has not written anything yet
            pass
        time.sleep(0.5)
    raise RuntimeError("the training did not begin within 120 s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 requests a store, README untouched")
    options = parser.parse_args()
    requests = 10 if options.quick else REQUESTS
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        rows = [measure("SQLite", f"sqlite:///{folder}/direct.db", folder, requests)]
        backend = f"sqlite:///{folder}/server.db"
        uri, _ = stack.enter_context(mlflow_server(Path(folder), backend))
        rows.append(measure("HTTP", uri, folder, requests))
    head = [
        "store",
        "requests",
        "mean step",
        "median write",
        "median",
        "p95",
        "max",
        "median from begun",
        "goal",
    ]
    publish("latency", table(head, rows), quick=options.quick)


if __name__ == "__main__":
    main()
