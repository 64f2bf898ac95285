"""Series reduced, joined, smoothed and laid on other axes, against plain loops and pandas."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftlab_mlflow.analytics.series import (
    Series,
    courses,
    joined,
    latest,
    nonfinite,
    on_epochs,
    reduce,
    seconds,
    smoothed,
)

Row = tuple[int, float, int]
VALUES = st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf])
ROWS = st.lists(
    st.tuples(st.integers(0, 60), VALUES, st.integers(0, 10_000)),
    unique_by=lambda row: (row[0], row[2]),
    max_size=120,
).map(lambda rows: sorted(rows, key=lambda row: (row[0], row[2])))


def series(rows: list[Row]) -> Series:
    steps, values, times = zip(*rows, strict=True) if rows else ((), (), ())
    return Series(
        np.array(steps, np.int64), np.array(values, np.float64), np.array(times, np.int64), len(rows)
    )


def rows_of(one: Series) -> list[tuple[int, str, int]]:
    """Rows that compare equal also where a value is NaN."""
    return list(zip(one.steps.tolist(), map(repr, one.values.tolist()), one.times.tolist(), strict=True))


def ends_of_kinds(one: Series) -> dict[str, tuple[int, int]]:
    """Steps of the first and the last NaN, infinity, minus infinity."""
    found: dict[str, list[int]] = {}
    for step, value, _ in rows_of(one):
        if value in ("nan", "inf", "-inf"):
            found.setdefault(value, []).append(step)
    return {kind: (steps[0], steps[-1]) for kind, steps in found.items()}


# --- reduce ------------------------------------------------------------------------------------------


@given(ROWS, st.integers(1, 60))
def test_a_reduced_series_keeps_its_ends_its_extremes_and_every_kind_of_value(
    rows: list[Row], points: int
) -> None:
    whole = series(rows)
    small = reduce(whole, points)
    assert len(small.values) <= max(points, 10)
    assert small.total == len(rows)
    left = iter(rows_of(whole))
    assert all(row in left for row in rows_of(small)), "rows of the series, in its order"
    if rows:
        assert rows_of(small)[0] == rows_of(whole)[0]
        assert rows_of(small)[-1] == rows_of(whole)[-1]
    finite = [value for _, value, _ in rows if math.isfinite(value)]
    if finite:
        kept = small.values[np.isfinite(small.values)]
        assert (kept.min(), kept.max()) == (min(finite), max(finite))
    assert ends_of_kinds(small) == ends_of_kinds(whole)


@given(ROWS)
def test_a_short_series_is_left_alone(rows: list[Row]) -> None:
    assert rows_of(reduce(series(rows), len(rows))) == rows_of(series(rows))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(20, 400))
def test_every_piece_keeps_its_smallest_and_its_largest(seed: int, points: int) -> None:
    rng = np.random.default_rng(seed)
    steps = np.sort(rng.integers(0, 1_000_000, 3000))
    values = rng.standard_cauchy(3000)
    small = reduce(Series(steps, values, steps * 10, 3000), points)
    pieces = (points - 2) // 2
    kept = set(small.values.tolist())
    place = pd.Series((steps - steps[0]) / (steps[-1] - steps[0]) * pieces).clip(upper=pieces - 1).astype(int)
    for _, piece in pd.Series(values).groupby(place):
        assert {piece.min(), piece.max()} <= kept


def test_a_spike_of_one_value_in_a_hundred_thousand_is_seen() -> None:
    count = 100_000
    values = np.linspace(3, 1, count)
    values[61_234], values[70_001] = 50.0, math.nan
    small = reduce(Series(np.arange(count), values, np.arange(count), count), 500)
    assert len(small.values) <= 500
    assert small.steps[small.values == 50.0].tolist() == [61_234]
    assert small.steps[np.isnan(small.values)].tolist() == [70_001]


def test_many_values_that_are_not_finite_leave_room_for_the_others() -> None:
    count = 10_000
    values = np.where(np.arange(count) % 2, math.nan, np.arange(count, dtype=np.float64))
    small = reduce(Series(np.arange(count), values, np.arange(count), count), 400)
    lost = np.isnan(small.values)
    assert 40 <= lost.sum() <= 52
    assert (~lost).sum() > 300
    assert np.diff(small.steps[lost]).max() < 2 * count / 48, "spread over the series"


def test_values_that_all_have_one_step_are_reduced_by_their_time() -> None:
    times = np.arange(5000)
    small = reduce(Series(np.zeros(5000, np.int64), np.sin(times / 300), times, 5000), 100)
    assert 50 <= len(small.values) <= 100
    assert np.diff(small.times).max() < 200


# --- joined ------------------------------------------------------------------------------------------


@given(ROWS, st.integers(0, 120), st.integers(0, 20))
def test_parts_that_overlap_join_to_the_whole(rows: list[Row], cut: int, overlap: int) -> None:
    first, second = rows[:cut], rows[max(0, cut - overlap) :]
    together = joined(series(first), series(second))
    assert rows_of(together) == rows_of(series(rows))
    assert together.total == len(rows)


def test_a_part_counts_what_was_reduced_away() -> None:
    first = reduce(series([(step, float(step % 7), step) for step in range(1000)]), 50)
    second = series([(step, 0.5, step) for step in range(999, 1010)])
    together = joined(first, second)
    assert together.total == 1010
    assert len(together.values) == len(first.values) + 10


def test_steps_that_come_again_after_a_rollback_stand_beside_the_old_ones() -> None:
    together = joined(series([(4, 1.0, 10), (5, 2.0, 20)]), series([(4, 3.0, 30), (5, 4.0, 40)]))
    assert together.values.tolist() == [1.0, 3.0, 2.0, 4.0]
    assert latest(together).values.tolist() == [3.0, 4.0]


@given(st.lists(st.integers(1, 3) | st.just("log") | st.just("log"), max_size=60))
def test_courses_are_what_somebody_saw_who_watched(events: list[int | str]) -> None:
    """A run that logs at each step, and goes back by some steps now and then."""
    path: list[Row] = []
    logged: list[Row] = []
    left: list[list[Row]] = []
    turns: list[tuple[int, int]] = []
    step = 0
    for time, event in enumerate(events):
        if event == "log":
            step += 1
            path.append((step, float(time), time))
            logged.append(path[-1])
            continue
        step = max(0, step - int(event))
        turns.append((step, time))
        if gone := [row for row in path if row[0] > step]:
            path = [row for row in path if row[0] <= step]
            left.append([*path[-1:], *gone])
    kept, taken_back = courses(series(sorted(logged)), turns)
    assert rows_of(kept) == rows_of(series(path))
    assert [rows_of(one) for one in taken_back] == [rows_of(series(rows)) for rows in left]


@given(ROWS)
def test_the_latest_of_each_step_is_what_pandas_keeps(rows: list[Row]) -> None:
    table = pd.DataFrame(rows, columns=["step", "value", "time"]).drop_duplicates("step", keep="last")
    assert rows_of(latest(series(rows))) == rows_of(series(list(table.itertuples(index=False, name=None))))


# --- values that are not finite, smoothing -----------------------------------------------------------


@given(ROWS)
def test_places_of_values_that_are_not_finite(rows: list[Row]) -> None:
    names = {"nan": "NaN", "inf": "+∞", "-inf": "−∞"}
    expected: dict[str, list[int]] = {}
    for place, (_, value, _) in enumerate(rows):
        if not math.isfinite(value):
            expected.setdefault(names[repr(value)], []).append(place)
    assert {name: places.tolist() for name, places in nonfinite(series(rows)).items()} == expected


@given(ROWS, st.floats(0, 0.999))
def test_smoothing_is_the_moving_average_with_its_bias_taken_out(rows: list[Row], amount: float) -> None:
    average, count, expected = 0.0, 0, []
    for _, value, _ in rows:
        if not math.isfinite(value):
            expected.append(math.nan)
            continue
        count += 1
        average = amount * average + (1 - amount) * value
        expected.append(average / (1 - amount**count))
    np.testing.assert_allclose(smoothed(series(rows), amount), expected, rtol=1e-6, atol=1e-6)


def test_no_smoothing_gives_the_values() -> None:
    rows = [(step, step**0.5, step) for step in range(50)]
    assert smoothed(series(rows), 0.0).tolist() == [value for _, value, _ in rows]


@pytest.mark.parametrize("amount", [-0.1, 1.0, 1.5, math.nan])
def test_an_amount_of_smoothing_that_makes_no_sense_is_refused(amount: float) -> None:
    with pytest.raises(ValueError):
        smoothed(series([(1, 1.0, 1)]), amount)


# --- other axes --------------------------------------------------------------------------------------


def test_epochs_lie_on_the_line_between_what_was_logged() -> None:
    epochs = series([(10, 0.5, 1), (20, 1.0, 2), (40, 3.0, 3)])
    asked = series([(step, 0.0, 0) for step in (0, 5, 10, 15, 30, 40, 500)])
    assert on_epochs(asked, epochs).tolist() == [0.0, 0.25, 0.5, 0.75, 2.0, 3.0, 3.0]


def test_epochs_of_a_run_that_was_resumed_begin_where_it_began() -> None:
    epochs = series([(0, 2.0, 1), (100, 3.0, 2)])
    assert on_epochs(series([(0, 0.0, 0), (50, 0.0, 0)]), epochs).tolist() == [2.0, 2.5]


def test_epochs_that_are_not_finite_or_were_rolled_back_do_not_count() -> None:
    epochs = series([(10, 1.0, 1), (10, 0.5, 9), (20, math.nan, 2), (30, 1.5, 3)])
    assert on_epochs(series([(10, 0.0, 0), (20, 0.0, 0)]), epochs).tolist() == [0.5, 1.0]
    assert np.isnan(on_epochs(series([(1, 0.0, 0)]), series([(5, math.nan, 1)]))).all()
    assert np.isnan(on_epochs(series([(1, 0.0, 0)]), series([]))).all()


def test_seconds_since_the_first_value_or_since_a_time() -> None:
    rolled_back = series([(1, 0.0, 5_000), (2, 0.0, 9_500), (3, 0.0, 6_250)])
    assert seconds(rolled_back).tolist() == [0.0, 4.5, 1.25]
    assert seconds(rolled_back, 4_000).tolist() == [1.0, 5.5, 2.25]
    assert seconds(series([])).tolist() == []
