"""Live batch size, accumulation and number of steps, against a plain PyTorch loop that counts for itself."""

import json
import math
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training_tiny import Lab, Net, Watched, data, weights
from transformers import ProgressCallback, Trainer, TrainerCallback

from ftlab_mlflow.errors import ConfigError

Change = dict[str, Any]
RATE = 0.01


class Diary(TrainerCallback):
    """What the trainer says of itself after every step, and at the end of every epoch."""

    def __init__(self, model: Watched) -> None:
        self.model = model
        self.steps: list[list[list[int]]] = []
        self.epochs: list[float] = []
        self.ends: list[tuple[int, float]] = []
        self.events: list[tuple[str, int]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        taken = sum(map(len, self.steps))
        self.steps.append(self.model.seen[taken:])
        self.epochs.append(state.epoch)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append((state.global_step, state.epoch))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(("evaluate", state.global_step))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(("save", state.global_step))


@dataclass
class Plan:
    """A training as the protocol defines it, counted sample by sample.

    Attributes:
        rows, size, batches, epochs, steps: Samples, batch size, accumulation, and what says when it ends.
        total: The step that it ends with. time: Of its schedule.
        warm_end: The step that its warm-up ends with, once that was changed.
    """

    rows: int
    size: int
    batches: int
    epochs: float | None
    steps: int | None
    drop_last: bool = False
    warmup: int = 0
    step: int = 0
    epoch: int = 0
    used: int = 0
    time: float = 0.0
    warm_end: float | None = None
    total: int = field(init=False)
    launched: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = self.launched = self._end()

    def _steps_from(self, used: int) -> int:
        """Steps that the samples from `used` on make, one by one."""
        count = 0
        while sizes := self._next(used):
            used += sum(sizes)
            count += 1
        return count

    def _next(self, used: int) -> list[int]:
        """Sizes of the batches of the next step in an epoch of which `used` samples are used."""
        sizes = []
        for _ in range(self.batches):
            size = min(self.size, self.rows - used)
            if size == 0 or (self.drop_last and size < self.size):
                break
            sizes.append(size)
            used += size
        return sizes

    def _end(self) -> int:
        if self.epochs is None:
            assert self.steps is not None
            return self.steps
        whole = max(1, self._steps_from(0))
        left = self.epochs - self.epoch
        if left < 1:
            return self.step + math.ceil(round((left - self.used / self.rows) * whole, 9))
        rest = self._steps_from(self.used)
        return self.step + rest + int(left - 1) * whole + math.ceil(round((left - int(left)) * whole, 9))

    def change(self, change: Change) -> bool:
        """Makes a change, or leaves everything as it is: then it cannot be made."""
        before = dict(self.__dict__)
        if self.step < self.total and self._change(change):
            return True
        self.__dict__.update(before)
        return False

    def _change(self, change: Change) -> bool:
        if "num_train_epochs" in change:
            now = dict(self.__dict__)
            self.epochs = change["num_train_epochs"]
            late = self._end() <= self.step
            self.__dict__.update(now)
            if late:
                return False
        left = self.total - self.step
        cuts = {"per_device_train_batch_size", "gradient_accumulation_steps"} & set(change)
        if cuts and not self._next(self.used):
            self.used = self.rows  # what made no batch is dropped
        self.size = change.get("per_device_train_batch_size", self.size)
        self.batches = change.get("gradient_accumulation_steps", self.batches)
        if "max_steps" in change:
            self.steps, self.epochs = change["max_steps"], None
        self.epochs = change.get("num_train_epochs", self.epochs)
        self.total = self._end()
        if self.warm_end is not None:
            self.warm_end = self.step + (self.warm_end - self.step) * (self.total - self.step) / left
        if "warmup_steps" in change:
            never = not self.warmup < self.launched
            if never or self.time >= self.warmup or not self.step < change["warmup_steps"] <= self.total:
                return False
            self.warm_end = change["warmup_steps"]
        return True

    def advance(self) -> tuple[list[int], float]:
        """Does a step: the sizes of its batches, and its rate under a linear schedule."""
        if not self._next(self.used):
            self.epoch, self.used = self.epoch + 1, 0
        sizes = self._next(self.used)
        rate = RATE * self._shape(self.time)
        self._tick(1.0, self.step)
        self.used += sum(sizes)
        self.step += 1
        return sizes, rate

    def _tick(self, length: float, at: float) -> None:
        """Lets time pass, in a straight line to the end of the warm-up or of the run."""
        warms = self.warm_end is not None and at < self.warm_end
        end, time = (self.warm_end, self.warmup) if warms else (self.total, self.launched)
        part = min(length, end - at) if warms else length
        self.time = time if part == end - at else self.time + (time - self.time) * part / (end - at)
        if part < length:
            self._tick(length - part, at + part)

    def _shape(self, time: float) -> float:
        if time < self.warmup or self.launched <= self.warmup:
            return time / self.warmup
        return max(0.0, (self.launched - time) / (self.launched - self.warmup))


def train(lab: Lab, rows: int, changes: dict[int, list[Change]], **options: Any) -> tuple[Watched, Diary]:
    """Trains with requests at the ends of the given steps."""
    model = Watched(rows)
    diary = Diary(model)
    for step, asked in changes.items():
        for i, change in enumerate(asked):
            lab.tell(step, f"r{step}-{i}", set=change)
    chosen = {"learning_rate": RATE, "lr_scheduler_type": "linear", "weight_decay": 0.0, **options}
    lab.make(attached=True, rows=rows, model=model, callbacks=(diary,), **chosen)
    lab.trainer.train()
    return model, diary


def orders(rows: int, epochs: int, folder: Path) -> list[list[int]]:
    """The order of every epoch's samples, as the trainer alone has them."""
    lab, model = Lab(folder), Watched(rows)
    lab.make(live=False, rows=rows, model=model, num_train_epochs=epochs, max_steps=-1)
    lab.trainer.train()
    flat = [i for batch in model.seen for i in batch]
    return [flat[i : i + rows] for i in range(0, len(flat), rows)]


def plain_loop(rows: int, steps: list[list[list[int]]], rates: list[float]) -> list[torch.Tensor]:
    """The weights after these batches with these rates, by nothing but torch."""
    net, samples = Net(), data(rows)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.0)
    for step, rate in zip(steps, rates, strict=True):
        for batch in step:
            x = torch.tensor([samples[i]["x"] for i in batch])
            labels = torch.tensor([samples[i]["labels"] for i in batch])
            (net(x, labels)["loss"] / len(step)).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    return weights(net)


def check(plan: Plan, changes: dict[int, list[Change]], options: dict[str, Any]) -> None:
    """Trains, and compares every batch, rate, count and weight with `plan`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lab = Lab(folder)
        model, diary = train(lab, plan.rows, changes, **options)
        rates, sizes, ends, epoch_ids = [], [], [], [[]]
        for step in diary.steps:
            epoch = plan.epoch
            shape, rate = plan.advance()
            if plan.epoch > epoch:
                epoch_ids.append([])
            epoch_ids[-1] += [i for batch in step for i in batch]
            sizes.append(shape)
            rates.append(rate)
            for i, change in enumerate(changes.get(plan.step, ())):
                answer = lab.ack(f"r{plan.step}-{i}").status
                assert answer == ("applied" if plan.change(change) else "rejected")
            if not plan._next(plan.used):
                ends.append(plan.step)
        state = lab.trainer.state
        assert [[len(batch) for batch in step] for step in diary.steps] == sizes
        assert state.global_step == state.max_steps == plan.total == plan.step
        before = orders(plan.rows, len(epoch_ids), folder / "alone")
        for order, ids in zip(before, epoch_ids, strict=True):
            assert order[: len(ids)] == ids  # each once, in the order of the epoch
        for ids in epoch_ids[:-1] if not plan.drop_last else ():
            assert len(ids) == plan.rows
        logged = [log["learning_rate"] for log in state.log_history if "learning_rate" in log]
        assert logged == pytest.approx(rates, rel=1e-9, abs=1e-15)
        for ours, theirs in zip(weights(model), plain_loop(plan.rows, diary.steps, rates), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert all(a < b for a, b in zip(diary.epochs, diary.epochs[1:], strict=False))
        for end in ends:
            if not plan.drop_last:
                assert diary.epochs[end - 1] == int(diary.epochs[end - 1])
        assert [step for step, _ in diary.ends] == sorted({*ends, plan.total})


def requests(rows: int) -> st.SearchStrategy[Change]:
    parameters: dict[str, st.SearchStrategy[Any]] = {
        "per_device_train_batch_size": st.integers(1, rows),
        "gradient_accumulation_steps": st.integers(1, 4),
    }
    return st.fixed_dictionaries({}, optional=parameters)


@st.composite
def trainings(draw: st.DrawFn) -> tuple[Plan, dict[int, list[Change]], dict[str, Any]]:
    rows = draw(st.integers(3, 24))
    size, batches = draw(st.integers(1, rows)), draw(st.integers(1, 3))
    drop_last = draw(st.booleans())
    epochs = draw(st.sampled_from([1, 2, 2.5, 3]))
    by_steps = draw(st.booleans())
    warmup = draw(st.integers(0, 4))
    options: dict[str, Any] = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": batches,
        "dataloader_drop_last": drop_last,
        "warmup_steps": warmup,
        "max_steps": draw(st.integers(2, 16)) if by_steps else -1,
        "num_train_epochs": epochs,
    }
    steps, ends = options["max_steps"], None if by_steps else epochs
    plan = Plan(rows, size, batches, ends, steps if by_steps else None, drop_last, warmup)
    asked: dict[int, list[Change]] = {}
    at = 0
    for _ in range(draw(st.integers(1, 4))):
        at += draw(st.integers(0 if at else 1, 4))
        change = draw(requests(rows))
        change |= {} if change else {"gradient_accumulation_steps": 1}
        kind = draw(st.integers(0, 5))
        if kind == 0:
            change["max_steps"] = at + draw(st.integers(1, 12))
        if kind == 1:
            change["num_train_epochs"] = draw(st.sampled_from([0.5, 1.25, 2, 3.5, 4]))
        if kind <= 2:
            change["warmup_steps"] = at + draw(st.integers(0, 5))
        asked.setdefault(at, []).append(change)
    return plan, asked, options


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(trainings())
def test_any_sequence_of_changes_is_what_the_plain_loop_does(
    training: tuple[Plan, dict[int, list[Change]], dict[str, Any]],
) -> None:
    check(*training)


def test_what_follows_the_steps_and_what_follows_the_epochs(tmp_path: Path) -> None:
    """Evaluations, checkpoints and the progress bar, after changes in the middle of an epoch."""
    lab, rows = Lab(tmp_path), 20
    changes: dict[int, list[Change]] = {
        2: [{"per_device_train_batch_size": 3}],
        5: [{"gradient_accumulation_steps": 2}],
    }
    options = {"per_device_train_batch_size": 4, "max_steps": -1, "num_train_epochs": 2}
    plan = Plan(rows, 4, 1, 2, None)
    for i in range(1, 6):
        plan.advance()
        for change in changes.get(i, ()):
            plan.change(change)
    bar = ProgressCallback()
    for step, asked in changes.items():
        lab.tell(step, f"r{step}", set=asked[0])
    model = Watched(rows)
    diary = Diary(model)
    totals: list[tuple[int, int]] = []

    class Reader(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            totals.append((bar.training_bar.n, bar.training_bar.total))

    more = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "epoch"}
    lab.make(attached=True, rows=rows, model=model, callbacks=(diary, bar, Reader()), **options, **more)
    lab.trainer.train()
    # 4 4 | 3 3 3 | (3) of the first epoch; then six and six and six and two.
    assert [sum(map(len, step)) for step in diary.steps] == [4, 4, 3, 3, 3, 3, 6, 6, 6, 2]
    assert plan.total == 10 == lab.trainer.state.global_step
    assert diary.epochs[5] == 1.0
    assert diary.epochs[9] == 2.0
    assert [s for e, s in diary.events if e == "evaluate"] == [3, 6, 9, 10]
    assert [s for e, s in diary.events if e == "save"] == [6, 10]
    assert diary.ends == [(6, 1.0), (10, 2.0)]
    assert [totals[i] for i in (0, 2, 5)] == [(0, 10), (2, 13), (5, 10)]
    assert lab.trainer.state.num_train_epochs == 2
    (speed,) = [log for log in lab.trainer.state.log_history if "train_samples_per_second" in log]
    seconds = speed["train_runtime"]
    assert speed["train_samples_per_second"] == pytest.approx(40 / seconds, abs=1 / seconds)


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


def test_a_request_that_fails_half_way_leaves_no_trace(tmp_path: Path) -> None:
    """The warm-up cannot end after the run: the new batch size of the same request is undone too."""
    lab, rows = Lab(tmp_path), 16
    lab.tell(2, "r", set={"per_device_train_batch_size": 8, "warmup_steps": 12})
    model = Watched(rows)
    diary = Diary(model)
    options = {"max_steps": -1, "num_train_epochs": 2, "warmup_steps": 4, "learning_rate": RATE}
    lab.make(attached=True, rows=rows, model=model, callbacks=(diary,), **options)
    lab.trainer.train()
    ack = lab.ack("r")
    assert (ack.status, ack.code) == ("rejected", "failed")
    assert "at most 5" in ack.errors["warmup_steps"]
    assert [list(map(len, step)) for step in diary.steps] == [[4]] * 8
    shape = [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]
    assert list(lab.logged("learning_rate").values()) == pytest.approx([RATE * share for share in shape])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"max_steps": 3}, "must be above 3, the steps that are done"),
        ({"num_train_epochs": 0.75}, "must be above 0.75, the epochs that are done"),
        ({"num_train_epochs": 2, "max_steps": 9}, "set one of them"),
        ({"per_device_train_batch_size": 0}, "whole number from 1 to 16"),
        ({"per_device_train_batch_size": 17}, "whole number from 1 to 16"),
        ({"per_device_train_batch_size": 2.5}, "whole number"),
        ({"gradient_accumulation_steps": 0}, "whole number from 1 to 16"),
        ({"warmup_steps": 3}, "must be above 3"),
        ({"warmup_steps": 9}, "must be at most 8"),
        ({"warmup_steps": 9, "max_steps": 7}, "must be at most 7"),
        ({"num_train_epochs": 1.7e308}, "from 0 to 1e+06"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, change: Change, text: str) -> None:
    lab = Lab(tmp_path)
    lab.tell(3, "r", set=change)
    lab.make(attached=True, rows=16, max_steps=8, warmup_steps=6)
    lab.trainer.train()
    ack = lab.ack("r")
    assert ack.status == "rejected"
    assert ack.code in ("out_of_bounds", "wrong_type")
    assert text in " ".join(ack.errors.values())
    assert lab.trainer.state.global_step == 8


def test_the_last_step_cannot_be_changed_any_more(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.tell(6, "r", set={"max_steps": 9})
    lab.make(attached=True, max_steps=6)
    lab.trainer.train()
    assert lab.ack("r").errors == {"max_steps": "the last step of the training is done"}
    assert lab.trainer.state.global_step == 6


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(trainings(), st.integers(1, 8), st.sampled_from(["random", "sequential"]))
def test_a_checkpoint_resumes_at_the_right_sample(
    training: tuple[Plan, dict[int, list[Change]], dict[str, Any]], at: int, sampling: str
) -> None:
    """Broken off at a checkpoint and resumed, it does what it would have done: same batches, same weights."""
    plan, changes, options = training
    options |= {"save_strategy": "steps", "save_steps": at, "train_sampling_strategy": sampling}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = Lab(folder)
        model, diary = train(whole, plan.rows, changes, **options)
        if len(diary.steps) <= at:
            return
        rest = Lab(folder)
        known = {f"r{step}-{i}" for step, asked in changes.items() if step <= at for i in range(len(asked))}
        there = {key: value for key, value in whole.tags().items() if key.rsplit(".", 1)[-1] in known}
        rest.store.inner.write(rest.run_id, there)
        path = folder / "out" / f"checkpoint-{at}"
        state = json.loads((path / "trainer_state.json").read_text())
        state["stateful_callbacks"]["LiveControl"]["attributes"]["saved"]["run_id"] = rest.run_id
        (path / "trainer_state.json").write_text(json.dumps(state))
        later = {step: asked for step, asked in changes.items() if step > at}
        again = Watched(plan.rows)
        after = Diary(again)
        for step, asked in later.items():
            for i, change in enumerate(asked):
                rest.tell(step, f"r{step}-{i}", set=change)
        chosen = {"learning_rate": RATE, "lr_scheduler_type": "linear", "weight_decay": 0.0, **options}
        rest.make(attached=True, rows=plan.rows, model=again, callbacks=(after,), **chosen)
        rest.trainer.train(resume_from_checkpoint=str(path))
        assert after.steps == diary.steps[at:]
        assert after.epochs == pytest.approx(diary.epochs[at:])
        for ours, theirs in zip(weights(again), weights(model), strict=True):
            assert torch.equal(ours, theirs)


def test_an_epoch_that_a_callback_ends_early_is_not_made_up_for(tmp_path: Path) -> None:
    """As without a change: training ends with its last epoch, although steps are missing."""

    class Short(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_epoch_stop = state.global_step == 3

    lab = Lab(tmp_path)
    lab.tell(2, "r", set={"per_device_train_batch_size": 2})
    model = Watched(16)
    diary = Diary(model)
    lab.make(
        attached=True, rows=16, model=model, callbacks=(diary, Short()), max_steps=-1, num_train_epochs=2
    )
    lab.trainer.train()
    assert [sum(map(len, step)) for step in diary.steps] == [4, 4, 2, *[2] * 8]
    assert len(diary.ends) == 2


def test_the_next_training_of_a_trainer_begins_as_launched(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    asked = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
    lab.tell(2, "r", set=asked)
    model = Watched(16)
    lab.make(attached=True, rows=16, model=model, max_steps=-1, num_train_epochs=1)
    lab.trainer.train()
    assert lab.ack("r").status == "applied"
    assert [*map(len, model.seen)] == [4, 4, *[2] * 4]
    lab.script.at.clear()
    model.seen.clear()
    lab.trainer.train()
    assert [*map(len, model.seen)] == [4] * 4
    assert lab.trainer.args.max_grad_norm == 1.0


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


class Shuffled(torch.utils.data.Sampler[int]):
    """An order that is drawn from Python's own random numbers."""

    def __len__(self) -> int:
        return 16

    def __iter__(self) -> Iterator[int]:
        return iter(random.sample(range(16), 16))


def test_a_sampler_may_draw_from_any_random_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_get_train_sampler", lambda self, dataset=None: Shuffled())
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6, "max_steps": -1}
    options |= {"num_train_epochs": 2, "per_device_train_batch_size": 4}
    whole, model = Lab(tmp_path), Watched(16)
    whole.tell(5, "r", set={"per_device_train_batch_size": 2})
    whole.make(attached=True, rows=16, model=model, **options)
    whole.trainer.train()
    rest, again = Lab(tmp_path), Watched(16)
    rest.make(attached=True, rows=16, model=again, **options)
    rest.trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))
    assert again.seen == model.seen[6:]
    ids = [i for batch in model.seen for i in batch]
    assert sorted(ids[16:]) == list(range(16))


def test_live_control_alone_does_not_go_on_at_the_wrong_sample(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.tell(2, "r", set={"per_device_train_batch_size": 2})
    lab.make(attached=True, max_steps=8, save_strategy="steps", save_steps=4)
    lab.trainer.train()
    alone = Lab(tmp_path)
    alone.make(max_steps=8)
    with pytest.raises(ConfigError, match="only attach"):
        alone.trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
