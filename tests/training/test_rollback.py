"""`rollback` in a real `Trainer`: the training goes back to the bit, and keeps what was asked for since."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from exact_tiny import ROWS, ExactLab
from training_tiny import Lab
from transformers import EarlyStoppingCallback, TrainerCallback

from ftlab_mlflow.control.messages import Ack

SIZE, BATCHES = "per_device_train_batch_size", "gradient_accumulation_steps"


@pytest.fixture
def lab(tmp_path: Path) -> ExactLab:
    return ExactLab(tmp_path)


def go_back(lab: Lab, at: int, checkpoint: str | None = None) -> None:
    """Sends the command at the end of a step."""
    args = {"args": {"checkpoint": checkpoint}} if checkpoint else {}
    lab.tell(at, "back", command="rollback", **args)


@pytest.fixture(scope="module", params=["random", "group_by_length"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ExactLab]:
    """A training that never goes back: 18 steps, of which every sixth ends an epoch."""
    lab = ExactLab(tmp_path_factory.mktemp("whole"))
    lab.train(train_sampling_strategy=request.param)
    return request.param, lab


@pytest.mark.parametrize(
    ("at", "to"),
    [
        pytest.param(4, 2, id="within an epoch"),
        pytest.param(6, 3, id="at the last step of an epoch"),
        pytest.param(9, 6, id="to the last step of an epoch"),
        pytest.param(15, 4, id="to an earlier epoch"),
        pytest.param(18, 14, id="at the last step of all"),
    ],
)
def test_the_steps_that_come_again_are_the_same(
    lab: ExactLab, whole: tuple[str, ExactLab], at: int, to: int
) -> None:
    sampling, before = whole
    go_back(lab, at, f"checkpoint-{to}")
    trace = lab.train(train_sampling_strategy=sampling)
    assert lab.ack("back").status == "applied"
    assert (lab.ack("back").step, lab.ack("back").result["step"]) == (to, to)
    assert lab.ack("back").result["checkpoint"] == lab.checkpoint(to)
    assert trace.steps == [*range(1, at + 1), *range(to + 1, 19)]
    assert trace.same_as(before.trace, at, to)
    state = lab.trainer.state
    assert (state.global_step, state.max_steps, state.epoch) == (18, 18, 3.0)
    kept = {key: before.logged(key) for key in ("loss", "learning_rate", "grad_norm")}
    assert {key: lab.logged(key) for key in kept} == kept, "one line a step, without those taken back"
    speeds = [log["train_loss"] for log in state.log_history if "train_loss" in log]
    assert speeds == pytest.approx(
        [log["train_loss"] for log in before.trainer.state.log_history if "train_loss" in log]
    )


def test_it_goes_back_to_the_last_checkpoint_and_sets_later_ones_aside(lab: ExactLab) -> None:
    go_back(lab, 5)
    lab.tell(8, "again", command="rollback", args={"checkpoint": "checkpoint-6"})
    lab.train(save_steps=3, num_train_epochs=2)
    assert lab.ack("back").result["step"] == 3
    assert lab.ack("again").result["step"] == 6
    assert lab.checkpoints() == [f"checkpoint-{step}" for step in (12, 3, 6, 9)]


def test_what_was_asked_for_since_stays_and_what_was_asked_for_before_comes_back(lab: ExactLab) -> None:
    lab.tell(1, "a", set={"learning_rate": 0.006, SIZE: 2})
    lab.tell(4, "b", set={"weight_decay": 0.5, SIZE: 5, "max_grad_norm": 0.5})
    lab.tell(5, "c", set={"num_train_epochs": 1.5})
    lab.tell(6, "d", set={"max_steps": 14})
    go_back(lab, 7, "checkpoint-3")
    trace = lab.train()
    params = lab.surface().params
    assert {
        name: (params[name].value, params[name].asked) for name in ("weight_decay", "max_grad_norm", SIZE)
    } == {
        "weight_decay": (0.5, 0.5),
        "max_grad_norm": (0.5, 0.5),
        SIZE: (5, 5),
    }
    assert params["learning_rate"].asked == 0.006
    assert (trace.steps[-1], params["max_steps"].value) == (14, 14), "the last word on where it ends"
    # 4 samples, then two batches of 2; what is left of the epoch, and those after it, in batches of 5.
    assert trace.sizes(7) == [[5], [5], [4], [5], [5], [5], [5], [2], [5], [5], [5]]
    assert sorted(
        i for step in (*trace.samples[:3], *trace.samples[7:10]) for batch in step for i in batch
    ) == list(range(ROWS))
    assert {group["weight_decay"] for groups in lab.recorder.groups[7:] for group in groups} == {0.5, 0.0}
    # Batches of 2 made it 1 + 9 + 22 steps; where it went back to, 2 of these 31 are done: 14 / 18 of the
    # schedule was left at step 1, and what is left at step 3 ends with step 14.
    assert trace.rates[1:3] == pytest.approx([0.006, 0.006 * 30 / 31], rel=1e-9)
    assert trace.rates[7:] == pytest.approx([0.006 * 29 / 31 * (1 - i / 11) for i in range(11)], rel=1e-9)


def test_a_checkpoint_written_right_after_it_is_the_same_one(lab: ExactLab, tmp_path: Path) -> None:
    before = ExactLab(tmp_path / "before")
    whole = before.train()
    go_back(lab, 7, "checkpoint-4")
    lab.tell(7, "save", command="checkpoint")
    trace = lab.train()
    assert lab.ack("save").result["checkpoint"] == lab.checkpoint(4)
    assert trace.same_as(whole, 7, 4)
    rest = ExactLab(tmp_path / "rest", lab).train(resume=lab.checkpoint(4))
    assert rest.same_as(whole, 0, 4)


def test_a_stop_right_after_it_ends_the_training_there(lab: ExactLab) -> None:
    go_back(lab, 7, "checkpoint-4")
    lab.tell(7, "stop", command="stop")
    trace = lab.train(eval_strategy="epoch", logging_strategy="epoch")
    assert trace.steps == list(range(1, 8))
    stop = lab.ack("stop")
    assert (stop.step, stop.result["checkpoint"]) == (4, lab.checkpoint(4))
    assert (lab.status().state, lab.status().step, lab.trainer.state.global_step) == ("stopped", 4, 4)
    assert [event for event in lab.recorder.events if event[0] == "evaluate"] == [("evaluate", 6)]


class Patience(TrainerCallback):
    """Notes how long early stoppings have waited, at the end of every step."""

    def __init__(self, *stoppings: EarlyStoppingCallback) -> None:
        self.stoppings = stoppings
        self.seen: list[tuple[int, ...]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(tuple(s.early_stopping_patience_counter for s in self.stoppings))


@pytest.mark.parametrize("patiences", [(5,), (5, 7)])
def test_the_best_value_and_the_patience_go_back(lab: ExactLab, patiences: tuple[int, ...]) -> None:
    stoppings = [EarlyStoppingCallback(patience) for patience in patiences]
    patience = Patience(*stoppings)
    go_back(lab, 9, "checkpoint-4")
    trace = lab.train(
        callbacks=(*stoppings, patience),
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        metric_for_best_model="loss",
        greater_is_better=True,  # so that it gets worse
        load_best_model_at_end=True,
        num_train_epochs=2,
    )
    assert lab.ack("back").status == "applied"
    counts = [count for count, *_ in patience.seen]
    assert counts[:9] == [0, 0, 0, 0, 1, 1, 2, 2, 3]
    assert counts[9:13] == [1, 1, 2, 2]
    assert all(len(set(both)) == 1 for both in patience.seen)
    assert trace.steps[9] == 5
    evaluations = lab.logged("eval_loss")
    assert lab.trainer.state.best_metric == max(evaluations.values())
    assert lab.trainer.state.best_global_step == max(evaluations, key=lambda step: evaluations[step])


# --- refused -------------------------------------------------------------------------------------------


def refused(lab: ExactLab, text: str) -> Ack:
    """The answer to a rollback that was refused: the training went on as if nothing had been asked."""
    ack = lab.ack("back")
    assert ack.status == "rejected"
    assert text in ack.errors["command"]
    assert lab.trace.steps == list(range(1, lab.trainer.state.max_steps + 1))
    assert lab.status().state == "finished"
    return ack


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("checkpoint-99", "there is no such folder; there are: checkpoint-4, checkpoint-2"),
        ("../../../etc", "name a folder, such as checkpoint-500, not a path"),
        ("set-aside/checkpoint-2", "not a path"),
        ("", "it is no folder with the name checkpoint-<step>"),
    ],
)
def test_a_name_that_is_none_is_refused(lab: ExactLab, name: str, text: str) -> None:
    lab.tell(5, "back", command="rollback", args={"checkpoint": name})
    lab.train(num_train_epochs=1, save_steps=2)
    refused(lab, text)


def test_a_half_written_checkpoint_is_refused_and_the_one_before_is_the_last(lab: ExactLab) -> None:
    def break_it() -> None:
        optimizer = Path(lab.checkpoint(4), "optimizer.pt")
        optimizer.write_bytes(optimizer.read_bytes()[:1000])

    lab.script.at[5] = break_it
    go_back(lab, 5, "checkpoint-4")
    lab.tell(5, "default", command="rollback")
    lab.train(num_train_epochs=1, save_steps=2)
    assert "optimizer.pt cannot be loaded" in lab.ack("back").errors["command"]
    assert lab.ack("default").result["step"] == 2
    assert lab.trace.steps == [1, 2, 3, 4, 5, 3, 4, 5, 6]


def test_a_checkpoint_without_an_optimizer_is_refused(lab: ExactLab) -> None:
    go_back(lab, 5, "checkpoint-4")
    lab.train(num_train_epochs=1, save_steps=2, save_only_model=True)
    assert refused(lab, "holds only the model (save_only_model)").code == "failed"


@pytest.mark.parametrize("name", ["checkpoint-2", None])
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, name: str | None) -> None:
    """It lies in the same folder, and is of the same model and data."""
    ExactLab(tmp_path).train(num_train_epochs=1)
    lab = ExactLab(tmp_path)
    go_back(lab, 4, name)
    lab.train(num_train_epochs=1, save_steps=100)
    refused(lab, "of another training" if name else "no whole checkpoint of this training")
    assert "checkpoint-5" in lab.checkpoints(), "and stays where it is"


def test_a_resumed_training_goes_back_to_before_it_was_resumed(tmp_path: Path) -> None:
    first = ExactLab(tmp_path)
    whole = first.train(num_train_epochs=2)
    for step in range(5, 13):
        shutil.rmtree(first.checkpoint(step))
    second = ExactLab(tmp_path, first)
    go_back(second, 8, "checkpoint-2")
    trace = second.train(num_train_epochs=2, resume=first.checkpoint(4))
    assert second.ack("back").result["step"] == 2
    assert trace.steps == [5, 6, 7, 8, *range(3, 13)]
    assert trace.same_as(whole, 4, 2)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"attached": False}, "needs attach(trainer)"),
        ({"train_sampling_strategy": "batch_rebalance"}, "makes the batches itself"),
    ],
)
def test_it_is_not_offered_without_the_data(lab: ExactLab, options: dict[str, Any], text: str) -> None:
    go_back(lab, 5)
    lab.train(num_train_epochs=1, save_steps=2, **options)
    assert refused(lab, text).code == "not_supported"
    assert "rollback" not in lab.surface().commands
