"""Four processes that ask for changes of one run all at once: no request is lost, none spoils another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from control_samples import live_tags

from ftlab_mlflow.control.client import LiveRun

WRITERS = 4
EACH = 26

WRITER = """
import json, sys
from ftlab_mlflow import LiveRun
import mlflow
print("ready", flush=True)
for line in sys.stdin:
    uri, run_id, writer, each = json.loads(line)
    run = LiveRun(run_id, tracking_uri=uri, by=f"writer {writer}")
    print("ready", flush=True)
    sys.stdin.readline()
    sent = [run.update(learning_rate=(writer * each + i) / 1000) for i in range(each)]
    print(json.dumps([[s.id, s.update.set["learning_rate"]] for s in sent]), flush=True)
"""

Writer = subprocess.Popen[str]


def _say(writer: Writer, message: Any) -> None:
    assert writer.stdin is not None
    print(json.dumps(message), file=writer.stdin, flush=True)


def _hear(writer: Writer) -> str:
    assert writer.stdout is not None
    line = writer.stdout.readline().strip()
    assert line, "the writer failed; what it said is in this test's stderr"
    return line


@pytest.fixture(scope="module")
def writers() -> Iterator[list[Writer]]:
    """Processes that wait to be told where to write."""
    command = [sys.executable, "-c", WRITER]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(WRITERS)
    ]
    for writer in started:
        assert _hear(writer) == "ready"
    yield started
    for writer in started:
        writer.kill()
        writer.communicate()


OPENER = """
import os, sys
from mlflow import MlflowClient
from mlflow.store.tracking import sqlalchemy_store
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
start, begin = os.pipe()
children = []
for _ in range(4):
    if not (child := os.fork()):
        os.close(begin)
        os.read(start, 1)
        print(len(MlflowRunStore(sys.argv[1]).find()), flush=True)
        os._exit(0)
    children.append(child)
os.close(begin)
sys.exit(max(os.waitpid(child, 0)[1] for child in children))
"""


def test_processes_that_open_a_new_file_at_once(tmp_path: Path) -> None:
    """Each finds an empty store: one of them has made the tables."""
    command = [sys.executable, "-c", OPENER, f"sqlite:///{tmp_path}/new.db"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "0\n" * 4), done.stderr[-2000:]


@pytest.mark.parametrize("where", ["sqlite", "http"])
def test_no_request_of_many_writers_is_lost(
    writers: list[Writer], where: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    if where == "http":
        uri = request.getfixturevalue("mlflow_server").uri
    else:
        new_sqlite: Callable[[Path], str] = request.getfixturevalue("new_sqlite")
        uri = new_sqlite(tmp_path)
    client = MlflowClient(uri)
    run_id = client.create_run("0").info.run_id
    for key, text in live_tags().items():
        client.set_tag(run_id, key, text)

    for number, writer in enumerate(writers):
        _say(writer, [uri, run_id, number, EACH])
    for writer in writers:
        assert _hear(writer) == "ready"
    for writer in writers:
        _say(writer, "go")
    sent: list[list[tuple[str, float]]] = [[tuple(s) for s in json.loads(_hear(w))] for w in writers]

    asked = {request_id: value for mine in sent for request_id, value in mine}
    assert len(asked) == WRITERS * EACH
    history = LiveRun(run_id, tracking_uri=uri).history()
    assert {e.id: e.update and e.update.set and e.update.set["learning_rate"] for e in history} == asked
    assert not any(entry.answered or entry.error for entry in history)
    for number, mine in enumerate(sent):
        by_this = [entry.id for entry in history if entry.update and entry.update.by == f"writer {number}"]
        assert by_this == [request_id for request_id, _ in mine]
    writer_of = {request_id: number for number, mine in enumerate(sent) for request_id, _ in mine}
    turns = sum(writer_of[a.id] != writer_of[b.id] for a, b in pairwise(history))
    assert turns >= WRITERS, "the writers wrote one after the other, so this shows nothing"
