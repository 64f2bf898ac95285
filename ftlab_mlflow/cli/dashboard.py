"""`dashboard`: runs the Streamlit app that ships with the package."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import tomllib
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path

import click

from ftlab_mlflow.cli.options import common
from ftlab_mlflow.cli.output import emit
from ftlab_mlflow.errors import AppStoreUnavailable, ConfigError, FTLabError, MissingExtra, StoreUnavailable

_GUIDE = "docs/guides/dashboard.md"


@click.command()
@common
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8501, show_default=True, help="The port to listen on."
)
@click.option("--browser/--no-browser", default=False, help="Open a browser window.  [default: no-browser]")
def dashboard(tracking_uri: str | None, as_json: bool, host: str, port: int, browser: bool) -> None:
    """Serve the dashboard until Ctrl-C."""
    for package in ("streamlit", "plotly"):
        if find_spec(package) is None:
            raise MissingExtra(package, "app")
    app = _app()
    is_loopback = _listens_on_loopback(host, port)
    has_sign_in = _has_sign_in(app)
    if has_sign_in and find_spec("authlib") is None:
        raise MissingExtra("Authlib", "app")
    if tracking_uri:
        os.environ["MLFLOW_TRACKING_URI"] = tracking_uri
    _try_stores(tracking_uri)
    url = f"http://{_shown(host)}:{port}"
    if as_json:
        emit({"url": url, "sign_in": has_sign_in}, indent=None)
    else:
        click.echo(f"The dashboard: {url} (Ctrl-C ends it)")
    if not is_loopback and not has_sign_in:
        warning = (
            f"Warning: everybody who can reach {host} can change runs: no sign-in is configured ({_GUIDE})."
        )
        click.echo(warning, err=True)
    _serve(app, host, port, browser)


def _app() -> Path:
    spec = find_spec("streamlit_app")
    if spec is None or spec.origin is None:
        raise FTLabError("the package streamlit_app is missing: install ftlab-mlflow again")
    return Path(spec.origin).with_name("app.py")


def _try_stores(tracking_uri: str | None) -> None:
    """Raises what no waiting mends. A database or server that is away may come back: the app says so."""
    from ftlab_mlflow.analytics.reader import open_reader
    from ftlab_mlflow.app_store import AppStore

    with suppress(AppStoreUnavailable):
        AppStore().close()
    with suppress(StoreUnavailable):
        open_reader(tracking_uri)


def _listens_on_loopback(host: str, port: int) -> bool:
    """Tries to listen there. Raises ConfigError: it is not possible."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            attempt.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {error.strerror}; --host and --port say where"
        ) from error
    return ipaddress.ip_address(address[0]).is_loopback


def _has_sign_in(app: Path) -> bool:
    """Whether a secrets.toml of Streamlit has a section `auth`. Raises ConfigError: one cannot be read."""
    from streamlit import config

    found = False
    files = [*config.get_config_files("secrets.toml"), str(app.parent / ".streamlit" / "secrets.toml")]
    for file in map(Path, files):
        if file.exists():
            try:
                found |= "auth" in tomllib.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ConfigError(f"cannot read {file}: {error}") from error
    return found


def _shown(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):
        return "localhost"
    return f"[{host}]" if ":" in host else host


def _serve(app: Path, host: str, port: int, browser: bool) -> None:
    from streamlit.web import cli

    options = {
        "server.address": host,
        "server.port": port,
        "server.headless": not browser,
        "server.showEmailPrompt": False,
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": False,
        "logger.hideWelcomeMessage": True,
    }
    arguments = [f"--{name}={str(value).lower()}" for name, value in options.items()]
    sys.stdout.flush()
    with redirect_stdout(sys.stderr):  # what it and the pages print
        cli.main(["run", str(app), *arguments], prog_name="streamlit", standalone_mode=False)
