"""`watch`: piped, as JSON lines, in a pseudo-terminal, and while the tracking store is away."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from cli_helpers import LIMIT_S, Ftlab, WrittenRun, ftlab_process, until

from ftlab_mlflow.control.wire import utc_now


@contextlib.contextmanager
def following(
    run: WrittenRun, *options: str, **settings: Any
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A `watch` in another process, and the lines that it has printed so far."""
    process = ftlab_process("watch", run.run_id, "--interval", "0.2", *options, **settings)
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lines.extend, args=(process.stdout,))
    reader.start()
    try:
        until(lambda: lines or process.poll() is not None, "the first line")
        yield process, lines
        process.wait(LIMIT_S)
    finally:
        process.kill()
        process.wait()
        reader.join(LIMIT_S)
        process.stdout.close()
        if process.stderr:
            process.stderr.close()


def test_each_change_is_one_line_until_the_run_ends(new_run: Callable[..., WrittenRun]) -> None:
    run = new_run()
    old = run.request(command="pause", by="zoe")
    run.answer(old)
    with following(run) as (process, lines):
        assert re.fullmatch(r"\d\d:\d\d:\d\d  running  step 130/1000 13%  rate 8.7e-05\n", lines[0])
        run.metrics(loss=1.25)
        until(lambda: len(lines) == 2, "the loss")
        sent = run.request(set={"learning_rate": 5e-5}, by="alice", reason="plateau [red]\x1b[31m")
        until(lambda: len(lines) == 3, "the request")
        run.answer(sent, step=140, changes={"learning_rate": (8.7e-05, 5e-05)})
        until(lambda: len(lines) == 4, "the answer")
        run.status("finished", step=1000)
        assert process.wait(LIMIT_S) == 0
    assert lines[1].endswith("running  step 130/1000 13%  loss 1.25  rate 8.7e-05\n")
    assert f"request {sent} by alice: learning_rate=5e-05 (plateau [red] [31m)" in lines[2]
    assert f"applied {sent} at step 140: learning_rate 8.7e-05 → 5e-05" in lines[3]
    assert lines[4].endswith("finished  step 1000/1000 100%  loss 1.25  rate 8.7e-05\n")
    assert len(lines) == 5
    assert not any(old in line for line in lines)


def test_json_is_one_document_a_line(new_run: Callable[..., WrittenRun]) -> None:
    run = new_run()
    pending = run.request(command="pause", by="zoe")
    with following(run, "--json") as (process, lines):
        until(lambda: len(lines) == 2, "state and pending request")
        run.answer(pending, "rejected", code="failed", errors={"command": "no"})
        until(lambda: len(lines) == 3, "the answer")
        run.status("failed", error="boom")
        assert process.wait(LIMIT_S) == 0
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events] == ["status", "request", "answer", "status"]
    assert (events[0]["state"], events[0]["progress"], events[0]["learning_rate"]) == (
        "running",
        0.13,
        8.7e-05,
    )
    assert (events[1]["id"], events[1]["pending"]) == (pending, True)
    assert (events[2]["answer"]["code"], events[2]["pending"]) == ("failed", False)
    assert (events[3]["state"], events[3]["error"]) == ("failed", "boom")


def test_a_run_that_has_ended_is_told_once(ftlab: Ftlab, new_run: Callable[..., WrittenRun]) -> None:
    run = new_run(state="stopped")
    result = ftlab("watch")
    assert result.code == 0
    assert result.out.count("\n") == 1
    assert "stopped" in result.out
    late = run.request(set={"eval_steps": 9})
    result = ftlab("watch", "--interval", "0.01")
    assert result.code == 0
    assert late in result.out


def test_a_lost_run_is_followed_until_it_is_resumed(new_run: Callable[..., WrittenRun]) -> None:
    run = new_run(heartbeat_s=100)
    with following(run) as (process, lines):
        assert "  lost  " in lines[0]
        run.status("running", step=131)
        until(lambda: len(lines) == 2, "it is back")
        assert "  running  step 131/1000" in lines[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_reader_that_goes_away_ends_it_quietly(new_run: Callable[..., WrittenRun]) -> None:
    run = new_run()
    process = ftlab_process("watch", "--interval", "0.1")
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stderr as errors:
        assert "running" in process.stdout.readline()
        process.stdout.close()
        run.status(step=131)
        assert process.wait(LIMIT_S) == 1
        assert errors.read() == ""


class Terminal:
    """A process in a pseudo-terminal of 100 x 30, and all that it has drawn."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        environment = dict(os.environ, TERM="xterm-256color", COLUMNS="100", LINES="30")
        ends = {"stdin": slave, "stdout": slave, "stderr": slave, "text": False}
        self.process = ftlab_process(*arguments, env=environment, start_new_session=True, **ends)
        os.close(slave)
        self.drawn = ""

    def read(self) -> str:
        """All that was drawn so far."""
        while select.select([self._master], [], [], 0)[0]:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            self.drawn += data.decode()
        return self.drawn

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def test_the_live_view_in_a_terminal(new_run: Callable[..., WrittenRun]) -> None:
    run = new_run("wild [red]\x1b]0;title\x07")
    terminal = Terminal("watch", run.run_id, "--interval", "0.2")
    try:
        until(lambda: "130/1000 13%" in terminal.read(), "the progress")
        assert "━" in terminal.drawn
        assert "wild [red] ]0;title " in terminal.drawn
        assert "\x1b]0;" not in terminal.drawn
        run.metrics(loss=1.25)
        sent = run.request(set={"learning_rate": 5e-5}, by="alice", reason="plateau")
        until(lambda: "pending" in terminal.read() and "loss 1.25" in terminal.drawn, "loss and request")
        run.answer(sent, step=140, changes={"learning_rate": (8.7e-05, 5e-05)})
        until(lambda: "applied" in terminal.read(), "the answer")
        run.status("failed", error="it is [bold]over")
        assert terminal.process.wait(LIMIT_S) == 0
        assert "it is [bold]over" in terminal.read()
    finally:
        terminal.close()
    assert "Traceback" not in terminal.drawn


def test_ctrl_c_leaves_the_live_view_with_0(new_run: Callable[..., WrittenRun]) -> None:
    run = new_run()
    terminal = Terminal("watch")
    try:
        until(lambda: "130/1000 13%" in terminal.read(), "the progress")
        run.status(at=utc_now() - timedelta(seconds=100))
        until(lambda: "lost" in terminal.read(), "the heartbeat that stopped")
        os.killpg(terminal.process.pid, signal.SIGINT)
        assert terminal.process.wait(LIMIT_S) == 0
        assert "Traceback" not in terminal.read()
        assert "\x1b[?25h" in terminal.drawn, "the cursor is shown again"
    finally:
        terminal.close()


class Cable:
    """A TCP forwarder on a port of its own, that can be pulled out and put in again."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._threads: list[threading.Thread] = []
        self._is_out = threading.Event()
        self.port = 0
        self.plug_in()

    def plug_in(self) -> None:
        listening = socket.create_server(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        self._is_out.clear()
        self._start(self._accept, listening)

    def pull_out(self) -> None:
        self._is_out.set()
        while self._threads:
            self._threads.pop().join(LIMIT_S)

    def _start(self, work: Callable[..., None], *sockets: socket.socket) -> None:
        thread = threading.Thread(target=work, args=sockets)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listening: socket.socket) -> None:
        with listening:
            while not self._is_out.is_set():
                if select.select([listening], [], [], 0.05)[0]:
                    self._start(self._forward, listening.accept()[0])

    def _forward(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            other = {client: server, server: client}
            while not self._is_out.is_set():
                for source in select.select([client, server], [], [], 0.05)[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    other[source].sendall(data)


def test_a_server_that_is_away_for_a_moment_is_waited_for(mlflow_server: Any) -> None:
    run = WrittenRun(mlflow_server.uri)
    run.surface()
    run.status()
    cable = Cable(mlflow_server.port)
    try:
        with following(run, "--tracking-uri", f"http://127.0.0.1:{cable.port}", "--json") as (process, lines):
            cable.pull_out()
            until(lambda: '"away"' in lines[-1], "it is noticed")
            cable.plug_in()
            until(lambda: '"back"' in lines[-1], "it is noticed")
            run.status("finished")
            assert process.wait(LIMIT_S) == 0
    finally:
        cable.pull_out()
    assert [json.loads(line)["event"] for line in lines] == ["status", "away", "back", "status"]
