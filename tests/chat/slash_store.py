"""A tracking store to give commands about: a sweep, a run that trains and was changed, one that failed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric

from ftlab_mlflow.analytics import call_tool
from ftlab_mlflow.chat import slash
from ftlab_mlflow.chat.render import markdown
from ftlab_mlflow.chat.scope import Scope
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.messages import Ack, Status, Update
from ftlab_mlflow.control.surface import Param, Surface
from ftlab_mlflow.control.wire import new_id, utc_now

BEGAN = 1_790_000_000_000
"""When the first run began, ms: 2026-09-21 12:13 UTC."""
GPU = "H100"
RATES = ("1e-5", "0.00003", "1e-4", "3e-4")
SPECIAL = "a|b *c* [d](e) `f`"
"""A run's name."""


ASKED: Mapping[str, Mapping[str, Any]] = {
    "list_experiments": {},
    "describe_experiment": {"experiment": "sweep"},
    "search_runs": {
        "experiment": "sweep",
        "where": [{"field": "params.learning_rate", "op": ">=", "value": 3e-05}],
        "order_by": "metrics.eval_loss",
    },
    "rank_runs": {"experiment": "sweep", "metric": "eval_loss", "limit": 3},
    "get_run": {"run": "live"},
    "compare_runs": {"runs": ["sft-1", "sft-3", "live"]},
    "metric_history": {"run": "live", "metrics": ["loss"], "max_points": 30},
    "aggregate": {"experiment": "sweep", "metric": "eval_loss", "group_by": ["params.learning_rate"]},
    "param_effects": {"experiment": "sweep", "metric": "eval_loss"},
    "diagnose_run": {"run": "live"},
    "live_changes": {"run": "live"},
    "cost_summary": {"experiment": "sweep"},
    "plot_metrics": {"runs": ["sft-1", "live"], "metrics": ["loss", "eval_loss"]},
    "calculate": {"expression": "(a - b) / a * 100", "numbers": {"a": 2.46, "b": 2.31}},
    "propose_update": {"run": "live", "values": {"learning_rate": 5e-5}, "reason": "the loss is noisy"},
}
"""What is asked of it, by function."""


class Store:
    """The store, filled. ids: Of its runs, by name."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.ids = fill(uri)

    def run(self, text: str, *runs: str, experiment: str | None = None) -> slash.SlashResult:
        """Runs a command, with these runs and this experiment selected."""
        return slash.run(text, Scope(tuple(self.ids[name] for name in runs), experiment), self.uri)

    def arguments(self, text: str, *runs: str, experiment: str | None = None) -> dict[str, Any]:
        """What the one function was called with."""
        (done,) = self.run(text, *runs, experiment=experiment).runs
        return dict(done.arguments)

    def show(self, name: str, **arguments: Any) -> str:
        """What a function says, as Markdown."""
        return markdown(name, arguments, call_tool(name, arguments, self.uri))


def fill(uri: str) -> dict[str, str]:
    """Experiments `sweep` with ten finished runs and one that trains, `my other` with two; ids by name."""
    client = MlflowClient(uri)
    sweep, other = client.create_experiment("sweep"), client.create_experiment("my other")
    ids = {f"sft-{number}": _sft(client, sweep, number) for number in range(10)}
    failed = client.create_run(other, BEGAN + 60_000, run_name="broken").info.run_id
    client.log_batch(
        failed, [Metric("loss", value, BEGAN, 1 + at) for at, value in enumerate((1.0, math.nan))]
    )
    client.log_batch(failed, [Metric("weird", value, BEGAN, 1) for value in (math.inf,)])
    client.set_terminated(failed, "FAILED", BEGAN + 61_000)
    special = client.create_run(other, BEGAN + 120_000, run_name=SPECIAL).info.run_id
    client.log_metric(special, "loss", 0.25, BEGAN, 1)
    client.set_terminated(special, "FINISHED", BEGAN + 125_000)
    return ids | {"broken": failed, SPECIAL: special, "live": _live(client, sweep)}


def _sft(client: MlflowClient, experiment: str, number: int) -> str:
    run_id: str = client.create_run(experiment, BEGAN + number, run_name=f"sft-{number}").info.run_id
    client.log_param(run_id, "learning_rate", RATES[number % 4])
    client.log_param(run_id, "seed", number)
    losses = [2.0 + number / 10 - 0.02 * step for step in range(1, 31)]
    points = [Metric("loss", loss, BEGAN + 1000 * step, step) for step, loss in enumerate(losses, 1)]
    points.append(Metric("eval_loss", losses[-1] + 0.1, BEGAN + 30_000, 30))
    client.log_batch(run_id, points)
    client.set_tag(run_id, tags.ACCELERATORS, GPU)
    client.set_terminated(run_id, "FINISHED", BEGAN + number + 3_600_000)
    return run_id


def _live(client: MlflowClient, experiment: str) -> str:
    run_id: str = client.create_run(experiment, BEGAN + 1000, run_name="live").info.run_id
    losses = [2.5 - 0.01 * step for step in range(1, 61)]
    client.log_batch(
        run_id, [Metric("loss", loss, BEGAN + 1000 * at, at) for at, loss in enumerate(losses, 1)]
    )
    now = utc_now()
    params = {
        "learning_rate": Param("float", 1e-4, 1e-4, 0.0, 1.0),
        "eval_steps": Param("int", 50, 50, 1),
        "lr_schedule": Param("enum", "keep", "keep", choices=("keep", "hold", "8")),
    }
    request = new_id()
    asked = Update(
        at=now - timedelta(minutes=9), set={"learning_rate": 1e-4}, by="ada", via="cli", reason="it | stalled"
    )
    ack = Ack("applied", 30, now - timedelta(minutes=9), "s1", {"learning_rate": (3e-5, 1e-4)})
    written = {
        tags.SURFACE: Surface(params, ("pause", "stop")).encode(),
        tags.STATUS: Status("running", 60, 1000, 0.4, now, 3600, "s1", "node7", 4242, "sft").encode(),
        tags.UPDATE_PREFIX + request: asked.encode(),
        tags.ACK_PREFIX + request: ack.encode(),
    }
    for key, value in written.items():
        client.set_tag(run_id, key, value)
    return run_id
