"""What a loss says of the learning rate: too high, too low."""

from __future__ import annotations

import numpy as np

from ftlab_mlflow.analytics.evidence import OWN, Change, Evidence, Finding, Verdict
from ftlab_mlflow.analytics.loss_symptoms import (
    LOWER_RATE,
    divergence,
    fall_of,
    loss_course,
    nonfinite,
    why_it_may_stay,
)
from ftlab_mlflow.analytics.series import Series
from ftlab_mlflow.analytics.trends import Course


def rate_too_high(run: Evidence) -> Verdict:
    """The loss went up, or away, at a time when the learning rate was at least half of its highest."""
    course = loss_course(run)
    if not run.peak_rate:
        return "no learning rate was logged"
    signs: list[tuple[str, int]] = []
    for rule in (nonfinite, divergence):
        found = rule(run)
        if isinstance(found, Finding) and found.step is not None:
            signs.append((found.kind, found.step))
    if isinstance(course, Course) and len(course.medians) > 2:
        pairs = np.minimum(course.medians[1:-1], course.medians[2:])
        top = int(np.argmax(pairs))
        if pairs[top] - course.first > max(course.margin, 0.2 * abs(course.first)):
            signs.append(("above its start", int(course.ends[top + 1])))
    high = [(sign, step) for sign, step in signs if (run.rate_at(step) or 0.0) >= 0.5 * run.peak_rate]
    if not high:
        return course if isinstance(course, str) and not signs else None
    sign, step = min(high, key=lambda each: each[1])
    raised = [mark for mark in run.changes_of(["learning_rate", "lr_schedule"]) if mark.step <= step]
    return Finding(
        kind="rate_too_high",
        severity="problem",
        summary=f"At a learning rate of {run.rate_at(step):.3g} the loss went wrong ({sign}, step {step})",
        step=step,
        numbers={
            "rate": run.rate_at(step),
            "highest_rate": run.peak_rate,
            "signs": dict(signs),
            "last_change_before": raised[-1].text if raised else None,
        },
        threshold="at least half of the highest rate of the run",
        source=OWN,
        advice="Lower the learning rate to about a third, with a longer warm-up in the next run.",
        changes=LOWER_RATE,
    )


_ADAM_PATH = 1e-4


def rate_too_low(run: Evidence) -> Verdict:
    """The loss falls slowly on a straight line, or does not, and no weight can have moved."""
    course = loss_course(run)
    if isinstance(course, str):
        return course
    if why := why_it_may_stay(run):
        return why
    path = _path(run, int(course.ends[-1]))
    whole = fall_of(course.series)
    moved = whole is None or whole.least > 0.02 * abs(course.first)
    is_still = not moved and path is not None and path < _ADAM_PATH
    first, second = (course.series.taken(part) for part in _halves(course.series))
    falls = [fall_of(first), fall_of(second)]
    is_straight = False
    if falls[0] and falls[1] and falls[0].least > 0 and falls[1].least > 0:
        share = falls[1].slope.value / falls[0].slope.value
        is_straight = share > 0.7 and course.first - course.last < 0.04 * abs(course.first)
    if not is_still and not is_straight:
        return None
    return Finding(
        kind="rate_too_low",
        severity="warning",
        summary=f"The loss moved from {course.first:.4g} to {course.last:.4g} in {course.ends[-1]} steps"
        + (", on a straight line" if is_straight else ", and the learning rate moves nothing"),
        step=int(course.ends[-1]),
        numbers={
            "first": course.first,
            "last": course.last,
            "sum_of_rates": path,
            "highest_rate": run.peak_rate,
        },
        threshold=f"rates of all steps below {_ADAM_PATH:g} in sum with a loss that stays, or less "
        "than 4 % in a "
        "fall that does not slow down",
        source="Kingma & Ba, Adam (2015), section 2.1: a step moves a weight by about the rate at most; "
        + OWN,
        advice="Raise the learning rate, three times at first.",
        changes=(Change("learning_rate", factor=3.0),),
    )


def _halves(series: Series) -> tuple[slice, slice]:
    middle = len(series.values) // 2
    return slice(0, middle), slice(middle, None)


def _path(run: Evidence, last: int) -> float | None:
    """The sum of the learning rates of all steps; None unless the optimizer is of Adam's kind."""
    rates = run.rates
    if rates is None or "adam" not in run.params.get("optim", "adamw").lower():
        return None
    steps = np.concatenate(([0], rates.steps[rates.steps < last], [last])).astype(np.float64)
    values = np.interp(steps, rates.steps, rates.values)
    return float(np.sum(np.diff(steps) * (values[1:] + values[:-1]) / 2))
