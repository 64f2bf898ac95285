"""A previewed change of the learning rate against the protocol's formula, applied step by step."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.client import LiveRun
from ftlab_mlflow.control.plan import Plan
from ftlab_mlflow.control.preview import Curve, preview
from ftlab_mlflow.control.store import MemoryRunStore
from ftlab_mlflow.control.surface import Param, Surface
from ftlab_mlflow.errors import MessageError, UpdateRejected

LINEAR = Plan((100, 200), (1e-4, 0.0))


def surface(plan: Plan | None, value: float = 1e-4, mode: str = "keep") -> Surface:
    params = {
        "learning_rate": Param("float", value, 1e-4, 0, 1, plan=plan),
        "lr_schedule": Param("enum", mode, mode, choices=("keep", "hold")),
    }
    return Surface(params, ("pause",))


def by_formula(natural: list[float], value: float, peak: float) -> list[float]:
    """The protocol's formula at every step; `peak` is the largest rate before."""
    rates = []
    for t in range(len(natural)):
        top = max(peak, *natural[: t + 1])
        rates.append(value * (natural[t] / top if top else 1.0))
    return rates


_corners = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 1.0])), min_size=1, max_size=8
)
_ceilings = st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    corners=_corners,
    ceiling=_ceilings,
    mode=st.sampled_from(["keep", "hold"]),
    wait=st.integers(0, 80),
    value=st.none() | st.floats(0, 1),
    new_mode=st.sampled_from([None, "keep", "hold"]),
)
def test_any_change_of_any_plan_at_any_step(
    corners: list[tuple[int, float]],
    ceiling: tuple[float, float] | None,
    mode: str,
    wait: int,
    value: float | None,
    new_mode: str | None,
) -> None:
    """Every step is computed by itself; the preview knows only the corners of the plan."""
    steps = list(np.cumsum([10, *(length for length, _ in corners)]).tolist())
    natural_at = [0.5, *(rate for _, rate in corners)]
    every = list(range(10, steps[-1] + 1))
    natural = np.interp(every, steps, natural_at).tolist()
    if mode == "hold":
        ceiling = None
        today = [0.3] * len(every)
    elif ceiling:
        ceiling = (ceiling[0], max(ceiling[1], natural[0]))
        today = by_formula(natural, *ceiling)
    else:
        today = natural
    changed = list(today)
    if wait < len(every):
        then = new_mode or mode
        wanted = today[wait] if value is None else value
        if then == "hold":
            changed[wait:] = [wanted] * len(every[wait:])
        elif value is not None or then != mode:
            changed[wait:] = by_formula(natural[wait:], wanted, 0.0)

    plan = Plan(tuple(steps), tuple(natural_at), *(ceiling or (None, None)))
    seen = preview(surface(plan, today[0], mode), value, new_mode, 10 + wait)
    assert seen.reason == ""
    for curve, expected in ((seen.today, today), (seen.changed, changed)):
        assert curve is not None
        assert curve.steps[0] == 10
        assert curve.steps[-1] == every[-1]
        assert all(a < b for a, b in pairwise(curve.steps))
        assert list(map(curve.at, every)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_sentences_of_the_protocol() -> None:
    """A decay goes on decaying from the new value; held, the rate stays there."""
    kept = preview(surface(LINEAR), 5e-5).changed
    assert kept == Curve((100, 200), (5e-5, 0.0))
    assert preview(surface(LINEAR), 5e-5, "hold").changed == Curve((100, 200), (5e-5, 5e-5))
    assert preview(surface(LINEAR), 5e-5).today == Curve((100, 200), (1e-4, 0.0))
    # A warm-up does not climb past it, also one that begins at 0.
    rising = surface(Plan((0, 10, 20), (0.0, 1e-4, 0.0)), 0.0)
    assert preview(rising, 2e-5).changed == Curve((0, 10, 20), (2e-5, 2e-5, 0.0))
    assert preview(rising, lr_schedule="hold").changed == Curve((0, 10, 20), (0.0, 0.0, 0.0))
    # A schedule that restarts returns to the value, and the restart is not smeared over the steps before it.
    restarts = surface(Plan((50, 99, 100, 149), (0.5, 0.0, 1.0, 0.0)), 0.5)
    assert preview(restarts, 0.1).changed == Curve((50, 99, 100, 149), (0.1, 0.0, 0.1, 0.0))


def test_a_rise_meets_its_ceiling_between_two_steps_of_the_plan() -> None:
    plan = Plan((0, 10, 30), (0.5, 0.0, 1.0))
    changed = preview(surface(plan, 0.5), 0.1).changed
    assert changed is not None
    assert changed.steps == (0, 10, 19, 20, 30)
    assert changed.rates == pytest.approx([0.1, 0.0, 0.09, 0.1, 0.1])


def test_a_request_that_waits_changes_nothing_before() -> None:
    seen = preview(surface(LINEAR), 5e-5, at_step=150)
    assert seen.today == Curve((100, 200), (1e-4, 0.0))
    assert seen.changed is not None
    assert seen.changed.steps == (100, 149, 150, 200)
    assert seen.changed.rates == pytest.approx([1e-4, 5.1e-5, 5e-5, 0.0])
    assert preview(surface(LINEAR), 5e-5, at_step=99) == preview(surface(LINEAR), 5e-5)
    beyond = preview(surface(LINEAR), 5e-5, at_step=201)
    assert beyond.changed == beyond.today == seen.today


def test_a_rate_between_two_steps() -> None:
    curve = Curve((10, 20), (1.0, 0.0))
    assert [curve.at(step) for step in (5, 10, 15, 20, 30)] == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_what_cannot_be_foreseen_says_why_and_a_held_rate_can() -> None:
    plan = Plan((100, 200), reason="ReduceLROnPlateau waits for a metric")
    seen = preview(surface(plan), 5e-5)
    assert (seen.today, seen.changed, seen.reason) == (None, None, "ReduceLROnPlateau waits for a metric")
    held = preview(surface(plan), 5e-5, "hold")
    assert (held.today, held.reason) == (None, plan.reason)
    assert held.changed == Curve((100, 200), (5e-5, 5e-5))
    now = preview(surface(plan), lr_schedule="hold", at_step=3)
    assert now.changed == Curve((100, 200), (1e-4, 1e-4))
    assert preview(surface(plan), lr_schedule="hold", at_step=150).changed is None
    is_held = surface(plan, 2e-5, "hold")
    assert preview(is_held).today == Curve((100, 200), (2e-5, 2e-5))
    seen = preview(is_held, lr_schedule="keep")
    assert (seen.changed, seen.reason) == (None, plan.reason)


def test_a_run_without_a_plan() -> None:
    seen = preview(surface(None), 5e-5)
    assert (seen.today, seen.changed) == (None, None)
    assert "no plan" in seen.reason
    why = "this optimizer sets its own learning rate"
    assert preview(Surface({}, (), {"learning_rate": why})).reason == why
    assert preview(Surface({}, ())).reason


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"learning_rate": math.nan}, "out_of_bounds"),
        ({"learning_rate": math.inf}, "out_of_bounds"),
        ({"learning_rate": 1.5}, "out_of_bounds"),
        ({"learning_rate": "fast"}, "wrong_type"),
        ({"learning_rate": True}, "wrong_type"),
        ({"lr_schedule": "faster"}, "out_of_bounds"),
    ],
)
def test_what_the_surface_does_not_allow_is_refused(change: dict[str, Any], code: str) -> None:
    with pytest.raises(UpdateRejected, match="must be") as caught:
        preview(surface(LINEAR), **change)
    assert caught.value.code == code
    with pytest.raises(UpdateRejected, match="sets its own"):
        preview(Surface({}, (), {"learning_rate": "sets its own", "lr_schedule": "sets its own"}), **change)


def test_a_run_is_asked_for_a_preview() -> None:
    store = MemoryRunStore()
    run_id = store.create_run()
    store.write(run_id, {tags.SURFACE: surface(LINEAR).encode()})
    before = store.get(run_id).tags
    seen = LiveRun(run_id, store=store).preview(learning_rate=5e-5, lr_schedule="hold", at_step=150)
    assert seen == preview(surface(LINEAR), 5e-5, "hold", 150)
    assert store.get(run_id).tags == before


# --- on the surface ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [LINEAR, replace(LINEAR, ceiling=5e-5, peak=1e-4), Plan((7,)), Plan((7, 9), reason="it waits"), None],
)
def test_a_plan_survives_its_tag(plan: Plan | None) -> None:
    written = surface(plan)
    assert Surface.decode(written.encode()) == written
    assert ("plan" in json.loads(written.encode())["params"]["learning_rate"]) == (plan is not None)


@pytest.mark.parametrize(
    "plan",
    [
        [],
        {},
        {"steps": []},
        {"steps": 7},
        {"steps": [1, 1]},
        {"steps": [2, 1]},
        {"steps": [-1]},
        {"steps": [1.5]},
        {"steps": [1, 2], "natural": [1]},
        {"steps": [1], "natural": ["1"]},
        {"steps": [1], "natural": [math.nan]},
        {"steps": [1], "natural": [1], "peak": 1},
        {"steps": [1], "natural": [1], "ceiling": 1},
        {"steps": [1], "reason": 7},
    ],
)
def test_a_plan_of_the_wrong_shape_is_invalid_and_named(plan: object) -> None:
    param = {"type": "float", "value": 1, "asked": 1, "plan": plan}
    with pytest.raises(MessageError, match="params: learning_rate: plan ") as caught:
        Surface.decode(json.dumps({"v": 1, "params": {"learning_rate": param}, "commands": []}))
    assert caught.value.code == "invalid"


def test_unknown_keys_of_a_plan_are_a_newer_trainer_s() -> None:
    encoded = LINEAR.encode() | {"unit": "steps"}
    assert Plan.decode(encoded) == LINEAR


def test_the_plan_is_the_first_to_go_where_a_tag_could_not_hold_all() -> None:
    long = Plan(tuple(range(160)), tuple(1 / (step + 3) for step in range(160)))
    params = {f"p{i}": Param("float", 0.5, 0.5, help="x" * 100) for i in range(20)}
    full = replace(surface(long), unsupported={"q": "y" * 1000})
    both = replace(full, params={**full.params, **params})
    assert Surface.decode(full.encode()) == full
    left = both.params | {"learning_rate": replace(both.params["learning_rate"], plan=None)}
    assert Surface.decode(both.encode()) == replace(both, params=left)
    more = replace(both, unsupported={f"q{i}": "y" * 100 for i in range(60)})
    assert Surface.decode(more.encode()) == replace(more, params=left, unsupported={})
