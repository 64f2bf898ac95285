"""Addresses of MLflow's UI: against the routes of the UI itself, and never anything but http."""

from __future__ import annotations

import shlex
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftlab_mlflow.control.links import experiment_url, run_url, ui_hint
from ftlab_mlflow.control.store import RunData

RUN = RunData("a" * 32, "x", "12", "RUNNING")


@pytest.mark.parametrize(
    ("uri", "server"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("http://127.0.0.1:5000/", "http://127.0.0.1:5000"),
        ("https://ml.example.org/team/mlflow/", "https://ml.example.org/team/mlflow"),
        ("HTTPS://alice:s3cret@ml.example.org:444?x=1#y", "https://ml.example.org:444"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("http://host/a%20b/ü)", "http://host/a%20b/%C3%BC%29"),
        ("http://<b>/", "http://%3Cb%3E"),
    ],
)
def test_pages_on_a_server(uri: str, server: str) -> None:
    assert experiment_url(uri, "12") == f"{server}/#/experiments/12"
    assert run_url(uri, RUN) == f"{server}/#/experiments/12/runs/{'a' * 32}"


@pytest.mark.parametrize(
    "uri",
    ["sqlite:///mlflow.db", "postgresql://db/mlflow", "file:///tmp/mlruns", "./mlruns", "databricks", "",
     "javascript:alert(1)", "data:text/html,x", "http:", "http://", "http://:5000", "http://[", "http://h:x",
     "http://h:99999"],
)  # fmt: skip
def test_what_has_no_page_has_no_address(uri: str) -> None:
    assert experiment_url(uri, "12") is None
    assert run_url(uri, RUN) is None


def test_ids_cannot_leave_their_place() -> None:
    run = RunData("../<x>?y#z", "x", "1/2", "RUNNING")
    assert run_url("http://host", run) == "http://host/#/experiments/1%2F2/runs/..%2F%3Cx%3E%3Fy%23z"


@given(st.text() | st.builds("{}://{}".format, st.sampled_from(["http", "https", "ftp", "x"]), st.text()))
def test_every_address_is_http_and_plain(uri: str) -> None:
    url = run_url(uri, RUN)
    if url is not None:
        parts = urlsplit(url)
        assert parts.scheme in ("http", "https")
        assert parts.hostname
        assert (parts.username, parts.password) == (None, None)
        assert url.isascii()
        assert not set(url) & set(" \"'<>()\\`{}|\t\r\n")


def test_the_ui_has_these_routes() -> None:
    """MLflow's own front end, as it is shipped: a release that moves its pages fails here."""
    import mlflow.server

    static = Path(mlflow.server.__file__).parent / "js" / "build" / "static"
    scripts = [path.read_text() for path in static.rglob("*.js")]
    for route in ('"/experiments/:experimentId"', '"/experiments/:experimentId/runs/:runUuid"'):
        assert any(route in script for script in scripts), route


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("sqlite:////data/my runs.db", ["sqlite:////data/my runs.db"]),
        ("postgresql+psycopg://db:5432/mlflow", ["postgresql+psycopg://db:5432/mlflow"]),
        ("postgresql://alice:s3cret@db/ml$(x)", ["postgresql://USER:PASSWORD@db/ml$(x)"]),
        ("/data/mlruns", ["/data/mlruns"]),
        ("file:///data/mlruns;rm -r x", ["file:///data/mlruns;rm -r x"]),
    ],
)
def test_the_command_that_opens_the_ui(uri: str, words: list[str]) -> None:
    hint = ui_hint(uri)
    assert hint is not None
    assert shlex.split(hint) == ["mlflow", "ui", "--backend-store-uri", *words]
    assert "s3cret" not in hint


def test_a_password_in_the_query_is_hidden_too() -> None:
    hint = ui_hint("postgresql://db/mlflow?user=alice&password=s3cret")
    assert hint == "mlflow ui --backend-store-uri 'postgresql://db/mlflow?user=alice&password=…'"


def test_a_file_of_this_folder_is_found_from_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ui_hint("sqlite:///mlflow.db") == f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize(
    "uri", ["http://host:5000", "https://host", "databricks", "databricks://profile", "uc:x"]
)
def test_no_command_for_a_server(uri: str) -> None:
    assert ui_hint(uri) is None
