"""What a diagnosis looks at, and what it may find."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ftlab_mlflow.analytics.metric_table import describe
from ftlab_mlflow.analytics.series import Series
from ftlab_mlflow.analytics.trends import Course
from ftlab_mlflow.control.markers import Marker
from ftlab_mlflow.control.view import RunView

Severity = Literal["problem", "warning", "note"]
PREFERENCES = ("dpo", "orpo", "kto")
"""Methods that learn from pairs or verdicts."""
OWN = "a rule of this project, see docs/guides/diagnosis.md"


@dataclass(frozen=True)
class Change:
    """What would be changed live.

    Attributes:
        factor: Of the value in force; None where `value` is the new one.
    """

    parameter: str
    factor: float | None = None
    value: float | str | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a run, or may be.

    Attributes:
        kind: In one word: ``divergence``, ``overfitting``, …
        step: Where it begins or is seen best; None where it has no step.
        numbers: What it was found from.
        threshold: What the numbers were held against. source: Where that comes from.
        advice: What people do about it.
        changes: What of that could be changed while it trains.
    """

    kind: str
    severity: Severity
    summary: str
    step: int | None
    numbers: Mapping[str, Any]
    threshold: str
    source: str
    advice: str
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """A run to be diagnosed.

    Attributes:
        series: By metric, the value logged last of each step, what rollbacks took back left out.
        marks: Its applied requests.
    """

    view: RunView
    params: Mapping[str, str]
    method: str | None
    series: Mapping[str, Series]
    marks: Sequence[Marker] = ()
    _courses: dict[str, Course | None] = field(default_factory=dict, repr=False)

    def course(self, metric: str) -> Course | None:
        """The course of a metric; None where it has too few finite values."""
        if metric not in self._courses:
            found = self.series.get(metric)
            self._courses[metric] = None if found is None else Course.of(found)
        return self._courses[metric]

    @property
    def is_policy(self) -> bool:
        """Whether a reward is trained for: the loss says nothing then."""
        return self.method in ("grpo", "rloo") or (self.method is None and "reward" in self.series)

    @cached_property
    def eval_losses(self) -> list[str]:
        """The losses of its evaluation sets."""
        known = ((key, describe(key)) for key in self.series)
        return sorted(key for key, metric in known if metric.is_eval and metric.base == "loss")

    def rate_at(self, step: float) -> float | None:
        """The learning rate at a step, as it was logged; None where it was not."""
        rates = self.rates
        return float(np.interp(step, rates.steps, rates.values)) if rates is not None else None

    @cached_property
    def rates(self) -> Series | None:
        """The finite learning rates that were logged; None if there are none."""
        logged = self.series.get("learning_rate")
        finite = logged.taken(np.isfinite(logged.values)) if logged is not None else None
        return finite if finite is not None and len(finite.values) else None

    @cached_property
    def peak_rate(self) -> float | None:
        """The largest learning rate that was logged."""
        return float(np.max(self.rates.values)) if self.rates is not None else None

    @property
    def is_warming_up(self) -> bool:
        """Whether the learning rate has risen all the time."""
        if self.rates is None or len(self.rates.values) < 2:
            return False
        first, last = float(self.rates.values[0]), float(self.rates.values[-1])
        return first < 0.5 * last and last >= 0.98 * (self.peak_rate or 0.0)

    def changes_of(self, parameters: Sequence[str]) -> list[Marker]:
        """The live changes of any of these parameters."""
        return [mark for mark in self.marks if any(name in parameters for name, _, _ in mark.changes)]


Verdict = Finding | str | None
"""A finding; or why it cannot be told; or None: it was looked for and is not there."""
Rule = Callable[[Evidence], Verdict]
