"""The plan of the learning rate: what its schedule does in the rest of a run, as the surface carries it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ftlab_mlflow.control import wire


@dataclass(frozen=True)
class Plan:
    """A schedule at the steps that tell its shape (`docs/protocol.md`, "The plan of the learning rate").

    Attributes:
        steps: Numbers of optimizer steps done, ascending: the first is that at which the plan was made, the
            last the end of the run, if it is known. Every peak and every low of the schedule is among them.
        natural: n(t) after so many steps: the largest group's rate of the untouched schedule. Between two
            steps it is on a straight line. Empty where the schedule cannot be foreseen.
        ceiling, peak: The value that was asked for, and the largest n(u) since then; None while the rate is
            the untouched one, or is held.
        reason: Why `natural` is empty.
    """

    steps: tuple[int, ...]
    natural: tuple[float, ...] = ()
    ceiling: float | None = None
    peak: float | None = None
    reason: str = ""

    def encode(self) -> dict[str, Any]:
        """The plan as JSON values."""
        optional: dict[str, Any] = {
            "natural": list(self.natural) or None,
            "ceiling": self.ceiling,
            "peak": self.peak,
            "reason": self.reason or None,
        }
        return {"steps": list(self.steps)} | {k: v for k, v in optional.items() if v is not None}

    @staticmethod
    def decode(value: object) -> Plan:
        """Raises: ValueError: it is no plan."""
        fields = wire.Fields(wire.mapping(value))
        plan = Plan(
            steps=fields.take("steps", _steps, (), required=True),
            natural=fields.take("natural", _rates, ()),
            ceiling=fields.take("ceiling", wire.number),
            peak=fields.take("peak", wire.number),
            reason=fields.take("reason", wire.text, ""),
        )
        for name, text in fields.errors.items():
            raise ValueError(f"{name} {text}")
        if plan.natural and len(plan.natural) != len(plan.steps):
            raise ValueError("natural must have one rate for each of the steps")
        if (plan.ceiling is None) != (plan.peak is None):
            raise ValueError("ceiling and peak go together")
        return plan


def _steps(value: object) -> tuple[int, ...]:
    steps = tuple(map(wire.whole, _items(value)))
    if not steps or any(a >= b for a, b in pairwise(steps)):
        raise ValueError("must be one or more whole numbers, each above the one before")
    return steps


def _rates(value: object) -> tuple[float, ...]:
    return tuple(map(wire.number, _items(value)))


def _items(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"must be a list of numbers, got {wire.shown(value)}")
    return value
