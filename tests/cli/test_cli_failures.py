"""What goes wrong outside of a run: dead servers, wrong addresses, missing packages, faults of our own."""

from __future__ import annotations

import importlib.util
import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import LIMIT_S, Ftlab, WrittenRun, ftlab_process, request_id

from ftlab_mlflow.cli import opening
from ftlab_mlflow.control import mlflow_store

VERBS_ON_A_STORE = (
    ("runs",),
    ("status",),
    ("history",),
    ("watch",),
    ("set", "latest", "learning_rate=1"),
    ("pause",),
    ("resume", "abc"),
    ("stop", "0" * 32),
    ("checkpoint",),
    ("evaluate",),
    ("rollback",),
    ("cancel", "latest", "x"),
)


def assert_clean(result: Any, code: int = 1) -> None:
    assert result.code == code
    assert result.out == ""
    assert 1 <= result.err.count("\n") <= 2
    assert "Traceback" not in result.err


@pytest.fixture
def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.mark.parametrize("arguments", VERBS_ON_A_STORE, ids=lambda arguments: arguments[0])
def test_a_dead_server_is_reported_at_once(
    ftlab: Ftlab, closed_port: int, arguments: tuple[str, ...]
) -> None:
    uri = f"http://bob:secret@127.0.0.1:{closed_port}"
    began = time.monotonic()
    result = ftlab(*arguments, "--tracking-uri", uri)
    assert time.monotonic() - began < 10
    assert_clean(result)
    assert f"127.0.0.1:{closed_port}" in result.err
    assert "secret" not in result.err
    assert "`ftlab doctor` checks it" in result.err
    error = ftlab(*arguments, "--tracking-uri", uri, "--json").error
    assert (error["type"], error["exit_code"]) == ("StoreUnavailable", 1)


def test_a_silent_server_is_given_up_after_the_time_limit(
    ftlab: Ftlab, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mlflow_store.TIMEOUT_S <= 10
    monkeypatch.setattr(mlflow_store, "TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for arguments in (*VERBS_ON_A_STORE, ("doctor",)):
            began = time.monotonic()
            result = ftlab(*arguments, "--tracking-uri", uri)
            assert result.code == 1, arguments
            assert "127.0.0.1" in result.err + result.out
            limit = 10 if arguments == ("doctor",) else 3  # doctor also imports torch
            assert time.monotonic() - began < limit, arguments


def test_a_silent_postgresql_is_given_up_after_the_time_limit(
    ftlab: Ftlab, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opening.POSTGRES_TIMEOUT_S <= 10
    monkeypatch.setattr(opening, "POSTGRES_TIMEOUT_S", 2)  # the least that libpq takes
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "to be restored")
    monkeypatch.delenv("PGCONNECT_TIMEOUT")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        result = ftlab(
            "runs", "--tracking-uri", f"postgresql://u:secret@127.0.0.1:{silent.getsockname()[1]}/db"
        )
    assert time.monotonic() - began < 6
    assert_clean(result)
    assert "timeout expired" in result.err


def test_wrong_addresses_are_one_clear_line(ftlab: Ftlab, tmp_path: Path, closed_port: int) -> None:
    (tmp_path / "text.db").write_text(
        "this is a text and no database, and long enough to be read as one" * 20
    )
    (tmp_path / "empty.db").touch()
    known = {
        f"sqlite:///{tmp_path}/none.db": "there is no database",
        f"sqlite:///{tmp_path}/text.db": "file is not a database",
        f"sqlite:///{tmp_path}/empty.db": "is no MLflow database",
        f"sqlite:///{tmp_path}": "cannot open the database",
        f"postgresql://u:secret@127.0.0.1:{closed_port}/db": "refused",
        f"postgresql+psycopg://u:secret@127.0.0.1:{closed_port}/db": "refused",
        "foo://bar": "foo://bar",
        "http://": "http://",
        "http://[x": "http://[x",
        f"file://{tmp_path}/mlruns": "maintenance mode",
    }
    for uri, says in known.items():
        began = time.monotonic()
        result = ftlab("runs", "--tracking-uri", uri)
        assert time.monotonic() - began < 10, uri
        assert_clean(result)
        assert says in result.err, uri
        assert "secret" not in result.err
    assert not (tmp_path / "none.db").exists()
    assert (tmp_path / "empty.db").stat().st_size == 0


def test_a_missing_database_driver_is_named(ftlab: Ftlab) -> None:
    if importlib.util.find_spec("MySQLdb") or importlib.util.find_spec("psycopg2"):
        pytest.skip("the drivers are installed here")
    result = ftlab("runs", "--tracking-uri", "mysql://u:secret@127.0.0.1/db")
    assert_clean(result, code=2)
    assert "the database driver MySQLdb is not installed" in result.err
    result = ftlab("runs", "--tracking-uri", "postgresql+psycopg2://u:secret@127.0.0.1/db")
    assert_clean(result, code=1)
    assert "pip install 'ftlab-mlflow[postgres]'" in result.err


def test_a_fault_of_our_own_is_one_line_and_a_traceback_only_on_demand(
    ftlab: Ftlab, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by \x1b[31mzero")

    monkeypatch.setattr("ftlab_mlflow.cli.look.open_table", broken)
    result = ftlab("runs")
    assert_clean(result)
    assert result.err.startswith("Error: unexpected ZeroDivisionError: by  [31mzero\n")
    assert "FTLAB_DEBUG=1" in result.err
    assert ftlab("runs", "--json").error["type"] == "ZeroDivisionError"
    monkeypatch.setenv("FTLAB_DEBUG", "1")
    result = ftlab("runs")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "in broken" in result.err


def test_ctrl_c_while_waiting_leaves_the_request_and_its_id(new_run: Callable[..., WrittenRun]) -> None:
    run = new_run()
    process = ftlab_process("set", "latest", "learning_rate=0.1", "--wait", "--json")
    assert process.stderr is not None
    sent = request_id(process.stderr.readline())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, err.strip()) == (1, "Interrupted.")
    assert json.loads(out)["error"] == {"type": "Abort", "message": "Interrupted.", "exit_code": 1}
    assert f"ftlab.update.{sent}" in run.store.get(run.run_id).tags


def test_output_that_the_terminal_cannot_show(new_run: Callable[..., WrittenRun], monkeypatch: Any) -> None:
    run = new_run("näme")
    run.answer(run.request(set={"eval_steps": 5}, by="ål"), changes={"eval_steps": (50, 5)})
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    process = ftlab_process("history")
    out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, err) == (0, "")
    assert "eval_steps 50 ? 5" in out
