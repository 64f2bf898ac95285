"""Questions about single runs against pandas on the raw tables; the door; arithmetic."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_samples import Runs
from trap_store import Oracle, fill

from ftlab_mlflow.analytics import TOOLS, call_tool
from ftlab_mlflow.errors import AnalyticsError


@pytest.fixture(scope="module")
def traps(new_sqlite: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Oracle]:
    uri = new_sqlite(tmp_path_factory.mktemp("traps"))
    fill(uri, seed=11)
    return uri, Oracle(uri)


# --- series ------------------------------------------------------------------------------------------


def number(value: float | str) -> float:
    return float(value)


def test_a_short_history_is_whole(traps: tuple[str, Oracle]) -> None:
    uri, oracle = traps
    for run_id in oracle.runs.index[:12]:
        points = oracle.points[(oracle.points["run_uuid"] == run_id) & (oracle.points["key"] == "eval_loss")]
        if not len(points):
            with pytest.raises(
                AnalyticsError, match=r"has logged no 'eval_loss'; (there are \d, such as|the only one is)"
            ):
                call_tool("metric_history", {"run": run_id, "metrics": ["eval_loss"]}, uri)
            continue
        answer = call_tool("metric_history", {"run": run_id, "metrics": ["eval_loss"]}, uri)
        told = answer["series"]["eval_loss"]
        finite = points[points["value"].abs() < math.inf]
        assert [step for step, _ in told["points"]] == list(points["step"])
        values = pd.Series([number(value) for _, value in told["points"]])
        pd.testing.assert_series_equal(values, points["value"].reset_index(drop=True), check_names=False)
        assert (told["total"], told["nan"]) == (len(points), points["value"].isna().sum())
        assert told["inf"] == (points["value"].abs() == math.inf).sum()
        if len(finite):
            assert told["min"][1] == finite["value"].min()
            assert told["max"][1] == finite["value"].max()
            assert told["min"][0] == finite["step"][finite["value"].idxmin()]


def test_a_long_history_keeps_its_extremes_and_its_size(runs: Runs) -> None:
    values = [math.sin(step / 200) for step in range(9000)]
    values[4321], values[1234], values[77] = 50.0, -50.0, math.nan
    run_id = runs.plain("long", loss=values)
    uri = runs.client.tracking_uri
    answer = call_tool("metric_history", {"run": run_id[:12], "metrics": ["loss"], "max_points": 1000}, uri)
    assert len(json.dumps(answer)) <= 12_000
    told = answer["series"]["loss"]
    assert answer["max_points"] < 1000
    assert len(told["points"]) <= answer["max_points"]
    assert (told["total"], told["nan"]) == (9000, 1)
    assert (told["min"], told["max"]) == ([1235, -50.0], [4322, 50.0])
    assert {1235, 4322} <= {step for step, _ in told["points"]}
    part = call_tool(
        "metric_history", {"run": "long", "metrics": ["loss"], "from_step": 100, "to_step": 109}, uri
    )["series"]["loss"]
    assert part["points"] == [[step, values[step - 1]] for step in range(100, 110)]
    assert part["total"] == 10


# --- one run whole -----------------------------------------------------------------------------------


def test_a_run_is_told_whole(runs: Runs) -> None:
    parent = runs.plain("parent")
    params = {"rate": "1e-4", "model_name_or_path": "org/base"}
    run_id = runs.live(
        "child", state="paused", step=7, params=params, eval_loss=[3.0, 2.0, math.inf], zebra=[1.0],
        run_tags={"mlflow.parentRunId": parent, "team": "red"},
    )  # fmt: skip
    runs.applied(run_id, 5, 1e-4, 5e-5)
    answer = call_tool("get_run", {"run": "child"}, runs.client.tracking_uri)
    shown = {key: answer[key] for key in ("name", "experiment", "status", "state", "step", "method", "model")}
    assert shown == {
        "name": "child", "experiment": "Default", "status": "RUNNING", "state": "paused", "step": 7,
        "method": "sft", "model": "org/base",
    }  # fmt: skip
    assert answer["params"] == params
    assert list(answer["metrics"]) == ["eval_loss", "zebra"], "the most telling first"
    assert answer["metrics"]["eval_loss"] == {"last": "inf", "step": 3}
    assert (answer["tags"], answer["parent"]) == ({"team": "red"}, parent)
    assert (answer["requests"], answer["end_time"]) == ({"applied": 1}, None)
    above = call_tool("get_run", {"run": parent}, runs.client.tracking_uri)
    assert above["children"] == {run_id: {"name": "child", "status": "RUNNING"}}


# --- runs beside each other --------------------------------------------------------------------------


def test_runs_are_compared_by_what_differs(runs: Runs) -> None:
    uri = runs.client.tracking_uri
    one = runs.plain("one", params={"rate": "1e-4", "seed": "1", "only": "x"}, eval_loss=[3.0, 1.0, math.nan])
    two = runs.plain("two", params={"rate": "0.0001", "seed": "2"}, eval_loss=[2.0], kl=[0.5])
    answer = call_tool("compare_runs", {"runs": ["one", two[:10]]}, uri)
    assert answer["params"] == {"only": {one: "x", two: None}, "seed": {one: "1", two: "2"}}
    assert answer["metrics"] == {
        "eval_loss": {
            one: {"last": "NaN", "min": 1.0, "max": 3.0},
            two: {"last": 2.0, "min": 2.0, "max": 2.0},
        }
    }
    assert set(call_tool("compare_runs", {"runs": [one, two], "metrics": ["kl"]}, uri)["metrics"]["kl"]) == {
        two
    }


def test_a_name_of_several_runs_must_be_made_clear(runs: Runs) -> None:
    ids = [runs.plain("twin"), runs.plain("twin")]
    uri = runs.client.tracking_uri
    with pytest.raises(AnalyticsError, match="2 runs go by 'twin'") as refusal:
        call_tool("compare_runs", {"runs": ["twin"]}, uri)
    assert all(run_id in str(refusal.value) for run_id in ids)
    with pytest.raises(AnalyticsError, match="no run 'twon'; the only one is twin"):
        call_tool("compare_runs", {"runs": ["twon"]}, uri)
    runs.client.delete_run(ids[0])
    assert list(call_tool("compare_runs", {"runs": ["twin"]}, uri)["runs"]) == [ids[1]]


# --- live changes ------------------------------------------------------------------------------------


def test_live_changes_come_with_their_effect(runs: Runs) -> None:
    falls = [10 - 0.01 * step for step in range(40)] + [9.6 - 0.1 * step for step in range(40)]
    run_id = runs.live("changed", loss=falls)
    runs.applied(run_id, 40, 1e-4, 5e-5)
    answer = call_tool("live_changes", {"run": run_id}, runs.client.tracking_uri)
    (row,) = answer["rows"]
    assert (row["step"], row["by"], row["via"], row["reason"]) == (40, "eve", "cli", "why not")
    assert row["change"] == "learning_rate 0.0001 → 5e-05"
    assert row["slope_before"]["value"] == pytest.approx(-1.0, rel=1e-6)
    assert row["slope_after"]["value"] == pytest.approx(-10.0, rel=1e-6)
    assert row["effect"] == "falls faster"
    assert (answer["total"], answer["next"]) == (1, None)


def test_live_changes_of_an_experiment(runs: Runs) -> None:
    uri, losses = runs.client.tracking_uri, [10 - 0.01 * step for step in range(80)]
    first = runs.live("first", loss=losses)
    runs.live("untouched", loss=losses)
    second = runs.live("second", loss=losses)
    for run_id, steps in ((first, (20, 40)), (second, (30,))):
        for step in steps:
            runs.applied(run_id, step, 1e-4, 5e-5)
    found: list[tuple[str, int]] = []
    answer = call_tool("live_changes", {"experiment": "Default", "limit": 2}, uri)
    while True:
        found += [(row["name"], row["step"]) for row in answer["rows"]]
        assert all(row["slope_after"] for row in answer["rows"])
        if answer["next"] is None:
            break
        answer = call_tool("live_changes", answer["next"], uri)
    assert found == [("second", 30), ("first", 20), ("first", 40)]
    assert answer["omitted"] == {"run without an applied request": 1}
    for wrong in ({}, {"run": first, "experiment": "Default"}):
        with pytest.raises(AnalyticsError, match="either a run or an experiment"):
            call_tool("live_changes", wrong, uri)


def test_a_proposal_is_checked_and_not_sent(runs: Runs) -> None:
    run_id, uri = runs.live("listening"), runs.client.tracking_uri
    before = runs.client.get_run(run_id).data.tags
    good = call_tool("propose_update", {"run": run_id, "values": {"learning_rate": 5e-5}, "reason": "r"}, uri)
    assert good["is_allowed"]
    assert good["changes"] == {"learning_rate": {"from": 1e-4, "to": 5e-5}}
    bad = call_tool("propose_update", {"run": run_id, "values": {"learning_rate": 7, "odd": 1}}, uri)
    assert not bad["is_allowed"]
    assert set(bad["problems"]) <= {"learning_rate", "odd"}
    assert bad["problems"]
    assert runs.client.get_run(run_id).data.tags == before
    with pytest.raises(AnalyticsError, match="cannot be changed"):
        call_tool("propose_update", {"run": runs.plain("deaf"), "values": {"learning_rate": 1e-3}}, uri)


# --- arithmetic --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", 7), ("(1 + 2) * 3", 9), ("-2 ** 2", -4), ("7 // 2 + 7 % 4", 6), ("2 ** -1", 0.5),
        ("mean(1, 2, 6)", 3), ("std(1, 2, 3)", 1), ("median(3, 1, 2)", 2), ("log(exp(2))", 2), ("sqrt(a)", 3),
        ("(a - b) / a * 100", 50), ("max(a, b) - min(a, b)", 4.5), ("abs(-a) + log10(1000)", 12),
    ],
)  # fmt: skip
def test_arithmetic(expression: str, value: float) -> None:
    answer = call_tool("calculate", {"expression": expression, "numbers": {"a": 9, "b": 4.5}})
    assert answer["value"] == pytest.approx(value, rel=1e-12)
    assert answer["numbers"] == {"a": 9, "b": 4.5}


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os')", "a.real", "[1]", "1 if 1 else 2", "lambda: 1", "True", "'x'", "f(1)", "sqrt()",
        "1 +", "1 / 0", "log(0)", "10 ** 400", "std(1)", "x", "9 ** 9 ** 9 ** 9",
        "1j", "max(1, key=abs)", "1; 2",
    ],
)  # fmt: skip
def test_what_is_no_arithmetic_is_refused(expression: str) -> None:
    with pytest.raises(AnalyticsError):
        call_tool("calculate", {"expression": expression})


@given(st.text(max_size=40))
def test_any_text_has_a_value_or_an_error(text: str) -> None:
    with suppress(AnalyticsError):
        assert math.isfinite(call_tool("calculate", {"expression": text})["value"])


# --- the door ----------------------------------------------------------------------------------------


def test_every_tool_says_what_it_does_and_takes() -> None:
    for tool in TOOLS.values():
        assert "Returns:" in tool.description
        assert "tracking_uri" not in tool.description
        properties = tool.schema["properties"]
        assert properties
        assert "tracking_uri" not in properties
        for name in properties:
            assert name in tool.description, f"{tool.name} does not explain {name}"
        json.dumps(tool.schema)


ASKED = {"experiment": "x", "metric": "y"}


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("rank_run", {}, "no tool 'rank_run'; the nearest of 15 are rank_runs"),
        ("rank_runs", {"experiment": "x"}, "rank_runs: metric: Field required. It takes experiment, metric"),
        ("rank_runs", ASKED | {"limit": 0}, "limit: .* greater than or equal to 1, got '0'"),
        ("rank_runs", ASKED | {"odd": 1}, "odd: Extra inputs are not permitted"),
        ("search_runs", {"experiment": "x", "where": [{"field": "lr", "op": "="}]}, "where.0.field"),
        ("search_runs", {"experiment": "0", "where": [{"field": "name", "op": "in"}]}, "in takes a list"),
    ],
)  # fmt: skip
def test_wrong_calls_are_told_what_is_right(
    runs: Runs, name: str, arguments: dict[str, Any], said: str
) -> None:
    runs.plain("one")
    with pytest.raises(AnalyticsError, match=said):
        call_tool(name, arguments, runs.client.tracking_uri)
