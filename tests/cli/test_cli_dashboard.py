"""`dashboard`: what it refuses before it serves anything. That it serves is shown in tests/e2e."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from cli_helpers import Ftlab


@pytest.fixture(autouse=True)
def _a_home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("package", "named"), [("streamlit", "streamlit"), ("plotly", "plotly")])
def test_a_missing_package_is_named_with_its_extra(
    ftlab: Ftlab, monkeypatch: pytest.MonkeyPatch, package: str, named: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = ftlab("dashboard")
    assert result.code == 1
    assert result.err == f"Error: {named} is not installed: pip install 'ftlab-mlflow[app]'\n"


def test_a_sign_in_needs_authlib(ftlab: Ftlab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "secrets.toml").write_text("[auth]\n")
    monkeypatch.setitem(sys.modules, "authlib", None)
    result = ftlab("dashboard", "--port", str(free_port()))
    assert result.code == 1
    assert "Authlib is not installed: pip install 'ftlab-mlflow[app]'" in result.err


def test_a_port_that_is_taken(ftlab: Ftlab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = ftlab("dashboard", "--port", str(port))
    assert result.code == 2
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in result.err
    assert "--port" in result.err


def test_an_address_that_is_not_here(ftlab: Ftlab) -> None:
    result = ftlab("dashboard", "--host", "203.0.113.7", "--json")  # of RFC 5737: nobody's
    assert result.code == 2
    assert result.error["type"] == "ConfigError"
    assert "cannot listen on 203.0.113.7" in result.err


@pytest.mark.parametrize("port", ["0", "65536", "web"])
def test_what_is_no_port(ftlab: Ftlab, port: str) -> None:
    assert ftlab("dashboard", "--port", port).code == 2


@pytest.mark.parametrize("text", ["[auth", "auth = 'hush\n"])
def test_secrets_that_cannot_be_read_are_not_passed_over(ftlab: Ftlab, tmp_path: Path, text: str) -> None:
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "secrets.toml").write_text(text)
    result = ftlab("dashboard", "--port", str(free_port()))
    assert result.code == 2
    assert f"cannot read {tmp_path}/.streamlit/secrets.toml" in result.err
    assert "hush" not in result.err


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        (
            "FTLAB_DATABASE_URL",
            "app.db",
            "FTLAB_DATABASE_URL is no SQLAlchemy URL such as sqlite:////data/app.db",
        ),
        ("FTLAB_DATABASE_URL", "nosql://h/db", "FTLAB_DATABASE_URL: Can't load plugin"),
        ("MLFLOW_TRACKING_URI", "foo://bar", "foo://bar is no tracking URI that MLflow knows: http,"),
    ],
)
def test_addresses_that_mean_nothing_are_refused_at_once(
    ftlab: Ftlab, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    result = ftlab("dashboard", "--port", str(free_port()))
    assert result.code in (1, 2)
    assert said in result.err


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
