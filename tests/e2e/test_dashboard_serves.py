"""`ftlab dashboard`: it serves the app, from any folder, to this machine alone, and ends quietly."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import requests
from dashboard_process import LIMIT_S, Dashboard
from playwright.sync_api import Page, expect

DARK = "rgb(18, 22, 28)"
"""The dark background of streamlit_app/.streamlit/config.toml."""


def listening(pid: int) -> set[tuple[str, int]]:
    """Where a process accepts connections."""
    connections = psutil.Process(pid).net_connections("tcp")
    return {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}


def test_it_is_shown_in_its_own_theme_asks_nobody_else_and_ends_quietly(
    tracking_uri: str,
    new_dashboard: Callable[..., Dashboard],
    open_page: Callable[..., Page],
    problems: list[str],
) -> None:
    dashboard = new_dashboard(tracking_uri)
    assert listening(dashboard.pid) == {("127.0.0.1", dashboard.port)}
    page = open_page("about:blank", color_scheme="dark")
    asked: set[str | None] = set()
    page.on("request", lambda request: asked.add(urlsplit(request.url).hostname))
    page.goto(dashboard.url)
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()
    expect(page.get_by_test_id("stApp")).to_have_css("background-color", DARK)
    assert asked <= {"127.0.0.1", "", None}

    assert problems == []
    assert dashboard.interrupt() == 0
    assert f"The dashboard: {dashboard.url} (Ctrl-C ends it)" in dashboard.log.read_text()
    assert "Traceback" not in dashboard.log.read_text()
    page.close()
    problems.clear()  # of the page that had lost its server


def test_it_warns_of_an_open_door(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ftlab_mlflow.cli", "dashboard", "--json", "--host", "0.0.0.0"]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"HOME": str(tmp_path)},
        cwd=tmp_path,
        text=True,
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == {"url": f"http://localhost:{port}", "sign_in": False}
    while not listening(process.pid):
        assert process.poll() is None
    assert requests.get(f"http://127.0.0.1:{port}/_stcore/health", timeout=30).text == "ok"
    process.send_signal(signal.SIGTERM)
    rest, said = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, rest) == (0, "")
    assert "everybody who can reach 0.0.0.0 can change runs: no sign-in is configured" in said
