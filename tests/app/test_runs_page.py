"""The page of all runs, on a real MLflow database."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
import pytest
import streamlit as st
from app_pages import LIMIT_S, Runs, opened, texts
from streamlit.testing.v1 import AppTest


def table(app: AppTest) -> pd.DataFrame:
    """The table of runs as it is sent to the browser."""
    (found,) = app.dataframe
    value: pd.DataFrame = found.value
    return value


def selected_places(app: AppTest) -> list[int]:
    """What is selected in the table that the browser has now."""
    (element,) = app.dataframe
    return json.loads(element.proto.selection_default)["selection"]["rows"]


def test_every_run_is_there_as_mlflow_has_it(runs: Runs) -> None:
    runs.live("tuned", state="running", step=25, metrics={"eval_loss": [3.0, 1.5, 2.0], "loss": [4.0, 2.0]})
    runs.live("paused one", state="paused", method="dpo")
    runs.plain("by hand", metrics={"eval_loss": [0.25]}, params={"model_name": "org/base"})
    runs.plain("diverged", status="FAILED", metrics={"eval_loss": [1.0, math.nan]})

    shown = table(opened()).set_index("name")

    truth = mlflow.search_runs(search_all_experiments=True).set_index("tags.mlflow.runName")
    assert list(shown.index) == ["paused one", "tuned", "diverged", "by hand"]
    expected = truth["metrics.eval_loss"].reindex(shown.index)
    pd.testing.assert_series_equal(shown["eval loss"], expected, check_names=False)
    assert {name: list(chips) for name, chips in shown["state"].items()} == {
        "tuned": ["running"],
        "paused one": ["paused"],
        "by hand": ["finished", "read-only"],
        "diverged": ["failed", "read-only"],
    }
    assert shown["progress"]["tuned"] == 0.25
    assert shown["best eval loss"]["tuned"] == 1.5
    assert list(shown["losses"]["tuned"]) == [4.0, 2.0]
    assert shown["method"]["paused one"] == "dpo"
    assert shown["model"]["by hand"] == "org/base"


def test_nan_reaches_the_browser_as_nan_and_not_as_nothing(runs: Runs) -> None:
    runs.plain("diverged", metrics={"eval_loss": [math.nan]})
    runs.plain("no evaluation")
    (element,) = opened().dataframe
    with pa.ipc.open_stream(element.proto.arrow_data.data) as stream:
        sent = stream.read_all()
    losses = dict(zip(sent["name"].to_pylist(), sent["eval loss"].to_pylist(), strict=True))
    assert losses["no evaluation"] is None
    assert math.isnan(losses["diverged"])


def test_filters_stand_in_the_address(runs: Runs) -> None:
    other = runs.client.create_experiment("other")
    runs.live("wide 1", state="running", method="dpo", run_tags={"team": "blue"})
    runs.live("wide 2", state="paused", run_tags={"team": "red"})
    runs.live("tall", state="paused", experiment=other)

    def names(app: AppTest) -> set[str]:
        return set(table(app)["name"])

    assert names(opened(state="paused")) == {"wide 2", "tall"}
    assert names(opened(state="paused", experiment="other")) == {"tall"}
    assert names(opened(method="dpo")) == {"wide 1"}
    assert names(opened(tag="team=red")) == {"wide 2"}
    assert names(opened(text="WIDE")) == {"wide 1", "wide 2"}

    app = opened()
    app.multiselect(key="state").set_value(["running"]).run()
    assert names(app) == {"wide 1"}


def test_a_filter_that_nothing_fits_says_so_and_can_be_cleared(runs: Runs) -> None:
    runs.plain("a")
    app = opened(experiment="gone")
    assert not app.dataframe
    assert "No run fits the filters" in texts(app)
    app.button(key="clear filters").click().run()
    assert list(table(app)["name"]) == ["a"]
    assert app.query_params == {}


def test_groups_stand_together_with_their_best(runs: Runs) -> None:
    for name, model, loss in [("one", "x", 2.0), ("two", "y", 0.5), ("three", "x", 1.0), ("four", "y", 0.7)]:
        runs.live(name, params={"model_name_or_path": model}, metrics={"eval_loss": [loss]})
    app = opened(group="model")
    shown = table(app)
    assert list(shown["model"]) == ["y", "y", "x", "x"]
    assert set(shown[shown["best"].map(len) > 0]["name"]) == {"two", "three"}
    (element,) = app.dataframe
    assert element.proto.column_order[0] == "model"
    some = table(opened(group="model", text="four"))  # whose group has a better one that is not shown
    assert list(some["best"].map(len)) == [0]


def test_runs_that_go_on_come_first_unless_another_order_is_chosen(runs: Runs) -> None:
    runs.live("old", state="running")
    runs.live("new", state="finished")
    assert list(table(opened())["name"]) == ["old", "new"]
    assert list(table(opened(order="newest"))["name"]) == ["new", "old"]


def test_fifty_runs_are_a_page_and_only_their_losses_are_sent(runs: Runs) -> None:
    ids = [runs.plain(f"run {number}", metrics={"loss": [1.0, 0.5]}) for number in range(60)]
    app = opened()
    assert len(table(app)) == 50
    assert "60 runs" in texts(app)
    app.session_state["page"] = 2
    app.run()
    assert list(table(app)["name"]) == [f"run {number}" for number in range(9, -1, -1)]
    assert len(ids) == 60


def test_selected_runs_stay_selected_when_new_ones_come(runs: Runs) -> None:
    first, second = runs.plain("first"), runs.plain("second")
    app = opened()
    app.session_state["selected runs"] = [first]
    app.run()
    assert selected_places(app) == [1]
    runs.plain("third")
    runs.plain("fourth")
    app = _until(app, lambda: len(table(app)) == 4)
    assert selected_places(app) == [3]
    assert app.session_state["selected runs"] == [first]

    app.session_state["selected runs"] = [first, second]
    app.run()
    assert "2 selected" in texts(app)
    app.button(key="clear selection").click().run()
    assert selected_places(app) == []


def test_more_than_ten_cannot_be_compared(runs: Runs) -> None:
    app = opened()
    app.session_state["selected runs"] = [runs.plain(f"run {number}") for number in range(11)]
    app = _until(app, lambda: bool(app.dataframe))
    assert app.button(key="compare").disabled
    assert "at most 10" in texts(app)


def test_an_empty_store_says_how_to_start_a_run(dashboard: str) -> None:
    app = opened()
    assert "no runs yet" in texts(app)
    (command,) = app.code
    assert command.value == f"ftlab train sft --model demo --data demo --tracking_uri {dashboard}"


def test_names_are_shown_as_they_are(runs: Runs) -> None:
    names = ["**bold** <b>html</b>", ":material/delete: icon", "$x^2$ :red[red]"]
    for name in names:
        runs.plain(name)
    app = opened()
    assert [name.replace("\u2060", "") for name in table(app)["name"]] == names[::-1]
    assert not any(":material" in name for name in table(app)["name"])  # it would be drawn as an icon
    assert "bold" not in texts(app)


def test_a_server_that_goes_away_and_comes_back(
    new_mlflow_server: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: Any = new_mlflow_server()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("FTLAB_DATABASE_URL", f"sqlite:///{tmp_path}/app.db")
    st.cache_resource.clear()
    Runs(server.uri).live("here", state="running")
    app = opened()
    assert list(table(app)["name"]) == ["here"]

    server.stop()
    app = _until(app, lambda: "does not answer" in texts(app))
    assert "Shown is what was read" in texts(app)
    assert list(table(app)["name"]) == ["here"]

    server.start()
    app = _until(app, lambda: "does not answer" not in texts(app))
    assert list(table(app)["name"]) == ["here"]
    st.cache_resource.clear()


def _until(app: AppTest, holds: Callable[[], bool]) -> AppTest:
    """Runs the page again until something holds, as its refresh does."""
    end = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < end, texts(app)
        time.sleep(0.2)
        app.run()
        assert not app.exception
    return app
