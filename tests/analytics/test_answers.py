"""What holds for all answers: their size, how the rest is got, texts that are too long, one's own metrics."""

from __future__ import annotations

import json
import math
import re
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_samples import Runs

from ftlab_mlflow.analytics import call_tool, search_reader
from ftlab_mlflow.analytics.moments import deviation, mean
from ftlab_mlflow.analytics.rest_reader import RestReader
from ftlab_mlflow.errors import AnalyticsError, ConfigError

PARAMS = {f"param {number:02}": f"{number} " + "x" * 190 for number in range(90)}


def whole(store: Runs, name: str, part: str, **arguments: Any) -> dict[str, Any]:
    """A part of an answer, as often asked as it says; each name comes once."""
    answer = call_tool(name, arguments, store.client.tracking_uri)
    found: dict[str, Any] = {}
    while True:
        assert len(json.dumps(answer, ensure_ascii=False)) <= 12_000
        assert not found.keys() & answer[part].keys()
        found |= answer[part]
        if answer["next"] is None:
            assert answer["omitted"] == {}
            assert answer["total"][part] == len(found)
            return found
        assert answer["omitted"][part] == answer["total"][part] - len(found)
        answer = call_tool(name, answer["next"], store.client.tracking_uri)


def test_what_does_not_fit_comes_with_the_next_call(runs: Runs) -> None:
    one = runs.plain("one", params=PARAMS, loss=[1.0])
    two = runs.plain("two", params={name: text[::-1] for name, text in PARAMS.items()})
    assert whole(runs, "get_run", "params", run=one) == PARAMS
    assert list(whole(runs, "compare_runs", "params", runs=[one, two])) == sorted(PARAMS)
    assert set(whole(runs, "describe_experiment", "params", experiment="0")) == set(PARAMS)
    with pytest.raises(AnalyticsError, match="no part 'param'; there are params, metrics, tags, children"):
        call_tool("get_run", {"run": one, "skip": {"param": 1}}, runs.client.tracking_uri)


def test_a_long_text_is_shown_by_its_begin(runs: Runs) -> None:
    long = "y" * 5000
    run_id = runs.plain("long", params={"prompt": long}, run_tags={"note": long})
    runs.plain("other", params={"prompt": "short"})
    short = "y" * 500 + "… (5,000 characters)"
    uri = runs.client.tracking_uri
    answer = call_tool("get_run", {"run": run_id}, uri)
    assert (answer["params"]["prompt"], answer["tags"]["note"]) == (short, short)
    assert call_tool("compare_runs", {"runs": [run_id, "other"]}, uri)["params"]["prompt"][run_id] == short
    exists = [{"field": "tags.note", "op": "exists"}]
    assert (
        call_tool("search_runs", {"experiment": "0", "where": exists}, uri)["rows"][0]["tags.note"] == short
    )


def test_a_part_of_a_series_is_got_whole(runs: Runs) -> None:
    run_id = runs.plain("run", loss=[float(step % 7) for step in range(500)])
    asked = {"run": run_id, "metrics": ["loss"], "max_points": 50}
    answer = call_tool("metric_history", asked, runs.client.tracking_uri)
    assert answer["omitted"] == {
        "points between those that are shown": 500 - len(answer["series"]["loss"]["points"])
    }
    points: list[Any] = []
    while answer["next"]:
        answer = call_tool("metric_history", answer["next"], runs.client.tracking_uri)
        points += answer["series"]["loss"]["points"]
        assert answer["omitted"].get("points between those that are shown", 0) == 500 - len(points)
    assert points == [[step, float((step - 1) % 7)] for step in range(1, 501)]


def test_directions_of_ones_own(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("a", 1.0), ("b", 2.0)):
        runs.plain(
            name, status="FINISHED", **{"judge/wit": [value], "eval_rudeness": [value], "loss": [value]}
        )

    def best(metric: str) -> str:
        asked = {"experiment": "0", "metric": metric}
        return str(call_tool("rank_runs", asked, runs.client.tracking_uri)["rows"][0]["name"])

    with pytest.raises(AnalyticsError, match="FTLAB_METRICS"):
        best("judge/wit")
    monkeypatch.setenv("FTLAB_METRICS", "judge/*=higher; rudeness = lower;loss=none")
    assert (best("judge/wit"), best("eval_rudeness")) == ("b", "a")
    with pytest.raises(AnalyticsError, match="say mode min or max"):
        best("loss")
    monkeypatch.setenv("FTLAB_METRICS", "wit=up")
    with pytest.raises(ConfigError, match="NAME=lower"):
        best("judge/wit")


def test_histories_over_http_are_kept_of_many_ended_runs_alone(
    mlflow_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(mlflow_server.uri)
    experiment = runs.client.create_experiment("kept")
    done = runs.plain("done", experiment=experiment, status="FINISHED", loss=[3.0, 1.0, 2.0])
    going = runs.plain("going", experiment=experiment, loss=[5.0, 4.0])
    asked: list[str] = []
    whole = RestReader.whole

    def counted(self: RestReader, run_ids: Any, key: str) -> Any:
        asked.extend(run_ids)
        return whole(self, run_ids, key)

    monkeypatch.setattr(RestReader, "whole", counted)
    arguments = {"experiment": "kept", "metric": "loss", "agg": "min", "statuses": ["FINISHED", "RUNNING"]}

    def values() -> dict[str, float]:
        rows = call_tool("rank_runs", arguments, mlflow_server.uri)["rows"]
        return {row["name"]: row["value"] for row in rows}

    assert values() == {"done": 1.0, "going": 4.0}
    runs.log(done, "loss", [0.5], first=2)
    assert values() == {"done": 0.5, "going": 4.0}, "its last value is the same"
    monkeypatch.setattr(search_reader, "_MANY", 2)
    values()
    asked.clear()
    assert values() == values() == {"done": 0.5, "going": 4.0}
    assert (asked.count(done), asked.count(going)) == (0, 2)


def test_of_many_runs_over_http_only_those_that_go_on_are_read_again(
    mlflow_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_reader, "_MANY", 3)
    runs = Runs(mlflow_server.uri)
    experiment = runs.client.create_experiment("many")

    def add(name: str, status: str = "FINISHED") -> str:
        return runs.plain(name, experiment=experiment, status=status, loss=[1.0])

    ended = [add(f"ended {number}") for number in range(3)]
    going, stopped = add("going", "RUNNING"), add("stopped", "RUNNING")

    def seen() -> tuple[dict[str, str], dict[str, str]]:
        answer = call_tool("search_runs", {"experiment": "many"}, mlflow_server.uri)
        return {row["name"]: row["status"] for row in answer["rows"]}, answer["policy"]

    names = {f"ended {number}": "FINISHED" for number in range(3)}
    assert seen()[0] == names | {"going": "RUNNING", "stopped": "RUNNING"}
    runs.client.set_terminated(going, "FAILED")
    runs.client.delete_run(stopped)
    add("new", "RUNNING")
    add("new and over")
    found, policy = seen()
    assert found == names | {"going": "FAILED", "new": "RUNNING", "new and over": "FINISHED"}
    assert re.fullmatch(
        r"as they were read \d+ s ago: deletions and edits since are not seen", policy["ended runs"]
    )
    runs.client.delete_run(ended[0])
    assert "ended 0" in seen()[0], "said in the policy"
    monkeypatch.setattr(search_reader, "_KEEP_S", 0)
    found, policy = seen()
    assert "ended 0" not in found
    assert "ended runs" not in policy


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_means_of_numbers_of_any_size(values: list[float]) -> None:
    from fractions import Fraction

    exact = sum(map(Fraction, values)) / len(values)
    assert mean(values) == pytest.approx(float(exact), rel=1e-14, abs=max(map(abs, values)) * 1e-14)
    spread = deviation(values)
    assert spread is None or spread >= 0


def test_means_of_the_largest_numbers() -> None:
    largest = sys.float_info.max
    assert mean([largest, largest]) == largest
    assert deviation([largest, -largest]) == math.inf
    assert math.isnan(mean([1.0, math.nan]))
    assert deviation([1.0]) is None
