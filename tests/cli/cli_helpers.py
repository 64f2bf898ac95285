"""Runs to look at, a trainer to talk to, and the command line called as a person calls it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.messages import Ack, Status, Update
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.control.store import Point, now_ms
from ftlab_mlflow.control.surface import Param, Surface
from ftlab_mlflow.control.wire import new_id, utc_now

LIMIT_S = 30.0
"""Longest wait for a condition before a test fails."""


@dataclass
class Result:
    """What a call of the command line gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        return json.loads(self.out)

    @property
    def error(self) -> Mapping[str, Any]:
        """The error in the one document on stdout."""
        found: Mapping[str, Any] = self.json["error"]
        return found


Ftlab = Callable[..., Result]


def ftlab_process(*arguments: str, **settings: Any) -> subprocess.Popen[str]:
    """The command line as a process of its own."""
    pipe = subprocess.PIPE
    settings = {"stdout": pipe, "stderr": pipe, "text": True, "env": dict(os.environ), **settings}
    return subprocess.Popen([sys.executable, "-m", "ftlab_mlflow.cli", *arguments], **settings)


def until(condition: Callable[[], Any], what: str) -> Any:
    """Waits until a condition holds and returns what it gave."""
    end = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {LIMIT_S:g} s in vain: {what}"
        time.sleep(0.02)
    return found


def request_id(text: str) -> str:
    """The id of the request that was sent, from what the command line printed."""
    found = re.search(r"Sent ([0-9a-f-]{36}) ", text)
    assert found, text
    return found[1]


# --- a run written by hand ---------------------------------------------------------------------------


class WrittenRun:
    """A run whose tags a test writes, through the message classes that a trainer uses."""

    def __init__(self, uri: str, name: str = "tiny") -> None:
        from mlflow import MlflowClient

        self.store = MlflowRunStore(uri)
        self.run_id: str = MlflowClient(uri).create_run("0", run_name=name).info.run_id

    def status(self, state: Any = "running", **changed: Any) -> None:
        fields: dict[str, Any] = {
            "state": state,
            "step": 130,
            "max_steps": 1000,
            "epoch": 0.41,
            "at": utc_now(),
            "every_s": 10,
            "session": "s1",
            "host": "node7",
            "pid": 4242,
            "method": "sft",
        }
        self.store.write(self.run_id, {tags.STATUS: Status(**fields | changed).encode()})

    def surface(self, learning_rate: float = 8.7e-05) -> None:
        params = {
            "learning_rate": Param("float", learning_rate, 1e-4, 0, 1),
            "lr_schedule": Param("enum", "keep", "keep", choices=("keep", "hold")),
            "eval_steps": Param("int", 50, 50, 1),
        }
        surface = Surface(params, ("pause", "resume", "cancel"))
        self.store.write(self.run_id, {tags.SURFACE: surface.encode()})

    def metrics(self, **values: float) -> None:
        points = [Point(key, value, 130, now_ms()) for key, value in values.items()]
        self.store.write(self.run_id, {}, points)

    def request(self, *, at: datetime | None = None, **fields: Any) -> str:
        update_id = new_id()
        update = Update(at=at or utc_now(), **fields)
        self.store.write(self.run_id, {tags.UPDATE_PREFIX + update_id: update.encode()})
        return update_id

    def answer(self, update_id: str, status: Any = "applied", step: int = 131, **fields: Any) -> None:
        ack = Ack(status, step, utc_now(), "s1", **fields)
        self.store.write(self.run_id, {tags.ACK_PREFIX + update_id: ack.encode()})


# --- a trainer that answers --------------------------------------------------------------------------


class Knobs:
    """What the trainer below trains with: plain values."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {
            "learning_rate": 1e-4,
            "weight_decay": 0.0,
            "eval_steps": 50,
            "lr_schedule": "keep",
            "shuffle": True,
            "broken": 1.0,
        }

    def apply(self, name: str, value: Any) -> None:
        if name == "broken":
            raise RuntimeError("it is \x1b[31mbroken [red]")
        self.values[name] = value


class RealTrainer:
    """The trainer's side of the protocol, whole: session, listener, store. Only its steps do no training."""

    def __init__(self, uri: str, folder: Path) -> None:
        from ftlab_mlflow.training.listener import Listener
        from ftlab_mlflow.training.session import Session

        written = WrittenRun(uri, "trained")
        self.run_id = written.run_id
        self._store = written.store
        self.knobs = Knobs()
        self.step = 0
        self._folder = folder
        self._is_over = threading.Event()
        self._stopped = False
        self._listener = Listener(
            written.store, self.run_id, lambda: self._describe(self.session.state), 0.05
        )
        self.session = Session(
            id=new_id(),
            tunables=self._tunables(),
            unsupported={"save_steps": "save_strategy is 'no', not 'steps'"},
            commands=("pause", "resume", "stop", "checkpoint", "evaluate", "rollback", "cancel"),
            host=self,
            outbox=self._listener,
            describe=self._describe,
        )
        self._thread = threading.Thread(target=self._train, name="test-trainer")

    def _tunables(self) -> dict[str, Any]:
        from ftlab_mlflow.training.tunable import Tunable

        def make(name: str, type: Any, **bounds: Any) -> Tunable:
            return Tunable(
                name=name,
                type=type,
                help="",
                read=lambda: self.knobs.values[name],
                apply=lambda value: self.knobs.apply(name, value),
                capture=lambda: self.knobs.values[name],
                restore=lambda value: self.knobs.values.__setitem__(name, value),
                asked=self.knobs.values[name],
                **bounds,
            )

        made = [
            make("learning_rate", "float", min=0, max=1),
            make("weight_decay", "float", min=0, max=10),
            make("eval_steps", "int", min=1),
            make("lr_schedule", "enum", choices=("keep", "hold")),
            make("shuffle", "bool"),
            make("broken", "float"),
        ]
        return {tunable.name: tunable for tunable in made}

    def _describe(self, state: Any) -> str:
        status = Status(state, self.step, 100_000, 0.5, utc_now(), 10, "s1", "node7", 4242, "sft")
        return status.encode()

    def _train(self) -> None:
        first = self._listener.read_first()
        assert first is not None
        self.session.begin(0, {}, Ledger.read(first))
        self._listener.start(self.session, self.session.surface().params, first)
        self.session.running()
        while not self._is_over.is_set():
            self.step += 1
            self.session.boundary(self.step)
            self._is_over.wait(0.002)
        state: Any = "stopped" if self._stopped else "finished"
        self.session.end(state)
        assert self._listener.close("KILLED" if self._stopped else "FINISHED")

    # What a session asks of its host.

    def checkpoint(self) -> str:
        return str(self._folder / f"checkpoint-{self.step}")

    def evaluate(self) -> Mapping[str, float]:
        return {"eval_loss": 0.5}

    def rollback(self, checkpoint: str | None) -> tuple[str, Mapping[str, Any], int]:
        self.step = 1
        return str(self._folder / (checkpoint or "checkpoint-1")), {}, self.step

    def stop(self) -> None:
        self._stopped = True
        self._is_over.set()

    # What a test asks of it.

    def start(self) -> None:
        self._thread.start()
        until(lambda: self.session.state == "running", "the trainer runs")
        until(lambda: tags.SURFACE in self._store.get(self.run_id).tags, "a client can see it")

    def end(self) -> None:
        if self.session.state == "paused":
            self.session.state = "running"
        self._is_over.set()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()
