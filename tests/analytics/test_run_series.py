"""What the table of runs computes from series: sparklines and best losses, and when they are read again."""

from __future__ import annotations

import math

import numpy as np
from run_samples import Counting, Runs, read_all, until

from ftlab_mlflow.analytics.run_table import RunTable

NAN, INF = math.nan, math.inf
INFINITE = 1e308
"""MLflow's tables hold infinity as the largest float."""


def test_sparklines_keep_the_extremes_and_only_what_is_finite(runs: Runs, table: RunTable) -> None:
    values = (np.sin(np.arange(3000) / 50) + 2).tolist()
    values[1234], values[2345], values[7], values[8] = 50.0, -20.0, NAN, INF
    long = runs.plain("long", loss=values)
    short = runs.plain("short", loss=[3.0, NAN, 1.0])
    whole = runs.plain("other name", train_loss=[2.0, 1.5])
    empty = runs.plain("empty")
    read_all(table)
    lines = table.series_for([long, short, whole, empty])
    assert set(lines) == {long, short, whole, empty}
    assert (lines[short], lines[whole], lines[empty]) == ((3.0, 1.0), (2.0, 1.5), ())
    assert 20 <= len(lines[long]) <= 60
    assert (max(v for v in lines[long] if v < INFINITE), min(lines[long])) == (50.0, -20.0)
    assert (lines[long][0], lines[long][-1]) == (values[0], values[-1])
    places = [values.index(value) for value in lines[long] if value < INFINITE]
    assert places == sorted(places)


def test_series_of_ended_runs_are_read_once_and_those_that_go_on_when_they_log(
    runs: Runs, reader: Counting
) -> None:
    table = RunTable(reader, fresh_s=0, patience_s=60)
    ended = runs.plain("ended", status="FINISHED", loss=[2.0, 1.0], eval_loss=[3.0, 2.0, 4.0])
    going = runs.live("going", loss=[5.0], eval_loss=[7.0])
    logs_best = runs.live("logs best", loss=[4.0], eval_loss=[6.0, 8.0], best_eval_loss=[6.0, 6.0])
    read_all(table)
    table.series_for([ended, going, logs_best])
    assert ("eval_loss", frozenset({ended, going})) in reader.asked
    assert all(logs_best not in ids for key, ids in reader.asked if key == "eval_loss")

    reader.forget()
    read_all(table)
    table.series_for([ended, going])
    assert reader.asked == []

    runs.log(going, "loss", [4.5], first=2)
    runs.log(going, "eval_loss", [6.5, NAN], first=2)
    rows = read_all(table)
    assert rows["going"].best_eval_loss == 6.5
    assert table.series_for([ended, going])[going] == (5.0, 4.5)
    assert set(reader.asked) == {("loss", frozenset({going})), ("eval_loss", frozenset({going}))}

    runs.client.set_terminated(going)
    read_all(table)
    reader.forget()
    read_all(table)
    assert reader.asked == []
    assert {name: row.best_eval_loss for name, row in rows.items()} == {
        "ended": 2.0, "going": 6.5, "logs best": 6.0,
    }  # fmt: skip


def test_a_series_of_a_run_that_goes_on_is_not_read_at_every_refresh(runs: Runs, reader: Counting) -> None:
    table = RunTable(reader, fresh_s=2, patience_s=60)
    going = runs.live("going", loss=[5.0])
    table.refresh()
    assert table.series_for([going])[going] == (5.0,)
    runs.log(going, "loss", [4.0], first=2)
    until(lambda: table.refresh() or table.rows()[0].loss == 4.0)
    assert table.series_for([going])[going] == (5.0,)
    assert reader.calls["series"] == 1


def test_a_run_that_begins_to_log_another_loss_has_a_line_of_that_alone(runs: Runs, table: RunTable) -> None:
    going = runs.plain("going", train_loss=[9.0, 8.0])
    read_all(table)
    assert table.series_for([going])[going] == (9.0, 8.0)
    runs.log(going, "loss", [2.0, 1.0], first=2)
    read_all(table)
    assert table.series_for([going])[going] == (2.0, 1.0)


def test_steps_that_come_again_after_a_rollback_are_read(runs: Runs, table: RunTable) -> None:
    going = runs.live("going", step=5)
    runs.log(going, "eval_loss", [5.0, 4.0, 3.0, 2.0, 1.5], age_s=120)
    assert read_all(table)["going"].best_eval_loss == 1.5
    runs.log(going, "eval_loss", [1.0], first=2, age_s=60)  # back at step 1, it goes another way
    runs.beat(going, step=2)
    assert read_all(table)["going"].best_eval_loss == 1.0
    runs.log(going, "eval_loss", [0.5, 3.0], first=3, age_s=30)
    runs.beat(going, step=4)
    assert read_all(table)["going"].best_eval_loss == 0.5
    runs.log(going, "eval_loss", [0.25, 9.0, 9.0], first=5)
    runs.beat(going, step=7)
    assert read_all(table)["going"].best_eval_loss == 0.25
