"""The live learning rate of a plain loop: over its torch scheduler, or over what the loop itself writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ftlab_mlflow.errors import ConfigError
from ftlab_mlflow.training.schedule import LiveSchedule


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
    return _HandSchedule(optimizer) if scheduler is None else LiveSchedule(optimizer, scheduler)


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
