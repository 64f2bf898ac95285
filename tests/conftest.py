"""Fixtures that all tests share: real MLflow on SQLite, on a server, on PostgreSQL; what may be missing."""

from __future__ import annotations

import os

# Read by libraries when they are imported, so before any of them is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("ftlab", derandomize=True, deadline=None)
hypothesis.settings.load_profile("ftlab")

# A shell without job control starts what it puts into the background with Ctrl-C ignored, and a process that
# we start would ignore it, too: trainings that tests interrupt would go on for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

Require = Callable[[str, bool, str], None]


@pytest.fixture(scope="session")
def require() -> Require:
    """``require(name, available, reason)`` skips a test that needs something this machine does not have.

    A name in ``FTLAB_REQUIRE`` (such as ``browser,postgres,ray``) turns the skip into a failure.
    """

    def check(name: str, available: bool, reason: str) -> None:
        if available:
            return
        if name in os.environ.get("FTLAB_REQUIRE", "").replace(" ", "").split(","):
            pytest.fail(f"FTLAB_REQUIRE names {name}: {reason}", pytrace=False)
        print(f"skipped, no {name}: {reason}")
        pytest.skip(f"{name}: {reason}")

    return check


# --- SQLite ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database. MLflow's migrations take a second, a copy of their result takes none."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = tmp_path_factory.mktemp("template")
    path = folder / "mlflow.db"
    store = SqlAlchemyStore(f"sqlite:///{path}", str(folder / "artifacts"))
    store.engine.dispose()
    return path


@pytest.fixture(scope="session")
def new_sqlite(_migrated: Path) -> Callable[[Path], str]:
    """``new_sqlite(folder)`` makes an empty MLflow database in it and returns its tracking URI."""

    def make(folder: Path) -> str:
        path = folder / "mlflow.db"
        shutil.copy(_migrated, path)
        with sqlite3.connect(path) as connection:
            location = str(folder / "artifacts" / "0")
            connection.execute("UPDATE experiments SET artifact_location = ?", (location,))
        connection.close()
        return f"sqlite:///{path}"

    return make


@pytest.fixture
def tracking_uri(
    new_sqlite: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """MLflow on its own temporary SQLite file, as MLflow's tracking URI; all globals are reset afterwards."""
    with _MlflowGlobalsRestored():
        monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(tmp_path / "artifacts"))
        import mlflow

        uri = new_sqlite(tmp_path)
        mlflow.set_tracking_uri(uri)
        yield uri


class _MlflowGlobalsRestored:
    """Around a test: no run, experiment, tracking URI or ``MLFLOW_*`` variable of it is left behind."""

    def __enter__(self) -> None:
        self._environment = _mlflow_environment()

    def __exit__(self, *_: object) -> None:
        import mlflow
        from mlflow.tracking import fluent

        while mlflow.active_run() is not None:
            mlflow.end_run()
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]
        fluent._active_experiment_id = None
        for key in _mlflow_environment().keys() - self._environment.keys():
            del os.environ[key]
        os.environ.update(self._environment)


def _mlflow_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key.lstrip("_").startswith("MLFLOW_")}


# --- a tracking server -------------------------------------------------------------------------------


class MlflowServer:
    """A real ``mlflow server`` process on a free loopback port. It keeps its port over a restart.

    Args:
        options: More of its command line. environment: More variables for it.

    Attributes:
        uri: Its tracking URI. backend_uri: Of its database. log: The file with what it printed.
    """

    def __init__(
        self, backend_uri: str, folder: Path, options: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self.backend_uri = backend_uri
        self._folder = folder
        self._options, self._environment = options, environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, limit: float = 60.0) -> None:
        """Starts it, if it does not run, and waits until it answers: at most `limit` seconds."""
        if self._process is not None:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.backend_uri]
        command += ["--artifacts-destination", str(self._folder / "artifacts"), *self._options]
        environment = {k: v for k, v in os.environ.items() if k not in _mlflow_environment()}
        environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment |= self._environment
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self._folder, env=environment, start_new_session=True
            )
        end = time.monotonic() + limit
        while not self._is_healthy():
            if self._process.poll() is not None or time.monotonic() > end:
                self.stop()
                pytest.fail(f"mlflow server did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)

    def _is_healthy(self) -> bool:
        import requests

        try:
            return requests.get(f"{self.uri}/health", timeout=2).ok
        except requests.RequestException:
            return False

    def stop(self) -> None:
        """Kills it with all its workers, as a crash of its machine would."""
        if self._process is None:
            return
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        self._process = None

    def restart(self) -> None:
        """Kills it and starts it again on the same port and database."""
        self.stop()
        self.start()


@pytest.fixture(scope="session")
def new_mlflow_server(
    new_sqlite: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., MlflowServer]]:
    """``new_mlflow_server()`` starts one more server over its own SQLite file; all are killed at the end."""
    servers: list[MlflowServer] = []

    def make(*options: str, **environment: str) -> MlflowServer:
        folder = tmp_path_factory.mktemp("server")
        server = MlflowServer(new_sqlite(folder), folder, options, environment)
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def mlflow_server(new_mlflow_server: Callable[..., MlflowServer]) -> MlflowServer:
    """One server for all tests of a session. A test that stops it starts it again before it ends."""
    return new_mlflow_server()


# --- PostgreSQL --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _postgres_admin(require: Require) -> Iterator[str]:
    """A PostgreSQL URI of a role that may create databases: ``FTLAB_TEST_POSTGRES`` or Debian's cluster."""
    given = os.environ.get("FTLAB_TEST_POSTGRES")
    if given:
        yield given
        return
    reason = _start_debian_cluster()
    require("postgres", not reason, f"FTLAB_TEST_POSTGRES is not set and {reason}")
    role, password = f"ftlab_test_{secrets.token_hex(4)}", secrets.token_hex(16)
    _as_postgres(f"CREATE ROLE {role} LOGIN CREATEDB PASSWORD '{password}'")
    yield f"postgresql+psycopg://{role}:{password}@127.0.0.1:5432/postgres"
    _as_postgres(f"DROP ROLE {role}")


def _start_debian_cluster() -> str:
    """Starts Debian's own cluster if it does not run; why that is not possible, or nothing."""
    if not shutil.which("pg_ctlcluster"):
        return "there is no PostgreSQL as Debian installs it"
    if os.getuid() != 0:
        return "only root can start Debian's cluster"
    version = max((path.name for path in Path("/etc/postgresql").iterdir()), key=int)
    start = ["pg_ctlcluster", "--skip-systemctl-redirect", version, "main", "start"]
    result = subprocess.run(start, capture_output=True, text=True, timeout=60, check=False)
    runs_already = 2
    return "" if result.returncode in (0, runs_already) else f"Debian's cluster: {result.stderr.strip()}"


def _as_postgres(statement: str) -> None:
    command = ["su", "postgres", "-c", "psql --quiet --set ON_ERROR_STOP=1"]
    subprocess.run(command, input=statement, text=True, timeout=60, check=True, cwd="/")


@pytest.fixture(scope="session")
def new_postgres(_postgres_admin: str) -> Iterator[Callable[[], str]]:
    """``new_postgres()`` makes an empty database and returns its tracking URI; all are dropped at the end."""
    import psycopg
    from psycopg import sql

    names: list[str] = []

    def execute(statement: str, name: str) -> None:
        with psycopg.connect(_postgres_admin.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(name)))

    def make() -> str:
        name = f"ftlab_test_{secrets.token_hex(6)}"
        execute("CREATE DATABASE {}", name)
        names.append(name)
        return f"{_postgres_admin.rpartition('/')[0]}/{name}"

    yield make
    for name in names:
        execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)


@pytest.fixture(scope="module")
def postgres_uri(new_postgres: Callable[[], str]) -> str:
    """A fresh database on a local PostgreSQL, one a module."""
    return new_postgres()
