"""Previewed learning rates against those that the optimizer really used when training then went on."""

import json
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from test_schedule import HF, NAMES, STEPS, Run, _same
from torch.optim import lr_scheduler as sched
from transformers import get_scheduler

from ftlab_mlflow.control.plan import Plan
from ftlab_mlflow.control.preview import Curve, preview
from ftlab_mlflow.control.surface import Param, Surface
from ftlab_mlflow.training.plan import Unforeseen, read_ahead
from ftlab_mlflow.training.schedule import LiveSchedule

UNFORESEEN = {
    "reduce_lr_on_plateau": "ReduceLROnPlateau waits for a metric",
    "greedy": "GreedyLR is not known to be a formula of the step",
}
FORESEEN = [name for name in NAMES if name not in UNFORESEEN]
GROUPS = (0.002, 0.01, 0.005)
MORE: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "MultiStepLR": lambda o: sched.MultiStepLR(o, [5, 6, 20], gamma=0.3),
    "ConstantLR": lambda o: sched.ConstantLR(o, factor=0.2, total_iters=9),
    "LinearLR": lambda o: sched.LinearLR(o, start_factor=0.1, total_iters=12),
    "PolynomialLR": lambda o: sched.PolynomialLR(o, total_iters=30, power=2.0),
    "CosineAnnealingWarmRestarts, equal": lambda o: sched.CosineAnnealingWarmRestarts(o, T_0=5),
    "CosineAnnealingWarmRestarts, tripled": lambda o: sched.CosineAnnealingWarmRestarts(o, T_0=1, T_mult=3),
    "OneCycleLR, linear": lambda o: sched.OneCycleLR(
        o, max_lr=0.1, total_steps=STEPS + 1, three_phase=True, anneal_strategy="linear"
    ),
    "SequentialLR of others": lambda o: sched.SequentialLR(
        o,
        [
            sched.LambdaLR(o, lambda t: (t + 1) / 6),
            sched.CosineAnnealingWarmRestarts(o, T_0=4, T_mult=2),
            sched.OneCycleLR(o, max_lr=0.02, total_steps=20),
        ],
        milestones=[6, 25],
    ),
}
Event = tuple[int, str | float]


def shown(live: LiveSchedule, step: int, end: int = STEPS) -> Surface:
    """What a client reads: the surface as it comes out of a tag."""
    params = {
        "learning_rate": Param("float", live.rate, live.rate, 0, 1, plan=live.plan(step, end)),
        "lr_schedule": Param("enum", live.mode, live.mode, choices=("keep", "hold")),
    }
    return Surface.decode(Surface(params, ()).encode())


def tell(live: LiveSchedule, event: str | float) -> None:
    live.ask(event) if isinstance(event, float) else live.set_mode(event)


def used(run: Run, steps: int) -> list[float]:
    """The largest rate of the steps to come, and after the last."""
    rates = []
    for _ in range(steps):
        rates.append(max(run.rates))
        run.step()
    return [*rates, max(run.rates)]


def check(curve: Curve | None, rates: list[float], begin: int) -> None:
    """A curve against the rates that were used from the step `begin` on."""
    assert curve is not None
    assert (curve.steps[0], curve.steps[-1]) == (begin, begin + len(rates) - 1)
    expected = [rates[step - begin] for step in curve.steps]
    assert curve.rates == pytest.approx(expected, rel=1e-9, abs=1e-15)


SCRIPTS: dict[str, list[Event]] = {
    "untouched": [],
    "asked in the warm-up": [(2, 0.003)],
    "asked twice": [(2, 0.003), (14, 0.05)],
    "held": [(4, "hold"), (9, 0.02)],
    "held and let go": [(4, "hold"), (9, 0.02), (13, "keep")],
    "at nothing": [(6, 0.0)],
}
CHANGES: list[tuple[float | None, str | None]] = [
    (0.007, None),
    (0.007, "hold"),
    (0.007, "keep"),
    (None, "hold"),
    (None, "keep"),
    (0.0, None),
]


def prepared(make: Callable[[], Run], script: list[Event], step: int) -> tuple[Run, LiveSchedule]:
    run = make()
    live = LiveSchedule(run.optimizer, run.scheduler)
    for now in range(step + 1):
        for at, event in script:
            if at == now:
                tell(live, event)
        if now < step:
            run.step()
    return run, live


def against_training(make: Callable[[], Run], script: list[Event], step: int) -> None:
    """Each change is previewed, then made: the rates that are then used are those that were shown."""
    for value, mode in CHANGES:
        run, live = prepared(make, script, step)
        seen = preview(shown(live, step), value, mode)
        if value is not None:
            live.ask(value)
        if mode is not None:
            live.set_mode(mode)
        check(seen.changed, used(run, STEPS - step), step)
    run, live = prepared(make, script, step)
    check(preview(shown(live, step)).today, used(run, STEPS - step), step)


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
@pytest.mark.parametrize("name", FORESEEN)
def test_the_rates_are_those_that_are_then_used(name: str, script: list[Event]) -> None:
    for step in (3, 16):
        against_training(lambda: Run(name, GROUPS), script, step)


def _with(scheduler: Callable[[torch.optim.Optimizer], Any]) -> Run:
    run = Run("constant", GROUPS)
    for group in run.optimizer.param_groups:
        group["lr"] = group.pop("initial_lr")
    run.scheduler = scheduler(run.optimizer)
    return run


@pytest.mark.parametrize("script", [SCRIPTS["untouched"], SCRIPTS["asked twice"]])
@pytest.mark.parametrize("name", MORE)
def test_torch_s_other_formulas(name: str, script: list[Event]) -> None:
    for step in (0, 26):
        against_training(lambda: _with(MORE[name]), script, step)


@pytest.mark.parametrize("name", FORESEEN)
@pytest.mark.parametrize("left", [7, 90])
def test_a_stretched_schedule_is_foreseen(name: str, left: int) -> None:
    """Also after a second stretch, under a live rate, and with a warm-up that was moved."""
    for value in (None, 0.03):
        for moves_warmup in (False, True):
            run = Run(name, GROUPS)
            live = LiveSchedule(run.optimizer, run.scheduler, STEPS, 5)
            for _ in range(3):
                run.step()
            live.stretch(STEPS - 3, 50)
            if moves_warmup:
                live.warm_up(6, 50)
            if value is not None:
                live.ask(value)
            for _ in range(2):
                run.step()
            live.stretch(48, left)
            seen = preview(shown(live, 5, 5 + left))
            warmup = live.warmup_left
            assert seen.today is not None
            assert not 0 < warmup <= left or 5 + warmup in seen.today.steps
            check(seen.today, used(run, left), 5)


def test_a_resume_has_the_same_plan() -> None:
    for script in SCRIPTS.values():
        run, live = prepared(lambda: Run("cosine_with_restarts", GROUPS), script, 15)
        live.stretch(STEPS - 15, 60)
        again = Run("cosine_with_restarts", GROUPS)
        again.optimizer.load_state_dict(run.optimizer.state_dict())
        again.scheduler.load_state_dict(run.scheduler.state_dict())
        resumed = LiveSchedule(again.optimizer, again.scheduler, STEPS, 5)
        resumed.go_on(json.loads(json.dumps(live.clock_state())))
        resumed.load(json.loads(json.dumps(live.state())))
        plan = live.plan(15, 75)
        assert plan.natural
        assert resumed.plan(15, 75) == plan


@pytest.mark.parametrize("name", [*FORESEEN, *MORE])
def test_looking_ahead_changes_nothing(name: str) -> None:
    def make() -> Run:
        return _with(MORE[name]) if name in MORE else Run(name, GROUPS)

    run, twin = make(), make()
    live = LiveSchedule(run.optimizer, run.scheduler)
    for step in range(STEPS):
        assert live.plan(step, STEPS).natural
        assert _same(run.state(), twin.state())
        assert _same(run.optimizer.state_dict(), twin.optimizer.state_dict())
        run.step()
        twin.step()


def test_rates_that_are_tensors() -> None:
    run = Run("cosine", GROUPS, tensor=True)
    live = LiveSchedule(run.optimizer, run.scheduler)
    for _ in range(9):
        run.step()
    curve = preview(shown(live, 9)).today
    assert curve is not None
    rates = used(run, STEPS - 9)
    assert curve.rates == pytest.approx([rates[step - 9] for step in curve.steps], rel=1e-6, abs=1e-9)


# --- what cannot be foreseen -------------------------------------------------------------------------


def _plan_of(scheduler: Callable[[torch.optim.Optimizer], Any]) -> Plan:
    run = _with(scheduler)
    return LiveSchedule(run.optimizer, run.scheduler).plan(0, STEPS)


@pytest.mark.parametrize("name", UNFORESEEN)
def test_a_schedule_that_waits_for_a_metric_says_so(name: str) -> None:
    run = Run(name, GROUPS)
    live = LiveSchedule(run.optimizer, run.scheduler)
    assert live.plan(3, STEPS) == Plan((3, STEPS), reason=UNFORESEEN[name])
    live.ask(0.02)
    live.set_mode("hold")
    assert preview(shown(live, 3)).today == Curve((3, STEPS), (0.02, 0.02))


class _Own(sched.CosineAnnealingLR):
    """Inherits a closed form that it does not follow."""

    def get_lr(self) -> list[Any]:
        return [0.3 for _ in self.base_lrs]


class _Stateful:
    def __call__(self, step: int) -> float:
        return 1.0


def _raises(step: int) -> float:
    return [1.0, 0.5][step]


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (lambda o: _Own(o, 10), "_Own is not known to be a formula of the step"),
        (lambda o: sched.MultiplicativeLR(o, lambda t: 0.9), "MultiplicativeLR is not known"),
        (lambda o: sched.ChainedScheduler([sched.StepLR(o, 5)]), "ChainedScheduler is not known"),
        (lambda o: sched.LambdaLR(o, _Stateful()), "may have a state of its own"),
        (lambda o: sched.LambdaLR(o, partial(_Stateful())), "may have a state of its own"),
        (lambda o: sched.LambdaLR(o, _raises), "cannot be read ahead: IndexError"),
        (lambda o: sched.LambdaLR(o, lambda t: 1 if t < 7 else math.nan), "no finite rate 7 steps from now"),
        (lambda o: sched.LambdaLR(o, lambda t: 1 if t < 9 else math.inf), "no finite rate 9 steps from now"),
        (
            lambda o: sched.SequentialLR(o, [sched.StepLR(o, 5), _Own(o, 9)], milestones=[8]),
            "_Own is not known to be a formula of the step",
        ),
    ],
)
def test_no_guess(scheduler: Any, reason: str) -> None:
    plan = _plan_of(scheduler)
    assert (plan.steps, plan.natural) == ((0, STEPS), ())
    assert reason in plan.reason


def test_rates_that_somebody_else_wrote_are_not_explained_by_the_formula() -> None:
    run = Run("linear", GROUPS)
    live = LiveSchedule(run.optimizer, run.scheduler)
    for _ in range(9):
        run.step()
    run.optimizer.param_groups[1]["lr"] *= 2
    assert "not the one that the scheduler's formula gives" in live.plan(9, STEPS).reason
    run.step()
    assert live.plan(10, STEPS).natural


def test_the_last_step() -> None:
    run = Run("linear", GROUPS)
    live = LiveSchedule(run.optimizer, run.scheduler)
    for _ in range(STEPS):
        run.step()
    assert live.plan(STEPS, STEPS) == Plan((STEPS,), (0.0,))


# --- the steps that tell a shape -----------------------------------------------------------------------


def _turns(rates: list[float]) -> set[int]:
    """Every local extreme, by its definition (of a level stretch its end), with a millionth after it."""
    found, last = [], 0.0
    for t in range(1, len(rates)):
        if (step := rates[t] - rates[t - 1]) * last < 0:
            found.append(t - 1)
        last = step or last
    level = 1e-6 * max(rates)
    return {t for t, after in pairwise([*found, len(rates) - 1]) if abs(rates[t] - rates[after]) > level}


@pytest.mark.parametrize("total", [500, 20_000, 300_000])
@pytest.mark.parametrize("name", [name for name in HF if name not in UNFORESEEN])
def test_no_peak_no_restart_and_no_warm_up_is_lost(name: str, total: int) -> None:
    """Every turn is there, also where not every step is read; between the points it is all but straight."""
    options: dict[str, Any] = {**HF[name], **({"num_cycles": 20} if "restarts" in name else {})}
    if name == "warmup_stable_decay":
        options["num_decay_steps"] = total // 3
    weight = torch.nn.Parameter(torch.ones(1))
    scheduler = get_scheduler(name, torch.optim.SGD([weight], lr=0.01), total // 7, total, options)
    live = LiveSchedule(scheduler.optimizer, scheduler, total, total // 7)
    plan = live.plan(0, total)
    (function,) = scheduler.lr_lambdas
    rates = [0.01 * function(step) for step in range(total + 1)]
    assert plan.natural == pytest.approx([rates[step] for step in plan.steps], rel=1e-9, abs=1e-15)
    assert {0, total} | _turns(rates) <= set(plan.steps)
    assert name == "constant" or total // 7 in plan.steps
    assert len(plan.steps) <= 3 + 64 + len(_turns(rates))
    between = np.interp(range(total + 1), plan.steps, plan.natural)
    # 40 turns leave less than two other points for each of the curves between them.
    close = 0.03 if name == "cosine_with_restarts" else 2e-3
    assert abs(between - rates).max() <= close * max(rates)
    assert len(json.dumps(plan.encode())) < 2900


@pytest.mark.parametrize("total", [400, 1_000_000])
def test_a_few_steps_of_another_course_are_found_where_they_turn_the_rate(total: int) -> None:
    """A restart with a warm-up of five steps: a millionth of the run, between two steps that are read."""

    def rate(step: int) -> float:
        since = step - total // 3
        return 1 - step / total if since < 0 else min(since / 5, 1.0) * (1 - since / total)

    steps, rates = read_ahead(rate, total)
    assert {0, total // 3 - 1, total // 3, total // 3 + 5, total} <= set(steps)
    assert list(rates) == pytest.approx(list(map(rate, steps)), rel=1e-9)


@pytest.mark.parametrize("length", [2, 3, 7, 64, 488, 489])
def test_a_schedule_that_turns_too_often_is_not_shown_as_another(length: int) -> None:
    with pytest.raises(Unforeseen, match="rises and falls too often"):
        read_ahead(lambda step: step % length / length, 1_000_000)


def test_many_turns_that_fit_are_all_there() -> None:
    steps, rates = read_ahead(lambda step: 1 - step % 25 / 25, 1899)
    assert set(steps) == {0, *range(24, 1900, 25), *range(25, 1900, 25)}
    assert set(rates) == {1.0, 0.04}
