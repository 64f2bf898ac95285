"""A resume after a live change of the batch size: what was left of the data, the same weights to the bit."""

import json
import logging
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from batching_plan import Change, Plan, train, trainings
from exact_tiny import ROWS, ExactLab
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training_tiny import Lab, Watched, saved, weights
from transformers import Trainer

from ftlab_mlflow.errors import ConfigError

SIZE, BATCHES = "per_device_train_batch_size", "gradient_accumulation_steps"


def flat(steps: list[list[list[int]]]) -> list[int]:
    return [i for step in steps for batch in step for i in batch]


BY_LENGTH = {"train_sampling_strategy": "group_by_length"}


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        pytest.param({}, True, id="random"),
        pytest.param({}, False, id="random, unchanged"),
        pytest.param(BY_LENGTH, True, id="by length"),
        pytest.param(BY_LENGTH, False, id="by length, unchanged"),
        pytest.param({"dataloader_num_workers": 2}, True, id="workers"),
        pytest.param({"dataloader_drop_last": True}, True, id="drop last"),
    ],
)
def test_a_resume_repeats_what_the_whole_run_did(
    tmp_path: Path, options: dict[str, Any], changes: bool
) -> None:
    whole = ExactLab(tmp_path / "whole")
    if changes:
        whole.tell(1, "first", set={SIZE: 3, BATCHES: 2})
        whole.tell(2, "second", set={SIZE: 2, BATCHES: 1})
    trace = whole.train(**options)
    last = trace.steps[-1]
    # In the first epoch, at its last step, and in the next one.
    for step in [4, trace.ends[0], trace.ends[0] + 2]:
        lab = ExactLab(tmp_path / str(step), whole)
        rest = lab.train(resume=whole.checkpoint(step), save_strategy="no", **options)
        assert rest.same_as(trace, 0, step)
        assert (lab.trainer.state.global_step, lab.trainer.state.max_steps) == (last, last)
        assert lab.trainer.state.epoch == whole.trainer.state.epoch == 3.0


@pytest.mark.parametrize("options", [{}, BY_LENGTH], ids=["random", "by length"])
def test_a_new_launch_argument_goes_on_at_the_same_sample(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    whole = ExactLab(tmp_path / "whole")
    begun = whole.train(**options)
    lab = ExactLab(tmp_path / "resumed")
    with caplog.at_level(logging.WARNING, "ftlab_mlflow"):
        trace = lab.train(resume=whole.checkpoint(4), **{SIZE: 3}, **options)
    assert f"{SIZE}: the launch argument is new, 3 is in force" in caplog.text
    left = (ROWS - 16) // 3
    assert sorted(flat(begun.samples[:4]) + flat(trace.samples[:left])) == list(range(ROWS))
    assert flat(begun.samples[4:6]) == flat(trace.samples[:left]), "the order of the epoch"
    for epoch in (trace.samples[left : left + 8], trace.samples[left + 8 :]):
        assert sorted(flat(epoch)) == list(range(ROWS))
    # Of 18 steps 14 were left, which are now 2 + 2 * 8: the rate goes on from where it was to the same end.
    assert (lab.trainer.state.max_steps, lab.trainer.state.epoch) == (4 + left + 16, 3.0)
    assert trace.rates == pytest.approx([0.01 * 14 / 18 * (1 - i / 18) for i in range(18)], rel=1e-9)


def test_what_was_asked_for_wins_over_a_new_launch_argument(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = ExactLab(tmp_path / "whole")
    whole.tell(2, "a", set={SIZE: 3})
    trace = whole.train()
    with caplog.at_level(logging.WARNING, "ftlab_mlflow"):
        rest = ExactLab(tmp_path / "resumed", whole).train(resume=whole.checkpoint(4), **{SIZE: 2})
    assert f"{SIZE}: what was asked for while it trained wins over the launch argument" in caplog.text
    assert rest.same_as(trace, 0, 4)


@pytest.mark.parametrize(
    ("arguments", "end"),
    [({"num_train_epochs": 2}, 12), ({"num_train_epochs": 4}, 24), ({"max_steps": 9}, 9)],
)
def test_another_end_is_taken_over_without_a_jump(
    tmp_path: Path, arguments: dict[str, Any], end: int
) -> None:
    whole = ExactLab(tmp_path / "whole")
    begun = whole.train()
    trace = ExactLab(tmp_path / "resumed").train(resume=whole.checkpoint(4), **arguments)
    assert trace.steps == list(range(5, end + 1))
    assert flat(trace.samples[:2]) == flat(begun.samples[4:6])
    left = end - 4
    assert trace.rates == pytest.approx([0.01 * 14 / 18 * (1 - i / left) for i in range(left)], rel=1e-9)


def test_batches_that_cannot_be_cut_resume_with_another_size(tmp_path: Path) -> None:
    """The trainer does it alone, with its own idea of where it was."""
    options = {"train_sampling_strategy": "batch_rebalance"}
    whole = ExactLab(tmp_path / "whole")
    whole.train(**options)
    assert saved(whole.folder, "checkpoint-4")["batches"]["data"] is None
    alone, live = ExactLab(tmp_path / "alone"), ExactLab(tmp_path / "live")
    traces = [
        lab.train(resume=whole.checkpoint(4), attached=lab is live, **options, **{SIZE: 2})
        for lab in (alone, live)
    ]
    assert traces[0].steps
    assert traces[0].same_as(traces[1], 0, 0)


def test_a_change_that_leaves_no_batch_ends_the_run_as_it_would_end(tmp_path: Path) -> None:
    """Two of 22 samples are left, which are dropped: the last step is still evaluated and saved as such."""
    lab = ExactLab(tmp_path)
    lab.tell(4, "a", set={SIZE: 8})
    options = {"dataloader_drop_last": True, "num_train_epochs": 1, "save_steps": 100}
    trace = lab.train(**options, eval_strategy="steps", eval_steps=100)
    assert lab.ack("a").status == "applied"
    assert trace.sizes() == [[4]] * 4, "six samples are left, which are no batch of eight"
    assert trace.ends == [4]
    assert sorted(lab.recorder.events) == [("evaluate", 4), ("save", 4)]
    assert (lab.trainer.state.max_steps, lab.status().state) == (4, "finished")


def test_a_training_changed_before_its_first_step_is_one_launched_so(tmp_path: Path) -> None:
    """A whole epoch of other batches draws the random numbers that the trainer's own would draw."""
    launched, changed = ExactLab(tmp_path / "launched"), ExactLab(tmp_path / "changed")
    changed.send("a", set={SIZE: 3})
    trace = changed.train(save_strategy="no", lr_scheduler_type="constant")
    assert changed.ack("a").step == 0
    assert trace.same_as(
        launched.train(attached=False, save_strategy="no", lr_scheduler_type="constant", **{SIZE: 3}), 0, 0
    )


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
        again, after = train(rest, plan.rows, later, str(path), **options)
        assert after.steps == diary.steps[at:]
        assert after.epochs == pytest.approx(diary.epochs[at:])
        for ours, theirs in zip(weights(again), weights(model), strict=True):
            assert torch.equal(ours, theirs)


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
