"""How fast a training goes: what it has done, over the time that it was at it. No framework in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Lap:
    """What was done between two looks at a `Pace`.

    Attributes:
        seconds: Time at work. steps: Optimizer steps.
    """

    seconds: float
    steps: int

    @property
    def step_time(self) -> float:
        """Seconds at work a step."""
        return self.seconds / self.steps

    def rate(self, count: float) -> float:
        """`count` things a second."""
        return count / self.seconds


class Pace:
    """Measures a training's pace.

    Everything from the begin of the first step on is time at work (fetching data, the steps, logging,
    whatever callbacks do), but evaluations, checkpoints and pauses are not.

    Args:
        clock: Seconds from anywhere, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began: float | None = None
        self._away_s = self._all_away_s = self._paused_s = 0.0
        self._is_away = False
        self._steps = self._all_steps = 0

    def begin(self, paused_s: float = 0.0) -> None:
        """A step begins. Starts the clock at the first one.

        Args:
            paused_s: As for `lap`.
        """
        if self._began is None:
            self._began = self._clock()
            self._away_s = 0.0
            self._paused_s = paused_s

    def step(self) -> None:
        """An optimizer step is done."""
        self._steps += 1
        self._all_steps += 1

    @contextmanager
    def away(self) -> Iterator[None]:
        """Around an evaluation or a checkpoint, also one within another."""
        if self._is_away:
            yield
            return
        self._is_away, began = True, self._clock()
        try:
            yield
        finally:
            self._is_away = False
            self._away_s += self._clock() - began
            if self._began is not None:
                self._all_away_s += self._clock() - began

    def lap(self, paused_s: float = 0.0) -> Lap | None:
        """What was done since the last look; None while no step was.

        Args:
            paused_s: Seconds that the training has waited in pauses, in all.
        """
        if self._began is None or not self._steps:
            return None
        now = self._clock()
        seconds = now - self._began - self._away_s - (paused_s - self._paused_s)
        done, self._steps = Lap(seconds, self._steps), 0
        self._began, self._away_s, self._paused_s = now, 0.0, paused_s
        return done

    def eta(self, lap: Lap, steps_left: int) -> float:
        """Seconds to the end: at the lap's pace, and with evaluations and checkpoints as often as so far."""
        return max(steps_left, 0) * (lap.step_time + self._all_away_s / self._all_steps)
