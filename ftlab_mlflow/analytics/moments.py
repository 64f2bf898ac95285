"""Mean and standard deviation of numbers of any size: sums of what a diverged training logs overflow."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def mean(values: Sequence[float]) -> float:
    """The mean, rounded once; NaN where a value is not finite. Raises: ValueError: there are no values."""
    if not all(map(math.isfinite, values)):
        return math.nan
    exponent = _exponent(values)
    return math.ldexp(math.fsum(math.ldexp(value, -exponent) for value in values) / len(values), exponent)


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation of finite values (n - 1 below the line); None for fewer than two."""
    if len(values) < 2:
        return None
    exponent = _exponent(values)
    unit = statistics.stdev([math.ldexp(value, -exponent) for value in values])
    try:
        return math.ldexp(unit, exponent)
    except OverflowError:  # of the largest numbers that there are
        return math.inf


def _exponent(values: Sequence[float]) -> int:
    """Of a power of two that all values are below."""
    return math.frexp(max(map(abs, values)))[1]
