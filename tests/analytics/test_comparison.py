"""What tells runs apart, against pandas on the raw tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest

from ftlab_mlflow.analytics.comparison import Difference, differing_params, labels, outcome, run_ids
from ftlab_mlflow.analytics.reader import RunRecord
from ftlab_mlflow.analytics.series import Series, reduce
from ftlab_mlflow.control.messages import Status
from ftlab_mlflow.control.store import RunData
from ftlab_mlflow.control.tags import STATUS
from ftlab_mlflow.control.wire import utc_now


def record(
    name: str,
    params: Mapping[str, str] | None = None,
    *,
    run_id: str = "",
    method: str = "sft",
    **last: float,
) -> RunRecord:
    status = Status("finished", 10, 10, 1.0, utc_now(), 10.0, "s", "node", 1, method)
    data = RunData(run_id or name, name, "1", "FINISHED", tags={STATUS: status.encode()}, metrics=dict(last))
    return RunRecord(data, "sums", dict(params or {}))


def series(values: Sequence[float]) -> Series:
    steps = np.arange(1, len(values) + 1)
    return Series(steps, np.array(values, dtype=np.float64), steps * 1000, len(values))


def test_runs_are_named_once_each_in_their_order() -> None:
    assert run_ids(" b,a,,b , c,") == ("b", "a", "c")
    assert run_ids("") == ()


def test_labels_tell_runs_of_one_name_apart() -> None:
    runs = [
        record("tuned", run_id="0123456789abc"),
        record("other", run_id="ffff"),
        record("tuned", run_id="0123456780def"),
        record("", run_id="0123456789xyz"),
    ]
    assert labels(runs) == ("tuned (0123456789a)", "other", "tuned (0123456780)", "01234567")


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
    assert [one.name for one in differing_params(runs)] == expected == ["learning_rate", "model"]


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


# --- last and best values ----------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "best_of"), [("eval_loss", "min"), ("rewards/margins", "max")])
def test_best_values_are_those_of_pandas(key: str, best_of: str) -> None:
    rng = np.random.default_rng(0)
    walks = [rng.normal(size=5000).cumsum() for _ in range(4)]
    walks[1][[7, 4000]] = [np.inf, -np.inf]
    walks[2][100] = np.nan
    runs = [record(f"r{place}", **{key: walk[-1]}) for place, walk in enumerate(walks)]

    table = pd.DataFrame(walks).replace([np.inf, -np.inf], np.nan).agg(best_of, axis=1)
    winner = table.idxmin() if best_of == "min" else table.idxmax()

    for length in (5000, 200):  # whole, and as a chart has it
        found = outcome(key, runs, [reduce(series(walk), length) for walk in walks])
        assert found.best == tuple(table)
        assert found.leaders == (winner,)
        assert found.last == tuple(walk[-1] for walk in walks)


def test_equal_runs_share_the_lead_and_a_run_without_the_metric_has_none() -> None:
    runs = [record("a", eval_loss=2.0), record("b"), record("c", eval_loss=1.0)]
    found = outcome("eval_loss", runs, [series([1.0, 2.0]), None, series([3.0, 1.0])])
    assert (found.last, found.best, found.leaders) == ((2.0, None, 1.0), (1.0, None, 1.0), (0, 2))


def test_a_run_that_diverged_shows_it_and_leads_nothing() -> None:
    runs = [record("a", eval_loss=np.nan), record("b", eval_loss=1.0)]
    found = outcome("eval_loss", runs, [series([np.nan, np.inf]), series([1.0])])
    assert found.last[0] is not None
    assert np.isnan(found.last[0])
    assert (found.best, found.leaders) == ((None, 1.0), (1,))


def test_losses_of_two_methods_have_no_winner() -> None:
    runs = [record("a", method="sft", eval_loss=2.0), record("b", method="dpo", eval_loss=0.5)]
    found = outcome("eval_loss", runs, [series([2.0]), series([0.5])])
    assert (found.best, found.leaders) == ((2.0, 0.5), ())
    accuracy = [record("a", method="sft", eval_accuracy=0.5), record("b", method="dpo", eval_accuracy=0.7)]
    assert outcome("eval_accuracy", accuracy, [series([0.5]), series([0.7])]).leaders == (1,)


def test_what_has_no_direction_has_no_best() -> None:
    runs = [record("a", kl=2.0), record("b", kl=1.0)]
    found = outcome("kl", runs, [series([2.0]), series([1.0])])
    assert (found.last, found.best, found.leaders) == ((2.0, 1.0), None, ())
    surrogate = [record("a", method="grpo", loss=2.0), record("b", method="grpo", loss=1.0)]
    assert outcome("loss", surrogate, [series([2.0]), series([1.0])]).best is None
