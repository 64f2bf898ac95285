"""A metric's values as arrays: told from infinity and NaN, reduced without losing extremes, smoothed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

LATE_MS = 10_000
"""Values may arrive so much later than newer ones: trainers log in the background, in several threads."""


@dataclass(frozen=True)
class Series:
    """Values of one metric of one run, by step and then by time.

    Attributes:
        steps: Optimizer steps, int64.
        values: float64; NaN and infinity as such.
        times: Unix time in ms, int64.
        total: How many values the tracking store has in this range; more than are here if it was reduced.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    times: NDArray[np.int64]
    total: int

    def taken(self, where: slice | NDArray[np.intp] | NDArray[np.bool_]) -> Series:
        """The values at these places (a slice, indices in order or a mask); the total stays."""
        return replace(self, steps=self.steps[where], values=self.values[where], times=self.times[where])


def reduce(series: Series, points: int) -> Series:
    """At most `points` of the values (or 10, if that is more), such that a line through them looks the same.

    The steps are cut into pieces of the same width; each keeps its smallest and its largest finite value. The
    first and the last value stay, and so do values that are not finite: of each kind all, or an even choice
    of ``points // 8`` (at least two). Where all steps are the same, the pieces are of time. The order stays.
    """
    count = len(series.values)
    if count <= points:
        return series
    kept = [np.array([0, count - 1]), *(_evenly(at, points // 8) for at in nonfinite(series).values())]
    finite = np.flatnonzero(np.isfinite(series.values))
    if finite.size:
        pieces = max(1, (points - sum(map(len, kept))) // 2)
        kept += _extremes(series, finite, pieces)
    return series.taken(np.unique(np.concatenate(kept)))


def _evenly(places: NDArray[np.intp], limit: int) -> NDArray[np.intp]:
    """All places, or an even choice of at least two, the first and the last among them."""
    chosen = np.linspace(0, len(places) - 1, min(len(places), max(2, limit)))
    return places[chosen.round().astype(np.intp)]


def _extremes(series: Series, finite: NDArray[np.intp], pieces: int) -> list[NDArray[np.intp]]:
    """Where each piece has its smallest and its largest finite value."""
    axis = series.steps if series.steps[-1] > series.steps[0] else series.times
    offset = axis[finite].astype(np.float64) - float(axis.min())
    width = float(axis.max()) - float(axis.min()) or 1.0
    piece = np.minimum(offset / width * pieces, pieces - 1).astype(np.intp)
    by_value = np.lexsort((series.values[finite], piece))
    changes = np.flatnonzero(np.diff(piece[by_value]))
    smallest = by_value[np.concatenate(([0], changes + 1))]
    largest = by_value[np.concatenate((changes, [len(by_value) - 1]))]
    return [finite[smallest], finite[largest]]


def joined(a: Series, b: Series) -> Series:
    """`a` and a later read `b` of the same metric, without what `a` has of it (the same step and time)."""
    if not len(b.values):
        return a
    overlap = a.steps >= b.steps[0]
    known = set(zip(a.steps[overlap].tolist(), a.times[overlap].tolist(), strict=True))
    pairs = zip(b.steps.tolist(), b.times.tolist(), strict=True)
    new = b.taken(np.array([pair not in known for pair in pairs], dtype=np.bool_))
    steps = np.concatenate((a.steps, new.steps))
    times = np.concatenate((a.times, new.times))
    values = np.concatenate((a.values, new.values))
    total = a.total + b.total - (len(b.values) - len(new.values))
    return Series(steps, values, times, total).taken(np.lexsort((times, steps)))


def unsettled_from(series: Series) -> int:
    """The first step that values may still come for, as the values that were logged last show.

    After a rollback, where the steps come again, it lies before others.
    """
    return int(series.steps[series.times >= series.times.max() - LATE_MS].min())


def nonfinite(series: Series) -> dict[str, NDArray[np.intp]]:
    """Where values are not finite, for those that there are: indices under ``NaN``, ``+∞`` and ``−∞``."""
    values = series.values
    masks = {"NaN": np.isnan(values), "+∞": np.isposinf(values), "−∞": np.isneginf(values)}
    return {name: np.flatnonzero(mask) for name, mask in masks.items() if mask.any()}


def latest(series: Series) -> Series:
    """The value logged last of each step: after a rollback, a step's second value."""
    is_last = np.ones(len(series.steps), dtype=np.bool_)
    is_last[:-1] = np.diff(series.steps) != 0
    return series.taken(is_last)


def courses(series: Series, turns: Sequence[tuple[int, int]]) -> tuple[Series, list[Series]]:
    """The values that lead to where a run is now, and those that rollbacks took back.

    Args:
        turns: Of each rollback, in their order: the step that it went back to, and when, in Unix time in ms.

    Returns:
        What stayed; then, for each rollback that took values back, these, behind the value they followed.
    """
    stays = np.ones(len(series.steps), dtype=np.bool_)
    left = []
    for step, time in turns:
        before = stays & (series.times <= time)
        gone = before & (series.steps > step)
        if gone.any():
            origin = np.flatnonzero(before & ~gone)[-1:]
            left.append(series.taken(np.union1d(origin, np.flatnonzero(gone))))
            stays &= ~gone
    return series.taken(stays), left


def smoothed(series: Series, amount: float) -> NDArray[np.float64]:
    """The exponential moving average that starts without a bias, as TensorBoard and W&B draw it.

    For the finite values x_1 … x_n: s_n = Σ a^(n-i) x_i / Σ a^(n-i), which is e_n / (1 - a^n) with
    e_n = a·e_(n-1) + (1 - a)·x_n and e_0 = 0 (the bias correction of Kingma & Ba, "Adam", 2015, section 3).
    A value's weight does not depend on the steps between: a reduced series is smoothed over wider spans.

    Args:
        amount: a, from 0 (the values themselves) to below 1.

    Returns:
        As many values as the series has; NaN where the series' own is not finite, which counts for nothing.

    Raises:
        ValueError: `amount` is not in that range.
    """
    if not 0 <= amount < 1:
        raise ValueError(f"an amount of smoothing is from 0 to below 1, got {amount}")
    finite = np.isfinite(series.values)
    values = pd.Series(np.where(finite, series.values, np.nan))
    means = values.ewm(alpha=1.0 - amount, adjust=True, ignore_na=True).mean().to_numpy()
    return np.where(finite, means, np.nan)


def on_epochs(series: Series, epochs: Series) -> NDArray[np.float64]:
    """The epoch of each value, by interpolation of the logged metric `epoch` from epoch 0 at step 0.

    Steps outside of what was logged get the nearest epoch that is known: nothing is extrapolated. Without any
    finite epoch, all are NaN.
    """
    known = latest(epochs.taken(np.isfinite(epochs.values)))
    if not len(known.values):
        return np.full(len(series.steps), np.nan)
    steps, values = known.steps, known.values
    if steps[0] > 0:
        steps, values = np.append(0, steps), np.append(0.0, values)
    return np.interp(series.steps, steps, values)


def seconds(series: Series, start: int | None = None) -> NDArray[np.float64]:
    """Wall time of each value in seconds since `start` (Unix time in ms, as the run's) or the first value."""
    if start is None and len(series.times):
        start = int(series.times.min())
    return (series.times - (start or 0)) / 1000.0
