"""Looks at the table of runs: while the store is away or slow, by several pages, beside a page."""

from __future__ import annotations

import math
import threading
from datetime import timedelta
from typing import Any

import pytest
from run_samples import Counting, Runs, many_runs, read_all, until

from ftlab_mlflow.analytics import run_table
from ftlab_mlflow.analytics.reader import open_reader
from ftlab_mlflow.analytics.run_table import RunTable
from ftlab_mlflow.control.wire import utc_now
from ftlab_mlflow.errors import StoreUnavailable

NAN, INF = math.nan, math.inf
INFINITE = 1e308
"""MLflow's tables hold infinity as the largest float."""


def test_while_the_store_is_away_no_run_is_lost(
    runs: Runs, reader: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    going = runs.live("going", heartbeat_s=5)
    table = RunTable(reader, fresh_s=0, patience_s=60)
    read_all(table)
    later = utc_now() + timedelta(minutes=5)
    monkeypatch.setattr(run_table, "utc_now", lambda: later)
    reader.is_away = True
    table.refresh()
    (row,) = table.rows()
    assert (row.state, table.view(going).state) == ("running", "running")
    assert row.heartbeat_age_s is not None
    assert 5 <= row.heartbeat_age_s < 60
    reader.is_away = False
    table.refresh()
    assert table.rows()[0].state == "lost"


def test_while_the_store_is_away_the_last_rows_stay(runs: Runs, reader: Counting) -> None:
    table = RunTable(reader, fresh_s=0, patience_s=60)
    reader.is_away = True
    table.refresh()
    assert isinstance(table.problem, StoreUnavailable)
    assert (table.rows(), table.read_at, table.is_complete) == ([], None, False)

    reader.is_away = False
    going = runs.live("going", loss=[2.0, 1.0])
    rows = read_all(table)
    read_at = table.read_at
    assert read_at is not None
    assert utc_now() - read_at < timedelta(seconds=30)

    reader.is_away = True
    assert table.series_for([going]) == {going: ()}
    assert table.problem is not None
    runs.beat(going, step=200)
    reader.forget()
    table.refresh()
    assert [(row.name, row.step) for row in table.rows()] == [("going", rows["going"].step)]
    assert (table.read_at, str(table.problem)) == (read_at, "the tracking store is away")
    table.series_for([going])
    assert reader.calls == {"page": 1}, "nobody waits twice for a store that is away"

    reader.is_away = False
    assert read_all(table)["going"].step == 200
    assert table.series_for([going]) == {going: (2.0, 1.0)}
    assert table.read_at > read_at


def test_a_store_that_is_away_is_not_asked_more_often_than_one_that_answers(reader: Counting) -> None:
    table = RunTable(reader, fresh_s=60)
    reader.is_away = True
    for _ in range(5):
        table.refresh()
    assert reader.calls == {"page": 1}


def test_the_first_look_waits_for_the_first_rows_and_the_rest_comes_by_itself(
    tracking_uri: str, reader: Counting
) -> None:
    ids = many_runs(tracking_uri, 450)
    table = RunTable(reader, fresh_s=60, patience_s=0)
    reader.gate.clear()
    visitor = threading.Thread(target=table.look)
    visitor.start()
    until(lambda: reader.calls["page"])
    assert visitor.is_alive()
    reader.gate.set()
    visitor.join(30)
    assert {row.run_id for row in table.rows()} >= set(ids[:50])
    until(lambda: table.is_complete)  # nobody looks any more
    assert [row.run_id for row in table.rows()] == ids


def test_a_later_look_does_not_wait_for_a_slow_store(runs: Runs, reader: Counting) -> None:
    runs.plain("one")
    table = RunTable(reader, fresh_s=0, patience_s=0)
    table.refresh()
    runs.plain("two")
    reader.gate.clear()
    reader.forget()
    for _ in range(3):
        table.look()
        assert [row.name for row in table.rows()] == ["one"]
    until(lambda: reader.calls["page"])
    assert reader.calls == {"page": 1}
    reader.gate.set()
    until(lambda: [row.name for row in table.rows()] == ["two", "one"])


def test_losses_are_not_waited_for_long_either(runs: Runs, reader: Counting) -> None:
    one = runs.plain("one", loss=[2.0, 1.0])
    table = RunTable(reader, patience_s=0)
    table.refresh()
    reader.gate.clear()
    assert table.series_for([one]) == {one: ()}
    reader.gate.set()
    until(lambda: table.series_for([one]) == {one: (2.0, 1.0)})


def test_what_goes_wrong_beside_a_page_is_raised_at_its_next_look(runs: Runs, reader: Counting) -> None:
    table = RunTable(reader, fresh_s=0, patience_s=0)
    table.refresh()
    reader.page = None  # type: ignore[assignment, method-assign]
    table.look()

    def is_raised() -> bool:
        try:
            table.look()
        except TypeError:
            return True
        return False

    until(is_raised)


def test_a_server_that_goes_away_and_comes_back(mlflow_server: Any) -> None:
    runs = Runs(mlflow_server.uri)
    first = runs.live("first here", loss=[2.0, 1.0], eval_loss=[3.0, 2.5, 2.75], eta_s=[500.0])
    table = RunTable(open_reader(mlflow_server.uri), fresh_s=0, sweep_s=0, patience_s=60)
    row = read_all(table)["first here"]
    assert (row.state, row.loss, row.best_eval_loss, row.experiment) == ("running", 1.0, 2.5, "Default")
    assert row.eta_s == pytest.approx(500, abs=60)
    assert table.series_for([first]) == {first: (2.0, 1.0)}
    before = table.read_at
    assert before is not None

    mlflow_server.stop()
    try:
        table.refresh()
        assert isinstance(table.problem, StoreUnavailable)
        assert "first here" in [row.name for row in table.rows()]
        assert table.read_at == before
    finally:
        mlflow_server.start()
    runs.beat(first, step=300)
    runs.plain("second here")
    until(lambda: table.refresh() or table.problem is None)
    rows = read_all(table)
    assert (rows["first here"].step, rows["second here"].step) == (300, None)
    assert table.read_at > before
