"""The servers a benchmark talks to: a real `mlflow server` and a throwaway PostgreSQL, on free ports."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

START_S = 120
"""Seconds a server may take to answer; mlflow migrates an empty database first."""
IDLE_SHARE = 0.2
"""Below this share of a core a server that nobody asks has finished starting."""
MLFLOW_WORKERS = 4
"""What `mlflow server` starts when nobody says how many."""


@contextmanager
def mlflow_server(folder: Path, backend: str, workers: int = MLFLOW_WORKERS) -> Iterator[tuple[str, int]]:
    """A tracking server with its default settings; gives its URI and its process id."""
    uri = f"http://127.0.0.1:{(port := _free_port())}"
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--backend-store-uri", backend]
    command += ["--workers", str(workers)]
    with (folder / "mlflow-server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_until_healthy(uri, server, folder / "mlflow-server.log")
            _wait_until_idle(server.pid)
            yield uri, server.pid
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


@contextmanager
def postgres(folder: Path) -> Iterator[tuple[str, int]]:
    """A new PostgreSQL cluster with its default settings; gives MLflow's URI for it and its process id.

    Raises:
        FileNotFoundError: PostgreSQL's programs are not installed.
    """
    programs = _postgres_programs()
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    data, port = folder / "postgres", _free_port()
    data.mkdir()
    if user:
        folder.chmod(0o755)
        shutil.chown(data, user)

    def run(program: str, *arguments: str) -> None:
        command = [str(programs / program), *arguments]
        subprocess.run(command, check=True, user=user, cwd=data, stdout=subprocess.DEVNULL)

    run("initdb", "-D", str(data), "-U", "ftlab", "-A", "trust")
    options = f"-p {port} -k {data} -c listen_addresses=127.0.0.1"
    run("pg_ctl", "-D", str(data), "-w", "-o", options, "-l", str(data / "log"), "start")
    try:
        pid = int((data / "postmaster.pid").read_text().split()[0])
        yield f"postgresql+psycopg://ftlab@127.0.0.1:{port}/postgres", pid
    finally:
        run("pg_ctl", "-D", str(data), "-w", "-m", "fast", "stop")


def cpu_seconds(pid: int) -> float:
    """CPU time used so far by a process and all below it, those that have ended included."""
    process = psutil.Process(pid)
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue  # it ended just now: its parent has its time
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_healthy(uri: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"mlflow server did not start: {log.read_text()[-2000:]}")


def _wait_until_idle(pid: int) -> None:
    """It answers before its job runners are up, and their start would be measured with the rest."""
    end = time.monotonic() + START_S
    before = cpu_seconds(pid)
    while time.monotonic() < end:
        time.sleep(1)
        now = cpu_seconds(pid)
        if now - before < IDLE_SHARE:
            return
        before = now
    raise RuntimeError(f"mlflow server is still busy {START_S} s after its start")


def _postgres_programs() -> Path:
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if debian:
        return debian[-1].parent
    if elsewhere := shutil.which("initdb"):
        return Path(elsewhere).parent
    raise FileNotFoundError("PostgreSQL is not installed: apt-get install postgresql")
