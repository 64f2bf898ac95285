"""Many runs by column: what each of them says about one metric, param or tag, and nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

from pydantic import StringConstraints

_MEAN = "mean_of_last_"
Agg = Annotated[str, StringConstraints(pattern=rf"^(last|min|max|{_MEAN}[1-9][0-9]{{0,2}})$")]
"""Which value of a metric: ``last`` (not the best), ``min`` or ``max`` (the smallest or largest finite one),
or ``mean_of_last_K``, such as ``mean_of_last_10``, of the K last values or of all, if they are fewer."""


def mean_of(agg: Agg) -> int | None:
    """How many last values a mean is of; None where it is no mean."""
    return int(agg.removeprefix(_MEAN)) if agg.startswith(_MEAN) else None


class Value(NamedTuple):
    """One value of a metric and its step; NaN and infinity as such."""

    value: float
    step: int


class RunHead(NamedTuple):
    """What every run has.

    Attributes:
        label: `RunData.label`. started, ended: Unix time in ms, as MLflow has it.
    """

    run_id: str
    label: str
    experiment_id: str
    status: str
    started: int | None
    ended: int | None


@dataclass(frozen=True)
class Wanted:
    """The columns to read. metrics: By name, which values of it. params, tags: Names."""

    metrics: frozenset[tuple[str, Agg]] = frozenset()
    params: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RunColumns:
    """Runs that are not deleted, the newest first (by start, then by id), and the columns that were wanted.

    Attributes:
        metrics: By name and kind of value, then by run id. Of ``min`` and ``max`` those runs that have
            a finite value, else all that ever logged it. A mean has the step of the last value.
        params, tags: By name, then by run id.
    """

    heads: tuple[RunHead, ...]
    metrics: Mapping[tuple[str, Agg], Mapping[str, Value]] = field(default_factory=dict)
    params: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    tags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Keys:
    """Which names there are, and how many runs have each.

    Attributes:
        distinct: How many different texts each param has.
    """

    metrics: Mapping[str, int]
    params: Mapping[str, int]
    tags: Mapping[str, int]
    distinct: Mapping[str, int]
