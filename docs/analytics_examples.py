"""Writes the examples of docs/guides/analytics.md: makes a store, asks every function, keeps what it says.

python docs/analytics_examples.py
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Metric

from ftlab_mlflow.cli import cli
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.messages import Ack, Status, Update
from ftlab_mlflow.control.surface import Param, Surface
from ftlab_mlflow.control.wire import new_id, utc_now

GUIDE = Path(__file__).with_name("guides") / "analytics.md"
LINES = 34
"""Of an answer that are shown."""
STEPS, CHANGED_AT = 400, 200
BEGAN = int(utc_now().timestamp() * 1000) - 20 * 60_000
"""When the runs began, ms."""
GPU = "NVIDIA H100 80GB HBM3"
ASKED: dict[str, dict[str, Any]] = {
    "list_experiments": {},
    "describe_experiment": {"experiment": "sweep"},
    "search_runs": {
        "experiment": "sweep",
        "where": [{"field": "params.learning_rate", "op": ">", "value": 1e-4}],
        "order_by": "metrics.eval_loss",
        "limit": 2,
    },
    "rank_runs": {"experiment": "sweep", "metric": "eval_loss", "agg": "min", "limit": 2},
    "aggregate": {"experiment": "sweep", "metric": "eval_loss", "group_by": ["params.learning_rate"]},
    "param_effects": {"experiment": "sweep", "metric": "eval_loss"},
    "get_run": {"run": "sft-live"},
    "compare_runs": {"runs": ["sft-0", "sft-7"], "metrics": ["eval_loss"]},
    "metric_history": {"run": "sft-live", "metrics": ["loss"], "max_points": 10},
    "live_changes": {"run": "sft-live"},
    "diagnose_run": {"run": "sft-7"},
    "cost_summary": {"experiment": "sweep", "limit": 1},
    "plot_metrics": {"runs": ["sft-0"], "metrics": ["eval_loss"], "max_points": 10},
    "calculate": {"expression": "(a - b) / a * 100", "numbers": {"a": 2.46, "b": 2.31}},
    "propose_update": {"run": "sft-live", "values": {"learning_rate": 5e-5}, "reason": "the loss is noisy"},
}


def fill(client: MlflowClient) -> None:
    """Nine runs: a sweep, the last of which overfits, and one that trains and was changed."""
    experiment = client.create_experiment("sweep")
    dice = random.Random(1)
    for number in range(9):
        rate = ("1e-5", "0.00003", "1e-4", "3e-4")[number % 4]
        overfits = number == 7
        run_id = client.create_run(experiment, BEGAN, run_name=f"sft-{number}").info.run_id
        client.log_param(run_id, "learning_rate", rate)
        client.log_param(run_id, "seed", number)
        client.log_param(run_id, "model_name_or_path", "Qwen/Qwen2.5-0.5B")
        speed = 0.2 + 0.3 * (number % 4)
        _log(
            client,
            run_id,
            dice,
            [1.5 + math.exp(-speed * step / 100) for step in range(1, STEPS + 1)],
            overfits,
        )
        client.set_tag(run_id, tags.COMMAND_LINE, "ftlab train sft --config sft.yaml")
        client.set_tag(run_id, tags.ACCELERATORS, GPU)
        end = BEGAN + 1000 * (600 + 60 * number)
        client.set_terminated(run_id, "FAILED" if number == 8 else "FINISHED", end)
    _live(client, experiment, dice)


def _live(client: MlflowClient, experiment: str, dice: random.Random) -> None:
    run_id = client.create_run(experiment, BEGAN + 1000, run_name="sft-live").info.run_id
    losses = [2.5 - 0.0005 * step - 0.002 * max(0, step - CHANGED_AT) for step in range(1, STEPS + 1)]
    _log(client, run_id, dice, losses, overfits=False)
    now = utc_now()
    rate = Param("float", 1e-4, 1e-4, 0.0, 1.0, help="The rate of the next optimizer step.")
    status = Status("running", STEPS, 1000, 0.4, now, 3600, "s1", "node7", 4242, "sft")
    request = new_id()
    update = Update(
        at=now - timedelta(minutes=9), set={"learning_rate": 1e-4}, by="ada", via="cli", reason="stalled"
    )
    ack = Ack("applied", CHANGED_AT, now - timedelta(minutes=9), "s1", {"learning_rate": (3e-5, 1e-4)})
    written = {
        tags.SURFACE: Surface({"learning_rate": rate}, ("pause", "stop")).encode(),
        tags.STATUS: status.encode(),
        tags.UPDATE_PREFIX + request: update.encode(),
        tags.ACK_PREFIX + request: ack.encode(),
    }
    for key, value in written.items():
        client.set_tag(run_id, key, value)


def _log(client: MlflowClient, run_id: str, dice: random.Random, losses: list[float], overfits: bool) -> None:
    points = []
    for step, value in enumerate(losses, 1):
        at = BEGAN + 1000 * step
        points.append(Metric("loss", value + dice.gauss(0, 0.01), at, step))
        if step % 40 == 0:
            gap = 0.1 + (0.002 * max(0, step - 160) if overfits else 0)
            points.append(Metric("eval_loss", round(value + gap, 4), at, step))
    client.log_batch(run_id, metrics=points[:1000])


def example(name: str, arguments: dict[str, Any]) -> str:
    """The command and the begin of what it says."""
    said = json.dumps(arguments)
    done = CliRunner().invoke(cli, ["tools", "call", name, "--json", said], catch_exceptions=False)
    if done.exit_code:
        raise RuntimeError(done.output)
    lines = done.output.rstrip().splitlines()
    shown = lines if len(lines) <= LINES else [*lines[:LINES], "  …"]
    return (
        f"### {name}\n\n```console\n$ ftlab tools call {name} --json '{said}'\n"
        + "\n".join(shown)
        + "\n```\n"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        os.environ |= {"MLFLOW_TRACKING_URI": uri, "FTLAB_GPU_PRICES": f"{GPU}=2.5"}
        fill(MlflowClient(uri))
        examples = "\n".join(example(name, arguments) for name, arguments in ASKED.items())
    text, count = re.subn(
        r"(<!-- examples -->\n).*?(<!-- /examples -->)",
        lambda found: f"{found[1]}\n{examples}\n{found[2]}",
        GUIDE.read_text(),
        flags=re.DOTALL,
    )
    if count != 1:
        raise ValueError(f"{GUIDE} must have the markers of the examples once, found {count}")
    GUIDE.write_text(text)


if __name__ == "__main__":
    main()
