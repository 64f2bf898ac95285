"""`ftlab dashboard` as a process of its own, in a folder of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

LIMIT_S = 60.0
"""Longest wait for the dashboard to begin or to end."""
_LEFT_OUT = ("MLFLOW_", "_MLFLOW_", "FTLAB_", "STREAMLIT_", "XDG_")


class Dashboard:
    """A real ``ftlab dashboard`` on a free loopback port, with its app database in its folder.

    Attributes:
        url: Where it is. log: The file with what it printed. folder: Where it was started, and its home.
    """

    def __init__(self, tracking_uri: str, folder: Path, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "dashboard.log"
        self.folder = folder
        self._tracking_uri = tracking_uri
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith(_LEFT_OUT)}
        self._environment |= {"HOME": str(folder), "MLFLOW_DISABLE_TELEMETRY": "true", **environment}
        self._environment.setdefault("FTLAB_DATABASE_URL", f"sqlite:///{folder}/app.db")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        command = [sys.executable, "-m", "ftlab_mlflow.cli", "dashboard", "--port", str(self.port)]
        command += ["--tracking-uri", self._tracking_uri]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._environment,
                start_new_session=True,
            )
        end = time.monotonic() + LIMIT_S
        while not self._is_healthy():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                pytest.fail(f"the dashboard did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)

    def _is_healthy(self) -> bool:
        try:
            return requests.get(f"{self.url}/_stcore/health", timeout=2).ok
        except requests.RequestException:
            return False

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def interrupt(self) -> int:
        """Ends it as Ctrl-C does; its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(LIMIT_S)

    def kill(self) -> None:
        """Ends it in any case."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
