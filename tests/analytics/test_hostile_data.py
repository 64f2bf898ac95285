"""What people, programs and accidents leave in a tracking store, and what they pass to the door."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Metric
from run_samples import Runs

from ftlab_mlflow.analytics import call_tool
from ftlab_mlflow.control import tags
from ftlab_mlflow.errors import AnalyticsError, ConfigError


def ask(store: Runs, name: str, **arguments: Any) -> dict[str, Any]:
    answer = call_tool(name, arguments, store.client.tracking_uri)
    assert len(json.dumps(answer, ensure_ascii=False, allow_nan=False)) <= 12_000
    return answer


def test_numbers_that_no_float_holds_are_texts(runs: Runs) -> None:
    for text in ("1e400", "1e1000000", "-1e400", "1e-400", "2"):
        runs.plain("run", status="FINISHED", params={"p": text}, loss=[1.0])
    asked = {"experiment": "0", "metric": "loss"}
    groups = {
        row["group"]["params.p"] for row in ask(runs, "aggregate", **asked, group_by=["params.p"])["rows"]
    }
    assert groups == {"1e400", "1e1000000", "-1e400", 0.0, 2}
    for name in ("describe_experiment", "cost_summary"):
        ask(runs, name, experiment="0")
    ask(runs, "param_effects", **asked)


def test_large_whole_numbers_stay_apart(runs: Runs) -> None:
    for text in ("9007199254740993", "9007199254740992", "9007199254740992.0"):
        runs.plain("run", status="FINISHED", params={"seed": text}, loss=[1.0])
    rows = ask(runs, "aggregate", experiment="0", metric="loss", group_by=["params.seed"])["rows"]
    assert {row["group"]["params.seed"]: row["n"] for row in rows} == {
        9007199254740992: 2,
        9007199254740993: 1,
    }


def test_params_that_are_equal_as_numbers_do_not_vary(runs: Runs) -> None:
    for text in ("1e-4", "0.0001", "1E-04"):
        runs.plain("run", params={"rate": text})
    answer = ask(runs, "describe_experiment", experiment="0")
    assert (answer["params"], answer["constant_params"]) == ({}, 1)


def test_nan_beside_a_number_at_the_same_moment(runs: Runs) -> None:
    """MLflow keeps NaN as 0, and takes the larger one as the last."""
    run_id = runs.plain("tie", status="FINISHED")
    points = [Metric("acc", 5.0, 1000, 1), Metric("acc", math.nan, 2000, 2), Metric("acc", 1.0, 2000, 2)]
    runs.client.log_batch(run_id, metrics=points)
    for agg in ("last", "mean_of_last_1"):
        asked = {"experiment": "0", "metric": "acc", "mode": "max", "agg": agg}
        assert [row["value"] for row in ask(runs, "rank_runs", **asked)["rows"]] == [1.0]
    assert ask(runs, "metric_history", run="tie", metrics=["acc"])["series"]["acc"]["last"] == 1.0


def test_a_nested_run_costs_once(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTLAB_GPU_PRICES", "A=3.6")
    parent = runs.client.create_run(
        "0", 1_000_000, run_name="parent", tags={tags.ACCELERATORS: "A"}
    ).info.run_id
    for begin in (0, 50):
        nested = {tags.ACCELERATORS: "A", "mlflow.parentRunId": parent}
        run_id = runs.client.create_run("0", 1_000_000 + 1000 * begin, tags=nested).info.run_id
        runs.client.set_terminated(run_id, end_time=1_000_000 + 1000 * (begin + 50))
    runs.client.set_terminated(parent, end_time=1_100_000)
    wrong = runs.client.create_run("0", 5_000_000, tags={tags.ACCELERATORS: "A"}).info.run_id
    runs.client.set_terminated(wrong, end_time=4_000_000)
    totals = ask(runs, "cost_summary", experiment="0")["totals"]
    assert (totals["wall_s"], totals["gpu_s"], totals["cost"]) == (100, 100, pytest.approx(0.1))
    assert totals["unknown"]["wall_s"] == 1, "it ended before it began"


def test_children_in_other_experiments(runs: Runs) -> None:
    parent = runs.plain("parent")
    other = runs.client.create_experiment("other")
    child = runs.plain("child", experiment=other, run_tags={"mlflow.parentRunId": parent})
    assert list(ask(runs, "get_run", run="parent")["children"]) == [child]


def test_names_that_look_like_ids(runs: Runs) -> None:
    runs.plain("deadbeef" * 4, loss=[1.0])
    assert ask(runs, "get_run", run="deadbeef" * 4)["name"] == "deadbeef" * 4
    other = runs.plain("other")
    named = runs.plain(other[:6])
    with pytest.raises(AnalyticsError, match="2 runs go by") as refusal:
        ask(runs, "get_run", run=other[:6])
    assert named in str(refusal.value)
    runs.plain(other[0])
    assert ask(runs, "get_run", run=other[0])["name"] == other[0], "one digit is a name"


def test_long_texts_fit(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [
        runs.plain(f"run {n}", status="FINISHED", params={"p": '\n"' * 245 + str(n)}, loss=[n])
        for n in range(10)
    ]
    assert list(ask(runs, "compare_runs", runs=ids)["params"]) == ["p"]
    monkeypatch.setenv("FTLAB_ANSWER_CHARS", "4000")
    for name, arguments in (
        ("compare_runs", {"runs": ids}),
        ("aggregate", {"experiment": "0", "metric": "loss", "group_by": ["params.p"]}),
        ("search_runs", {"experiment": "0", "order_by": "params.p"}),
    ):
        answer = ask(runs, name, **arguments)
        assert len(json.dumps(answer, ensure_ascii=False)) <= 4000
        assert answer["next"] is None or answer["next"] != arguments


def test_a_chart_fits(runs: Runs) -> None:
    series: dict[str, Any] = {f"metric {n}": [float(s % 7) for s in range(300)] for n in range(8)}
    ids = [runs.plain(f"run {n}", **series) for n in range(6)]
    for step in range(120):
        runs.applied(ids[0], step, 1e-4, 5e-5)
    metrics = list(series)
    answer = ask(runs, "plot_metrics", runs=ids, metrics=metrics)
    seen = [line["metric"] for line in answer["chart"]["lines"]]
    assert answer["omitted"]["mark"] >= 20
    assert answer["policy"]
    while answer["next"]:
        answer = ask(runs, "plot_metrics", **answer["next"])
        seen += [line["metric"] for line in answer["chart"]["lines"]]
    assert sorted(seen) == sorted(metrics * len(ids))


def test_odd_values_do_not_stop_the_diagnosis(runs: Runs) -> None:
    losses = [3 - 0.01 * step for step in range(60)]
    for number, counted in enumerate((math.nan, math.inf, -1.0)):
        runs.plain(f"counter {number}", nonfinite_steps=[0.0, counted], loss=losses)
        assert ask(runs, "diagnose_run", run=f"counter {number}")["rows"] == []
    far = runs.plain("far")
    for key in ("loss", "learning_rate"):
        points = [Metric(key, 1e-4, 1, 10**12 * (step + 1)) for step in range(40)]
        runs.client.log_batch(far, metrics=points)
    ask(runs, "diagnose_run", run="far")


NOT_NAN = {"field": "metrics.x", "op": "!=", "value": math.nan}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("get_run", None), ("get_run", [1]), ("get_run", "x"), (None, {}), (["x"], {}), (5, {}),
        ("get_run", {"run": "\ud800"}), ("get_run", {"run": {1, 2}}), ("rank_runs", {"metric": 10**5000}),
        ("calculate", {"expression": "min(1, a)", "numbers": {"a": math.nan}}),
        ("calculate", {"expression": "max(1, 1e308 * 10)"}),
        ("search_runs", {"experiment": "0", "where": [NOT_NAN]}),
    ],
)  # fmt: skip
def test_what_the_door_does_not_take(runs: Runs, name: Any, arguments: Any) -> None:
    runs.plain("one", x=[1.0])
    with pytest.raises(AnalyticsError) as refusal:
        call_tool(name, arguments, runs.client.tracking_uri)
    assert len(str(refusal.value)) < 1000


def test_errors_are_short(runs: Runs) -> None:
    runs.plain("z" * 200)
    for asked in ({"run": "z" * 100_000}, {"run": "y" * 300}):
        with pytest.raises(AnalyticsError) as refusal:
            ask(runs, "get_run", **asked)
        assert len(str(refusal.value)) < 1000


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        call_tool("list_experiments", {}, f"sqlite:///{tmp_path}/nowhere/typo.db")
    assert list(tmp_path.iterdir()) == []
