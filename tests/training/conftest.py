"""Fixtures of the listener's tests: a store that fails when told, and trainings that listen on a run."""

from collections.abc import Iterator
from typing import Any

import pytest
from listener_line import Line, NewLine
from training_doubles import LIMIT_S, FlakyStore

from ftlab_mlflow.training import listener as listener_module


@pytest.fixture
def store() -> FlakyStore:
    return FlakyStore()


@pytest.fixture
def new_line(store: FlakyStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[NewLine]:
    monkeypatch.setattr(listener_module, "BACKOFF_S", (0.01, 0.08))
    lines: list[Line] = []
    run_id = store.inner.create_run()

    def make(**options: Any) -> Line:
        lines.append(Line(store, run_id, **options))
        return lines[-1]

    yield make
    store.away = store.loses_answers = False
    store.hurry()
    for line in lines:
        if not line.closed and line.listener._thread.ident is not None:
            line.listener.close(None)
        line.listener._thread.join(LIMIT_S) if line.listener._thread.ident else None
        assert not line.listener._thread.is_alive()


@pytest.fixture
def line(new_line: NewLine) -> Line:
    return new_line()
