"""Brings the app database to the tables of this version: once, also where several processes begin at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from ftlab_mlflow.errors import AppStoreError

CONNECTION = "connection"
"""The attribute of Alembic's config in which `migrations/env.py` finds its connection."""
VERSION_TABLE = "ftlab_alembic_version"
"""Alembic's own name for it is taken where the database is also MLflow's."""
_ADVISORY_LOCK = 0x66746C6162  # "ftlab": PostgreSQL knows its advisory locks by a number


def upgrade(engine: Engine) -> None:
    """Runs the migrations that are missing. A database that is up to date is only read.

    Raises:
        AppStoreError: A newer version of the program has made the database.
        SQLAlchemyError: What the database says.
    """
    with engine.connect() as connection:
        if _is_current(connection):
            return
    with _alone(engine) as connection:
        if _is_current(connection):
            return
        config = _config()
        config.attributes[CONNECTION] = connection
        command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _is_current(connection: Connection) -> bool:
    scripts = ScriptDirectory.from_config(_config())
    known = {script.revision for script in scripts.walk_revisions()}
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    found = set(context.get_current_heads())
    if newer := found - known:
        raise AppStoreError(
            f"it was made by a newer version of ftlab-mlflow (revision {', '.join(sorted(newer))}, "
            f"newest here {scripts.get_current_head()}): upgrade ftlab-mlflow, or set FTLAB_DATABASE_URL"
        )
    return found == set(scripts.get_heads())


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """A transaction that no other process has at the same time (on SQLite and PostgreSQL)."""
    if engine.dialect.name == "sqlite":
        # Python's driver begins a transaction at the first INSERT only; in this mode it leaves that to us.
        plain = engine.execution_options(isolation_level="AUTOCOMMIT")
        with plain.begin() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
        return
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        yield connection
