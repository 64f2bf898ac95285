"""The learning rate over any scheduler: the value that was asked for is a ceiling on the schedule's shape.

With n(t) the rate of the untouched schedule and s the step of the request, the rate in force is
``value * n(t) / max(n(u) for u in s..t)`` (`docs/protocol.md`, "What a learning rate means").

The scheduler never learns of it: before it steps, the optimizer's groups hold the untouched rates; after it
has stepped, they and the scheduler's last-rate list hold the rates in force. So it also holds for schedulers
that read the optimizer's rate back. Until something is asked for, nothing is touched at all.

When the number of steps changes, the untouched schedule itself runs on another clock (`clock.py`): one whose
rate is a formula of the step is read between its steps, any other is stepped once a whole unit of time.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from ftlab_mlflow.control.plan import Plan
from ftlab_mlflow.training.clock import Clock
from ftlab_mlflow.training.plan import Unforeseen, formula, read_ahead


@dataclass
class _Overlay:
    """What was asked for, and where the untouched schedule is.

    Attributes:
        value: The rate asked for (of the group with the largest rate).
        natural: The untouched rate of every group now.
        peak: Largest untouched rate since the request; `natural` is divided by it.
        ratios: While the rate is held, each group's share of `value`; None while it follows the schedule.
        is_new: The optimizer has not stepped since the request. A scheduler that steps now
            (ReduceLROnPlateau, after an evaluation at this very step) still decides the untouched rate that
            stands for `value`.
    """

    value: float
    natural: list[float]
    peak: float
    ratios: list[float] | None = None
    is_new: bool = True


class LiveSchedule:
    """Lays a live learning rate over an optimizer and its scheduler.

    Args:
        optimizer: A torch optimizer (also wrapped by accelerate).
        scheduler: A torch scheduler that has been built on it.
        total: Steps that the scheduler was built for. warmup: How many of them are its warm-up.

    From now on ``scheduler.step`` keeps the rate in force; `detach` ends that.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, scheduler: Any, total: int = 0, warmup: int = 0
    ) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._total, self._warmup = total, warmup
        self._clock: Clock | None = None
        self._overlay: _Overlay | None = None
        self._plain_class = type(scheduler)
        self._step_hook: torch.utils.hooks.RemovableHandle | None = None
        # A subclass, not an attribute: a scheduler's state_dict() is its __dict__, which goes into
        # checkpoints, and transformers asks for isinstance(scheduler, ReduceLROnPlateau).
        scheduler.__class__ = _live_class(self._plain_class, self)

    @property
    def rate(self) -> float:
        """The rate that the next optimizer step uses, of the group with the largest."""
        return max(self._rates())

    @property
    def mode(self) -> str:
        """``hold`` while the rate is held, else ``keep``."""
        return "hold" if self._overlay and self._overlay.ratios else "keep"

    @property
    def launch_rate(self) -> float:
        """The rate that the optimizer was built with."""
        return max(float(group.get("initial_lr", group["lr"])) for group in self._groups())

    @property
    def cycles_momentum(self) -> bool:
        """Whether the scheduler also sets the first beta (or the momentum) at every step."""
        schedulers = [self._scheduler, *getattr(self._scheduler, "_schedulers", ())]
        return any(getattr(scheduler, "cycle_momentum", False) for scheduler in schedulers)

    def ask(self, value: float) -> None:
        """Makes `value` the rate of the next step, and the ceiling of the schedule from then on."""
        ratios = self._overlay.ratios if self._overlay else None
        natural = self._natural()
        self._lay(_Overlay(value, natural, max(natural), ratios))

    def set_mode(self, mode: str) -> None:
        """``hold``: the rate in force stays. ``keep``: it follows the schedule again, from where it is."""
        if mode == self.mode:
            return
        natural = self._natural()
        ratios = self._shares() if mode == "hold" else None
        self._lay(_Overlay(self.rate, natural, max(natural), ratios))

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint must hold to go on; None while nothing was asked for."""
        return asdict(self._overlay) if self._overlay else None

    def load(self, state: dict[str, Any] | None) -> None:
        """Goes on from `state`. Call it after the optimizer and the scheduler were loaded."""
        if state is None:
            return
        self._lay(_Overlay(**copy.deepcopy(state)))

    def capture(self) -> Any:
        """Everything that `restore` needs to undo later changes."""
        return copy.deepcopy((self._overlay, self._clock)), self._rates()

    def restore(self, captured: Any) -> None:
        """Puts back what was in force at `capture`."""
        laid, rates = captured
        self._overlay, self._clock = copy.deepcopy(laid)
        self._set_rates(rates)

    def stretch(self, left_before: int, left: int) -> None:
        """Spreads what is left of the schedule over `left` steps; there were `left_before` until now."""
        if not self._waits_for_metrics:
            self._running_clock(left_before).stretch(left)

    @property
    def warmup_left(self) -> int:
        """Steps until the warm-up has ended; 0 or less once it has, or without one."""
        if self._clock:
            return self._clock.warmup_left
        return self._warmup - self._scheduler_time if self._warmup else 0

    def warm_up(self, steps: int, left: int) -> None:
        """Ends the warm-up in `steps` steps, of the `left` that the run still has."""
        self._running_clock(left).warm_up(steps)

    def clock_state(self) -> dict[str, Any] | None:
        """What a checkpoint must hold of the clock; None while it is that of the steps."""
        return self._clock.state() if self._clock else None

    def go_on(self, clock_state: Mapping[str, Any] | None) -> None:
        """Optimizer and scheduler were loaded from a checkpoint: the clock runs on, nothing is asked for."""
        self._clock = Clock.load(clock_state) if clock_state else None
        self._overlay = None

    def plan(self, step: int, end: int) -> Plan:
        """What the rate will be. It is read from the scheduler's formula and changes nothing.

        Args:
            step: Optimizer steps done. end: The step that training ends with. The scheduler steps once for
                each step.
        """
        try:
            ahead, rates = read_ahead(self._ahead(), max(0, end - step), max(0, self.warmup_left))
        except Unforeseen as why:
            return self.unplanned(step, end, str(why))
        except Exception as error:  # whatever a formula raises for a later step, training goes on
            why_not = f"the schedule's formula cannot be read ahead: {type(error).__name__}: {error}"
            return self.unplanned(step, end, why_not)
        steps = tuple(step + i for i in ahead)
        if self._overlay is None or self._overlay.ratios:
            return Plan(steps, rates)
        return Plan(steps, rates, self._overlay.value, self._overlay.peak)

    @staticmethod
    def unplanned(step: int, end: int, reason: str) -> Plan:
        """A plan that says why there is none."""
        return Plan((step, end) if end > step else (step,), reason=reason)

    def detach(self) -> None:
        """Gives the scheduler its own class back; the rates in force stay where they are."""
        self._scheduler.__class__ = self._plain_class
        if self._step_hook:
            self._step_hook.remove()
            self._step_hook = None

    def _before_step(self) -> None:
        """The scheduler is about to step: it finds the untouched rates."""
        if self._overlay:
            self._set_rates(self._overlay.natural)

    def _after_step(self) -> None:
        """The scheduler has stepped: its rates are noted, those in force take their place."""
        if self._overlay:
            self._overlay.natural = self._rates()
            peak = 0.0 if self._overlay.is_new else self._overlay.peak
            self._overlay.peak = max(peak, *self._overlay.natural)
            self._write()

    def step(self, plain_step: Callable[[], Any]) -> Any:
        """Steps the scheduler by its clock."""
        self._before_step()
        try:
            if self._clock is None:
                return plain_step()
            self._clock.count += 1
            whole = math.floor(self._clock.time + 1e-9)
            if isinstance(self._scheduler, LambdaLR):
                self._scheduler.last_epoch = whole - 1
                plain_step()
                self._blend(whole + 1, self._clock.time - whole)
            else:
                for _ in range(whole - self._scheduler_time):
                    plain_step()
        finally:
            self._after_step()

    def _blend(self, ahead: int, share: float) -> None:
        """Moves the rates by a share towards those of the schedule's next step."""
        if share > 1e-9:
            formulas = zip(self._scheduler.base_lrs, self._scheduler.lr_lambdas, strict=True)
            coming = [base * formula(ahead) for base, formula in formulas]
            self._set_rates([a + (b - a) * share for a, b in zip(self._rates(), coming, strict=True)])

    def _ahead(self) -> Callable[[int], float]:
        """The untouched rate of the largest group so many scheduler steps from now."""
        rates, clock, done = formula(self._scheduler, self._plain_class), self._clock, self._scheduler_time
        is_read_between = self._plain_class is LambdaLR

        def natural(ahead: int) -> float:
            if clock is None:
                return float(max(rates(done + ahead)))
            time = clock.at(clock.count + ahead)
            whole = math.floor(time + 1e-9)
            share = time - whole
            if not is_read_between or share <= 1e-9:
                return float(max(rates(whole)))
            pairs = zip(rates(whole), rates(whole + 1), strict=True)
            return max(a + (b - a) * share for a, b in pairs)

        now = max(self._natural())
        if not math.isclose(natural(0), now, rel_tol=1e-4, abs_tol=1e-9 * self.launch_rate):
            raise Unforeseen("the rate in force is not the one that the scheduler's formula gives")
        return natural

    def _running_clock(self, left: int) -> Clock:
        if self._clock is None:
            self._clock = Clock.begin(self._total, self._warmup, self._scheduler_time, left)
        return self._clock

    @property
    def _scheduler_time(self) -> int:
        # ChainedScheduler has no count of its own.
        scheduler = getattr(self._scheduler, "_schedulers", [self._scheduler])[0]
        return int(getattr(self._scheduler, "last_epoch", scheduler.last_epoch))

    @property
    def _waits_for_metrics(self) -> bool:
        return "metrics" in inspect.signature(self._plain_class.step).parameters

    def _lay(self, overlay: _Overlay) -> None:
        self._overlay = overlay
        if self._step_hook is None:
            plain = getattr(self._optimizer, "optimizer", self._optimizer)  # inside of accelerate's
            self._step_hook = plain.register_step_post_hook(self._optimizer_stepped)
        self._write()

    def _optimizer_stepped(self, *_: object) -> None:
        if self._overlay:
            self._overlay.is_new = False

    def _write(self) -> None:
        overlay = self._overlay
        assert overlay is not None
        if overlay.ratios:
            shares = overlay.ratios
        elif overlay.peak > 0:
            shares = [natural / overlay.peak for natural in overlay.natural]
        else:
            shares = self._shares()
        self._set_rates([overlay.value * share for share in shares])

    def _shares(self) -> list[float]:
        """Each group's rate as a share of the largest: now, or as built while all rates are 0."""
        rates = self._natural()
        if not any(rates):
            rates = [float(group.get("initial_lr", 1.0)) for group in self._groups()]
        largest = max(rates)
        return [rate / largest if largest else 1.0 for rate in rates]

    def _natural(self) -> list[float]:
        return self._overlay.natural if self._overlay else self._rates()

    def _groups(self) -> list[dict[str, Any]]:
        # Looked up every time: load_state_dict replaces the groups.
        return self._optimizer.param_groups

    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self._groups()]

    def _set_rates(self, rates: list[float]) -> None:
        for group, rate in zip(self._groups(), rates, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._scheduler._last_lr = list(rates)


def _live_class(plain: type[Any], live: LiveSchedule) -> type[Any]:
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return live.step(lambda: plain.step(self, *args, **kwargs))

    return type(plain.__name__, (plain,), {"step": step, "__module__": plain.__module__})
