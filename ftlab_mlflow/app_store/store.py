"""`AppStore`: reads and writes the app database."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from ftlab_mlflow import settings
from ftlab_mlflow.app_store import migrate
from ftlab_mlflow.app_store.chats import ChatStore
from ftlab_mlflow.app_store.models import StoredPreferences
from ftlab_mlflow.app_store.preferences import Preferences
from ftlab_mlflow.errors import AppStoreError, AppStoreUnavailable, ConfigError, MissingExtra

TIMEOUT_S = 10
"""Seconds in which a database must accept a connection, or let go of its lock."""
_TIMEOUTS = {"sqlite": "timeout", "postgresql": "connect_timeout", "mysql": "connect_timeout"}
_BUSY = ("database is locked", "database table is locked")
"""What SQLite says when trying again helps."""


class AppStore:
    """The app database, made or upgraded when it is opened. May be shared by threads.

    Args:
        url: A SQLAlchemy URL; None is ``FTLAB_DATABASE_URL``, or a SQLite file in the user's data folder.

    Raises:
        ConfigError: It is no SQLAlchemy URL, or its driver is not installed (MissingExtra: PostgreSQL's).
        AppStoreError: The database is damaged, may not be written, or was made by a newer version.
        AppStoreUnavailable: It does not answer.

    Attributes:
        shown_url: Where it is, without credentials.
        chats: What people asked, what was answered, and what that took.
    """

    def __init__(self, url: str | None = None) -> None:
        parsed = _parsed(settings.database_url(url))
        # Without user, password and options, in which a password may be, too.
        shown = URL.create(parsed.drivername, host=parsed.host, port=parsed.port, database=parsed.database)
        self.shown_url = shown.render_as_string()
        self._password = str(parsed.password or "")
        with self._translated(), ExitStack() as on_failure:
            self._engine = _engine(parsed)
            on_failure.callback(self._engine.dispose)
            migrate.upgrade(self._engine)
            on_failure.pop_all()
        self.chats = ChatStore(self._engine, self._translated)

    def preferences(self, user: str) -> Preferences:
        """What a person has chosen; the defaults for somebody new. Raises: as `AppStore`."""
        with self._translated(), Session(self._engine) as session:
            row = session.get(StoredPreferences, user)
            return Preferences.stored(row.data) if row else Preferences()

    def save(self, user: str, preferences: Preferences) -> None:
        """Keeps what a person has chosen. What only a newer version knows stays. Raises: as `AppStore`."""
        with self._translated():
            try:
                self._save(user, preferences)
            except (
                IntegrityError
            ):  # another process has made the row meanwhile: now it is there to be changed
                self._save(user, preferences)

    def _save(self, user: str, preferences: Preferences) -> None:
        with Session(self._engine) as session, session.begin():
            row = session.get(StoredPreferences, user, with_for_update=True)
            if row is None:
                row = StoredPreferences(user=user, data={})
                session.add(row)
            row.data = row.data | preferences.model_dump()
            row.updated = datetime.now(UTC)

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except AppStoreError as error:
            raise AppStoreError(f"the app database {self.shown_url}: {error}") from error
        except (SQLAlchemyError, OSError) as error:
            said = str(getattr(error, "orig", None) or error)
            line = said.strip().partition("\n")[0][:300]
            if self._password:
                line = line.replace(self._password, "…")
            is_away = isinstance(error, OperationalError | InterfaceError)
            if self.shown_url.startswith("sqlite"):
                is_away = said in _BUSY
            kind = AppStoreUnavailable if is_away else AppStoreError
            raise kind(f"the app database {self.shown_url} failed: {line}") from error


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except ArgumentError as error:
        raise ConfigError("FTLAB_DATABASE_URL is no SQLAlchemy URL such as sqlite:////data/app.db") from error


def _engine(url: URL) -> Engine:
    try:
        backend = url.get_backend_name()
        if backend == "sqlite":
            _make_private(url.database or ":memory:")
        option = _TIMEOUTS.get(backend, "")
        if (
            option and option not in url.query and "PGCONNECT_TIMEOUT" not in os.environ
        ):  # libpq's own setting
            url = url.update_query_dict({option: str(TIMEOUT_S)})
        engine = create_engine(url, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        if backend == "postgresql":
            raise MissingExtra(str(error.name), "postgres") from error
        raise ConfigError(f"the database driver {error.name} is not installed: pip install it") from error
    except ArgumentError as error:  # also of a dialect that SQLAlchemy does not know
        raise ConfigError(f"FTLAB_DATABASE_URL: {error}") from error
    if backend == "sqlite":
        event.listen(engine, "connect", _teach_lower)
    return engine


def _teach_lower(connection: sqlite3.Connection, _: object) -> None:
    """SQLite's own ``lower`` knows ASCII only, and a search would not find ``Ärger`` by ``ärger``."""
    connection.create_function("lower", 1, str.lower, deterministic=True)


def _make_private(database: str) -> None:
    """A new file is for its owner alone: a tracking URI in it may hold a password."""
    file = Path(database)
    if not database.startswith((":memory:", "file:")) and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.touch(mode=0o600)
