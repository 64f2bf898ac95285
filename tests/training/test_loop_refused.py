"""What `LiveLoop` refuses before anything has begun, and what it does without."""

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from loop_tiny import Tiny, net
from torch.optim import lr_scheduler as sched
from training_doubles import FlakyStore

from ftlab_mlflow import ConfigError, LiveLoop


def _loop(**options: Any) -> LiveLoop:
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
    return LiveLoop(optimizer, **({"max_steps": 10} | options))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_steps": 0}, "max_steps must be a whole number from 1, got 0"),
        ({"max_steps": 10.5}, "max_steps must be a whole number from 1"),
        ({"max_steps": True}, "max_steps must be a whole number from 1"),
        ({"poll_interval": 0}, "poll_interval must be seconds above 0"),
        ({"poll_interval": math.nan}, "poll_interval must be seconds above 0"),
        ({"store": FlakyStore()}, "store and run_id go together"),
        ({"limits": {"learning_rate": (1, 0)}}, "a minimum 1 above its maximum 0"),
        (
            {"limits": {"mix_ratio": (0, 1)}},
            "'mix_ratio' is no parameter with bounds; there",
        ),
        ({"scheduler": object()}, "scheduler must be a torch scheduler of this optimizer, got object"),
    ],
)
def test_an_argument_that_makes_no_sense(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        _loop(**options)


def test_an_optimizer_or_scheduler_of_somebody_else() -> None:
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
    other = torch.optim.SGD(net().parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="a torch scheduler of this optimizer, got StepLR"):
        LiveLoop(optimizer, sched.StepLR(other, 3), max_steps=10)
    with pytest.raises(ConfigError, match="optimizer must be a torch optimizer, got Sequential"):
        LiveLoop(net(), max_steps=10)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "default", "bounds", "text"),
    [
        ("mix ratio", 0.5, {}, "a tunable's name is letters, digits and _"),
        ("_mix", 0.5, {}, "a tunable's name is letters"),
        ("mischung_ä", 0.5, {}, "a tunable's name is letters"),
        ("x" * 65, 0.5, {}, "a tunable's name is letters"),
        (3, 0.5, {}, "a tunable's name is letters"),
        ("command", 0.5, {}, "and not 'command'"),
        ("learning_rate", 0.5, {}, "learning_rate is taken"),
        ("adam_beta1", 0.5, {}, "adam_beta1 is taken"),
        ("taken", 0.5, {}, "taken is taken: this loop has learning_rate, .*, taken"),
        ("mix", 1.5, {"max": 1}, "mix: the default must be a finite number to 1, got 1.5"),
        ("mix", math.inf, {}, "mix: the default must be a finite number, got inf"),
        ("mix", 1, {"min": 2}, "mix: the default must be a whole number from 2, got 1"),
        ("mix", 0.5, {"min": 1, "max": 0}, "min and max must be finite and in order, got 1 and 0"),
        ("mix", 0.5, {"min": math.nan}, "min and max must be finite"),
        ("mix", True, {"min": 0}, "min and max are for numbers"),
        ("mix", "a", {"choices": ["a"], "max": 3}, "min and max are for numbers"),
        ("mix", "a", {}, "a text needs choices"),
        ("mix", 1, {"choices": ["1"]}, "only a text has them"),
        ("mix", "c", {"choices": ["a", "b"]}, "the default must be one of a, b"),
        ("mix", "a", {"choices": ["a", "a"]}, "choices must be different texts"),
        ("mix", "a", {"choices": ["a", 3]}, "choices must be different texts"),
        ("mix", None, {}, "the default must be a float, an int, a bool or a text, got None"),
    ],
)
def test_a_tunable_that_makes_no_sense(name: Any, default: Any, bounds: dict[str, Any], text: str) -> None:
    live = _loop()
    live.tunable("taken", 1)
    with pytest.raises(ConfigError, match=text):
        live.tunable(name, default, **bounds)


def test_what_comes_too_early_or_too_late() -> None:
    tiny = Tiny()
    live = tiny.lay()
    with pytest.raises(ConfigError, match="belongs inside of `with live:`"):
        live.step()
    with pytest.raises(ConfigError, match="has no state before it has begun"):
        live.state_dict()
    with pytest.raises(ConfigError, match=r"no state of a LiveLoop: it lacks asked, .*run_id"):
        live.load_state_dict({"step": 3})
    with live:
        for late in (live.start, lambda: live.tunable("mix", 0.5), lambda: live.load_state_dict({})):
            with pytest.raises(ConfigError, match="the loop has begun: too late to"):
                late()
    with pytest.raises(ConfigError, match="belongs inside of `with live:`"):
        live.step()
    assert tiny.status().state == "finished"


@pytest.mark.parametrize("wide", ["limits", "choices"])
def test_what_does_not_fit_is_refused_before_the_run_begins(wide: str) -> None:
    tiny = Tiny()
    scheduler = tiny.scheduler = sched.StepLR(tiny.optimizer, 3)
    live = tiny.lay(limits={"weight_decay": (0, 1000)} if wide == "limits" else None)
    if wide == "choices":
        live.tunable("mode", "0", choices=[str(i) for i in range(3000)])
    with pytest.raises(ConfigError, match="can be narrowed within" if wide == "limits" else "for one tag"):
        live.start()
    assert tiny.tags() == {}
    assert type(scheduler) is sched.StepLR


def test_a_plain_loop_needs_no_transformers() -> None:
    code = "import sys, ftlab_mlflow; ftlab_mlflow.LiveLoop; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
