"""The fixtures that other tests stand on: they skip aloud, fail where told to, and leave nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

Require = Callable[[str, bool, str], None]


def test_what_is_there_is_not_skipped(require: Require, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTLAB_REQUIRE", "browser")
    require("browser", True, "")


def test_what_is_missing_is_skipped_with_the_reason(
    require: Require, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FTLAB_REQUIRE", "postgres, ray")
    with pytest.raises(pytest.skip.Exception, match="browser: no chromium here"):
        require("browser", False, "no chromium here")
    assert "no chromium here" in capsys.readouterr().out


@pytest.mark.parametrize("required", ["browser", "postgres,browser", "postgres, browser ,ray"])
def test_what_is_missing_though_required_fails(
    require: Require, monkeypatch: pytest.MonkeyPatch, required: str
) -> None:
    monkeypatch.setenv("FTLAB_REQUIRE", required)
    with pytest.raises(pytest.fail.Exception, match="FTLAB_REQUIRE names browser: no chromium here"):
        require("browser", False, "no chromium here")


@pytest.fixture(scope="module")
def left_behind() -> dict[str, str]:
    """What the first test below did, for the second."""
    return {}


def test_one_test_that_leaves_everything_behind(tracking_uri: str, left_behind: dict[str, str]) -> None:
    import mlflow

    mlflow.set_experiment("mine")
    left_behind["run"] = mlflow.start_run().info.run_id
    os.environ["MLFLOW_TRACKING_USERNAME"] = "alice"
    left_behind["uri"] = tracking_uri
    assert mlflow.get_run(left_behind["run"]).info.artifact_uri.startswith(os.path.dirname(tracking_uri[10:]))


def test_and_the_next_one_finds_nothing_of_it(tracking_uri: str, left_behind: dict[str, str]) -> None:
    import mlflow

    if not left_behind:
        pytest.skip("the test before this one did not run")
    assert tracking_uri != left_behind["uri"]
    assert mlflow.get_tracking_uri() == tracking_uri
    assert mlflow.active_run() is None
    assert "MLFLOW_TRACKING_USERNAME" not in os.environ
    assert "MLFLOW_EXPERIMENT_ID" not in os.environ
    assert [e.name for e in mlflow.search_experiments()] == ["Default"]
    with mlflow.start_run() as run:
        assert run.info.experiment_id == "0"
    ended: Any = mlflow.MlflowClient(left_behind["uri"]).get_run(left_behind["run"])
    assert ended.info.status == "FINISHED"
