"""`doctor`: what it finds here, that it leaves nothing behind, what it says when something is missing."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import Ftlab

from ftlab_mlflow.control.mlflow_store import MlflowRunStore


def checks(result: Any) -> dict[str, Any]:
    document = result.json
    assert set(document) == {"ok", "checks"}
    for check in document["checks"]:
        assert set(check) == {"name", "result", "detail", "todo"}
        assert check["result"] in ("OK", "WARN", "FAIL")
        assert check["todo"] or check["result"] == "OK"
    return {check["name"]: check for check in document["checks"]}


def test_all_is_well_here_and_nothing_is_left_behind(ftlab: Ftlab, tracking_uri: str, tmp_path: Path) -> None:
    def dump() -> list[str]:
        with sqlite3.connect(tmp_path / "mlflow.db") as connection:
            found = list(connection.iterdump())
        connection.close()
        return found

    before, files = dump(), sorted(tmp_path.rglob("*"))
    result = ftlab("doctor", "--json")
    found = checks(result)
    assert result.code == 0
    assert result.json["ok"]
    for name in ("python", "mlflow", "torch", "transformers", "trl", "tracking store", "permission to write"):
        assert found[name]["result"] == "OK", found[name]
    assert tracking_uri in found["tracking store"]["detail"]
    assert {"gpu", "browser", "extra app", "extra chat", "extra postgres", "extra ray"} <= set(found)
    assert dump() == before
    assert sorted(tmp_path.rglob("*")) == files

    text = ftlab("doctor").out
    assert "All that is needed is here." in text
    assert "made, tagged and deleted a run in 'Default'" in text


def test_over_a_server_it_says_that_the_run_is_in_the_trash(ftlab: Ftlab, mlflow_server: Any) -> None:
    before = MlflowRunStore(mlflow_server.uri).find()
    result = ftlab("doctor", "--json", "--tracking-uri", mlflow_server.uri)
    found = checks(result)["permission to write"]
    assert found["result"] == "OK"
    assert "until `mlflow gc` empties it" in found["detail"]
    assert MlflowRunStore(mlflow_server.uri).find() == before


def test_no_database_yet_is_fine_and_makes_none(ftlab: Ftlab, tmp_path: Path) -> None:
    result = ftlab("doctor", "--json", "--tracking-uri", f"sqlite:///{tmp_path}/new/mlflow.db")
    assert result.code == 0
    assert "the first run makes it" in checks(result)["tracking store"]["detail"]
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_written_fails(ftlab: Ftlab, tracking_uri: str, tmp_path: Path) -> None:
    import mlflow

    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute(
            "CREATE TRIGGER no BEFORE INSERT ON tags BEGIN SELECT RAISE(ABORT, 'read only'); END"
        )
    connection.close()
    result = ftlab("doctor", "--json")
    found = checks(result)["permission to write"]
    assert result.code == 1
    assert found["result"] == "FAIL"
    assert "ask for the right to write runs" in found["todo"]
    assert mlflow.MlflowClient().search_runs(["0"]) == [] or "it left run" in found["todo"]


def test_what_cannot_be_deleted_is_named(ftlab: Ftlab, tracking_uri: str, tmp_path: Path) -> None:
    import mlflow

    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute(
            "CREATE TRIGGER no BEFORE UPDATE OF lifecycle_stage ON runs WHEN NEW.lifecycle_stage = 'deleted' "
            "BEGIN SELECT RAISE(ABORT, 'may not delete'); END"
        )
    connection.close()
    result = ftlab("doctor", "--json")
    (left,) = mlflow.MlflowClient().search_runs(["0"])
    assert result.code == 1
    assert f"it left run {left.info.run_id}" in checks(result)["permission to write"]["todo"]


def test_a_dead_server_fails_within_the_limit(ftlab: Ftlab) -> None:
    began = time.monotonic()
    result = ftlab("doctor", "--tracking-uri", "http://127.0.0.1:9")
    assert result.code == 1
    assert time.monotonic() - began < 12
    assert "FAIL" in result.out
    assert "start the server" in result.out
    assert "Something that is needed is missing" in result.out


def test_a_package_that_is_too_old_fails_and_an_extra_only_warns(
    ftlab: Ftlab, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import metadata

    requirements = ["click>=8.1", "rich>=999", "no-such-package>=1", "no-such-extra>=2; extra == 'ray'"]
    monkeypatch.setattr(metadata, "requires", lambda name: requirements)
    monkeypatch.setenv("PATH", "")
    result = ftlab("doctor", "--json")
    found = checks(result)
    assert result.code == 1
    assert found["click"]["result"] == "OK"
    assert (found["rich"]["result"], found["rich"]["todo"]) == ("FAIL", "pip install 'rich>=999'")
    assert found["no-such-package"]["detail"] == "not installed, needs >=1"
    assert found["extra ray"]["result"] == "WARN"
    assert found["extra ray"]["todo"] == "pip install 'ftlab-mlflow[ray]'"
    assert found["browser"]["result"] == "WARN"
