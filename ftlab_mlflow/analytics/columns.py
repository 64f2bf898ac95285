"""Many runs by column: what each of them says about one metric, param or tag, and nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Agg = Literal["last", "min", "max"]
"""Which value of a metric: the last one (not the best), or the smallest or largest finite one."""


class Value(NamedTuple):
    """One value of a metric and its step; NaN and infinity as such."""

    value: float
    step: int


@dataclass(frozen=True)
class RunHead:
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
        metrics: By name and kind of value, then by run id. Of ``last`` all runs that ever logged it, of
            ``min`` and ``max`` those that have a finite value.
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
