"""Live batch size, accumulation and number of steps, against a plain PyTorch loop that counts for itself."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from batching_plan import RATE, Change, Diary, Plan, train, trainings
from hypothesis import HealthCheck, given, settings
from training_tiny import Lab, Net, Watched, data, weights
from transformers import ProgressCallback, TrainerCallback


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


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
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
