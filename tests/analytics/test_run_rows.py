"""Rows of the table of runs: their model and method; filters, groups and order against pandas."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_samples import status_text

from ftlab_mlflow.analytics.reader import RunRecord
from ftlab_mlflow.analytics.run_rows import (
    Options,
    RunRow,
    filtered,
    grouped,
    model_of,
    options,
    ordered,
    row_of,
)
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.store import RunData
from ftlab_mlflow.control.view import RunView

NAN, INF = math.nan, math.inf
BEGIN = datetime(2026, 11, 21, 19, tzinfo=UTC)


def row(name: str = "run", run_tags: dict[str, str] | None = None, **changed: Any) -> RunRow:
    """The row of a plain run, changed."""
    data = RunData("ab12" * 8, name, "0", "FINISHED", BEGIN, BEGIN, tags=run_tags or {})
    made = row_of(RunRecord(data, "Default", {}), RunView.of(data))
    return RunRow(**{**asdict(made), **changed})


# --- model and method --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "model"),
    [
        ({}, None),
        ({"_name_or_path": ""}, None),
        ({"_name_or_path": "None", "model": "trees"}, "trees"),
        ({"_name_or_path": "org/name"}, "org/name"),
        ({"_name_or_path": "gpt2", "model_name_or_path": "org/name", "model": "demo"}, "org/name"),
        ({"_name_or_path": "outputs/rlhf/reward"}, "outputs/rlhf/reward"),
        ({"_name_or_path": "/root/.cache/ftlab/demo-72/"}, "ftlab/demo-72"),
        ({"_name_or_path": "/model"}, "/model"),
        ({"_name_or_path": "~/models/llama"}, "models/llama"),
        ({"_name_or_path": r"C:\models\llama"}, "models/llama"),
        ({"_name_or_path": "/c/hub/models--org--a-b/snapshots/0123abc"}, "org/a-b"),
    ],
)
def test_the_model_is_the_one_that_the_params_name(params: dict[str, str], model: str | None) -> None:
    assert model_of(params) == model


@pytest.mark.parametrize(
    ("run_tags", "method"),
    [
        ({}, None),
        ({tags.STATUS: status_text(method="dpo"), tags.COMMAND_LINE: "ftlab train sft"}, "dpo"),
        ({tags.STATUS: status_text(method="")}, None),
        ({tags.COMMAND_LINE: "/env/bin/python /env/bin/ftlab train orpo --config a.yaml"}, "orpo"),
        ({tags.COMMAND_LINE: "python -m ftlab_mlflow.cli train grpo"}, "grpo"),
        ({tags.COMMAND_LINE: "ftlab train rlhf"}, "rlhf"),
        ({tags.COMMAND_LINE: "ftlab train rlhf", "mlflow.parentRunId": "p"}, None),
        ({tags.COMMAND_LINE: "python my_ftlab train.py train sft"}, None),
        ({tags.COMMAND_LINE: "ftlab watch latest"}, None),
    ],
)
def test_the_method_is_said_by_the_trainer_or_the_command_line_or_not_at_all(
    run_tags: dict[str, str], method: str | None
) -> None:
    assert row(run_tags=run_tags).method == method


def test_the_tags_of_a_row_are_those_that_people_set() -> None:
    run_tags = {
        "mlflow.user": "x",
        "ftlab.host": "x",
        "ftlab.set.learning_rate": "1",
        "team": "a",
        "mlflow": "b",
    }
    assert row(run_tags=run_tags).tags == {"team": "a", "mlflow": "b"}


# --- filters -----------------------------------------------------------------------------------------

ROWS = [
    row(
        "Sweep LR 1e-4",
        run_id="aa" * 16,
        model="org/Llama",
        method="sft",
        state="running",
        tags={"team": "a=b"},
    ),
    row("sweep lr 1e-5", run_id="ab" * 16, model="org/qwen", method="dpo", state="lost", tags={"team": ""}),
    row(
        "baseline",
        run_id="ba" * 16,
        experiment="other",
        experiment_id="7",
        state="failed",
        tags={"note": "a", "a=b": "c=d"},
    ),
]


@pytest.mark.parametrize(
    ("asked", "places"),
    [
        ({}, [0, 1, 2]),
        ({"experiments": ["Default"]}, [0, 1]),
        ({"experiments": {"7"}}, [2]),
        ({"experiments": ["Default", "other"]}, [0, 1, 2]),
        ({"states": ["lost", "failed"]}, [1, 2]),
        ({"methods": ("sft",)}, [0]),
        ({"methods": ["sft"], "states": ["lost"]}, []),
        ({"text": "SWEEP"}, [0, 1]),
        ({"text": "lr llama"}, [0]),
        ({"text": " qwen "}, [1]),
        ({"text": "a"}, [0, 1, 2]),
        ({"text": "ba"}, [2]),
        ({"text": "AB"}, [1]),
        ({"text": "b" * 5}, []),
        ({"tag": "team"}, [0, 1]),
        ({"tag": "team="}, [1]),
        ({"tag": "team=a=b"}, [0]),
        ({"tag": "tea"}, []),
        ({"tag": "a=b"}, [2]),
        ({"tag": "a=b=c=d"}, [2]),
        ({"tag": "a"}, []),
    ],
)
def test_filters(asked: dict[str, Any], places: list[int]) -> None:
    assert filtered(ROWS, **asked) == [ROWS[place] for place in places]


def test_the_filters_offer_what_there_is() -> None:
    assert options(ROWS) == Options(
        experiments=("Default", "other"),
        states=("failed", "lost", "running"),
        methods=("dpo", "sft"),
        models=("org/Llama", "org/qwen"),
        tags=("a=b", "note", "team"),
    )
    assert options([]) == Options((), (), (), (), ())


@pytest.mark.parametrize("name", ["", "  \t"])
def test_a_run_without_a_name_is_called_by_its_id(name: str) -> None:
    data = RunData("ab12" * 8, name, "0", "FINISHED")
    assert row_of(RunRecord(data, "Default", {}), RunView.of(data)).name == "ab12ab12"


# --- groups and order --------------------------------------------------------------------------------

losses = st.none() | st.sampled_from([NAN, INF, -INF, 0.5, 1.0, 1.0, 2.0, -1.0])
many_rows = st.lists(
    st.builds(
        lambda model, method, experiment, loss: row(
            model=model, method=method, experiment=experiment, best_eval_loss=loss
        ),
        st.sampled_from([None, "a", "b"]),
        st.sampled_from([None, "sft", "dpo"]),
        st.sampled_from(["x", "y"]),
        losses,
    ),
    max_size=12,
)


@given(many_rows, st.sampled_from(["model", "experiment", None]))
def test_groups_hold_all_rows_in_order_and_mark_the_best(rows: list[RunRow], by: Any) -> None:
    rows = [RunRow(**{**asdict(r), "run_id": str(place)}) for place, r in enumerate(rows)]
    groups = grouped(rows, by)
    if not rows:
        assert groups == {}
        return
    frame = pd.DataFrame([asdict(r) for r in rows])
    frame["best_eval_loss"] = frame["best_eval_loss"].astype(float)
    frame["group"] = frame[by].fillna("unknown") if by else ""
    frame["method"] = frame["method"].fillna("none")
    finite = frame[frame["best_eval_loss"].abs() < INF]
    loss = finite.groupby(["group", "method"])["best_eval_loss"]
    best = finite[(loss.transform("min") == finite["best_eval_loss"]) & (loss.transform("size") > 1)]
    assert {r.run_id for group in groups.values() for r in group if r.is_best} == set(best["run_id"])
    assert {key: [r.run_id for r in group] for key, group in groups.items()} == {
        key: list(group["run_id"]) for key, group in frame.groupby("group")
    }
    assert list(groups) == list(frame["group"].unique())


@given(st.lists(losses, max_size=15), st.booleans())
def test_nan_and_infinity_come_last_in_any_order(values: list[float | None], descending: bool) -> None:
    rows = [row(run_id=str(place), loss=value) for place, value in enumerate(values)]
    column = pd.Series(values, dtype=float).replace([INF, -INF], NAN)
    expected = column.sort_values(ascending=not descending, na_position="last", kind="stable")
    found = ordered(rows, "loss", descending=descending)
    assert [int(r.run_id) for r in found] == list(expected.index)


def test_order_by_names_times_and_marks() -> None:
    rows = [
        row("b", started=BEGIN, is_best=False),
        row("A", started=None, is_best=True),
        row("c", started=BEGIN + timedelta(1)),
    ]
    assert [r.name for r in ordered(rows)] == ["c", "b", "A"]
    assert [r.name for r in ordered(rows, "name", descending=False)] == ["A", "b", "c"]
    assert ordered(rows, "is_best")[0].name == "A"


def test_what_can_be_steered_is_more_urgent_than_what_only_seems_to_go_on() -> None:
    rows = [
        row("over", state="finished", ended=BEGIN),
        row("said to be over", state="failed", is_live=True),
        row("lost", state="lost", is_live=True, ended=None),
        row("of another program", state="running", is_live=False, ended=None),
        row("lost, and over", state="lost", is_live=True, ended=BEGIN),
        row("new", state="running", is_live=True, ended=None),
        row("resumed", state="paused", is_live=True, ended=BEGIN),
    ]
    found = ordered(rows, "urgency")
    assert [r.urgency for r in found] == [2, 2, 1, 1, 0, 0, 0]
    assert [r.name for r in found][:4] == ["new", "resumed", "lost", "of another program"]
