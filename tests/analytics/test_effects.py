"""Slopes and their intervals: the formula computed another way, and what they hold in simulated noise."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg, stats
from scipy.signal import lfilter

from ftlab_mlflow.analytics.effects import FEWEST, Effect, effect, effects, of_changes, slope
from ftlab_mlflow.analytics.series import Series, reduce
from ftlab_mlflow.control.markers import Marker

Floats = NDArray[np.float64]
EVERY = 10
"""Steps from entry to entry, where nothing else is said."""


def series(values: Floats | list[float], steps: NDArray[np.int64] | list[int] | None = None) -> Series:
    """Values logged at steps 10, 20, …"""
    at = np.arange(1, len(values) + 1) * EVERY if steps is None else np.asarray(steps)
    return Series(at, np.asarray(values, np.float64), at * 100, len(values))


def wander(rng: np.random.Generator, shape: tuple[int, int], correlation: float) -> Floats:
    """AR(1) noise of variance 1 along rows, without a beginning."""
    drawn = rng.normal(size=(shape[0], shape[1] + 300)) * math.sqrt(1 - correlation**2)
    noise: Floats = lfilter([1.0], [1.0, -correlation], drawn)[:, 300:]
    return noise


# --- one slope ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [8, 20, 47, 100, 250])
def test_a_slope_and_its_interval_are_what_least_squares_and_the_formula_give(count: int) -> None:
    rng = np.random.default_rng(count)
    steps = np.cumsum(rng.integers(1, 30, count))
    values = 2 - steps * 1e-3 + rng.normal(0, 0.1, count)

    found = slope(series(values, steps))
    assert found is not None
    assert found.value == pytest.approx(100 * np.polyfit(steps, values, 1)[0], rel=1e-9)

    # The residuals' part in the space of the slow cosines, less what the line can follow of them.
    terms = min(6, max(2, count // 16))
    place = (steps - steps[0]) / (steps[-1] - steps[0])
    line = np.column_stack((np.ones(count), place))
    waves = np.column_stack([np.cos(math.pi * k * place) for k in range(2, terms + 2)])
    slow = linalg.orth(waves - line @ linalg.lstsq(line, waves)[0])
    variance = float(np.sum((slow.T @ values) ** 2)) / terms
    error = 100 * math.sqrt(variance / np.sum((steps - steps.mean()) ** 2))
    assert found.margin == pytest.approx(stats.t.ppf(0.975, terms) * error, rel=1e-6)


@pytest.mark.parametrize(
    ("count", "correlation", "lowest", "highest"),
    [
        (10, 0.0, 0.92, 0.975),
        (10, 0.5, 0.90, 0.975),
        (30, 0.0, 0.92, 0.975),
        (30, 0.5, 0.90, 0.975),
        (100, 0.0, 0.92, 0.975),
        (100, 0.5, 0.92, 0.985),
        (100, 0.9, 0.78, 0.93),  # as the docstring says: too narrow where noise wanders for long
    ],
)
def test_the_interval_holds_the_true_slope(
    count: int, correlation: float, lowest: float, highest: float
) -> None:
    trials, true = 1200, -0.02
    noise = 0.05 * wander(np.random.default_rng(1), (trials, count), correlation)
    trend = 2 + true * np.arange(1, count + 1) * EVERY / 100
    found = [slope(series(trend + row)) for row in noise]
    held = np.mean([abs(one.value - true) <= one.margin for one in found if one])
    assert lowest <= held <= highest


def test_naive_least_squares_would_claim_too_much() -> None:
    """Why the interval is not scipy's: on the same noise that one holds the slope far too seldom."""
    noise = wander(np.random.default_rng(1), (300, 100), 0.5)
    steps = np.arange(1, 101) * EVERY
    naive = [stats.linregress(steps, row) for row in noise]
    assert np.mean([abs(one.slope) <= 1.96 * one.stderr for one in naive]) < 0.85


# --- before and after --------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "correlation"), [(12, 0.0), (30, 0.0), (100, 0.0), (100, 0.5)])
def test_nothing_changed_and_seldom_is_something_claimed(count: int, correlation: float) -> None:
    noise = 0.05 * wander(np.random.default_rng(2), (800, 2 * count), correlation)
    trend = 2 - 0.0002 * np.arange(1, 2 * count + 1) * EVERY
    verdicts = [effect(series(trend + row), count * EVERY).verdict for row in noise]
    assert np.mean([verdict != "no clear change" for verdict in verdicts]) <= 0.08


def test_a_change_that_is_large_against_the_noise_is_found() -> None:
    count = 50
    steps = np.arange(1, 2 * count + 1) * EVERY
    bend = 2 - 0.0002 * steps - 0.001 * np.maximum(0, steps - count * EVERY)
    noise = 0.05 * wander(np.random.default_rng(3), (200, 2 * count), 0.5)
    verdicts = [effect(series(bend + row), count * EVERY).verdict for row in noise]
    assert np.mean([verdict == "falls faster" for verdict in verdicts]) >= 0.95


def test_a_reduced_series_claims_no_more() -> None:
    steps = np.arange(1, 20_001)
    noise = 0.05 * wander(np.random.default_rng(4), (150, len(steps)), 0.5)
    found = [effect(reduce(series(2 - 1e-5 * steps + row, steps), 1000), 10_000) for row in noise]
    assert np.mean([one.verdict != "no clear change" for one in found]) <= 0.12
    assert np.mean([abs(one.before.value + 1e-3) <= one.before.margin for one in found if one.before]) >= 0.9


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (-0.2, -0.6, "falls faster"),
        (-0.6, -0.2, "falls slower"),
        (-0.4, 0.4, "rises"),
        (0.2, 0.6, "rises faster"),
        (0.6, 0.2, "rises slower"),
        (0.4, -0.4, "falls"),
        (-0.4, 0.0, "falls no more"),
        (0.4, 0.0, "rises no more"),
        (-0.4, -0.4, "no clear change"),
        (0.0, 0.0, "no clear change"),
    ],
)
def test_verdicts(before: float, after: float, verdict: str) -> None:
    """Slopes in 100 steps, with noise that is small against what changes."""
    steps = np.arange(1, 81) * EVERY
    bend = np.where(steps <= 400, before * steps, before * 400 + after * (steps - 400)) / 100
    noise = 0.005 * np.random.default_rng(5).normal(size=80)
    found = effect(series(5 + bend + noise), 400)
    assert found.verdict == verdict
    assert found.before is not None
    assert found.after is not None
    assert found.difference is not None
    assert found.before.value == pytest.approx(before, abs=0.01)
    assert found.after.value == pytest.approx(after, abs=0.01)
    assert found.difference.value == pytest.approx(found.after.value - found.before.value)


def test_the_difference_has_the_interval_of_welch() -> None:
    rng = np.random.default_rng(6)
    found = effect(series(np.concatenate((rng.normal(0, 1, 60), rng.normal(0, 0.2, 90)))), 600)
    assert found.before is not None
    assert found.after is not None
    assert found.difference is not None
    sides = [found.before, found.after]
    spread = [side.error for side in sides]
    # scipy's Welch test of samples with these errors of the mean: n = freedom + 1.
    sizes = [int(side.freedom) + 1 for side in sides]
    welch = stats.ttest_ind_from_stats(
        found.after.value, spread[1] * math.sqrt(sizes[1]), sizes[1],
        found.before.value, spread[0] * math.sqrt(sizes[0]), sizes[0], equal_var=False,
    )  # fmt: skip
    margin = stats.t.ppf(0.975, found.difference.freedom) * abs(found.difference.value / welch.statistic)
    assert found.difference.margin == pytest.approx(margin)
    assert welch.pvalue == pytest.approx(
        2 * stats.t.sf(abs(welch.statistic), found.difference.freedom), rel=1e-9
    )


@pytest.mark.parametrize("value", [0.0, 0.7, 1e300, 1e-300])
def test_a_metric_that_never_moves_has_not_changed(value: float) -> None:
    assert effect(series([value] * 40), 200).verdict == "no clear change"


# --- which values count ------------------------------------------------------------------------------


def counted(found: Effect) -> tuple[int, int, int]:
    return *found.values, found.left_out


def test_the_windows_end_at_the_changes_beside_it_and_after_so_many_values() -> None:
    whole = series(np.random.default_rng(7).normal(size=400))
    assert counted(effect(whole, 2000)) == (100, 100, 0)
    assert counted(effect(whole, 2000, window=30)) == (30, 30, 0)
    assert counted(effect(whole, 2000, since=1800, until=2500)) == (20, 50, 0)
    assert counted(effect(whole, 100)) == (10, 100, 0)
    near = effect(whole, 2000, window=30).before
    assert near is not None
    assert near.value == pytest.approx(100 * np.polyfit(whole.steps[170:200], whole.values[170:200], 1)[0])


def test_an_entry_that_spans_a_change_is_on_neither_side() -> None:
    """Entries at 10, 20, …: the mean at 210 is of steps on both sides of a change at 205."""
    whole = series(np.random.default_rng(8).normal(size=60))
    assert counted(effect(whole, 200, since=100, until=300)) == (10, 10, 0)
    assert counted(effect(whole, 205, since=105, until=305)) == (9, 9, 0)
    assert counted(effect(whole, 5, until=205)) == (0, 19, 0)
    assert counted(effect(whole, 10, until=200)) == (1, 19, 0)
    from_zero = series(whole.values, list(range(0, 600, EVERY)))
    assert counted(effect(from_zero, 0)) == (1, 59, 0)


def test_values_that_are_not_finite_are_left_out_and_counted() -> None:
    values = np.random.default_rng(9).normal(size=60)
    values[[25, 31, 40, 59]] = math.nan, math.inf, -math.inf, math.nan
    found = effect(series(values), 300)
    assert counted(found) == (29, 27, 4)
    kept = np.isfinite(values[:30])
    steps = np.arange(1, 31) * EVERY
    assert found.before is not None
    assert found.before.value == pytest.approx(100 * np.polyfit(steps[kept], values[:30][kept], 1)[0])
    assert "4 not finite" in found.text


def test_too_few_values_and_nothing_is_said() -> None:
    values = np.random.default_rng(10).normal(size=20 + FEWEST - 1)
    found = effect(series(values), 200)
    assert found.verdict == "cannot tell"
    assert found.before is not None
    assert found.after is None
    assert found.difference is None
    assert counted(found) == (20, FEWEST - 1, 0)
    assert found.after_text == f"too few values ({FEWEST - 1})"
    assert found.text.startswith("cannot tell: ")
    assert effect(series([*values, 0.0]), 200).after is not None
    assert counted(effect(series([]), 200)) == (0, 0, 0)


def test_after_a_rollback_a_step_counts_as_it_was_logged_last() -> None:
    rng = np.random.default_rng(11)
    old, new = series(rng.normal(size=40)), series(rng.normal(size=40))
    both = np.argsort(np.concatenate((old.steps, new.steps)), kind="stable")
    mixed = Series(
        np.concatenate((old.steps, new.steps))[both],
        np.concatenate((old.values, new.values))[both],
        np.concatenate((old.times, new.times + 10**6))[both],
        80,
    )
    assert effect(mixed, 200) == effect(new, 200)


def test_effects_of_several_changes_end_where_the_next_begins() -> None:
    whole = series(np.random.default_rng(12).normal(size=90))
    found = effects(whole, [300, 600, 300])
    assert found == [
        effect(whole, 300, until=600),
        effect(whole, 600, since=300),
        effect(whole, 300, until=600),
    ]
    assert [one.values for one in found] == [(30, 30), (30, 30), (30, 30)]


def marker(step: int, at_ms: int, command: str | None = None) -> Marker:
    changes = () if command else (("learning_rate", "0.001", "0.0005"),)
    time = datetime.fromtimestamp(at_ms / 1000, UTC)
    return Marker(f"{step} {at_ms}", step, 0, time, command, changes, command or "", "ann", "cli", "")


def test_changes_around_a_rollback_are_looked_at_in_the_course_that_they_belong_to() -> None:
    """Steps 10 … 600, back to 300, and again from 310 to 500: with a change at 200, at 450 and at 400."""
    rng = np.random.default_rng(14)
    first, again = series(rng.normal(size=60)), series(rng.normal(size=20), np.arange(310, 510, 10))
    again = replace(again, times=again.times + 100_000)
    order = np.lexsort((np.append(first.times, again.times), np.append(first.steps, again.steps)))
    names = ("steps", "values", "times")
    both = Series(*(np.append(getattr(first, n), getattr(again, n))[order] for n in names), total=80)
    second = Series(
        np.append(first.steps[:30], again.steps),
        np.append(first.values[:30], again.values),
        np.append(first.times[:30], again.times),
        50,
    )
    early, lost = marker(200, 20_050), marker(450, 45_050)
    back, late = marker(300, 70_000, "rollback"), marker(400, 140_050)
    pause = marker(350, 135_050, "pause")
    assert of_changes(both, [early, lost, back, pause, late]) == [
        (early, effect(first, 200, until=450)),
        (lost, effect(first, 450, since=200)),
        (back, effect(second, 300, since=200, until=400)),
        (late, effect(second, 400, since=300)),
    ]


def test_the_text_has_the_verdict_and_both_slopes() -> None:
    steps = np.arange(1, 81) * EVERY
    values = 5 - 0.002 * np.minimum(steps, 400) - 0.006 * np.maximum(0, steps - 400)
    found = effect(series(values + 0.005 * np.random.default_rng(13).normal(size=80)), 400)
    assert found.text == (f"falls faster: per 100 steps {found.before_text} before, {found.after_text} after")
    assert found.before_text.startswith("-0.2")
    assert "±" in found.before_text
