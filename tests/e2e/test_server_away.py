"""A real tracking server that is killed and started again between a request and its answer."""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftlab_mlflow import LiveRun

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from training_doubles import LIMIT_S, wait_for
from training_tiny import Net, Recorder, Script, arguments, collate, data, train_beside
from transformers import Trainer

from ftlab_mlflow import attach
from ftlab_mlflow.training import listener


@pytest.fixture
def server(mlflow_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The session's server as MLflow's tracking URI; it runs again afterwards."""
    import mlflow

    monkeypatch.setattr(listener, "BACKOFF_S", (0.1, 0.5))
    mlflow_server.start()
    mlflow.set_tracking_uri(mlflow_server.uri)
    yield mlflow_server
    mlflow_server.start()
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


class Gate(Script):
    """Holds the training at the end of one step, before live control looks, until it is opened."""

    def __init__(self, step: int) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        super().__init__({step: self._wait})

    def _wait(self) -> None:
        self.reached.set()
        assert self.opened.wait(6 * LIMIT_S)


def _trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    return Trainer(
        model=Net(),
        args=arguments(folder, **({"max_steps": 10**6, "logging_steps": 10**6} | options)),
        train_dataset=data(),  # type: ignore[arg-type]
        data_collator=collate,
        callbacks=list(callbacks),
    )


def _run(control: Any) -> LiveRun:
    wait_for(lambda: control.run_id, "the run")
    run = LiveRun(control.run_id)
    wait_for(lambda: "ftlab.status" in run.tags(), "the run to listen")
    return run


def test_killed_between_request_and_answer(
    server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate, recorder = Gate(20), Recorder()
    trainer = _trainer(tmp_path, gate, recorder)
    control = attach(trainer, 0.05)
    steps: dict[str, int] = {}

    def client() -> None:
        run = _run(control)
        assert gate.reached.wait(LIMIT_S)
        sent = run.update(learning_rate=0.02, reason="the server goes away")
        session = control._live.training.session  # type: ignore[union-attr]
        wait_for(lambda: session._attention, "the request to be seen")
        server.stop()
        gate.opened.set()
        steps["away"] = trainer.state.global_step
        wait_for(lambda: trainer.state.global_step > steps["away"] + 200, "steps without a server")
        wait_for(lambda: any("training goes on" in m for m in caplog.messages), "the warning", limit=30)
        server.start()
        steps["back"] = trainer.state.global_step
        ack = sent.wait(60)
        assert (ack.status, ack.step) == ("applied", 20)
        assert ack.changes["learning_rate"][1] == 0.02
        run.stop(save=False).wait(60)

    train_beside(trainer, client)
    assert recorder.rates[20] == 0.02, "applied at once, whatever became of the server"
    assert steps["back"] > steps["away"] + 200
    assert sum("training goes on" in m for m in caplog.messages) == 1
    assert sum("answers again" in m for m in caplog.messages) == 1
    run = LiveRun(str(control.run_id))
    assert (run.status().state, run.data().status) == ("stopped", "KILLED")
    history = [(e.update.reason, e.ack.status) for e in run.history() if e.update and e.ack]
    assert history == [("the server goes away", "applied"), (None, "applied")]


def test_killed_before_the_end_and_back_in_time(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "DELIVERY_S", 60.0)  # a server's start may take longer than its 10 s
    gate = Gate(20)
    trainer = _trainer(tmp_path, gate, max_steps=40)
    control = attach(trainer, 0.05)
    starter = threading.Timer(1.0, server.start)

    def client() -> None:
        run = _run(control)
        assert gate.reached.wait(LIMIT_S)
        run.update(learning_rate=0.02)
        session = control._live.training.session  # type: ignore[union-attr]
        wait_for(lambda: session._attention, "the request to be seen")
        server.stop()
        starter.start()
        gate.opened.set()

    train_beside(trainer, client)
    starter.join(60)
    run = LiveRun(str(control.run_id))
    (entry,) = run.history()
    assert entry.ack is not None
    assert (entry.ack.status, entry.ack.step) == ("applied", 20)
    assert (run.status().state, run.data().status) == ("finished", "FINISHED")


def test_away_at_the_end_costs_the_training_at_most_its_time_limit(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "DELIVERY_S", 1.0)
    gate = Gate(20)
    trainer = _trainer(tmp_path, gate, max_steps=40)
    control = attach(trainer, 0.05)

    def client() -> None:
        run = _run(control)
        assert gate.reached.wait(LIMIT_S)
        run.update(learning_rate=0.02)
        session = control._live.training.session  # type: ignore[union-attr]
        wait_for(lambda: session._attention, "the request to be seen")
        server.stop()
        gate.opened.set()

    began: list[float] = []
    trainer.add_callback(Script({40: lambda: began.append(time.monotonic())}))
    train_beside(trainer, client)
    assert time.monotonic() - began[0] < 10
    (text,) = [m for m in caplog.messages if "Not delivered" in m]
    assert "ftlab.ack." in text
    assert "FINISHED" in text
    server.start()
    run = LiveRun(str(control.run_id))
    assert run.history()[0].ack is None, "it says the truth: nothing was delivered"
