"""Plans that real trainings and loops showed, against the rates that they then used."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from loop_tiny import Tiny
from torch.optim import lr_scheduler as sched
from training_doubles import Desk, Trainee, entry, new_session, wait_for
from training_tiny import Lab, Script

from ftlab_mlflow.control.plan import Plan
from ftlab_mlflow.control.preview import preview
from ftlab_mlflow.control.tags import SURFACE
from ftlab_mlflow.training.tunable import Tunable


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("kind", ["linear", "cosine_with_restarts"])
def test_a_trainer_uses_what_its_surface_showed(tmp_path: Path, attached: bool, kind: str) -> None:
    """The surface that an answer comes with is previewed, and the change made at that step."""
    lab, seen = Lab(tmp_path), {}
    change: dict[str, Any] = {"learning_rate": 0.004}

    def look(step: int, answered: str) -> None:
        wait_for(lambda: answered in lab.answered(), f"the answer to {answered}")
        at_step = 6 if step == 5 else None
        seen[step] = preview(lab.surface(), at_step=at_step, **(change if step == 5 else {}))

    lab.tell(2, "first", set={"learning_rate": 0.03})
    lab.tell(4, "steps", set={"max_steps": 21} if attached else {"weight_decay": 0.1})
    lab.tell(6, "change", set=change)
    lab.tell(9, "hold", set={"lr_schedule": "hold"})
    script = Script(
        {5: partial(look, 5, "steps"), 7: partial(look, 7, "change"), 10: partial(look, 10, "hold")}
    )
    options = {"num_cycles": 2} if "restarts" in kind else {}
    lab.make(
        attached=attached, callbacks=(script,), lr_scheduler_type=kind, lr_scheduler_kwargs=options,
        warmup_steps=2, max_steps=14, learning_rate=0.01,
    )  # fmt: skip
    lab.trainer.train()
    end = 21 if attached else 14
    rates = [*lab.recorder.rates, math.nan]
    assert len(lab.recorder.rates) == end
    assert {ack.status for ack in map(lab.ack, ("first", "steps", "change", "hold"))} == {"applied"}

    before, after, held = seen[5].changed, seen[7].today, seen[10].today
    # At 5 the surface was that of step 4: the request that waits for step 6 is seen two steps ahead.
    assert before.steps[0] == 4
    for curve, begin, last in ((before, 4, 9), (after, 6, 9), (held, 9, end)):
        assert curve.steps[0] == begin
        assert curve.steps[-1] == end
        close = 5e-3 if curve is before and kind != "linear" else 1e-9
        for step in curve.steps:
            if step < last:
                assert curve.at(step) == pytest.approx(rates[step], rel=close), step


def test_a_loop_that_steps_its_scheduler_once_a_step_is_foreseen() -> None:
    lab, seen = Tiny(), {}
    lab.scheduler = sched.CosineAnnealingLR(lab.optimizer, T_max=8)
    lab.tell(3, "r", set={"learning_rate": 0.004})

    def look() -> None:
        assert lab.ack("r").status == "applied"  # written together with the surface
        seen["then"] = preview(lab.surface()).today

    lab.at[5] = look
    lab.lay(max_steps=20)
    with lab.live:
        wait_for(lambda: SURFACE in lab.tags(), "the first surface")
        first = preview(lab.surface())
        assert (first.today, first.reason) == (None, "the loop has not stepped its scheduler yet")
        for step in range(20):
            lab.one(step)
            lab.at.get(step + 1, lambda: None)()
            lab.live.step()
    curve = seen["then"]
    assert (curve.steps[0], curve.steps[-1]) == (3, 20)
    expected = [max(lab.rates[step]) for step in curve.steps if step < 20]
    assert curve.rates[: len(expected)] == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("every", "reason"),
    [(5, "the loop stepped its scheduler 1 times in 8 steps"), (None, "the loop has no scheduler")],
)
def test_another_loop_is_not_foreseen(every: int | None, reason: str) -> None:
    lab = Tiny()
    if every:
        lab.scheduler = sched.StepLR(lab.optimizer, 1, gamma=0.5)
        lab.step_scheduler = lambda step: (step + 1) % every or lab.scheduler.step()
    lab.tell(7, "r", set={"learning_rate": 0.004})
    lab.lay(max_steps=9)
    lab.train(8)
    plan = lab.surface().params["learning_rate"].plan
    assert plan is not None
    assert plan.natural == ()
    assert reason in plan.reason


def test_a_plan_is_made_only_where_a_surface_is_written() -> None:
    """It takes milliseconds, and a request is checked against the surface as well."""
    made: list[int] = []

    class Planned(Trainee):
        def tunables(self) -> dict[str, Tunable]:
            def plan() -> Plan:
                made.append(len(made))
                return Plan((0, 100), (1.0, 0.0))

            found = super().tunables()
            return found | {"rate": replace(found["rate"], plan=plan)}

    desk = Desk()
    session = new_session(Planned(), desk)
    session.deliver([entry("a", set={"rate": 0.5}), entry("b", set={"rate": 7})], sent_before=False)
    for step in range(1, 50):
        session.boundary(step)
    assert len(desk.answered()) == len(made) == len(desk.posts) == 2
    assert desk.surface().params["rate"].plan == Plan((0, 100), (1.0, 0.0))
