"""The live learning rate against the formula of the protocol, computed from an untouched twin."""

import copy
import io
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler as sched
from transformers import get_scheduler

from ftlab_mlflow.training.schedule import LiveSchedule

STEPS = 40
METRICS = [2.0, 1.5, 1.2, 1.2, 1.3, 1.2, 1.25, 1.21, 1.0, 1.1, 1.05, 1.2, 1.3, 1.1, 0.9, 0.95]
"""What a scheduler that waits for an evaluation gets to see, over and over: better, worse, level."""

HF: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {"power": 2.0, "lr_end": 1e-7},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {},
    "reduce_lr_on_plateau": {"patience": 0, "factor": 0.5},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1, "warmup_lr_rate": 0.05},
    "warmup_stable_decay": {"num_decay_steps": 10, "min_lr_ratio": 0.1},
    "greedy": {"patience": 1, "min_lr": 1e-4, "max_lr": 0.5, "factor": 0.6, "reset_start": 2},
}
Make = Callable[[torch.optim.Optimizer], Any]
TORCH: dict[str, Make] = {
    "StepLR": lambda o: sched.StepLR(o, step_size=7, gamma=0.5),
    "ExponentialLR": lambda o: sched.ExponentialLR(o, gamma=0.93),
    "CosineAnnealingLR": lambda o: sched.CosineAnnealingLR(o, T_max=9, eta_min=1e-5),
    "CosineAnnealingWarmRestarts": lambda o: sched.CosineAnnealingWarmRestarts(o, T_0=6, T_mult=2),
    "OneCycleLR": lambda o: sched.OneCycleLR(
        o, max_lr=[5 * group["lr"] for group in o.param_groups], total_steps=STEPS + 1
    ),
    "SequentialLR": lambda o: sched.SequentialLR(
        o,
        [
            sched.LinearLR(o, start_factor=0.1, total_iters=8),
            sched.ExponentialLR(o, gamma=0.9),
            sched.StepLR(o, step_size=3, gamma=0.5),
        ],
        milestones=[8, 20],
    ),
    "LambdaLR": lambda o: sched.LambdaLR(o, lambda t: 1 / (1 + 0.2 * t)),
    "LambdaLR from zero": lambda o: sched.LambdaLR(o, lambda t: max(0, t - 3) / 10 if t < 13 else 0.9**t),
    "LambdaLR by group": lambda o: sched.LambdaLR(o, [_bend(i) for i in range(len(o.param_groups))]),
}
NAMES = [*HF, *TORCH]
RATES = {"one group": (0.01,), "three groups": (0.002, 0.01, 0.005)}


def _bend(group: int) -> Callable[[int], float]:
    return lambda t: 0.97 ** (t * (group + 1))


def _scheduler(name: str, optimizer: torch.optim.Optimizer) -> Any:
    if name in HF:
        return get_scheduler(name, optimizer, 5, STEPS, copy.deepcopy(HF[name]))
    return TORCH[name](optimizer)


class Run:
    """An optimizer and its scheduler, stepped as a trainer steps them."""

    def __init__(self, name: str, rates: tuple[float, ...], *, tensor: bool = False) -> None:
        self.metrics = iter(METRICS * STEPS) if name in ("reduce_lr_on_plateau", "greedy") else None
        groups = []
        for rate in rates:
            weight = torch.nn.Parameter(torch.ones(2))
            weight.grad = torch.full_like(weight, 0.1)
            groups.append({"params": [weight], "lr": torch.tensor(rate) if tensor else rate})
        first = torch.tensor(rates[0]) if tensor else rates[0]
        self.optimizer = torch.optim.SGD(groups, lr=first, momentum=0.9, foreach=False)
        self.scheduler = _scheduler(name, self.optimizer)

    def step(self) -> None:
        self.optimizer.step()
        self.scheduler.step(*(() if self.metrics is None else (next(self.metrics),)))

    @property
    def rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def weights(self) -> list[torch.Tensor]:
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]

    def load_weights(self, other: "Run") -> None:
        with torch.no_grad():
            for mine, theirs in zip(self.weights(), other.weights(), strict=True):
                mine.copy_(theirs)

    def state(self) -> dict[str, Any]:
        """The scheduler's own state, and all of the optimizer's groups but the rate in force."""
        state = {k: v for k, v in self.scheduler.state_dict().items() if k != "_last_lr"}
        groups = [
            {k: v for k, v in group.items() if k not in ("params", "lr")}
            for group in self.optimizer.param_groups
        ]
        return copy.deepcopy({"scheduler": state, "groups": groups})


class Oracle:
    """The rate that the protocol asks for, from the rates of the untouched twin alone."""

    def __init__(self, built: list[float]) -> None:
        self.natural: list[list[float]] = []
        self.start = [rate / max(built) for rate in built]
        self.value: float | None = None
        self.since = 0
        self.held: list[float] | None = None

    def shares(self, step: int) -> list[float]:
        top = max(self.natural[step])
        return [rate / top for rate in self.natural[step]] if top else self.start

    def ask(self, value: float, step: int) -> None:
        self.value, self.since = value, step

    def hold(self, step: int) -> None:
        if self.held is None:
            self.value, self.held = max(self.rates(step)), self.shares(step)

    def keep(self, step: int) -> None:
        if self.held is not None:
            self.value, self.since, self.held = max(self.rates(step)), step, None

    def rates(self, step: int) -> list[float]:
        if self.value is None:
            return self.natural[step]
        if self.held is not None:
            return [self.value * share for share in self.held]
        peak = max(max(rates) for rates in self.natural[self.since : step + 1])
        if peak == 0:
            return [self.value * share for share in self.start]
        return [self.value * rate / peak for rate in self.natural[step]]


Event = tuple[int, str | float]


def follow(name: str, rates: tuple[float, ...], events: list[Event], *, tensor: bool = False) -> None:
    """Trains a run with `events` (step, value or mode) beside its twin and checks every single step."""
    run, twin = Run(name, rates, tensor=tensor), Run(name, rates, tensor=tensor)
    live = LiveSchedule(run.optimizer, run.scheduler)
    oracle = Oracle(list(rates))
    tolerance = 1e-6 if tensor else 1e-12
    for step in range(STEPS):
        oracle.natural.append(twin.rates)
        for at, what in events:
            if at != step:
                continue
            if isinstance(what, float):
                live.ask(what)
                oracle.ask(what, step)
                assert live.rate == (float(torch.tensor(what)) if tensor else what)
            else:
                live.set_mode(what)
                oracle.hold(step) if what == "hold" else oracle.keep(step)
                assert live.mode == what
        expected = oracle.rates(step)
        assert run.rates == pytest.approx(expected, rel=tolerance, abs=1e-30), f"at step {step}"
        assert live.rate == max(run.rates)
        assert [float(rate) for rate in run.scheduler.get_last_lr()] == pytest.approx(run.rates, rel=1e-7)
        assert _same(run.state(), twin.state()), f"the scheduler's own state at step {step}"
        run.step()
        twin.step()


def _same(a: Any, b: Any) -> bool:
    """Bit for bit, types included."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    if callable(a):
        return callable(b)
    if hasattr(a, "__dict__"):
        return type(a) is type(b) and _same(vars(a), vars(b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


SCRIPTS: dict[str, list[Event]] = {
    "at the beginning": [(0, 0.02)],
    "in the warm-up, in the middle, at the end": [(2, 0.003), (17, 0.05), (38, 0.001)],
    "twice at one step": [(10, 0.5), (10, 0.004)],
    "held and let go": [(4, "hold"), (9, 0.02), (20, "keep"), (30, 0.001)],
    "held while asking at one boundary": [(12, 0.02), (12, "hold"), (25, 0.007), (25, "keep")],
    "zero and back": [(6, 0.0), (15, 0.01), (22, 0.0), (22, "hold"), (28, 0.3)],
}


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES.keys())
@pytest.mark.parametrize("name", NAMES)
def test_every_step_follows_the_formula(name: str, rates: tuple[float, ...]) -> None:
    for events in SCRIPTS.values():
        follow(name, rates, events)


# GreedyLR remembers the first tensor itself and puts plain numbers in its place: no tensor rates there.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "greedy"])
def test_rates_that_are_tensors_stay_the_same_tensors(name: str) -> None:
    for events in SCRIPTS.values():
        follow(name, (0.002, 0.01), events, tensor=True)
    run = Run(name, (0.01,), tensor=True)
    before = run.optimizer.param_groups[0]["lr"]
    live = LiveSchedule(run.optimizer, run.scheduler)
    live.ask(0.5)
    run.step()
    assert run.optimizer.param_groups[0]["lr"] is before


_values = st.one_of(st.just(0.0), st.floats(1e-12, 1.0, allow_nan=False))
_events = st.lists(
    st.tuples(st.integers(0, STEPS - 1), st.one_of(_values, st.sampled_from(["hold", "keep"]))), max_size=8
).map(lambda events: sorted(events, key=lambda event: event[0]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(name=st.sampled_from(NAMES), rates=st.sampled_from(list(RATES.values())), events=_events)
def test_any_requests_at_any_steps(name: str, rates: tuple[float, ...], events: list[Event]) -> None:
    follow(name, rates, events)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_touched_before_the_first_request(name: str) -> None:
    run, twin = Run(name, (0.002, 0.01)), Run(name, (0.002, 0.01))
    plain = type(run.scheduler)
    live = LiveSchedule(run.optimizer, run.scheduler)
    assert isinstance(run.scheduler, plain)
    for _ in range(STEPS):
        assert _same(run.scheduler.state_dict(), twin.scheduler.state_dict())
        assert _same(run.optimizer.state_dict(), twin.optimizer.state_dict())
        assert live.state() is None
        live.set_mode("keep")
        run.step()
        twin.step()


def _through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("name", "tensor"), [*((n, False) for n in NAMES), *((n, True) for n in NAMES if n != "greedy")]
)
@pytest.mark.parametrize("script", [[(6, 0.02), (20, 0.004)], [(6, "hold"), (9, 0.3), (25, "keep")]])
def test_a_resume_goes_on_exactly(name: str, script: list[Event], tensor: bool) -> None:
    run = Run(name, (0.002, 0.01), tensor=tensor)
    live = LiveSchedule(run.optimizer, run.scheduler)
    for step in range(STEPS):
        if step in (3, 13, 21, 30):  # every segment of the script is also resumed from
            resumed = Run(name, (0.002, 0.01), tensor=tensor)
            if resumed.metrics is not None:
                resumed.metrics = iter((METRICS * STEPS)[step:])
            resumed.optimizer.load_state_dict(_through_a_file(run.optimizer.state_dict()))
            resumed.scheduler.load_state_dict(_through_a_file(run.scheduler.state_dict()))
            resumed.load_weights(run)
            again = LiveSchedule(resumed.optimizer, resumed.scheduler)
            again.load(json.loads(json.dumps(live.state())))
            run, live = resumed, again
        _tell(live, script, step)
        run.step()
    unbroken = Run(name, (0.002, 0.01), tensor=tensor)
    whole = LiveSchedule(unbroken.optimizer, unbroken.scheduler)
    for step in range(STEPS):
        _tell(whole, script, step)
        unbroken.step()
    assert run.rates == unbroken.rates
    assert whole.state() == live.state()
    assert _same(run.scheduler.state_dict(), unbroken.scheduler.state_dict())
    assert all(map(torch.equal, run.weights(), unbroken.weights()))


def _tell(live: LiveSchedule, script: list[Event], step: int) -> None:
    for at, what in script:
        if at == step:
            live.ask(what) if isinstance(what, float) else live.set_mode(what)


@pytest.mark.parametrize(
    "before", [[], [(3, 0.02)], [(3, 0.02), (4, "hold")]], ids=["plain", "asked", "held"]
)
@pytest.mark.parametrize("name", NAMES)
def test_undo_puts_back_everything(name: str, before: list[Event]) -> None:
    run, twin = Run(name, (0.002, 0.01)), Run(name, (0.002, 0.01))
    live, other = LiveSchedule(run.optimizer, run.scheduler), LiveSchedule(twin.optimizer, twin.scheduler)
    for step in range(STEPS):
        _tell(live, before, step)
        _tell(other, before, step)
        if step in (0, 8, 21):
            captured = live.capture()
            live.ask(0.7)
            live.set_mode("keep" if live.mode == "hold" else "hold")
            live.ask(0.1)
            live.restore(captured)
        assert run.rates == twin.rates
        assert live.state() == other.state()
        assert _same(run.scheduler.state_dict(), twin.scheduler.state_dict())
        run.step()
        twin.step()


@pytest.mark.parametrize("name", NAMES)
def test_detach_gives_the_scheduler_back(name: str) -> None:
    run, twin = Run(name, (0.01,)), Run(name, (0.01,))
    plain = type(run.scheduler)
    live = LiveSchedule(run.optimizer, run.scheduler)
    run.step()
    twin.step()
    live.ask(0.3)
    assert type(run.scheduler) is not plain
    live.detach()
    assert type(run.scheduler) is plain
    assert run.rates == [0.3]
    assert _same(run.state(), twin.state())


def test_a_step_that_raises_leaves_the_rate_in_force() -> None:
    run = Run("reduce_lr_on_plateau", (0.01,))
    live = LiveSchedule(run.optimizer, run.scheduler)
    live.ask(0.3)
    with pytest.raises(TypeError):
        run.scheduler.step()
    assert run.rates == [0.3]


def test_the_launch_rate_is_that_of_the_largest_group() -> None:
    run = Run("linear", (0.002, 0.01))
    assert LiveSchedule(run.optimizer, run.scheduler).launch_rate == 0.01
    assert run.rates == [0.0, 0.0]  # a warm-up starts at 0: the rate in force does not tell


def test_a_cycled_momentum_is_seen() -> None:
    for name in NAMES:
        run = Run(name, (0.01,))
        assert LiveSchedule(run.optimizer, run.scheduler).cycles_momentum == (name == "OneCycleLR")


def test_the_shape_is_kept_beneath_the_value() -> None:
    """The protocol's sentences, spelled out on schedules that anyone can compute in the head."""
    decay = Run("linear", (1.0,))
    live = LiveSchedule(decay.optimizer, decay.scheduler)
    for _ in range(5):
        decay.step()
    live.ask(0.5)
    for left in range(STEPS - 5, 0, -1):
        assert math.isclose(live.rate, 0.5 * left / (STEPS - 5), rel_tol=1e-12)
        decay.step()
    assert live.rate == 0.0

    warm_up = Run("constant_with_warmup", (1.0,))
    live = LiveSchedule(warm_up.optimizer, warm_up.scheduler)
    live.ask(0.25)
    for _ in range(STEPS):
        assert live.rate == 0.25
        warm_up.step()
