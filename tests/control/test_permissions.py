"""A tracking server that asks who is there: users who may read only, and users it does not know."""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from control_samples import live_tags

from ftlab_mlflow.cli import run as run_cli
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.client import LiveRun
from ftlab_mlflow.control.ledger import Entry, Ledger
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.control.store import MemoryRunStore
from ftlab_mlflow.errors import NotAuthenticated, NotPermitted
from ftlab_mlflow.training import listener as listener_module
from ftlab_mlflow.training.listener import Listener
from ftlab_mlflow.training.run_log import RunLog

PASSWORD = "a-pass-word-of-{}"
VARIABLES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
LIMIT_S = 30.0


@contextmanager
def signed_in(user: str | None, password: str | None = None) -> Iterator[None]:
    """The environment of a user; nobody's without a name."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in (*VARIABLES, "MLFLOW_TRACKING_TOKEN"):
            patch.delenv(variable, raising=False)
        if user is not None:
            patch.setenv(VARIABLES[0], user)
            patch.setenv(VARIABLES[1], password or PASSWORD.format(user))
        yield


class Guarded:
    """A server with MLflow's basic authentication, its users, and a live run on it.

    `admin` owns all, `alice` may edit, `bob` may do what everybody may: read.
    """

    def __init__(self, server: Any) -> None:
        self.uri: str = server.uri
        self.log: Path = server.log
        self.database: str = server.backend_uri.removeprefix("sqlite:///")
        for user in ("alice", "bob"):
            self.add_user(user)
        self.grant("alice", "0", "EDIT")
        self.run_id = self.new_run()

    def add_user(self, name: str) -> None:
        self._post("2.0/mlflow/users/create", username=name, password=PASSWORD.format(name))

    def grant(self, user: str, experiment_id: str, permission: str) -> None:
        self._post(
            "3.0/mlflow/users/permissions/grant",
            username=user, resource_type="experiment", resource_id=experiment_id, permission=permission,
        )  # fmt: skip

    def _post(self, path: str, **body: str) -> None:
        # MLflow's own client for this would load its whole server into the tests.
        admin = ("admin", PASSWORD.format("admin"))
        requests.post(f"{self.uri}/api/{path}", json=body, auth=admin, timeout=30).raise_for_status()

    def new_run(self) -> str:
        from mlflow import MlflowClient

        with signed_in("admin"):
            run_id: str = MlflowClient(self.uri).create_run("0", run_name="guarded").info.run_id
            MlflowRunStore(self.uri).write(run_id, live_tags())
        return run_id

    def everything(self) -> list[str]:
        """All that the tracking database holds."""
        with sqlite3.connect(self.database) as connection:
            return list(connection.iterdump())

    def calls(self) -> int:
        """Requests to MLflow's API that the server has answered."""
        return len(re.findall('"(GET|POST) /api/', self.log.read_text()))

    def refusals(self) -> int:
        """Requests that it has refused to a known user."""
        return self.log.read_text().count(" 403 ")


@pytest.fixture(scope="module")
def guarded(
    new_mlflow_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("users")
    config = folder / "auth.ini"
    config.write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
        f"admin_password = {PASSWORD.format('admin')}\ndatabase_uri = sqlite:///{folder}/users.db\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 600\n"
    )
    server = new_mlflow_server(
        "--app-name", "basic-auth",
        MLFLOW_AUTH_CONFIG_PATH=str(config), MLFLOW_FLASK_SERVER_SECRET_KEY="only for tests",
    )  # fmt: skip
    yield Guarded(server)
    server.stop()


def until(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {LIMIT_S:g} s in vain: {what}"
        time.sleep(0.02)
    return found


# --- somebody who may read ---------------------------------------------------------------------------


def test_who_may_only_read_sees_the_run_and_is_told_why_it_cannot_be_changed(guarded: Guarded) -> None:
    with signed_in("bob"):
        live = LiveRun(guarded.run_id, tracking_uri=guarded.uri)
        assert live.status().state == "running"
        assert "learning_rate" in live.surface().params
        reason = live.why_read_only()
    assert reason == (
        f"bob may not change this run: the tracking server {guarded.uri} says 'Permission denied'; "
        "MLflow's permission EDIT on the experiment allows it"
    )


@pytest.mark.parametrize(("user", "may"), [("admin", True), ("alice", True), ("bob", False)])
def test_asking_for_the_permission_is_one_call_and_writes_nothing(
    guarded: Guarded, user: str, may: bool
) -> None:
    with signed_in(user):
        live = LiveRun(guarded.run_id, tracking_uri=guarded.uri)
        before, calls = guarded.everything(), guarded.calls()
        assert (live.why_read_only() is None) == may
        until(lambda: guarded.calls() > calls, "the server's log")
        live.tags()
        until(lambda: guarded.calls() >= calls + 2, "the server's log")
    assert guarded.calls() == calls + 2
    assert guarded.everything() == before


def test_a_request_of_who_may_only_read_is_refused_and_not_written(guarded: Guarded) -> None:
    before = guarded.everything()
    with signed_in("bob"):
        live = LiveRun(guarded.run_id, tracking_uri=guarded.uri)
        for ask in (lambda: live.update(learning_rate=5e-5), live.pause, lambda: live.stop(save=False)):
            with pytest.raises(NotPermitted, match="bob may not change this run") as refusal:
                ask()
            assert not isinstance(refusal.value, NotAuthenticated)
            assert str(refusal.value) == live.why_read_only()
        with pytest.raises(NotPermitted):
            MlflowRunStore(guarded.uri).set_status(guarded.run_id, "KILLED")
    assert guarded.everything() == before


def test_who_may_edit_can_ask(guarded: Guarded) -> None:
    run_id = guarded.new_run()
    with signed_in("alice"):
        sent = LiveRun(run_id, tracking_uri=guarded.uri, by="alice").update(learning_rate=5e-5)
        assert f"{tags.UPDATE_PREFIX}{sent.id}" in MlflowRunStore(guarded.uri).get(run_id).tags


def test_who_may_not_even_read_is_told_so(guarded: Guarded) -> None:
    from mlflow import MlflowClient

    with signed_in("admin"):
        client = MlflowClient(guarded.uri)
        hidden = client.create_experiment("hidden")
        run_id = client.create_run(hidden).info.run_id
    guarded.grant("bob", hidden, "DENY")
    with signed_in("bob"):
        with pytest.raises(NotPermitted, match=r"bob may not read this run: .*permission READ on"):
            LiveRun(run_id, tracking_uri=guarded.uri)
        with pytest.raises(NotPermitted, match="; if there is such a run, "):
            LiveRun("0" * 32, tracking_uri=guarded.uri)
        assert run_id not in [run.run_id for run in MlflowRunStore(guarded.uri).find()]


# --- somebody unknown --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "password", "said"),
    [
        (None, None, "wants to know who asks: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("bob", "wrong-s3cret", "knows no user bob with this password: check MLFLOW_TRACKING_USERNAME and"),
        ("eve", "wrong-s3cret", "knows no user eve with this password: check MLFLOW_TRACKING_USERNAME and"),
    ],
)
def test_who_is_not_known_is_told_which_variables_to_set(
    guarded: Guarded, user: str | None, password: str | None, said: str
) -> None:
    with signed_in(user, password):
        store = MlflowRunStore(guarded.uri)
        calls: list[Callable[[], Any]] = [
            lambda: store.get(guarded.run_id),
            lambda: store.find(live=True),
            lambda: store.metric_history(guarded.run_id, "loss"),
            lambda: store.write(guarded.run_id, {"a": "1"}),
        ]
        for call in calls:
            with pytest.raises(NotAuthenticated) as refusal:
                call()
            assert str(refusal.value).startswith(f"the tracking server {guarded.uri} {said}")
            assert "s3cret" not in str(refusal.value)
        assert said in (store.why_read_only(guarded.run_id) or "")


def test_a_user_in_the_address_counts(guarded: Guarded) -> None:
    address = guarded.uri.replace("://", f"://bob:{PASSWORD.format('bob')}@")
    with signed_in(None):
        reason = MlflowRunStore(address).why_read_only(guarded.run_id)
    assert reason is not None
    assert reason.startswith(f"bob may not change this run: the tracking server {guarded.uri} says")


# --- what stands before MLflow -----------------------------------------------------------------------


@contextmanager
def refusing(status: int, body: str) -> Iterator[MlflowRunStore]:
    """A store on a server that answers nothing else."""

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield MlflowRunStore(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, "<html><title>403</title>", "says 'Forbidden'"),
        (403, '{"detail": "not from here"}', """says '{"detail": "not from here"}'"""),
        (403, '{"error_code": "PERMISSION_DENIED", "message": "not yours"}', "PERMISSION_DENIED: not yours"),
        (401, "<html>", "wants to know who asks"),
        (401, '{"error_code": "CUSTOMER_UNAUTHORIZED", "message": "no"}', "wants to know who asks"),
    ],
)
def test_another_server_s_refusal_is_one_too(status: int, body: str, words: str) -> None:
    with signed_in(None), refusing(status, body) as store, pytest.raises(NotPermitted) as refusal:
        store.get("a" * 32)
    assert words in str(refusal.value)
    assert isinstance(refusal.value, NotAuthenticated) == (status == 401)


def test_a_token_that_is_not_accepted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with signed_in(None), refusing(401, "no") as store:
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret")
        with pytest.raises(NotAuthenticated, match=r"does not accept the token in MLFLOW_TRACKING_TOKEN$"):
            store.get("a" * 32)


# --- stores without users ----------------------------------------------------------------------------


def test_a_store_without_users_refuses_nobody(tracking_uri: str) -> None:
    from mlflow import MlflowClient

    run_id = MlflowClient(tracking_uri).create_run("0").info.run_id
    assert LiveRun(run_id, tracking_uri=tracking_uri).why_read_only() is None
    memory = MemoryRunStore()
    assert LiveRun(memory.create_run(), store=memory).why_read_only() is None


# --- the command line --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "kind", "words"),
    [
        ("bob", "NotPermitted", "bob may not change this run"),
        (None, "NotAuthenticated", "MLFLOW_TRACKING_USERNAME"),
    ],
)  # fmt: skip
def test_the_command_line_says_it_on_one_line(
    guarded: Guarded, capsys: pytest.CaptureFixture[str], user: str | None, kind: str, words: str
) -> None:
    command = ["set", guarded.run_id, "learning_rate=5e-5", "--tracking-uri", guarded.uri]
    with signed_in(user):
        assert run_cli(command) == 1
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1)
        assert printed.err.startswith("Error: ")
        assert words in printed.err
        assert run_cli([*command, "--json"]) == 1
        assert f'"type": "{kind}"' in capsys.readouterr().out


# --- a training --------------------------------------------------------------------------------------


class Training:
    """What a listener brings its news to, and which tags it says are written."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def deliver(self, entries: Iterable[Entry], *, sent_before: bool) -> None: ...
    def deliver_history(self, ledger: Ledger) -> None: ...
    def refresh_surface(self) -> None: ...
    def look_at_expiry(self, now: datetime) -> None: ...
    def answer_rest(self) -> None: ...
    def confirmed(self, keys: Iterable[str]) -> None:
        self.written += keys


def test_who_is_no_administrator_can_start_a_training(guarded: Guarded, tracking_uri: str) -> None:
    """To see whether the server answers it asks for a run, and is told that it may not read that one."""
    with signed_in("bob"):
        log = RunLog(guarded.uri, "bob's own")
        log.end("finished")
        run = log.store.get(log.run_id)
    assert (run.name, run.status) == ("bob's own", "FINISHED")
    with signed_in("bob", "wrong"), pytest.raises(NotAuthenticated):
        RunLog(guarded.uri, "not started")


def test_a_training_that_may_not_write_says_so_once_and_delivers_when_it_may(
    guarded: Guarded, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "BACKOFF_S", (0.02, 0.1))
    caplog.set_level(logging.INFO, "ftlab_mlflow")
    run_id = guarded.new_run()
    guarded.add_user("carol")
    training = Training()
    with signed_in("carol"):
        listener = Listener(MlflowRunStore(guarded.uri), run_id, lambda: "{}", 0.05)
        first = listener.read_first()
        assert first is not None
        listener.start(training, {}, first)
        for number in range(3):
            listener.post({f"ftlab.ack.{number}": "{}"})
        refused = guarded.refusals()
        until(lambda: guarded.refusals() >= refused + 5, "five refused writes")
        assert training.written == []
        (said,) = caplog.messages
        assert said.startswith("carol may not change this run: ")
        assert said.endswith("; training goes on, changes and answers wait")

        guarded.grant("carol", "0", "EDIT")
        until(lambda: len(training.written) == 3, "what waited is delivered")
        assert listener.close("FINISHED")
    assert caplog.messages[1:] == ["The tracking store answers again"]
    with signed_in("admin"):
        run = MlflowRunStore(guarded.uri).get(run_id)
    assert run.status == "FINISHED"
    assert {f"ftlab.ack.{number}" for number in range(3)} <= set(run.tags)
