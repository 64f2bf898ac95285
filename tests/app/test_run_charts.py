"""The charts of a run's page as the browser gets them: lines, marks of requests, the preview, the effects."""

from __future__ import annotations

import html
import math
from datetime import UTC, datetime

import mlflow
import numpy as np
import pandas as pd
import pytest
from app_pages import Runs
from mlflow.entities import Metric
from run_page import PARAMS, Page, answered, asked, numbers, status, surface

from ftlab_mlflow.analytics.effects import effects
from ftlab_mlflow.analytics.series import Series
from ftlab_mlflow.control.preview import preview
from ftlab_mlflow.control.store import now_ms
from ftlab_mlflow.control.surface import Surface

LOSS = [4.0 - 0.05 * step + 0.1 * math.sin(step) for step in range(1, 41)]


def made(runs: Runs, **options: object) -> str:
    """A run that listens."""
    run_tags = status() | surface() | options.pop("more", {})  # type: ignore[operator]
    return runs.plain("charted", status="RUNNING", run_tags=run_tags, **options)  # type: ignore[arg-type]


def history(run_id: str, key: str) -> pd.DataFrame:
    """A metric as MLflow has it."""
    points = mlflow.MlflowClient().get_metric_history(run_id, key)
    return pd.DataFrame([(p.step, p.value, p.timestamp) for p in points], columns=["step", "value", "time"])


# --- the preview of the rate -------------------------------------------------------------------------


def test_the_preview_shows_what_a_request_would_do(runs: Runs) -> None:
    page = Page(runs, made(runs))
    offered = Surface(PARAMS, ())

    def drawn() -> dict[str, tuple[list[float], list[float]]]:
        traces = page.traces("preview chart")
        return {name: (list(numbers(t["x"])), list(numbers(t["y"]))) for name, t in traces.items()}

    def curve(rate: float | None, mode: str | None) -> tuple[list[float], list[float]]:
        seen = preview(offered, rate, mode)
        found = seen.today if rate is None and mode is None else seen.changed
        assert found is not None
        return list(map(float, found.steps)), list(found.rates)

    assert drawn() == {"as planned": curve(None, None)}
    page.type(learning_rate="5e-4")
    assert drawn() == {
        "as planned": curve(None, None),
        "0.0005, keep": curve(5e-4, "keep"),
        "0.0005, hold": curve(5e-4, "hold"),
    }
    page.type(lr_schedule="hold")
    assert drawn() == {"as planned": curve(None, None), "0.0005, hold": curve(5e-4, "hold")}
    page.type(learning_rate="garbage")
    assert set(drawn()) == {"as planned", "unchanged, hold"}


# --- what is drawn -----------------------------------------------------------------------------------


def test_lines_are_what_was_logged_and_smoothing_keeps_them(runs: Runs) -> None:
    run_id = made(runs, metrics={"loss": LOSS, "eval_loss": [3.5, 3.0]})
    page = Page(runs, run_id)
    assert page.charts() == ["Loss"]
    before = page.traces("chart Loss")
    truth = history(run_id, "loss")
    np.testing.assert_array_equal(numbers(before["Loss"]["x"]), truth["step"])
    np.testing.assert_array_equal(numbers(before["Loss"]["y"]), truth["value"])
    np.testing.assert_array_equal(numbers(before["Eval loss"]["y"]), [3.5, 3.0])

    page.app.slider(key=f"smoothing run {run_id}").set_value(0.9)
    after = page.rerun().traces("chart Loss")
    np.testing.assert_array_equal(numbers(after["Loss"]["y"]), truth["value"])
    assert 0 < after["Loss"]["opacity"] < 1
    weights = 0.9 ** np.arange(len(LOSS))
    expected = [np.average(LOSS[: n + 1], weights=weights[: n + 1][::-1]) for n in range(len(LOSS))]
    np.testing.assert_allclose(numbers(after["Loss smoothed"]["y"]), expected)


def test_nan_and_infinity_have_marks_of_their_own(runs: Runs) -> None:
    page = Page(runs, made(runs, metrics={"loss": [1.0, math.nan, 0.5, math.inf, -math.inf, math.nan]}))
    traces = page.traces("chart Loss")
    np.testing.assert_array_equal(numbers(traces["Loss"]["y"]), [1.0, np.nan, 0.5, np.nan, np.nan, np.nan])
    places = {name: list(numbers(traces[f"{name} Loss"]["x"])) for name in ("NaN", "+∞", "−∞")}
    assert places == {"NaN": [2, 6], "+∞": [4], "−∞": [5]}
    assert len({traces[f"{name} Loss"]["marker"]["symbol"] for name in places}) == 3


def test_what_no_axis_can_hold_is_marked(runs: Runs) -> None:
    page = Page(runs, made(runs, metrics={"loss": [1e308, -1e308, 1e-320, 2.0]}))
    traces = page.traces("chart Loss")
    assert list(numbers(traces["too large to draw Loss"]["x"])) == [1, 2]
    drawn = numbers(traces["Loss"]["y"])
    assert np.isnan(drawn[:2]).all()
    assert list(drawn[2:]) == [1e-320, 2.0]
    page.app.toggle(key=f"log run {page.run_id}").set_value(True)
    drawn = numbers(page.rerun().traces("chart Loss")["Loss"]["y"])
    assert np.isnan(drawn[:3]).all()


def test_the_axis_is_steps_time_or_epochs(runs: Runs) -> None:
    run_id = made(runs)
    start = runs.client.get_run(run_id).info.start_time
    points = [Metric("loss", 1.0, start + 3_600_000 * n, 10 * n) for n in (1, 2, 4)]
    points += [Metric("epoch", n / 4, start, 10 * n) for n in (1, 4)]
    points += [Metric("system/cpu_utilization_percentage", 50.0, start + 1_800_000 * n, n) for n in (1, 2)]
    runs.client.log_batch(run_id, metrics=points)
    page = Page(runs, run_id)
    page.charts_field.set_value(["Loss", "CPU utilization"])
    drawn = {}
    for axis in ("step", "time", "epoch"):
        page.app.segmented_control(key=f"axis run {page.run_id}").set_value(axis)
        page.rerun()
        drawn[axis] = [
            list(numbers(page.traces(f"chart {name}")[name]["x"])) for name in ("Loss", "CPU utilization")
        ]
    assert drawn == {
        "step": [[10, 20, 40], [0.5, 1.0]],  # the steps of system metrics are no optimizer steps
        "time": [[1, 2, 4], [0.5, 1.0]],
        "epoch": [[0.25, 0.5, 1.0], [0.5, 1.0]],
    }


def test_without_epochs_charts_are_by_step(runs: Runs) -> None:
    page = Page(runs, made(runs, metrics={"loss": LOSS}))
    page.app.segmented_control(key=f"axis run {page.run_id}").set_value("epoch")
    page.rerun()
    assert "This run logs no epochs" in page.text
    assert list(numbers(page.traces("chart Loss")["Loss"]["x"])) == list(range(1, 41))


def test_a_logarithmic_scale_is_for_charts_where_it_makes_sense(runs: Runs) -> None:
    names = ["loss", "grad_norm", "learning_rate", "rewards/margins", "entropy"]
    page = Page(runs, made(runs, metrics={name: [1.0, 2.0] for name in names}))
    page.app.toggle(key=f"log run {page.run_id}").set_value(True)
    page.rerun()
    scales = {title: page.figure(f"chart {title}")["layout"]["yaxis"]["type"] for title in page.charts()}
    assert scales == {
        "Loss": "log", "Learning rate": "log", "Gradient norm": "log", "Reward margin": "linear",
        "Entropy": "linear",
    }  # fmt: skip


def test_charts_of_new_metrics_come_by_themselves(runs: Runs) -> None:
    page = Page(runs, made(runs))
    assert "No metric has been logged yet." in page.text
    runs.client.log_metric(page.run_id, "system/cpu_utilization_percentage", 5.0)
    assert page.look().charts() == ["CPU utilization"]
    runs.client.log_metric(page.run_id, "loss", 1.0)
    assert page.look().charts() == ["Loss"]
    page.charts_field.set_value(["CPU utilization"])
    assert page.rerun().charts() == ["CPU utilization"]
    runs.client.log_metric(page.run_id, "grad_norm", 1.0)
    for _ in range(2):
        assert page.look().charts() == ["Gradient norm", "CPU utilization"]
        field = page.charts_field  # says its value at every look: one message of several may be lost
        assert [field.options[place] for place in field.proto.default] == ["CPU utilization", "Gradient norm"]
        assert not field.proto.set_value


# --- marks of requests -------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["loss", "score"])
def test_every_applied_request_has_a_mark(runs: Runs, key: str) -> None:
    """Also where no loss is logged, whose slope would be told."""
    run_id = made(runs, metrics={key: LOSS})
    page = Page(runs, run_id)
    evil = "<b>why</b> <img src=x onerror=alert(1)> & %{y}"
    rate = asked(set={"learning_rate": 5e-4}, by="<i>eve</i>", via="cli", reason=evil)
    decay = asked(set={"weight_decay": 0.1, "logging_steps": 4})
    pause, refused = asked(command="pause"), asked(set={"weight_decay": 7.0})
    page.write(
        answered(rate, changes={"learning_rate": (1e-3, 5e-4)}),
        answered(decay, changes={"weight_decay": (0.0, 0.1), "logging_steps": (8, 4)}),
        answered(pause, step=30),
        answered(refused, "rejected", code="failed"),
        asked(set={"weight_decay": 0.2}),
    )
    marks = page.traces(f"chart {page.charts()[0]}")["requests"]
    assert list(numbers(marks["x"])) == [20, 20, 30]
    heights = numbers(marks["y"])
    assert heights[0] == heights[2] > heights[1] > 0
    lines = [text.split("<br>") for text in marks["text"]]
    assert lines[0][:3] == [
        "<b>learning_rate 0.001 → 0.0005</b>",
        "step 20",
        "by &lt;i&gt;eve&lt;/i&gt; (cli)",
    ]
    assert html.unescape(lines[0][3].replace("\u2060", "")) == evil
    assert "<img" not in lines[0][3]
    assert lines[1][0] == "<b>weight_decay 0 → 0.1; logging_steps 8 → 4</b>"
    assert lines[2][0] == "<b>pause</b>"
    lines_at = [shape["x0"] for shape in page.figure(f"chart {page.charts()[0]}")["layout"]["shapes"]]
    assert lines_at == [20, 30]

    tables = [each for each in page.app.dataframe if "effect" in each.value]
    if key != "loss":
        assert tables == []
        return
    (table,) = tables
    truth = history(run_id, "loss")
    series = Series(truth["step"].to_numpy(), truth["value"].to_numpy(), truth["time"].to_numpy(), len(truth))
    expected = effects(series, [20, 20])  # a pause changes nothing
    assert list(table.value["step"]) == [20, 20]
    assert list(table.value["effect"]) == [each.verdict for each in expected]
    assert list(table.value["loss slope before"]) == [each.before_text for each in expected]
    assert [line[-1] for line in lines[:2]] == [html.escape(each.text, quote=False) for each in expected]
    slope = np.polyfit(truth["step"][:20], truth["value"][:20], 1)[0] * 100
    assert float(table.value["loss slope before"][0].split(" ")[0]) == pytest.approx(slope, rel=0.01)


def test_effects_are_of_all_values_where_the_chart_shows_fewer(runs: Runs) -> None:
    noise = np.random.default_rng(5).normal(size=3000)
    run_id = made(runs, metrics={"loss": list(8 - np.arange(3000) / 1000 + noise)})
    change = asked(set={"learning_rate": 5e-4})
    page = Page(runs, run_id).write(answered(change, step=1500, changes={"learning_rate": (1e-3, 5e-4)}))
    assert 900 < len(numbers(page.traces("chart Loss")["Loss"]["x"])) <= 1000
    (table,) = (each for each in page.app.dataframe if "effect" in each.value)
    truth = history(run_id, "loss")
    series = Series(truth["step"].to_numpy(), truth["value"].to_numpy(), truth["time"].to_numpy(), len(truth))
    (expected,) = effects(series, [1500])
    assert (expected.before_text, expected.after_text) == (
        table.value["loss slope before"][0],
        table.value["after"][0],
    )


def test_marks_are_at_their_time_on_an_axis_of_time(runs: Runs) -> None:
    run_id = made(runs, metrics={"loss": LOSS})
    start = runs.client.get_run(run_id).info.start_time
    page = Page(runs, run_id).write(answered(asked(set={"weight_decay": 0.1})))
    page.app.segmented_control(key=f"axis run {page.run_id}").set_value("time")
    (x,) = numbers(page.rerun().traces("chart Loss")["requests"]["x"])
    assert 0 <= x <= (now_ms() - start) / 3_600_000


def test_what_a_rollback_took_back_is_drawn_apart(runs: Runs) -> None:
    run_id = made(runs, metrics={"loss": LOSS})
    page = Page(runs, run_id).write(answered(asked(command="rollback"), step=30))
    again = [Metric("loss", 9.0 - step, now_ms() + 1, step) for step in (31, 32)]
    runs.client.log_batch(run_id, metrics=again)
    traces = page.look().traces("chart Loss")
    assert list(numbers(traces["Loss"]["x"])) == list(range(1, 33))
    assert list(numbers(traces["Loss"]["y"])) == [*LOSS[:30], 9.0 - 31, 9.0 - 32]
    assert list(numbers(traces["Loss, rolled back"]["x"])) == list(range(30, 41))
    assert list(numbers(traces["Loss, rolled back"]["y"])) == LOSS[29:]


# --- the history -------------------------------------------------------------------------------------


def test_the_history_has_every_request_and_can_be_filtered(runs: Runs) -> None:
    at = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)
    first = asked(set={"weight_decay": 0.1}, by="alice", reason="<b>too wild</b>", at=at)
    second = asked(command="pause", by="bob", at=at.replace(hour=13))
    third = asked(set={"learning_rate": 0.5}, by=None, at=at.replace(hour=14))
    run_id = made(runs)
    page = Page(runs, run_id)
    page.write(
        answered(first, changes={"weight_decay": (0.0, 0.1)}),
        answered(second, "rejected", code="expired"),
        third,
    )

    def rows() -> pd.DataFrame:
        (table,) = [each.value for each in page.app.dataframe if "outcome" in each.value]
        return table

    def chosen(**values: object) -> list[str]:
        for name, value in values.items():
            if name == "text":
                page.app.text_input(key=f"history text {run_id}").set_value(value)  # type: ignore[arg-type]
            else:
                page.app.multiselect(key=f"history {name} {run_id}").set_value(value)  # type: ignore[arg-type]
        page.rerun()
        return list(rows()["request"])

    table = rows()
    assert list(table["answer"]) == ["pending", "expired", "applied"]
    assert list(table["when"]) == [pd.Timestamp(at.replace(hour=hour)) for hour in (14, 13, 12)]
    assert list(table["why"])[2] == "<b>too wild</b>"
    assert list(table["outcome"]) == ["", "", "weight_decay 0 → 0.1"]
    assert chosen(by=["alice"]) == ["weight_decay=0.1"]
    assert chosen(by=[""]) == ["learning_rate=0.5"]
    assert chosen(by=[], about=["pause"]) == ["pause"]
    assert chosen(about=[], answer=["applied"]) == ["weight_decay=0.1"]
    assert chosen(answer=[], text="WILD") == ["weight_decay=0.1"]
    assert "1 of 3 requests" in page.text
    assert chosen(text="nothing fits") == []
    assert "0 of 3 requests" in page.text
