"""The live learning rate of a plain loop: over its torch scheduler, or over what the loop itself writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ftlab_mlflow.control.plan import Plan
from ftlab_mlflow.errors import ConfigError
from ftlab_mlflow.training.schedule import LiveSchedule

_SOME_STEPS = 10
"""Fewer could be those around the end of an epoch, at which a loop may step its scheduler."""


def plain_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside of a wrapper such as accelerate's."""
    plain = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(plain, torch.optim.Optimizer):
        raise ConfigError(f"optimizer must be a torch optimizer, got {type(optimizer).__name__}")
    return plain


def plain_scheduler(scheduler: Any, optimizer: torch.optim.Optimizer) -> Any:
    """The torch scheduler inside of a wrapper such as accelerate's."""
    if scheduler is None:
        return None
    plain = getattr(scheduler, "scheduler", scheduler)
    built_on = getattr(plain, "optimizer", None)
    if not hasattr(plain, "get_last_lr") or getattr(built_on, "optimizer", built_on) is not optimizer:
        raise ConfigError(
            f"scheduler must be a torch scheduler of this optimizer, got {type(scheduler).__name__}; "
            "leave it out where the loop sets the rate by other means"
        )
    return plain


def lay_schedule(optimizer: torch.optim.Optimizer, scheduler: Any) -> LiveSchedule | None:
    """The live rate of a plain optimizer; None if it sets its rate by itself."""
    if any(group.get("lr") is None for group in optimizer.param_groups):
        return None
    return _HandSchedule(optimizer) if scheduler is None else _LoopSchedule(optimizer, scheduler)


class _LoopSchedule(LiveSchedule):
    """The live rate over a scheduler that a loop steps when it likes: at every step, or at every epoch."""

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        super().__init__(optimizer, scheduler)
        self._unforeseen = "the loop has not stepped its scheduler yet"
        self._counted_from: tuple[int, int] | None = None
        self._enough = 1

    def plan(self, step: int, end: int) -> Plan:
        self._compare(step, self._scheduler_time)
        return self.unplanned(step, end, self._unforeseen) if self._unforeseen else super().plan(step, end)

    def _compare(self, step: int, time: int) -> None:
        """Whether the scheduler goes with the optimizer: from the beginning, then over some steps each."""
        before, before_time = self._counted_from = self._counted_from or (step, time)
        steps, times = step - before, time - before_time
        if steps >= self._enough:
            slow_or_fast = f"the loop stepped its scheduler {times} times in {steps} steps"
            self._unforeseen = "" if times == steps else slow_or_fast
        if steps >= _SOME_STEPS:
            self._counted_from, self._enough = (step, time), _SOME_STEPS


class _NoScheduler:
    """Stands where a loop without a scheduler has none."""

    _last_lr: Sequence[float] = ()

    def step(self) -> None:
        """Leaves the rates as they are."""


class _HandSchedule(LiveSchedule):
    """The live rate without a scheduler: what the loop writes into the optimizer is the schedule."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._written = _NoScheduler()
        super().__init__(optimizer, self._written)
        self._before_optimizer = optimizer.register_step_pre_hook(self._follow)

    def detach(self) -> None:
        self._before_optimizer.remove()
        super().detach()

    def plan(self, step: int, end: int) -> Plan:
        return self.unplanned(step, end, "the loop has no scheduler: it may set the rate itself")

    def _follow(self, *_: object) -> None:
        """A rate that is not the one last brought into force is the loop's own: its schedule has moved."""
        if self._overlay is None:
            return
        rates, in_force = self._rates(), self._written._last_lr
        # A tensor holds a rate with the precision of its type.
        is_ours = [math.isclose(*pair, rel_tol=1e-6) for pair in zip(rates, in_force, strict=True)]
        if not all(is_ours):
            both = zip(is_ours, self._overlay.natural, rates, strict=True)
            natural = [untouched if ours else rate for ours, untouched, rate in both]
            self.step(lambda: self._set_rates(natural))
