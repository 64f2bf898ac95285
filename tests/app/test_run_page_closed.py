"""The page of a run where nothing can be changed: why, and what is shown all the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import requests as http
import streamlit as st
from app_pages import Runs, opened, texts
from run_page import Page, asked, status, surface

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.wire import utc_now


@pytest.mark.parametrize(
    ("run_tags", "said"),
    [
        ({}, "Its trainer does not listen, or has not begun"),
        (status(state="finished") | surface(), "The training has finished at step 50."),
        (
            status(state="failed", error="out of memory") | surface(),
            "failed at step 50 (out of memory). Resume",
        ),
        (status(at=utc_now() - timedelta(hours=9)) | surface(), "No sign of its trainer: the last heartbeat"),
        (status() | {tags.SURFACE: '{"v":2}'}, "may speak a newer version of the protocol"),
        (status() | {tags.SURFACE: "{"}, "ftlab.surface cannot be read: "),
        ({tags.STATUS: "[]"} | surface(), "ftlab.status cannot be read: "),
    ],
)
def test_it_says_why_nothing_can_be_changed(runs: Runs, run_tags: dict[str, str], said: str) -> None:
    pending = asked(set={"weight_decay": 0.1})
    page = Page(runs, runs.plain("closed", status="RUNNING", run_tags={**run_tags, **pending}))
    assert "Nothing can be changed now." in page.text
    assert any(said in line for line in page.words)
    fields = [
        each for each in (*page.app.text_input, *page.app.selectbox) if str(each.key).startswith("set ")
    ]
    assert all(each.disabled for each in fields)
    keys = [str(button.key) for button in page.app.button if not button.disabled]
    assert not [key for key in keys if key.startswith(("command ", "cancel ", "again", "send"))]


def test_a_plain_run_is_shown_and_cannot_be_changed(runs: Runs) -> None:
    page = Page(runs, runs.plain("by hand", metrics={"loss": [2.0, 1.0]}))
    assert "The run is finished, and no trainer of it ever listened." in page.words
    assert page.charts() == ["Loss"]
    assert {metric.label: metric.value for metric in page.app.metric}["loss"] == "1"
    assert "Nobody has asked for a change yet." in page.text


def test_ids_that_are_no_run(runs: Runs) -> None:
    assert "No run is chosen." in texts(opened("run"))
    gone = runs.plain("gone")
    runs.client.delete_run(gone)
    for run_id in ("0" * 32, "<b>no</b>", gone):
        said = texts(opened("run", id=run_id))
        assert "There is no such run, or it was deleted." in said
        assert run_id in said


def test_who_may_only_read_sees_the_run_and_is_told_why(
    new_mlflow_server: Callable[..., Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "auth.ini"
    config.write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = admin\nadmin_password = admin-pass-word\n"
        f"database_uri = sqlite:///{tmp_path}/users.db\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 600\n"
    )
    server = new_mlflow_server(
        "--app-name", "basic-auth",
        MLFLOW_AUTH_CONFIG_PATH=str(config), MLFLOW_FLASK_SERVER_SECRET_KEY="only for tests",
    )  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("FTLAB_DATABASE_URL", f"sqlite:///{tmp_path}/app.db")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "admin-pass-word")
    bob = {"username": "bob", "password": "bob-s-pass-word"}
    http.post(
        f"{server.uri}/api/2.0/mlflow/users/create", json=bob, auth=("admin", "admin-pass-word"), timeout=30
    ).raise_for_status()
    runs = Runs(server.uri)
    pending = asked(set={"weight_decay": 0.1})
    run_id = runs.plain("guarded", status="RUNNING", run_tags=status() | surface() | pending)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", bob["username"])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", bob["password"])
    st.cache_resource.clear()
    page = Page(runs, run_id)
    assert page.app.subheader[0].value == "guarded"
    assert any(line.startswith("bob may not change this run: ") for line in page.words)
    assert page.field("weight_decay").disabled
    assert not any(
        str(button.key).startswith(("command", "cancel")) and not button.disabled
        for button in page.app.button
    )
    st.cache_resource.clear()


def test_the_last_data_stays_while_the_store_is_away(
    mlflow_server: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = mlflow_server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("FTLAB_DATABASE_URL", f"sqlite:///{tmp_path}/app.db")
    st.cache_resource.clear()
    runs = Runs(server.uri)
    metrics = {"loss": [2.0, 1.0], "odd": [1.0, 2.0]}
    page = Page(runs, runs.plain("far", status="RUNNING", run_tags=status() | surface(), metrics=metrics))
    page.type(weight_decay="0.1")
    server.stop()
    page.click("send")
    assert "Nothing was sent." in page.text
    assert page.field("weight_decay").value == "0.1"
    # Only the store itself is asked again: what was read must be there still.
    page.charts_field.set_value(["Loss", "odd"])
    end = threading.Event()
    for _ in range(20):
        page.rerun()
        if "The tracking store does not answer." in page.text:
            break
        end.wait(0.3)
    assert "Shown is what was read " in page.text
    assert page.app.subheader[0].value == "far"
    assert page.charts() == ["Loss"]
    assert "Not read yet: the tracking store does not answer." in page.text
    server.start()
    for _ in range(20):
        page.rerun()
        if "does not answer" not in page.text:
            break
        end.wait(0.3)
    assert page.charts() == ["Loss", "odd"]
    page.click("send")
    assert [entry.update and entry.update.set for entry in page.requests()] == [{"weight_decay": 0.1}]
    st.cache_resource.clear()
