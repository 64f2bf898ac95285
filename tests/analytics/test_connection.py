"""Tracking URIs as people type them."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from ftlab_mlflow.analytics.connection import experiments_at
from ftlab_mlflow.errors import ConfigError, FTLabError, StoreUnavailable


def test_a_store_says_how_many_experiments_it_has(tracking_uri: str) -> None:
    MlflowClient(tracking_uri).create_experiment("one more")
    assert experiments_at(tracking_uri) == 2


@pytest.mark.parametrize("uri", ["sqlite:///{}/typo.db", "{}/typo", "file://{}/typo", "sqlite:///{}/a/b.db"])
def test_a_typing_error_makes_no_new_store(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        experiments_at(uri.format(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database " * 100)
    with pytest.raises(FTLabError):
        experiments_at(f"sqlite:///{tmp_path}/notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "not a database " * 100


def test_a_server_that_is_not_there_is_away() -> None:
    with pytest.raises(StoreUnavailable):
        experiments_at("http://127.0.0.1:9")


@pytest.mark.parametrize("uri", ["nonsense://x", "sqlite://:x:y", "http://"])
def test_what_is_no_tracking_uri_is_refused(uri: str) -> None:
    with pytest.raises(FTLabError):
        experiments_at(uri)
