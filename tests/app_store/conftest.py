"""Fixtures of the app database's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from ftlab_mlflow.app_store import AppStore
from ftlab_mlflow.app_store.chats import ChatStore


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables, on SQLite and on PostgreSQL, where making one for each test takes long."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/app.db"
    one_a_module: str = request.getfixturevalue("postgres_uri")
    engine = create_engine(one_a_module)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '20s'"))
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return one_a_module


@pytest.fixture
def app(url: str) -> Iterator[AppStore]:
    """An app database on it."""
    store = AppStore(url)
    yield store
    store.close()


@pytest.fixture
def chats(app: AppStore) -> ChatStore:
    """Its chats."""
    return app.chats
