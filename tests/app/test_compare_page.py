"""The page that compares runs, on a real MLflow database."""

from __future__ import annotations

import time

import mlflow
import pandas as pd
from app_pages import LIMIT_S, Runs, figures, opened, texts
from streamlit.testing.v1 import AppTest


def tables(app: AppTest) -> dict[str, pd.DataFrame]:
    """The tables of the page: "outcomes" and, where params differ, "params"."""
    return dict(zip(("outcomes", "params"), (element.value for element in app.dataframe), strict=False))


def test_what_differs_and_what_came_of_it_are_those_of_mlflow(runs: Runs) -> None:
    losses = {"a": [3.0, 1.0, 2.0], "b": [3.0, 2.5, 1.5], "c": [3.0, 2.0, 1.8]}
    ids = [
        runs.live(
            name,
            params={"learning_rate": rate, "seed": "7", "optim": optim},
            metrics={"eval_loss": losses[name]},
        )
        for name, rate, optim in [("a", "1e-4", "adamw"), ("b", "5e-05", "adamw"), ("c", "0.0001", "sgd")]
    ]
    shown = tables(opened("compare", runs=",".join(ids)))

    raw = mlflow.search_runs(search_all_experiments=True).set_index("run_id").loc[ids]
    found = shown["params"].set_index("run")
    assert list(found.columns) == ["param learning_rate", "param optim"]
    assert list(found["param learning_rate"]) == raw["params.learning_rate"].astype(float).tolist()
    assert list(found["param optim"]) == raw["params.optim"].tolist()

    outcomes = shown["outcomes"].set_index("run")
    assert list(outcomes["last eval_loss"]) == raw["metrics.eval_loss"].tolist()
    assert outcomes["best eval_loss"].to_dict() == pd.DataFrame(losses).min().to_dict()
    assert {name: list(chips) for name, chips in outcomes["best in"].items()} == {
        "a": ["Eval loss"],
        "b": [],
        "c": [],
    }


def test_charts_lie_over_each_other_and_changes_on_one_time_line(runs: Runs) -> None:
    first = runs.live("first", metrics={"loss": [3.0, 2.0, 1.0]})
    second = runs.live("second", metrics={"loss": [4.0, 2.5]})
    runs.request(second, 2, "learning_rate", 1e-4, 5e-5, by="<b>ann</b>")
    app = opened("compare", runs=f"{first},{second}")

    lines = {trace["name"]: trace for trace in figures(app)["overlaid loss"]["data"]}
    assert set(lines) == {"first", "second"}
    assert lines["first"]["line"]["color"] != lines["second"]["line"]["color"]

    time_line = figures(app)["time line"]
    marks = [trace for trace in time_line["data"] if trace["mode"] == "markers" and trace.get("text")]
    (said,) = [text for trace in marks for text in trace["text"]]
    assert "5e-05" in said
    assert "&lt;b&gt;ann&lt;/b&gt;" in said
    assert [note["text"] for note in time_line["layout"]["annotations"]] == ["first", "second"]


def test_runs_that_are_not_there_are_named(runs: Runs) -> None:
    here, there, gone = runs.plain("here"), runs.plain("there"), runs.plain("gone")
    runs.client.delete_run(gone)
    app = opened("compare", runs=f"{here},nope,{gone},{there}")
    assert "no such runs" in texts(app)
    assert f"nope\n{gone}" in texts(app)
    assert list(tables(app)["outcomes"]["run"]) == ["here", "there"]


def test_a_run_that_is_deleted_meanwhile_is_named(runs: Runs) -> None:
    here, there = runs.live("here", state="running"), runs.live("there", state="running")
    app = opened("compare", runs=f"{here},{there}")
    assert "no such runs" not in texts(app)
    runs.client.delete_run(there)
    end = time.monotonic() + LIMIT_S
    while there not in texts(app):  # what was read just now is fresh enough for a moment
        assert time.monotonic() < end
        app.run()
        assert not app.exception
    assert list(tables(app)["outcomes"]["run"]) == ["here"]


def test_fewer_than_two_runs_get_a_hint(runs: Runs) -> None:
    assert "two runs or more" in texts(opened("compare"))
    one = opened("compare", runs=runs.plain("alone"))
    assert "two runs or more" in texts(one)
    assert list(tables(one)["outcomes"]["run"]) == ["alone"]


def test_ten_runs_are_compared_and_no_more(runs: Runs) -> None:
    ids = [runs.plain(f"run {number}") for number in range(11)]
    app = opened("compare", runs=",".join(ids))
    assert "the first of 11" in texts(app)
    assert list(tables(app)["outcomes"]["run"]) == [f"run {number}" for number in range(10)]


def test_runs_of_one_name_are_told_apart(runs: Runs) -> None:
    ids = [runs.plain("same"), runs.plain("same")]
    app = opened("compare", runs=",".join(ids))
    assert list(tables(app)["outcomes"]["run"]) == [f"same ({run_id[:8]})" for run_id in ids]
