"""95 % intervals of shares and means whose questions come in threes: the phrasings of one fact.

Three phrasings are no three independent questions: a model that finds the way for one mostly does for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_Z = 1.959964
RESAMPLES = 2000
Clusters = Mapping[str, Sequence[float]]
"""Values by fact."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; NaN where there is nothing to count."""

    value: float
    low: float
    high: float

    def text(self, form: Callable[[float], str]) -> str:
        """As a table shows it."""
        if math.isnan(self.value):
            return "–"
        return f"{form(self.value)} ({form(self.low)} to {form(self.high)})"


NOTHING = Estimate(math.nan, math.nan, math.nan)


def share(clusters: Clusters) -> Estimate:
    """A share of zeros and ones, by Wilson's interval for the number of independent questions.

    That number is all of them over the design effect: the variance of the share between facts over that of as
    many independent questions, at least 1 and at most the mean number of questions a fact. Where all are
    right, or none, that cannot be seen: each fact counts once then.

    Source: Wilson (1927); with the effective sample size as Franco, Little, Louis & Slud, "Comparative Study
    of Confidence Intervals for Proportions in Complex Sample Surveys", Journal of Survey Statistics and
    Methodology 7 (2019).
    """
    groups = [list(values) for values in clusters.values() if len(values)]
    count = sum(map(len, groups))
    if not count:
        return NOTHING
    p = sum(map(sum, groups)) / count
    most = count / len(groups)
    effect = most
    if 0 < p < 1 and len(groups) > 1:
        residuals = [sum(values) - p * len(values) for values in groups]
        between = len(groups) / (len(groups) - 1) * sum(each * each for each in residuals) / count**2
        effect = min(most, max(1.0, between / (p * (1 - p) / count)))
    n = count / effect
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n * n))
    return Estimate(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def mean(clusters: Clusters, seed: int) -> Estimate:
    """A mean, by a percentile bootstrap that draws facts, each with all its questions."""
    return _bootstrap(clusters, seed, np.mean)


def median(clusters: Clusters, seed: int) -> Estimate:
    """A median, in the same way."""
    return _bootstrap(clusters, seed, np.median)


def _bootstrap(clusters: Clusters, seed: int, of: Callable[[np.ndarray], np.floating]) -> Estimate:
    groups = [np.asarray(values, float) for values in clusters.values() if len(values)]
    if not groups:
        return NOTHING
    random = np.random.default_rng(seed)
    found = [
        float(of(np.concatenate([groups[place] for place in random.integers(0, len(groups), len(groups))])))
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(float(of(np.concatenate(groups))), float(low), float(high))
