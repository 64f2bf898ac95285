"""A noisy series as a few robust medians: which of its ups and downs are more than noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ftlab_mlflow.analytics.series import Series

FEWEST = 20
"""Values below which nothing is said about the course of a series."""
_BLOCKS = 20
_ERRORS = 4.5
_MAD = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""
_MEDIAN = 1.2533
"""The standard error of a median over that of a mean: √(π / 2)."""


@dataclass(frozen=True)
class Course:
    """Finite values of a metric, cut into up to twenty blocks of the same number of values.

    Attributes:
        medians: Of each block. begins, ends: Steps of its first and last value.
    """

    series: Series
    medians: NDArray[np.float64]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]

    @staticmethod
    def of(series: Series) -> Course | None:
        """None of fewer than `FEWEST` finite values."""
        finite = series.taken(np.isfinite(series.values))
        if len(finite.values) < FEWEST:
            return None
        pieces = np.array_split(np.arange(len(finite.values)), min(_BLOCKS, len(finite.values) // 4))
        return Course(
            series=finite,
            medians=np.array([np.median(finite.values[piece]) for piece in pieces]),
            begins=finite.steps[[piece[0] for piece in pieces]],
            ends=finite.steps[[piece[-1] for piece in pieces]],
        )

    @property
    def first(self) -> float:
        return float(self.medians[0])

    @property
    def last(self) -> float:
        return float(self.medians[-1])

    @property
    def now(self) -> float:
        """The median of the last five values."""
        return float(np.median(self.series.values[-5:]))

    @cached_property
    def noise(self) -> float:
        """The standard deviation of a value around the course, from the differences of neighbours."""
        steps = np.abs(np.diff(self.series.values))
        return _MAD * float(np.median(steps)) / math.sqrt(2)

    @cached_property
    def margin(self) -> float:
        """What the difference of two medians must exceed to be more than noise: 4.5 standard errors.

        Two medians of twenty are looked at that are as far apart as they come: 2.6 ± 0.5 of these errors, by
        chance alone. The error of a median comes from the noise of the values, or from the medians' own
        second differences, whichever is larger: noise of neighbouring values may be correlated.
        """
        size = len(self.series.values) / len(self.medians)
        bends = np.abs(np.diff(self.medians, 2))
        error = max(_MEDIAN * self.noise / math.sqrt(size), _MAD * float(np.median(bends)) / math.sqrt(6))
        return _ERRORS * error * math.sqrt(2)

    def between(self, low: float, high: float) -> Series:
        """The values above step `low`, up to step `high`."""
        return self.series.taken((self.series.steps > low) & (self.series.steps <= high))

    @property
    def ending(self) -> float:
        """What it surely is above at its end: by its last two pieces, or its last five values, less noise."""
        by_value = float(self.series.values[-5:].min()) - 6 * self.noise
        return max(float(self.medians[-2:].min()), by_value)

    def share(self, begin: float, end: float) -> float:
        """The median of a part of the values, both bounds from 0 (the first) to 1 (the last)."""
        count = len(self.series.values)
        return float(np.median(self.series.values[round(begin * count) : max(1, round(end * count))]))


def outliers(series: Series, *, errors: float, share: float) -> NDArray[np.intp]:
    """Places of finite values far above the median of the 11 around them (of many values, 31).

    Where all are positive their logarithms are held against each other: the loss of single samples is skewed.

    Args:
        errors: In standard deviations of the values from these medians. share: Of the median itself.
    """
    values = series.values
    half = 5 if len(values) < 200 else 15
    padded = np.pad(values, half, mode="edge")
    around = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=1)
    is_large = values - around > share * np.abs(around)
    above = np.log(values / around) if values.min() > 0 else values - around
    noise = _MAD * float(np.median(np.abs(above)))
    return np.flatnonzero((above > errors * noise) & is_large)
