"""Schedules that plain loops have: torch's, by hand, and none."""

import math
from collections.abc import Callable
from typing import Any

import torch
from loop_tiny import RATES, Tiny, groups
from torch.optim import lr_scheduler as sched

STEPS = 30
METRICS = [2.0, 1.5, 1.6, 1.6, 1.7, 1.4, 1.5, 1.5, 1.6, 1.0] * 3


def _cosine(step: int) -> float:
    """A warm-up of 4 steps, then a half cosine down to a tenth."""
    done = min(1.0, (step - 4) / (STEPS - 4))
    return (step + 1) / 5 if step < 4 else 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def _plateau(tiny: Tiny) -> None:
    tiny.scheduler = sched.ReduceLROnPlateau(tiny.optimizer, patience=0, factor=0.5)
    tiny.step_scheduler = lambda step: tiny.scheduler.step(METRICS[step])


def by_hand(tiny: Tiny) -> None:
    def write(step: int) -> None:
        for group, rate in zip(tiny.optimizer.param_groups, RATES, strict=True):
            group["lr"] = rate * _cosine(step)

    tiny.write_rates = write


def _by_hand_sometimes(tiny: Tiny) -> None:
    """Every seventh step, and one group only."""

    def write(step: int) -> None:
        if step % 7 == 6:
            tiny.optimizer.param_groups[0]["lr"] = RATES[0] * _cosine(step)

    tiny.write_rates = write


def _by_hand_constant(tiny: Tiny) -> None:
    def write(step: int) -> None:
        for group, rate in zip(tiny.optimizer.param_groups, RATES, strict=True):
            group["lr"] = rate

    tiny.write_rates = write


def _with(make: Callable[[torch.optim.Optimizer], Any]) -> Callable[[Tiny], None]:
    return lambda tiny: setattr(tiny, "scheduler", make(tiny.optimizer))


def tensors(tiny: Tiny) -> None:
    rates = [{**group, "lr": torch.tensor(group["lr"])} for group in groups(tiny.model)]
    tiny.optimizer = torch.optim.AdamW(rates, weight_decay=0.0, capturable=False, foreach=False)
    write = [torch.tensor(rate) for rate in RATES]

    def write_rates(step: int) -> None:
        for group, rate in zip(tiny.optimizer.param_groups, write, strict=True):
            group["lr"].copy_(rate * _cosine(step))

    tiny.write_rates = write_rates


SCHEDULES: dict[str, Callable[[Tiny], None]] = {
    "none": lambda tiny: None,
    "by hand": by_hand,
    "by hand, sometimes": _by_hand_sometimes,
    "by hand, always the same": _by_hand_constant,
    "LambdaLR": _with(lambda o: sched.LambdaLR(o, _cosine)),
    "StepLR": _with(lambda o: sched.StepLR(o, 7, 0.5)),
    "CosineAnnealingWarmRestarts": _with(lambda o: sched.CosineAnnealingWarmRestarts(o, 6, 2)),
    "OneCycleLR": _with(lambda o: sched.OneCycleLR(o, [0.05, 0.01], total_steps=STEPS + 1)),
    "ReduceLROnPlateau": _plateau,
}


def natural_rates(schedule: Callable[[Tiny], None]) -> list[list[float]]:
    """The rates of a loop that nobody touches."""
    twin = Tiny()
    schedule(twin)
    twin.train_plain(STEPS)
    return twin.rates
