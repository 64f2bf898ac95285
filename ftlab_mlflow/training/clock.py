"""The time of a learning-rate schedule, when the number of steps left is changed under it.

A schedule is a function of its own time, which runs from 0 to its total and usually is the number of steps.
When the number of steps changes, what is left of that time is spread over the steps that are left: the
schedule keeps its shape, has no jump, and still ends where it was meant to end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any


@dataclass
class Clock:
    """Schedule time as a piecewise linear function of the steps.

    Attributes:
        total: Schedule time at which the schedule ends. warmup: Schedule time at which its warm-up ends.
        count: Scheduler steps so far.
        knots: (steps, time), from the last change to the end of the run.
    """

    total: float
    warmup: float
    count: int
    knots: list[tuple[float, float]]

    @classmethod
    def begin(cls, total: float, warmup: float, count: int, steps_left: int) -> Clock:
        """A clock that has run with the steps so far, and ends the schedule in `steps_left` steps."""
        return cls(total, warmup, count, [(count, count), (count + steps_left, max(total, count))])

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Clock:
        """The clock that `state` was taken of."""
        return cls(**{**state, "knots": [(steps, time) for steps, time in state["knots"]]})

    def state(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @property
    def time(self) -> float:
        """The schedule's time now."""
        return self.at(self.count)

    def at(self, count: int) -> float:
        """The schedule's time after so many scheduler steps, which is now or later."""
        for (begin, from_time), (end, to_time) in pairwise(self.knots):
            if count < end:
                return from_time + (to_time - from_time) * (count - begin) / (end - begin)
        end, to_time = self.knots[-1]
        return to_time + (count - end)

    def stretch(self, steps_left: int) -> None:
        """Spreads what is left of the schedule over `steps_left` steps."""
        before = self.knots[-1][0] - self.count
        factor = steps_left / before if before > 0 else 1.0
        coming = [(steps, time) for steps, time in self.knots if steps > self.count]
        coming = coming or [(self.count + steps_left, max(self.total, self.time))]
        self.knots = [
            (self.count, self.time),
            *((self.count + (steps - self.count) * factor, time) for steps, time in coming),
        ]

    def warm_up(self, steps_left: int) -> None:
        """Ends the warm-up in `steps_left` steps; the rest of the schedule fills the rest of the run."""
        self.knots = [(self.count, self.time), (self.count + steps_left, self.warmup), self.knots[-1]]

    @property
    def warmup_left(self) -> int:
        """Steps until the warm-up has ended; 0 or less once it has."""
        for (begin, from_time), (end, to_time) in pairwise(self.knots):
            if self.time < self.warmup <= to_time:
                share = (self.warmup - from_time) / (to_time - from_time)
                return math.ceil(round(begin + share * (end - begin) - self.count, 6))
        return 0
