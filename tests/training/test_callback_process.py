"""Live control in processes of their own: signals, what is left when a program ends, several ranks."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.messages import Status
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.control.store import RunData

CHILD = Path(__file__).parent / "process_child.py"
LIMIT_S = 180
CASES = (
    "sigint",
    "sigterm",
    "sigterm without saving",
    "late sigint",
    "sigterm while paused",
    "stopped in with",
    "caught in with",
    "one rank fails",
)


@dataclass
class Ended:
    """A program that has ended: its exit codes, what it printed, its folder and its MLflow runs."""

    codes: list[int]
    output: str
    folder: Path
    runs: list[RunData]

    @property
    def run(self) -> RunData:
        (run,) = self.runs
        return run

    @property
    def status(self) -> Status:
        return Status.decode(self.run.tags[tags.STATUS])

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "out").glob("checkpoint-*"))


@pytest.fixture(scope="module")
def ended(new_sqlite: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """All cases, one after the other."""
    folders = {case: tmp_path_factory.mktemp("process") for case in CASES}
    uris = {case: new_sqlite(folder) for case, folder in folders.items()}
    spec = json.dumps([[case, str(folders[case]), uris[case]] for case in CASES])
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(CHILD), spec],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return {
        case: Ended(
            codes=json.loads((folder / "codes").read_text()),
            output=(folder / "output").read_text(),
            folder=folder,
            runs=MlflowRunStore(uris[case]).find(),
        )
        for case, folder in folders.items()
    }


@pytest.mark.parametrize(
    ("case", "code", "checkpoints"),
    [
        ("sigint", -2, ["checkpoint-6"]),
        ("sigterm", 143, ["checkpoint-6"]),
        ("sigterm without saving", 143, []),
        ("late sigint", -2, []),
    ],
)
def test_a_signal_ends_the_training_cleanly(
    ended: dict[str, Ended], case: str, code: int, checkpoints: list[str]
) -> None:
    end = ended[case]
    assert end.codes == [code], end.output
    assert (end.status.state, end.status.step, end.status.error) == ("stopped", 6, None), end.output
    assert end.run.status == "KILLED"
    assert end.checkpoints == checkpoints
    assert "never printed" not in end.output


def test_a_signal_ends_a_paused_training(ended: dict[str, Ended]) -> None:
    end = ended["sigterm while paused"]
    assert end.codes == [143], end.output
    assert end.status.state == "stopped"
    assert end.run.status == "KILLED"
    assert end.checkpoints == [f"checkpoint-{end.status.step}"]


@pytest.mark.parametrize(
    ("case", "state", "status"),
    [("stopped in with", "stopped", "KILLED"), ("caught in with", "failed", "FAILED")],
)
def test_a_run_of_the_users_has_a_truthful_status_when_the_program_has_ended(
    ended: dict[str, Ended], case: str, state: str, status: str
) -> None:
    end = ended[case]
    assert end.codes == [0], end.output
    assert "the program goes on" in end.output
    assert (end.status.state, end.run.status) == (state, status), end.output


def test_a_rank_that_fails_fails_the_run(ended: dict[str, Ended]) -> None:
    end = ended["one rank fails"]
    assert end.codes == [1, 1], end.output
    assert (end.status.state, end.run.status) == ("failed", "FAILED")
    assert "never printed" not in end.output
