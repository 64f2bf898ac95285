"""A change of the learning rate, seen before it is sent: the rest of the run as planned today, and with it.

The formula is that of `docs/protocol.md`, "What a learning rate means".
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from ftlab_mlflow.control.messages import Update
from ftlab_mlflow.control.plan import Plan
from ftlab_mlflow.control.surface import Param, Surface
from ftlab_mlflow.control.wire import Scalar, utc_now
from ftlab_mlflow.errors import UpdateRejected


@dataclass(frozen=True)
class Curve:
    """Learning rates over the rest of a run, on straight lines between some steps.

    Attributes:
        steps: Numbers of optimizer steps done, ascending.
        rates: The rate that the step after each of them uses, of the parameter group with the largest rate.
    """

    steps: tuple[int, ...]
    rates: tuple[float, ...]

    def at(self, step: int) -> float:
        """The rate after so many steps; before the first and after the last as there."""
        right = bisect_left(self.steps, step)
        if right == len(self.steps):
            return self.rates[-1]
        if right == 0 or self.steps[right] == step:
            return self.rates[right]
        share = (step - self.steps[right - 1]) / (self.steps[right] - self.steps[right - 1])
        before, after = self.rates[right - 1], self.rates[right]
        return before * (1 - share) + after * share

    def until(self, step: int) -> Curve:
        """Its part before a step."""
        steps = [*self.steps[: bisect_left(self.steps, step - 1)], step - 1] if step > self.steps[0] else []
        return Curve(tuple(steps), tuple(map(self.at, steps)))

    def since(self, step: int) -> Curve:
        """Its part from a step on."""
        steps = (step, *(known for known in self.steps if known > step))
        return Curve(steps, tuple(map(self.at, steps)))


@dataclass(frozen=True)
class Preview:
    """The learning rate over the rest of a run.

    Attributes:
        today: As planned, if nothing is changed. changed: With the change. None where it cannot be foreseen.
        reason: Why one of them is None.
    """

    today: Curve | None
    changed: Curve | None
    reason: str = ""


def preview(
    surface: Surface,
    learning_rate: float | None = None,
    lr_schedule: str | None = None,
    at_step: int | None = None,
) -> Preview:
    """What a request would do to the learning rate, and what happens without it.

    Args:
        surface: Of the run; what it says is as old as its last writing, 30 s at most.
        learning_rate, lr_schedule: As a request would set them; None leaves one as it is.
        at_step: The step that the request waits for. None, or one that is done: it is applied at once. A
            request that waits for a step beyond the end changes nothing.

    Raises:
        UpdateRejected: The surface does not allow it.
    """
    wanted = {"learning_rate": learning_rate, "lr_schedule": lr_schedule}
    asked: dict[str, Scalar] = {name: value for name, value in wanted.items() if value is not None}
    if problem := surface.problems(Update(at=utc_now(), set=asked)):
        raise UpdateRejected(*problem)
    param = surface.params.get("learning_rate")
    if param is None:
        return Preview(None, None, surface.unsupported.get("learning_rate", "this run sets no learning rate"))
    if param.plan is None:
        return Preview(None, None, "this run's trainer publishes no plan of its learning rate")
    mode = surface.params.get("lr_schedule")
    return _preview(param, param.plan, mode.value if mode else "keep", asked, at_step or 0)


def _preview(param: Param, plan: Plan, mode: Scalar, asked: dict[str, Scalar], at_step: int) -> Preview:
    natural = Curve(plan.steps, plan.natural) if plan.natural else None
    today = _today(param, plan, natural, is_held=mode == "hold")
    begin = max(at_step, plan.steps[0])
    new_mode = asked.get("lr_schedule", mode)
    if ("learning_rate" not in asked and new_mode == mode) or begin > plan.steps[-1]:
        return Preview(today, today, "" if today else plan.reason)
    value = asked.get("learning_rate")
    if value is None and begin == plan.steps[0]:
        value = param.value
    if value is None and today:
        value = today.at(begin)
    changed = None
    if value is not None and new_mode == "hold":
        steps = (begin, *(step for step in plan.steps if step > begin))
        changed = Curve(steps, (float(value),) * len(steps))
    elif value is not None and natural:
        rest = natural.since(begin)
        changed = _beneath(rest, float(value), rest.rates[0])
    if changed and today:
        before = today.until(begin)
        changed = Curve(before.steps + changed.steps, before.rates + changed.rates)
    return Preview(today, changed, "" if today and changed else plan.reason)


def _today(param: Param, plan: Plan, natural: Curve | None, *, is_held: bool) -> Curve | None:
    if is_held:
        return Curve(plan.steps, (float(param.value),) * len(plan.steps))
    if natural is None or plan.ceiling is None or plan.peak is None:
        return natural
    return _beneath(natural, plan.ceiling, plan.peak)


def _beneath(natural: Curve, ceiling: float, peak: float) -> Curve:
    """The schedule's shape beneath a ceiling; `peak` is its largest rate since that was asked for."""
    steps: list[int] = []
    rates: list[float] = []

    def add(step: int, rate: float) -> None:
        nonlocal peak
        peak = max(peak, rate)
        steps.append(step)
        rates.append(ceiling * (rate / peak) if peak > 0 else ceiling)

    for step, rate in zip(natural.steps, natural.rates, strict=True):
        if steps and rate > peak > (before := natural.at(begin := steps[-1])):
            # It meets the ceiling on the way, and stays there: a corner between two steps of the plan.
            corner = math.ceil(begin + (step - begin) * (peak - before) / (rate - before))
            for bent in (corner - 1, corner):
                if begin < bent < step:
                    add(bent, natural.at(bent))
        add(step, rate)
    return Curve(tuple(steps), tuple(rates))
