"""`ftlab demo`: a real training in one process, changed from this one while it trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftlab_mlflow.errors import FTLabError, NotLive, RunNotFound, UpdateTimeout

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ftlab_mlflow.control.client import LiveRun, SentUpdate
    from ftlab_mlflow.control.ledger import Entry
    from ftlab_mlflow.control.store import Point

_START_S = 180
_STALL_S = 120
_WINDOW = 5
"""Logged losses that are averaged before and after a change."""


@click.command(help="Train a small model on the spot and change it while it trains (about two minutes).")
@click.option("--folder", default="demo", show_default=True, help="Where the run, the model and the log go.")
@click.option("--tracking-uri", help="Use this MLflow instead of a SQLite file in the folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, and nothing else.")
def demo(folder: str, tracking_uri: str | None, as_json: bool) -> None:
    """Runs the training as a process of its own and acts on it as anybody could."""
    place = Path(folder).resolve()
    place.mkdir(parents=True, exist_ok=True)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{place}/mlflow.db"
    name = f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # Half of the cores: torch's threads wait for each other, and this process wants to run beside them.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))
    with (place / "train.log").open("w") as log:
        training = subprocess.Popen(
            _train_command(place, name),
            env=os.environ | {"MLFLOW_TRACKING_URI": uri},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            run = _Demo(training, place, uri, name, quiet=as_json).play()
        finally:
            if training.poll() is None:
                training.terminate()
                training.wait()
    _report(run, uri, as_json)


def _train_command(place: Path, name: str) -> list[str]:
    options = {
        "model": "demo",
        "data": "demo",
        "output_dir": str(place / "model"),
        "run_name": name,
        "poll_interval": "0.5",
    }
    command = [sys.executable, "-m", "ftlab_mlflow.cli", "train", "sft"]
    return command + [part for key, value in options.items() for part in (f"--{key}", value)]


class _Demo:
    """The script of the demo: what is done to the training, and when."""

    def __init__(
        self, training: subprocess.Popen[bytes], place: Path, uri: str, name: str, *, quiet: bool
    ) -> None:
        self._training = training
        self._place = place
        self._uri = uri
        self._name = name
        self._quiet = quiet

    def play(self) -> LiveRun:
        """Acts on the training until it ends; returns the run."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(quiet=self._quiet)
        console.print(f"Training a small model on this machine; its own output is in {self._place}/train.log")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("starting", total=None)
            run = self._find_run()
            console.print(f"Run {run.run_id} ({self._name})")
            self._act(run, progress, task)
            self._until(run, progress, task, lambda step, state: state in ("finished", "stopped", "failed"))
        if code := self._training.wait():
            raise FTLabError(f"the training ended with exit code {code}: {self._last_words()}")
        return run

    def _act(self, run: LiveRun, progress: Progress, task: TaskID) -> None:
        steps = run.status().max_steps

        def at(share: float) -> None:
            self._until(run, progress, task, lambda step, state: step >= share * steps)

        at(0.25)
        asked = float(run.surface().params["learning_rate"].asked)
        self._tell(progress, "change the learning rate under the cosine schedule")
        self._answer(run.update(learning_rate=asked / 2, reason="try a smaller rate"))
        at(0.40)
        self._tell(progress, "ask for a learning rate of NaN, with a plain tag")
        self._send_nan(run)
        at(0.45)
        self._tell(progress, "change weight decay and gradient clipping in one request")
        self._answer(run.update(weight_decay=0.05, max_grad_norm=0.5, reason="regularise"))
        at(0.60)
        self._tell(progress, "pause, evaluate while paused, resume")
        for command in (run.pause, run.evaluate, run.resume):
            self._answer(command())

    def _send_nan(self, run: LiveRun) -> None:
        """As any client may: one tag, written through MLflow's own API."""
        from mlflow import MlflowClient

        from ftlab_mlflow.control import tags
        from ftlab_mlflow.control.ledger import read_entry
        from ftlab_mlflow.control.wire import format_time, new_id, utc_now

        request_id = new_id()
        value = '{"v":1,"set":{"learning_rate":NaN},"by":"demo","via":"tag","at":"%s"}'
        value %= format_time(utc_now())
        MlflowClient(self._uri).set_tag(run.run_id, tags.UPDATE_PREFIX + request_id, value)
        end = time.monotonic() + _STALL_S
        while not read_entry(run.tags(), request_id).answered:
            if time.monotonic() > end:
                raise UpdateTimeout(f"no answer to {request_id}")
            time.sleep(0.2)

    def _answer(self, sent: SentUpdate) -> None:
        sent.wait(timeout=_STALL_S)

    def _tell(self, progress: Progress, what: str) -> None:
        if not self._quiet:
            progress.console.print(f"  → {what}")

    def _find_run(self) -> LiveRun:
        from ftlab_mlflow.control.client import LiveRun

        end = time.monotonic() + _START_S
        while True:
            try:
                run = LiveRun(self._name, tracking_uri=self._uri, by="demo", via="demo")
                if run.status().state != "starting":
                    return run
            except (RunNotFound, NotLive):
                pass  # it has not begun yet
            self._check_alive()
            if time.monotonic() > end:
                raise FTLabError(f"the training did not begin within {_START_S} s: {self._last_words()}")
            time.sleep(0.5)

    def _until(
        self, run: LiveRun, progress: Progress, task: TaskID, reached: Callable[[int, str], bool]
    ) -> None:
        """Shows progress until the training is where it should be."""
        last, since = -1, time.monotonic()
        while True:
            status = run.status()
            losses = run.metric_history("loss")
            shown = f"{status.state}, loss {losses[-1].value:.3f}" if losses else status.state
            # The status is written every 10 s; the metrics in between say how far it is.
            step = max([status.step, *(point.step for point in losses[-1:])])
            progress.update(task, description=shown, completed=step, total=status.max_steps)
            if reached(step, status.state):
                return
            if step > last:
                last, since = step, time.monotonic()
            self._check_alive()
            if time.monotonic() - since > _STALL_S:
                raise FTLabError(f"no step for {_STALL_S} s at step {step}: {self._last_words()}")
            time.sleep(0.5)

    def _check_alive(self) -> None:
        if self._training.poll():
            raise FTLabError(f"the training ended early: {self._last_words()}")

    def _last_words(self) -> str:
        lines = (self._place / "train.log").read_text(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'it said nothing'} (all of it in {self._place}/train.log)"


def _report(run: LiveRun, uri: str, as_json: bool) -> None:
    history = run.history()
    losses, rates = run.metric_history("loss"), run.metric_history("learning_rate")
    effects = [
        {
            "request": entry.id,
            "step": entry.ack.step,
            "loss_before": _mean([p for p in losses if p.step <= entry.ack.step][-_WINDOW:]),
            "loss_after": _mean([p for p in losses if p.step > entry.ack.step][:_WINDOW]),
            "learning_rate_before": _mean([p for p in rates if p.step <= entry.ack.step][-1:]),
            "learning_rate_after": _mean([p for p in rates if p.step > entry.ack.step][:1]),
            "learning_rate_at_end": _mean(rates[-1:]),
        }
        for entry in history
        if entry.ack and entry.ack.changes
    ]
    if as_json:
        done = {
            "run_id": run.run_id,
            "tracking_uri": uri,
            "state": run.status().state,
            "requests": [_row(entry) for entry in history],
            "effects": effects,
        }
        click.echo(json.dumps(done))
        return
    _print_tables(run, uri, [_row(entry) for entry in history], effects)


def _row(entry: Entry) -> dict[str, Any]:
    from ftlab_mlflow.control.wire import shown_value

    update, ack = entry.update, entry.ack
    asked = update.command or ", ".join(f"{k}={v}" for k, v in (update.set or {}).items()) if update else "?"
    answer = "pending"
    if ack:
        parts = [f"{k} {shown_value(a)} → {shown_value(b)}" for k, (a, b) in ack.changes.items()]
        parts += [f"{ack.code}: {k} {text}" for k, text in ack.errors.items()]
        if "metrics" in ack.result:
            parts.append(f"eval_loss {ack.result['metrics'].get('eval_loss'):.4g}")
        answer = "; ".join(parts) or "done"
    return {
        "step": ack.step if ack else None,
        "request": asked,
        "status": ack.status if ack else "pending",
        "answer": answer,
        "reason": update.reason if update else None,
    }


def _mean(points: Sequence[Point]) -> float | None:
    return sum(point.value for point in points) / len(points) if points else None


def _print_tables(run: LiveRun, uri: str, rows: list[dict[str, Any]], effects: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    requests = Table(title="Every request and its answer (from the run's tags)", title_justify="left")
    for heading in ("step", "request", "status", "answer"):
        requests.add_column(heading, overflow="fold")
    for row in rows:
        requests.add_row(str(row["step"]), row["request"], row["status"], row["answer"])
    console.print(requests)

    table = Table(title="Before and after (from the run's metrics)", title_justify="left")
    for heading in ("step", "loss before", "loss after", "rate before", "rate after", "rate at end"):
        table.add_column(heading)
    for effect in effects:
        values = [effect[key] for key in effect if key not in ("request", "step")]
        cells = ["–" if value is None else f"{value:.4g}" for value in values]
        table.add_row(str(effect["step"]), *cells)
    console.print(table)
    console.print(f"Loss: mean of {_WINDOW} logged values. Run {run.run_id} is {run.status().state}.")
    click.echo(f"Open it in the MLflow UI: mlflow ui --backend-store-uri {uri}")
