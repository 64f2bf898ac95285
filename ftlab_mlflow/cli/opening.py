"""Opens the tracking store and a run in it, so that a wrong address is one clear line at once."""

from __future__ import annotations

import math
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from ftlab_mlflow.control.client import LiveRun
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.errors import RunNotFound, StoreError

if TYPE_CHECKING:
    from ftlab_mlflow.analytics.run_table import RunTable

POSTGRES_TIMEOUT_S = 8
"""Seconds in which a PostgreSQL server must accept a connection; its drivers wait for minutes."""


def effective_uri(tracking_uri: str | None) -> str:
    """The tracking URI in use: the argument or MLflow's own setting."""
    import mlflow

    return tracking_uri or mlflow.get_tracking_uri()


def sqlite_file(uri: str) -> Path | None:
    """The database file of a SQLite tracking URI, or None for any other."""
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(path) if uri.startswith("sqlite:///") and path not in ("", ":memory:") else None


def open_store(tracking_uri: str | None) -> MlflowRunStore:
    """The tracking store.

    Raises:
        RunNotFound: The SQLite file does not exist or MLflow never wrote to it. It is not made: here runs are
            looked for, and MLflow would make an empty one at any mistyped path.
        StoreError: It cannot be opened.
        MissingExtra, ConfigError: The database's driver is not installed.
    """
    return MlflowRunStore(_checked(tracking_uri))


def open_table(tracking_uri: str | None) -> RunTable:
    """All runs of the tracking store, to be read once. Raises: what `open_store` raises."""
    from ftlab_mlflow.analytics.reader import open_reader
    from ftlab_mlflow.analytics.run_table import RunTable

    return RunTable(open_reader(_checked(tracking_uri)), fresh_s=math.inf)


def _checked(tracking_uri: str | None) -> str:
    uri = effective_uri(tracking_uri)
    if file := sqlite_file(uri):
        _check_sqlite(file)
    # libpq's own setting: it also holds for the connections that MLflow makes later.
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(POSTGRES_TIMEOUT_S))
    return uri


def _check_sqlite(file: Path) -> None:
    hint = "--tracking-uri or MLFLOW_TRACKING_URI says where your runs are"
    if not file.exists():
        raise RunNotFound(f"no run yet: there is no database {file.absolute()}; {hint}")
    try:
        # Not read-only: what a killed process left half-written is taken back by the next one that opens it.
        connection = sqlite3.connect(f"file:{quote(str(file.absolute()))}?mode=rw", uri=True, timeout=5)
        try:
            known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreError(f"cannot open the database {file.absolute()}: {error}; {hint}") from error
    if known is None:
        raise RunNotFound(f"no run yet: {file.absolute()} is no MLflow database; {hint}")


def open_run(run: str, tracking_uri: str | None) -> LiveRun:
    """A run by its reference. Raises: what `open_store` and `LiveRun` raise."""
    return LiveRun(run, store=open_store(tracking_uri), via="cli")
