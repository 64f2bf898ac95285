"""A tracking URI that somebody typed, tried before it is used."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from ftlab_mlflow.analytics.reader import RunReader, open_reader
from ftlab_mlflow.errors import ConfigError


def open_existing(tracking_uri: str) -> RunReader:
    """A reader of a store that is there.

    Raises:
        ConfigError: It names a file or folder that is not there (MLflow would make a new store of a typing
            error), or is malformed.
        StoreUnavailable, StoreError, MissingExtra: As `open_reader` does.
    """
    path = _file_of(tracking_uri)
    if path is not None and not path.exists():
        raise ConfigError(f"there is no {path}")
    return open_reader(tracking_uri)


def experiments_at(tracking_uri: str) -> int:
    """How many experiments there are. Raises: as `open_existing`, and as reading does."""
    return len(open_existing(tracking_uri).experiments())


def _file_of(tracking_uri: str) -> Path | None:
    """The file or folder that the store is; None if it is none, or is not known."""
    parts = urlsplit(tracking_uri)
    if parts.scheme.startswith("sqlite"):
        try:
            return Path(make_url(tracking_uri).database or "")
        except (ArgumentError, ValueError) as error:
            raise ConfigError("SQLite's URIs look like sqlite:////home/me/mlflow.db") from error
    if parts.scheme == "file" or (not parts.scheme and tracking_uri != "databricks"):
        return Path(unquote(parts.path))
    return None
