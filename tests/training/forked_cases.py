"""Programs in processes of their own: a child process forks once a case, and tests look at what is left.

Every case ends as any program does. In its folder it leaves what it printed (``output``) and its exit codes,
one a rank (``codes``).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.messages import Status
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.control.store import RunData

LIMIT_S = 180


@dataclass(frozen=True)
class Ended:
    """A program that has ended: its folder, its tracking store, its exit codes and what it printed."""

    folder: Path
    uri: str
    codes: list[int]
    output: str

    @property
    def run(self) -> RunData:
        (run,) = MlflowRunStore(self.uri).find()
        return run

    @property
    def status(self) -> Status:
        return Status.decode(self.run.tags[tags.STATUS])


def ended_cases(child: Path, uris: Mapping[str, str], folders: Mapping[str, Path]) -> dict[str, Ended]:
    """Runs all cases of a script that calls `main`, one after the other, each in its folder."""
    spec = json.dumps([[case, str(folder), uris[case]] for case, folder in folders.items()])
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(child), spec],
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
            folder, uris[case], json.loads((folder / "codes").read_text()), (folder / "output").read_text()
        )
        for case, folder in folders.items()
    }


def main(cases: Mapping[str, Callable[[Path], None]], on_two_ranks: Iterable[str]) -> None:
    """The child: reads ``[[case, folder, tracking URI], …]`` from its argument."""
    for case, folder, uri in json.loads(sys.argv[1]):
        ranks = _two_ranks() if case in on_two_ranks else [{}]
        pids = [
            _fork(cases[case], Path(folder), {"MLFLOW_TRACKING_URI": uri} | environment)
            for environment in ranks
        ]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        Path(folder, "codes").write_text(json.dumps(codes))


def _two_ranks() -> list[dict[str, str]]:
    """The environment of each of two ranks, as a launcher sets it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


def _fork(case: Callable[[Path], None], folder: Path, environment: dict[str, str]) -> int:
    """Runs a case in a fork, as a program that begins with it; returns the fork's process id."""
    pid = os.fork()
    if pid:
        return pid
    os.environ.update(environment)
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    case(folder)
    sys.exit()
