"""`AppStore`: what is kept, for whom, and what is said when the database cannot be used."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from ftlab_mlflow.app_store import AppStore, Preferences
from ftlab_mlflow.errors import AppStoreError, AppStoreUnavailable, ConfigError, MissingExtra

CHOSEN = Preferences(by="Zoë", refresh_s=5.5, theme="dark", axis="time", smoothing=0.6, time_zone="UTC")


def raw(url: str, statement: str) -> list[tuple[object, ...]]:
    """Runs one statement past our code."""
    engine = create_engine(url)
    with engine.begin() as connection:
        result = connection.execute(text(statement))
        rows = [tuple(row) for row in result] if result.returns_rows else []
    engine.dispose()
    return rows


def test_each_person_has_their_own_and_they_outlive_the_process(url: str) -> None:
    store = AppStore(url)
    assert store.preferences("alice@example.org") == Preferences()
    store.save("alice@example.org", CHOSEN)
    store.save("bob", Preferences(theme="light"))
    store.save("bob", Preferences(axis="epoch"))
    store.close()
    again = AppStore(url)
    assert again.preferences("alice@example.org") == CHOSEN
    assert again.preferences("bob") == Preferences(axis="epoch")
    assert again.preferences("carol") == Preferences()
    again.close()


def test_what_a_newer_version_has_stored_survives(url: str) -> None:
    store = AppStore(url)
    store.save("alice", CHOSEN)
    ((stored,),) = raw(url, "SELECT data FROM ftlab_preferences")
    data = json.loads(stored) if isinstance(stored, str) else stored
    newer = json.dumps(data | {"panels": ["loss", "kl"]}).replace("'", "''")
    raw(url, f"UPDATE ftlab_preferences SET data = '{newer}'".replace(":", r"\:"))
    assert store.preferences("alice") == CHOSEN
    store.save("alice", Preferences(theme="light"))
    store.close()
    ((stored,),) = raw(url, "SELECT data FROM ftlab_preferences")
    data = json.loads(stored) if isinstance(stored, str) else stored
    assert data == {**Preferences(theme="light").model_dump(), "panels": ["loss", "kl"]}


def test_many_that_save_for_the_same_new_person_at_once(url: str) -> None:
    store = AppStore(url)
    start, failed = threading.Barrier(4), []

    def save(number: int) -> None:
        start.wait(10)
        try:
            store.save("alice", Preferences(refresh_s=2 + number))
        except AppStoreError as error:
            failed.append(error)

    threads = [threading.Thread(target=save, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failed == []
    assert store.preferences("alice").refresh_s in (2, 3, 4, 5)
    store.close()
    assert raw(url, "SELECT count(*) FROM ftlab_preferences") == [(1,)]


def test_it_goes_on_after_the_database_has_cut_its_connections(new_postgres: Callable[[], str]) -> None:
    url = new_postgres()
    store = AppStore(url)
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    assert raw(url, f"{cut} WHERE datname = current_database() AND pid <> pg_backend_pid()") == [(True,)]
    store.save("alice", CHOSEN)
    assert store.preferences("alice") == CHOSEN
    store.close()


# --- where it is -------------------------------------------------------------------------------------


def test_without_a_url_it_is_a_file_of_the_user_that_only_they_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FTLAB_DATABASE_URL", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    AppStore().close()
    file = tmp_path / "data" / "ftlab" / "app.db"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    AppStore().close()
    assert (tmp_path / ".local" / "share" / "ftlab" / "app.db").is_file()


def test_the_environment_says_where_and_an_argument_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTLAB_DATABASE_URL", f"sqlite:///{tmp_path}/environment.db")
    AppStore().close()
    AppStore(f"sqlite:///{tmp_path}/argument.db").close()
    assert {path.name for path in tmp_path.iterdir()} == {"environment.db", "argument.db"}


# --- what goes wrong ---------------------------------------------------------------------------------


def test_what_is_no_database_url() -> None:
    for url in ("hush", "nothing://u:hush@h/db"):
        with pytest.raises(ConfigError, match="FTLAB_DATABASE_URL") as caught:
            AppStore(url)
        assert "hush" not in str(caught.value)


def test_a_missing_driver_is_named() -> None:
    if importlib.util.find_spec("MySQLdb") or importlib.util.find_spec("psycopg2"):
        pytest.skip("the drivers are installed here")
    with pytest.raises(ConfigError, match="the database driver MySQLdb is not installed"):
        AppStore("mysql://u:hush@127.0.0.1/db")
    with pytest.raises(MissingExtra, match=r"pip install 'ftlab-mlflow\[postgres\]'"):
        AppStore("postgresql+psycopg2://u:hush@127.0.0.1/db")


def test_a_server_that_is_not_there_is_unavailable_and_no_password_is_said() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(
        AppStoreUnavailable, match=r"postgresql\+psycopg://127\.0\.0\.1:1/db failed"
    ) as caught:
        AppStore("postgresql+psycopg://ann:hush@127.0.0.1:1/db?password=hush2")
    assert "hush" not in str(caught.value)
    assert "ann" not in str(caught.value)


def test_a_wrong_password_is_unavailable_and_not_said(new_postgres: Callable[[], str]) -> None:
    wrong = make_url(new_postgres()).set(password="hush").render_as_string(hide_password=False)
    with pytest.raises(AppStoreUnavailable, match="failed") as caught:
        AppStore(wrong)
    assert "hush" not in str(caught.value)


def test_a_damaged_file_is_said_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "app.db"
    file.write_bytes(b"no database at all, " * 100)
    with pytest.raises(AppStoreError, match=r"app\.db failed: file is not a database") as caught:
        AppStore(f"sqlite:///{file}")
    assert not isinstance(caught.value, AppStoreUnavailable)
    assert file.read_bytes() == b"no database at all, " * 100


def test_a_place_that_cannot_be_made_or_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AppStoreError, match="File exists"):
        AppStore(f"sqlite:///{tmp_path}/file/app.db")
    with pytest.raises(AppStoreError, match="unable to open database file"):
        AppStore(f"sqlite:///{tmp_path}")


def test_a_file_that_can_only_be_read_is_read(tmp_path: Path) -> None:
    store = AppStore(f"sqlite:///{tmp_path}/app.db")
    store.save("alice", CHOSEN)
    store.close()
    only_read = AppStore(f"sqlite:///file:{tmp_path}/app.db?mode=ro&uri=true")
    assert only_read.preferences("alice") == CHOSEN
    with pytest.raises(AppStoreError, match="readonly database"):
        only_read.save("alice", Preferences())
    only_read.close()
    assert os.listdir(tmp_path) == ["app.db"]


def test_a_locked_file_is_unavailable_after_its_time(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/app.db?timeout=0.2"
    store = AppStore(url)
    engine = create_engine(f"sqlite:///{tmp_path}/app.db", isolation_level="AUTOCOMMIT")
    with engine.connect() as other:
        other.exec_driver_sql("BEGIN EXCLUSIVE")
        began = time.monotonic()
        with pytest.raises(AppStoreUnavailable, match="database is locked"):
            store.save("alice", CHOSEN)
        assert time.monotonic() - began < 5
        other.exec_driver_sql("ROLLBACK")
    engine.dispose()
    store.save("alice", CHOSEN)
    assert store.preferences("alice") == CHOSEN
    store.close()
