"""What tells runs apart: params that differ, final and best values, changes made while they trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import numpy as np

from ftlab_mlflow.analytics.metric_table import Better, Group, Metric, describe
from ftlab_mlflow.analytics.reader import RunRecord
from ftlab_mlflow.analytics.series import Series
from ftlab_mlflow.control.view import RunView

MAX_RUNS = 10
"""Runs that are compared at once."""


def run_ids(text: str) -> tuple[str, ...]:
    """The run ids in a list with commas, each once, in their order."""
    return tuple(dict.fromkeys(run_id for part in text.split(",") if (run_id := part.strip())))


def labels(records: Sequence[RunRecord]) -> tuple[str, ...]:
    """A name of each run that no other of them has: its own, with as much of its id as that takes."""
    names = [record.data.label for record in records]
    return tuple(
        name if names.count(name) == 1 else f"{name} ({_short(record, records)})"
        for name, record in zip(names, records, strict=True)
    )


def _short(record: RunRecord, records: Sequence[RunRecord]) -> str:
    """The first characters of a run's id, 8 or as many more as tell it from the others."""
    ids = [other.data.run_id for other in records if other is not record]
    length = 8
    while any(other.startswith(record.data.run_id[:length]) for other in ids):
        length += 1
    return record.data.run_id[:length]


@dataclass(frozen=True)
class Difference:
    """A param that is not the same in all runs.

    Attributes:
        values: As logged, by run in the order asked for; None where a run has no such param.
        numbers: The same as numbers, None where there is none; None as a whole if one of them is no number,
            or if two that differ would be the same float.
    """

    name: str
    values: tuple[str | None, ...]
    numbers: tuple[float | None, ...] | None


def differing_params(records: Sequence[RunRecord]) -> tuple[Difference, ...]:
    """The params that are not the same in all runs, by name.

    Numbers are compared as numbers, exactly: ``5e-05`` and ``0.00005`` do not differ, two long seeds do.
    """
    found = []
    for name in sorted({name for record in records for name in record.params}):
        values = tuple(record.params.get(name) for record in records)
        numbers = [None if value is None else _number(value) for value in values]
        if any(number is None for number, value in zip(numbers, values, strict=True) if value is not None):
            if len(set(values)) > 1:
                found.append(Difference(name, values, None))
        elif len(set(numbers)) > 1:
            floats = tuple(None if number is None else float(number) for number in numbers)
            is_exact = len(set(floats)) == len(set(numbers))
            found.append(Difference(name, values, floats if is_exact else None))
    return tuple(found)


def _number(text: str) -> Decimal | None:
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


@dataclass(frozen=True)
class Outcome:
    """A metric of several runs, each in the order asked for; None where a run never logged it.

    Attributes:
        last: The value logged last, also where it is not finite.
        best: The best finite value of each run; None as a whole where no direction is better.
        leaders: Places of the runs that have the best of all; several if they have the same. None of them
            where methods differ and the metric is a loss: the losses of two methods have no common scale.
    """

    metric: Metric
    last: tuple[float | None, ...]
    best: tuple[float | None, ...] | None
    leaders: tuple[int, ...]


def outcome(key: str, records: Sequence[RunRecord], series: Sequence[Series | None]) -> Outcome:
    """How the runs ended in a metric, and how good each ever was.

    Args:
        series: The metric of each run, reduced or not: a reduced one has its extremes.
    """
    last = tuple(record.data.metrics.get(key) for record in records)
    methods = {_method(record) for record, value in zip(records, last, strict=True) if value is not None}
    known = [describe(key, method) for method in sorted(methods)] or [describe(key)]
    better = known[0].better
    if better is None or any(metric.better != better for metric in known):
        return Outcome(known[0], last, None, ())
    best = tuple(None if one is None else _best(one, better) for one in series)
    if len(methods) > 1 and known[0].group is Group.LOSS:
        return Outcome(known[0], last, best, ())
    found = [value for value in best if value is not None]
    top = (min if better == "lower" else max)(found, default=None)
    return Outcome(
        known[0],
        last,
        best,
        tuple(place for place, value in enumerate(best) if value is not None and value == top),
    )


def _method(record: RunRecord) -> str:
    status = RunView.of(record.data).status
    return status.method if status else ""


def _best(series: Series, better: Better) -> float | None:
    finite = series.values[np.isfinite(series.values)]
    if not len(finite):
        return None
    return float(finite.min() if better == "lower" else finite.max())
