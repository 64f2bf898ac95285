"""What tells runs apart, against pandas on the raw tables."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import pytest

from ftlab_mlflow.analytics.comparison import Difference, differing_params
from ftlab_mlflow.analytics.reader import RunRecord
from ftlab_mlflow.control.store import RunData


def record(name: str, params: Mapping[str, str], tags: Mapping[str, str] | None = None) -> RunRecord:
    return RunRecord(RunData(name, name, "1", "FINISHED", tags=dict(tags or {})), "sums", dict(params))


# --- params ------------------------------------------------------------------------------------------


def test_the_params_that_differ_are_those_that_pandas_finds() -> None:
    runs = [
        record(
            f"r{number}",
            {
                "learning_rate": str(rate),
                "seed": "7",
                "model": model,
                "max_steps": str(steps),
                "bf16": "True",
            },
        )
        for number, (rate, model, steps) in enumerate([(1e-4, "a", 100), (5e-5, "a", 100), (1e-4, "b", 100)])
    ]

    table = pd.DataFrame([run.params for run in runs])
    expected = sorted(table.columns[table.nunique(dropna=False) > 1])
    assert [difference.name for difference in differing_params(runs)] == expected == ["learning_rate", "model"]


def test_numbers_are_compared_as_numbers() -> None:
    runs = [
        record("a", {"rate": "5e-05", "steps": "100", "seed": "18446744073709551615"}),
        record("b", {"rate": "0.00005", "steps": "100.0", "seed": "18446744073709551614"}),
    ]
    (seed,) = differing_params(runs)
    assert seed.name == "seed"  # the same as floats


def test_values_are_numbers_only_where_all_are() -> None:
    runs = [
        record("a", {"rate": "1e-4", "limit": "8", "clip": "1", "norm": "nan"}),
        record("b", {"rate": "2e-4", "limit": "None", "norm": "1"}),
    ]
    assert differing_params(runs) == (
        Difference("clip", ("1", None), (1.0, None)),
        Difference("limit", ("8", "None"), None),
        Difference("norm", ("nan", "1"), None),
        Difference("rate", ("1e-4", "2e-4"), (1e-4, 2e-4)),
    )


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_runs_differ_in_nothing(count: int) -> None:
    assert differing_params([record("a", {"rate": "1"})][:count]) == ()
