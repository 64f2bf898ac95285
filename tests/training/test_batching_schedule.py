"""The learning rate when the number of steps changes: the rest of a schedule is stretched to the new end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batching_plan import RATE
from training_tiny import Lab, Net

SCHEDULES = {
    **{name: {} for name in ("constant", "inverse_sqrt", "cosine", "polynomial")},
    "cosine_with_restarts": {"num_cycles": 2},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-3},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_keeps_its_shape_over_another_number_of_steps(tmp_path: Path, name: str) -> None:
    """The rates are those of an untouched scheduler, read at the stretched times."""
    lab = Lab(tmp_path)
    options: dict[str, Any] = {"lr_scheduler_type": name, "warmup_steps": 2, "max_steps": 10}
    options["lr_scheduler_kwargs"] = SCHEDULES[name]
    lab.tell(4, "r", set={"max_steps": 22})
    lab.make(attached=True, learning_rate=RATE, **options)
    lab.trainer.train()
    alone = Lab(tmp_path / "alone")
    alone.make(live=False, learning_rate=RATE, **options)
    alone.trainer.create_optimizer_and_scheduler(10)
    (formula,) = set(alone.trainer.lr_scheduler.lr_lambdas)
    times = [*range(4), *(4 + i * 6 / 18 for i in range(18))]
    rates = np.interp(times, range(11), [RATE * formula(step) for step in range(11)])
    assert list(lab.logged("learning_rate").values()) == pytest.approx(rates)


def test_a_scheduler_of_whole_steps_is_stepped_once_a_unit_of_its_time(tmp_path: Path) -> None:
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=10)
    lab = Lab(tmp_path)
    lab.tell(4, "more", set={"max_steps": 16})
    lab.tell(10, "fewer", set={"max_steps": 12})
    lab.make(attached=True, model=net, optimizers=(optimizer, scheduler), max_steps=10)
    lab.trainer.train()
    other = torch.optim.AdamW(Net().parameters(), lr=RATE)
    alone = torch.optim.lr_scheduler.OneCycleLR(other, RATE, total_steps=10)
    natural = []
    for _ in range(10):
        natural.append(alone.get_last_lr()[0])
        other.step()
        alone.step()
    # 6 units of time over 12 steps, then what is left of them, 3, over 2.
    times = [0, 1, 2, 3, 4, 4.5, 5, 5.5, 6, 6.5, 7, 8.5]
    assert list(lab.logged("learning_rate").values()) == [natural[int(time)] for time in times]


def test_a_plateau_is_not_stretched(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.tell(2, "r", set={"max_steps": 9})
    options = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 3}
    lab.make(attached=True, max_steps=6, learning_rate=RATE, metric_for_best_model="loss", **options)
    lab.trainer.train()
    assert lab.trainer.state.global_step == 9
    assert set(lab.logged("learning_rate").values()) == {RATE}


def test_a_finished_training_that_is_extended_has_the_schedule_of_its_new_length(tmp_path: Path) -> None:
    """What was left of the old one is nothing: it would train at a rate of 0."""
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 8, "learning_rate": RATE}
    lab = Lab(tmp_path)
    lab.make(attached=True, max_steps=8, **options)
    lab.trainer.train()
    more = Lab(tmp_path)
    more.make(attached=True, max_steps=16, **options)
    more.trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-8"))
    rates = [more.logged("learning_rate")[step] for step in range(10, 17)]
    assert rates == pytest.approx([RATE * (17 - step) / 16 for step in range(10, 17)])
