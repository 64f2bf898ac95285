"""The diagnosis of real trainings: each that was made to go wrong is found out, no healthy one is accused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from diagnosis_trainings import TRAININGS, train

from ftlab_mlflow.analytics import call_tool


@pytest.fixture(scope="module")
def store(new_sqlite: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("trainings")
    return new_sqlite(folder), folder


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.filterwarnings("ignore")  # trainings that go wrong overflow, and their libraries say so
def test_what_is_wrong_is_found_and_nothing_else(store: tuple[str, Path], name: str) -> None:
    uri, folder = store
    training = TRAININGS[name]
    answer = call_tool("diagnose_run", {"run": train(training, uri, folder)}, uri)
    found = {finding["kind"] for finding in answer["rows"]}
    assert training.expected <= found <= training.expected | training.allowed, answer["rows"]
    for finding in answer["rows"]:
        assert finding["numbers"]
        assert finding["threshold"]
        assert finding["source"]
        assert finding["live"] == {}, "it has ended"
