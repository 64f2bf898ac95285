"""What becomes of "set the learning rate to X at step k": by what people write today, and by this project.

Real trainings on the CPU; the rate is read where it is used, in the optimizer's step. What is right is
computed from the training that nobody touches, by the formula in docs/protocol.md.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from report import table
from trainings import quiet
from transformers import PrinterCallback, Trainer, TrainerCallback

from ftlab_mlflow import LiveControl, MemoryRunStore
from ftlab_mlflow.control.messages import Update
from ftlab_mlflow.control.tags import UPDATE_PREFIX
from ftlab_mlflow.control.wire import utc_now

PAGE = Path(__file__).with_name("peers.md")
SCHEDULES = ("linear", "cosine", "constant")
STEPS, AT_STEP = 100, 40
LAUNCHED, ASKED = 1e-3, 5e-4

Rates = list[float]
"""The rate of every optimizer step, from step 1 on."""


class _Recorder(TrainerCallback):
    """Notes the rate that each optimizer step uses."""

    def __init__(self) -> None:
        self.rates: Rates = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["optimizer"].optimizer.register_step_pre_hook(self._note)

    def _note(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self.rates.append(float(optimizer.param_groups[0]["lr"]))


class _AssignsGroups(TrainerCallback):
    """Assigns the rate in the optimizer's groups."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == AT_STEP:
            for group in kwargs["optimizer"].param_groups:
                group["lr"] = ASKED


class _AssignsBase(TrainerCallback):
    """Assigns the scheduler's base rates."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == AT_STEP:
            scheduler = kwargs["lr_scheduler"]
            scheduler.base_lrs = [ASKED] * len(scheduler.base_lrs)


def _live_control() -> TrainerCallback:
    """Live control of a run on which the request waits for its step."""
    store = MemoryRunStore()
    run_id = store.create_run()
    update = Update(at=utc_now(), set={"learning_rate": ASKED}, at_step=AT_STEP, by="peers")
    store.write(run_id, {UPDATE_PREFIX + "peers": update.encode()})
    return LiveControl(store=store, run_id=run_id)


UNTOUCHED, OURS = "untouched", "this project"
WAYS: dict[str, Callable[[], TrainerCallback] | None] = {
    UNTOUCHED: None,
    '`param_groups[…]["lr"] = X`': _AssignsGroups,
    "`scheduler.base_lrs = [X, …]`": _AssignsBase,
    OURS: _live_control,
}


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.linear(x).square().mean()}


def train(schedule: str, way: str) -> Rates:
    """Trains once, and says which rates it used."""
    recorder = _Recorder()
    make = WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=_Model(),
            args=quiet(folder, max_steps=STEPS, learning_rate=LAUNCHED, lr_scheduler_type=schedule),
            train_dataset=[{"x": torch.ones(1)}] * 8,  # type: ignore[arg-type]
            callbacks=[recorder, *([make()] if make else [])],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return recorder.rates


def expected(untouched: Rates) -> Rates:
    """The rates of the steps after the request, as docs/protocol.md defines them."""
    natural = untouched[AT_STEP:]
    return [ASKED * rate / max(natural[: i + 1]) for i, rate in enumerate(natural)]


def verdict(is_right: Sequence[bool]) -> str:
    """In words, for each step after the request whether its rate was right."""
    if all(is_right):
        return "right"
    if not any(is_right):
        return "never right"
    if is_right[0]:
        steps = is_right.index(False)
        return f"gone after {steps} step" + "s" * (steps > 1)
    late = is_right.index(True)
    return f"{late} step{'s' * (late > 1)} late" if all(is_right[late:]) else "now and then"


def rows(schedule: str) -> list[list[str]]:
    """One row of the table for each way, and one for what is right."""
    runs = {way: train(schedule, way) for way in WAYS}
    right = expected(runs[UNTOUCHED])
    shown = {"asked for": right, **{way: rates[AT_STEP:] for way, rates in runs.items()}}
    places = [0, 1, (STEPS - AT_STEP) // 2, -1]
    result = []
    for name, rates in shown.items():
        row = [schedule, name, *(f"{rates[place]:.3e}" for place in places)]
        if name in ("asked for", UNTOUCHED):
            result.append([*row, "", ""])
            continue
        is_right = [abs(rate - wanted) <= 1e-9 * wanted for rate, wanted in zip(rates, right, strict=True)]
        result.append([*row, f"{sum(is_right)} of {len(right)}", verdict(is_right)])
    return result


def peers() -> str:
    """The table."""
    middle = AT_STEP + 1 + (STEPS - AT_STEP) // 2
    places = [AT_STEP + 1, AT_STEP + 2, middle, STEPS]
    head = ["schedule", "way", *(f"step {place}" for place in places), "steps right", "verdict"]
    return table(head, [row for schedule in SCHEDULES for row in rows(schedule)])


def written(page: str, text: str) -> str:
    """The page with another table."""
    return re.sub(r"(?<=<!-- peers -->\n\n).*?(?=\n\n<!-- /peers -->)", lambda _: text, page, flags=re.DOTALL)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    text = peers()
    print(text)
    PAGE.write_text(written(PAGE.read_text(), text))


if __name__ == "__main__":
    main()
