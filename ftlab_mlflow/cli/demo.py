"""`ftlab demo`: a real training in one process, changed from this one while it trains."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftlab_mlflow.cli import demo_real, demo_report
from ftlab_mlflow.cli.demo_stage import STALL_S, Stage
from ftlab_mlflow.errors import UpdateTimeout

if TYPE_CHECKING:
    from ftlab_mlflow.control.client import LiveRun


@click.command(help="Train a small model on the spot and change it while it trains (about two minutes).")
@click.option("--real", is_flag=True, help="A real model instead: LoRA on SmolLM2-135M-Instruct from PyPI.")
@click.option("--folder", default="demo", show_default=True, help="Where the run, the model and the log go.")
@click.option("--tracking-uri", help="Use this MLflow instead of a SQLite file in the folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, and nothing else.")
@click.pass_context
def demo(context: click.Context, real: bool, folder: str, tracking_uri: str | None, as_json: bool) -> None:
    """Runs the training as a process of its own and acts on it as anybody could."""
    place = Path(folder).resolve()
    place.mkdir(parents=True, exist_ok=True)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{place}/mlflow.db"
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # Threads of torch that spin while they wait for each other would take the cores from this process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    stage = Stage(place, uri, f"demo-{time.strftime('%Y%m%d-%H%M%S')}", quiet=as_json)
    report = demo_real.play(stage) if real else _play(stage)
    if as_json:
        click.echo(json.dumps(report))
    else:
        demo_report.show(report)
        if real:
            demo_real.show(report)
        click.echo(f"Open it in the MLflow UI: mlflow ui --backend-store-uri {uri}")
    if problems := report.get("problems"):
        click.echo(f"Failed: {'; '.join(problems)}", err=True)
        context.exit(1)


def _play(stage: Stage) -> dict[str, Any]:
    # Half of the cores: torch's threads wait for each other, and this process wants to run beside them.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))
    options = {
        "model": "demo",
        "data": "demo",
        "output_dir": str(stage.place / "model"),
        "poll_interval": "0.5",
    }
    return demo_report.document(stage.play(options, _act), stage.uri)


def _act(stage: Stage) -> None:
    run = stage.run
    stage.at(0.25)
    asked = float(run.surface().params["learning_rate"].asked)
    stage.tell("  → change the learning rate under the cosine schedule")
    stage.answer(run.update(learning_rate=asked / 2, reason="try a smaller rate"))
    stage.at(0.40)
    stage.tell("  → ask for a learning rate of NaN, with a plain tag")
    _send_nan(run, stage.uri)
    stage.at(0.45)
    stage.tell("  → change weight decay and gradient clipping in one request")
    stage.answer(run.update(weight_decay=0.05, max_grad_norm=0.5, reason="regularise"))
    stage.at(0.60)
    stage.tell("  → pause, evaluate while paused, resume")
    for command in (run.pause, run.evaluate, run.resume):
        stage.answer(command())


def _send_nan(run: LiveRun, uri: str) -> None:
    """As any client may: one tag, written through MLflow's own API."""
    from mlflow import MlflowClient

    from ftlab_mlflow.control import tags
    from ftlab_mlflow.control.ledger import read_entry
    from ftlab_mlflow.control.wire import format_time, new_id, utc_now

    request_id = new_id()
    value = '{"v":1,"set":{"learning_rate":NaN},"by":"demo","via":"tag","at":"%s"}'
    value %= format_time(utc_now())
    MlflowClient(uri).set_tag(run.run_id, tags.UPDATE_PREFIX + request_id, value)
    end = time.monotonic() + STALL_S
    while not read_entry(run.tags(), request_id).answered:
        if time.monotonic() > end:
            raise UpdateTimeout(f"no answer to {request_id}")
        time.sleep(0.2)
