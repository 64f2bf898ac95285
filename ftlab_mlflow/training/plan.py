"""A schedule read ahead: its untouched rates in the rest of a run, at the few steps that tell its shape."""

from __future__ import annotations

import copy
import heapq
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.optim import lr_scheduler as torch_schedulers

Formula = Callable[[int], Sequence[float]]
"""The untouched rates of the groups at a time of the schedule; groups that are always equal may be one."""

_READ = 2048
"""Steps that are read at most, and then more around each turn: a few milliseconds."""
_FINER = 32
"""Into so many parts the surroundings of a turn are cut, again and again, until it is found."""
_POINTS = 64
"""Points of a plan that are no turns, at most."""
_FITS = 160
"""Points of a plan in all, with the other parameters in one tag. More turns are too many."""
_CLOSE = 1e-3
"""A straight line between two points is close enough within this share of the largest rate."""
_LEVEL = 1e-13
"""A smaller change, as a share of the largest rate, is no turn but rounding."""
_GOLDEN = (math.sqrt(5) - 1) / 2


class Unforeseen(Exception):
    """Why a schedule cannot be read ahead."""


# --- what a scheduler will do ------------------------------------------------------------------------


def formula(scheduler: Any, kind: type[Any]) -> Formula:
    """The rates of a scheduler as a formula of its time. Reading it leaves scheduler and optimizer alone.

    Args:
        kind: The scheduler's class. Only torch's own are known to do what their formula says.

    Raises:
        Unforeseen: There is none.
    """
    name = kind.__name__
    if kind is torch_schedulers.LambdaLR:
        return _of_functions(scheduler)
    if kind is torch_schedulers.SequentialLR:
        return _one_after_the_other(scheduler)
    if kind is torch_schedulers.OneCycleLR:
        return partial(_read, _stand_in(scheduler, kind), "get_lr")
    if kind is torch_schedulers.CosineAnnealingWarmRestarts:
        return partial(_read_restarts, _stand_in(scheduler, kind))
    if kind.__module__ == torch_schedulers.__name__ and hasattr(kind, "_get_closed_form_lr"):
        return partial(_read, _stand_in(scheduler, kind), "_get_closed_form_lr")
    if kind is torch_schedulers.ReduceLROnPlateau:
        raise Unforeseen(f"{name} waits for a metric")
    raise Unforeseen(f"{name} is not known to be a formula of the step")


def _of_functions(scheduler: Any) -> Formula:
    """LambdaLR, which all of transformers' schedules are but those that wait for a metric."""
    functions = scheduler.lr_lambdas
    if not all(isinstance(getattr(f, "func", f), FunctionType) for f in functions):
        raise Unforeseen("the schedule's formula is an object, which may have a state of its own")
    # A plain function is taken to be one of the step alone; it is called for steps that are still to come.
    # Groups mostly share their function and base: one reading is enough.
    pairs = {(float(base), id(f)): f for base, f in zip(scheduler.base_lrs, functions, strict=True)}
    bases = [(base, f) for (base, _), f in pairs.items()]
    return lambda time: [base * f(time) for base, f in bases]


def _one_after_the_other(scheduler: Any) -> Formula:
    parts = [formula(part, type(part)) for part in scheduler._schedulers]
    begins = [0, *scheduler._milestones]

    def rates(time: int) -> Sequence[float]:
        i = bisect_right(scheduler._milestones, time)
        return parts[i](time - begins[i])

    return rates


def _stand_in(scheduler: Any, kind: type[Any]) -> Any:
    """A copy to ask for the rates at any time: torch's formulas write into their scheduler and its groups."""
    stand_in = copy.copy(scheduler)
    stand_in.__class__ = kind
    stand_in.base_lrs = [float(base) for base in scheduler.base_lrs]
    groups = [dict(group) for group in scheduler.optimizer.param_groups]
    stand_in.optimizer = SimpleNamespace(param_groups=groups)
    stand_in._get_lr_called_within_step = True  # else torch warns
    return stand_in


def _read(stand_in: Any, method: str, time: int) -> Sequence[float]:
    stand_in.last_epoch = time
    rates: Sequence[float] = getattr(stand_in, method)()
    return rates


def _read_restarts(stand_in: Any, time: int) -> Sequence[float]:
    """CosineAnnealingWarmRestarts, whose formula is one of the time since its last restart."""
    length = stand_in.T_0
    if stand_in.T_mult == 1:
        time %= length
    while time >= length:
        time -= length
        length *= stand_in.T_mult
    stand_in.T_cur, stand_in.T_i = time, length
    rates: Sequence[float] = stand_in.get_lr()
    return rates


# --- the steps that tell a shape -----------------------------------------------------------------------


def read_ahead(
    natural: Callable[[int], float], left: int, mark: int = 0
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The steps that tell a schedule's shape, with its rates there.

    Among them are now, the end, `mark` and every turn, from rising to falling or back; between them the
    schedule is all but straight. In a long run not every step is read: a turn and its counter-turn that are
    both within one of 2,048 parts of what is left may be missed.

    Args:
        natural: The rate so many steps from now.
        left: Steps to the end. mark: Another step that must be among them.

    Raises:
        Unforeseen: It turns too often, or has a rate that is no number.
    """
    read = {step: natural(step) for step in _grid(left, mark)}
    steps, rates = _arrays(read)
    if len(steps) <= left:
        for i in _turns(rates):
            extreme = max if rates[i] >= max(rates[i - 1], rates[i + 1]) else min
            is_left_of_level = rates[i] == rates[i + 1]
            _close_in(natural, read, int(steps[i - 1]), int(steps[i + 1]), extreme, first=is_left_of_level)
        steps, rates = _arrays(read)
    must = {0, len(steps) - 1, int(np.searchsorted(steps, min(mark, left))), *_turns(rates)}
    chosen = _filled(steps, rates, must)
    # Twelve digits: exact to 1e-9 and short.
    return tuple(int(steps[i]) for i in chosen), tuple(float(f"{rates[i]:.12g}") for i in chosen)


def _grid(left: int, mark: int) -> Sequence[int]:
    if left < _READ:
        return range(left + 1)
    # At uneven distances: a schedule that repeats itself must not look as if it stood still.
    part = left / _READ
    return sorted({0, min(mark, left), left, *(int((i + i * _GOLDEN % 1) * part) for i in range(_READ))})


def _arrays(read: dict[int, float]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    steps = np.array(sorted(read))
    rates = np.array([read[step] for step in steps.tolist()], dtype=float)
    if not np.isfinite(rates).all():
        ahead = steps[~np.isfinite(rates)][0]
        raise Unforeseen(f"the schedule has no finite rate {ahead} steps from now")
    return steps, rates


def _turns(rates: NDArray[np.float64]) -> list[int]:
    """Where the rates turn; of a level stretch between rising and falling, both ends."""
    changes = np.diff(rates)
    changes[np.abs(changes) <= _LEVEL * np.abs(rates).max()] = 0
    moves = np.flatnonzero(changes)
    turned = np.sign(changes[moves[:-1]]) != np.sign(changes[moves[1:]])
    turns = np.union1d(moves[:-1][turned] + 1, moves[1:][turned])
    if len(turns) > _FITS - 3:
        raise Unforeseen("the schedule rises and falls too often to be shown")
    return [int(i) for i in turns]


def _close_in(
    natural: Callable[[int], float],
    read: dict[int, float],
    low: int,
    high: int,
    extreme: Callable[..., int],
    *,
    first: bool,
) -> None:
    """Reads the steps around a turn, until it is among them: the first or last step with the extreme rate."""
    while True:
        part = max(1, (high - low) // _FINER)
        steps = [*range(low, high, part), high]
        read.update((step, natural(step)) for step in steps)
        if part == 1:
            return
        places = range(len(steps)) if first else reversed(range(len(steps)))
        i = extreme(places, key=lambda i: read[steps[i]])
        low, high = steps[max(0, i - 1)], steps[min(len(steps) - 1, i + 1)]


def _filled(steps: NDArray[np.int64], rates: NDArray[np.float64], chosen: set[int]) -> list[int]:
    """The chosen points, and between them those that are farthest from the straight lines."""

    def farthest(begin: int, end: int) -> tuple[float, int, int, int]:
        straight = np.interp(steps[begin : end + 1], steps[[begin, end]], rates[[begin, end]])
        away = np.abs(rates[begin : end + 1] - straight)
        i = int(away.argmax())
        return -float(away[i]), begin, begin + i, end

    found, most = set(chosen), min(len(chosen) + _POINTS, _FITS)
    close = _CLOSE * float(np.abs(rates).max())
    lines = [farthest(*line) for line in pairwise(sorted(chosen))]
    heapq.heapify(lines)
    while lines and len(found) < most and -lines[0][0] > close:
        _, begin, i, end = heapq.heappop(lines)
        found.add(i)
        heapq.heappush(lines, farthest(begin, i))
        heapq.heappush(lines, farthest(i, end))
    return sorted(found)
