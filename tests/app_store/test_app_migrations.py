"""Migrations: they lead from every older database to the model, once, and never back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

from ftlab_mlflow.app_store import AppStore, Preferences, migrate
from ftlab_mlflow.app_store.models import Base
from ftlab_mlflow.errors import AppStoreError

REVISIONS = [s.revision for s in ScriptDirectory.from_config(migrate._config()).walk_revisions()][::-1]
OURS = {*Base.metadata.tables, migrate.VERSION_TABLE}

_OPEN = """
import sys
from ftlab_mlflow.app_store import AppStore, Preferences
print("ready", flush=True)
sys.stdin.readline()
store = AppStore(sys.argv[1])
store.save(sys.argv[2], Preferences(by=sys.argv[2]))
print(store.preferences(sys.argv[2]).by)
"""


def differences(url: str) -> list[object]:
    """What the tables of a database lack of the model, and have beyond it."""
    engine = create_engine(url)
    with engine.connect() as connection:
        opts = {"version_table": migrate.VERSION_TABLE, "include_name": _is_ours}
        found = compare_metadata(MigrationContext.configure(connection, opts=opts), Base.metadata)
    engine.dispose()
    return list(found)


def _is_ours(name: str | None, kind: str, _: object) -> bool:
    return kind != "table" or str(name).startswith("ftlab_")


def upgrade_to(url: str, revision: str) -> None:
    """An older version's database."""
    engine = create_engine(url)
    with engine.begin() as connection:
        config = migrate._config()
        config.attributes[migrate.CONNECTION] = connection
        command.upgrade(config, revision)
    engine.dispose()


def test_an_empty_database_gets_the_tables_of_the_model(url: str) -> None:
    AppStore(url).close()
    assert differences(url) == []


def test_the_comparison_would_see_a_difference(url: str) -> None:
    AppStore(url).close()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE ftlab_preferences ADD COLUMN extra INTEGER"))
    engine.dispose()
    assert [found[0] for found in differences(url)] == ["remove_column"]  # type: ignore[index]


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_older_database_becomes_the_model(url: str, revision: str) -> None:
    upgrade_to(url, revision)
    store = AppStore(url)
    store.save("alice", Preferences(axis="time"))
    assert store.preferences("alice").axis == "time"
    store.close()
    assert differences(url) == []


def test_the_revisions_are_one_line() -> None:
    scripts = ScriptDirectory.from_config(migrate._config())
    assert len(scripts.get_heads()) == 1
    assert [scripts.get_revision(r).down_revision for r in REVISIONS] == [None, *REVISIONS[:-1]]


def test_a_newer_database_is_refused_and_left_as_it_is(url: str) -> None:
    AppStore(url).close()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {migrate.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(AppStoreError, match=r"newer version.*revision 9999.*upgrade ftlab-mlflow"):
        AppStore(url)
    with engine.begin() as connection:
        assert connection.execute(text(f"SELECT version_num FROM {migrate.VERSION_TABLE}")).all() == [
            ("9999",)
        ]
    engine.dispose()


def test_processes_that_open_a_new_database_at_once(url: str) -> None:
    names = ["p0", "p1", "p2"]
    command_of = [[sys.executable, "-W", "error", "-c", _OPEN, url, name] for name in names]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for command in command_of]  # type: ignore[call-overload]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * len(names)
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    ended = [process.communicate(timeout=60) for process in processes]
    assert [out.strip() for out, _ in ended] == names, ended
    assert differences(url) == []


def test_a_migration_that_fails_leaves_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: object, revision: str) -> None:
        command_upgrade(config, revision)  # type: ignore[arg-type]
        raise OSError("the power fails")

    command_upgrade = command.upgrade
    monkeypatch.setattr(migrate.command, "upgrade", broken)
    with pytest.raises(AppStoreError, match="the power fails"):
        AppStore(url)
    monkeypatch.undo()
    engine = create_engine(url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()
    AppStore(url).close()
    assert differences(url) == []


def test_it_may_be_mlflows_own_database(new_sqlite: Callable[[Path], str], tmp_path: Path) -> None:
    from mlflow import MlflowClient

    url = new_sqlite(tmp_path)
    engine = create_engine(url)
    before = set(inspect(engine).get_table_names())
    AppStore(url).close()
    assert set(inspect(engine).get_table_names()) == before | OURS
    engine.dispose()
    assert differences(url) == []
    assert MlflowClient(url).create_run("0").info.run_id
