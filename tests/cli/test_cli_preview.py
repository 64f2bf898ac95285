"""`ftlab preview` on a run whose plan is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cli_helpers import Ftlab, WrittenRun

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.plan import Plan
from ftlab_mlflow.control.surface import Param, Surface

LINEAR = Plan((100, 200), (1e-4, 0.0))


@pytest.fixture
def planned(new_run: Callable[..., WrittenRun]) -> Callable[[Plan | None], WrittenRun]:
    """A run that goes by a plan."""

    def make(plan: Plan | None) -> WrittenRun:
        run = new_run()
        params = {
            "learning_rate": Param("float", 1e-4, 1e-4, 0, 1, plan=plan),
            "lr_schedule": Param("enum", "keep", "keep", choices=("keep", "hold")),
        }
        run.store.write(run.run_id, {tags.SURFACE: Surface(params, ()).encode()})
        return run

    return make


def test_a_change_is_shown_beside_the_plan_and_nothing_is_sent(
    ftlab: Ftlab, planned: Callable[..., WrittenRun]
) -> None:
    run = planned(LINEAR)
    before = run.store.get(run.run_id).tags
    found = ftlab("preview", "latest", "learning_rate=5e-5", "--json")
    assert found.code == 0
    assert found.json == {
        "run_id": run.run_id,
        "change": {"learning_rate": 5e-5},
        "now": {"steps": [100, 200], "rates": [1e-4, 0.0]},
        "changed": {"steps": [100, 200], "rates": [5e-5, 0.0]},
        "reason": None,
    }
    lines = ftlab("preview", "tiny", "learning_rate=5e-5", "lr_schedule=hold", "--at-step", "150").out
    assert [line.split() for line in lines.splitlines()] == [
        ["after", "step", "now", "changed"],
        ["100", "0.0001", "0.0001"],
        ["149", "5.1e-05", "5.1e-05"],
        ["150", "5e-05", "5e-05"],
        ["200", "0", "5e-05"],
    ]
    assert run.store.get(run.run_id).tags == before


def test_today_s_plan_alone(ftlab: Ftlab, planned: Callable[..., WrittenRun]) -> None:
    planned(LINEAR)
    found = ftlab("preview", "latest", "--json").json
    assert "changed" not in found
    assert found["now"] == {"steps": [100, 200], "rates": [1e-4, 0.0]}
    assert ftlab("preview", "latest").out.split() == ["after", "step", "now", "100", "0.0001", "200", "0"]


def test_what_is_not_foreseen_is_said(ftlab: Ftlab, planned: Callable[..., WrittenRun]) -> None:
    planned(Plan((100, 200), reason="it waits for a metric"))
    found = ftlab("preview", "latest", "lr_schedule=hold")
    assert found.code == 0
    assert [line.split() for line in found.out.splitlines()[1:3]] == [
        ["100", "?", "0.0001"],
        ["200", "?", "0.0001"],
    ]
    assert found.out.endswith("Not foreseen: it waits for a metric.\n")
    planned(None)
    assert ftlab("preview", "latest").out == (
        "Not foreseen: this run's trainer publishes no plan of its learning rate.\n"
    )


def test_what_the_run_does_not_allow_is_refused(ftlab: Ftlab, planned: Callable[..., WrittenRun]) -> None:
    planned(LINEAR)
    found = ftlab("preview", "latest", "learning_rate=7", "--json")
    assert (found.code, found.error["code"]) == (1, "out_of_bounds")
    assert found.error["errors"] == {"learning_rate": "must be a finite number from 0 to 1, got 7.0"}
    for wrong in (["weight_decay=1"], ["learning_rate=1", "learning_rate=2"], ["--at-step", "-1"]):
        assert ftlab("preview", "latest", *wrong).code == 2
    assert "learning_rate and lr_schedule only" in ftlab("preview", "latest", "max_steps=7").err
