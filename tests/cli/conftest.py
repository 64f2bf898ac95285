"""Fixtures of the command line's tests: it called in this process, a run to look at, a trainer to talk to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cli_helpers import Ftlab, RealTrainer, Result, WrittenRun

from ftlab_mlflow.cli import run as run_cli
from ftlab_mlflow.control.wire import utc_now


@pytest.fixture
def ftlab(capsys: pytest.CaptureFixture[str]) -> Ftlab:
    """``ftlab("status", "latest")`` runs a command line in this process, quickly."""

    def call(*arguments: str) -> Result:
        capsys.readouterr()
        code = run_cli(arguments)
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return call


@pytest.fixture
def new_run(tracking_uri: str) -> Callable[..., WrittenRun]:
    """``new_run(name)`` makes a run in this test's MLflow with surface and a fresh heartbeat."""

    def make(name: str = "tiny", *, state: str = "running", heartbeat_s: float = 0.0) -> WrittenRun:
        run = WrittenRun(tracking_uri, name)
        run.surface()
        run.status(state, at=utc_now() - timedelta(seconds=heartbeat_s))
        return run

    return make


@pytest.fixture
def trainer(tracking_uri: str, tmp_path: Path) -> Iterator[RealTrainer]:
    """A trainer at work on a run of this test's MLflow."""
    trainer = RealTrainer(tracking_uri, tmp_path)
    trainer.start()
    yield trainer
    trainer.end()
