"""What the tests of the chat in a browser act in: runs, a training that goes on, models on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from model_servers import Answer, Call, Failure, Reply, Tokens

from ftlab_mlflow import LiveRun
from ftlab_mlflow.errors import NotLive, RunNotFound

LIVE = "cosine live"
FIRST_HALF = "Looking at both runs, **"
SECOND_HALF = "low-lr** has the lowest eval loss, 0.31, after 42 % fewer steps."
TRAINING = """
import sys, time
import mlflow, torch
from ftlab_mlflow import LiveLoop

STEPS = 20_000

model = torch.nn.Linear(4, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
with LiveLoop(optimizer, scheduler, max_steps=STEPS, run_name=sys.argv[1], poll_interval=0.1) as live:
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % 20 == 0:
            mlflow.log_metric("loss", loss.item(), step=step + 1)
        if live.step():
            break
        time.sleep(0.02)
"""
"""A real training that lasts longer than the tests, with a plan of its learning rate."""


def finished(uri: str, name: str, losses: list[float], **params: str) -> str:
    """A run that is over; its id. losses: At steps 10, 20, …"""
    client = MlflowClient(uri)
    run_id: str = client.create_run("0", run_name=name).info.run_id
    points = [Metric("eval_loss", loss, 1_700_000_000_000, 10 * at) for at, loss in enumerate(losses, 1)]
    client.log_batch(run_id, metrics=points)
    for key, value in params.items():
        client.log_param(run_id, key, value)
    client.set_terminated(run_id)
    return run_id


@contextmanager
def training(uri: str, folder: Path) -> Iterator[Callable[[], LiveRun]]:
    """A training in a process of its own, which begins meanwhile: what is given waits until it listens."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = folder / "training.log"
    with log.open("wb") as output:
        command = [sys.executable, "-c", TRAINING, LIVE]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        try:
            yield lambda: _listening(uri, process, log)
        finally:
            process.kill()
            process.wait(10)


def _listening(uri: str, process: subprocess.Popen[bytes], log: Path) -> LiveRun:
    end = time.monotonic() + 90
    while True:
        try:
            run = LiveRun(LIVE, tracking_uri=uri)
            if run.status().state == "running":
                return run
        except (RunNotFound, NotLive):
            pass
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < end, log.read_text()[-2000:]
        time.sleep(0.1)


@dataclass
class Script:
    """What a model replies, by a word of the question; the same for both wire formats.

    Attributes:
        go_on: Set by a test to let the second half of a held reply come.
        failures: Are given first, whatever is asked.
        replies: By a word of the question, from whether tools have run since it.
    """

    go_on: Event = field(default_factory=Event)
    failures: list[Failure] = field(default_factory=list)
    replies: dict[str, Callable[[bool], Answer]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rank = Call("rank_runs", {"experiment": "Default", "metric": "eval_loss"})
        plot = Call("plot_metrics", {"runs": ["low-lr", "high-lr"], "metrics": ["eval_loss"]})
        half = Call(
            "propose_update", {"run": LIVE, "values": {"learning_rate": 5e-4}, "reason": "the loss is flat"}
        )
        held = Reply(
            FIRST_HALF + SECOND_HALF, hold=self.go_on, hold_at=5, usage=Tokens(1200, 60, cached=1000)
        )
        self.replies |= {
            "lowest": lambda has_results: held if has_results else Reply("I rank them.", calls=[rank]),
            "plot": lambda has_results: (
                Reply("`low-lr` ends lower than `high-lr`.") if has_results else Reply(calls=[plot])
            ),
            "halve": lambda has_results: (
                Reply("I propose half the rate; nothing has been changed.")
                if has_results
                else Reply(calls=[half])
            ),
            "endless": lambda has_results: Reply(
                "Alpha beta gamma delta epsilon zeta", hold=Event(), hold_at=6
            ),
        }

    def __call__(self, request: Mapping[str, Any]) -> Answer:
        if self.failures:
            return self.failures.pop(0)
        messages = request["messages"]
        asked = next(
            text for each in reversed(messages) if each["role"] == "user" if (text := _words(each["content"]))
        )
        has_results = not (messages[-1]["role"] == "user" and _words(messages[-1]["content"]))
        word = next((word for word in self.replies if word in asked.lower()), None)
        return self.replies[word](has_results) if word else Reply("I do not know.")


def _words(content: Any) -> str:
    """What a person said in a message, in either wire format; nothing where it holds results."""
    if isinstance(content, str):
        return content
    return " ".join(each["text"] for each in content if each["type"] == "text")
