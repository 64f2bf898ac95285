"""`LiveControl` in a real `Trainer`: what it changes at which step, what its commands do, what it leaves."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from training_doubles import FlakyStore, wait_for
from training_tiny import POLL_S, Lab, Net, arguments, collate, data, saved, train_beside, weights
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, get_scheduler

from ftlab_mlflow import ConfigError, LiveControl, attach


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def _natural(name: str, steps: int, rate: float = 0.01, **options: Any) -> list[float]:
    """The rates of an untouched schedule, computed beside any trainer."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=rate)
    scheduler = get_scheduler(name, optimizer, options.pop("warmup", 0), steps, options or None)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


# --- what is in force --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear", {}),
        ("cosine", {"warmup": 3}),
        ("constant", {}),
        ("cosine_with_restarts", {"num_cycles": 2}),
    ],
)
def test_the_rate_in_force_is_the_formulas_and_it_is_the_one_that_is_logged(
    lab: Lab, name: str, options: dict[str, Any]
) -> None:
    natural = _natural(name, 16, **dict(options))
    warmup = options.pop("warmup", 0)
    lab.make(max_steps=16, lr_scheduler_type=name, lr_scheduler_kwargs=options or None, warmup_steps=warmup)
    lab.tell(2, "a", set={"learning_rate": 0.05})
    lab.tell(8, "b", set={"learning_rate": 0.002})
    lab.tell(11, "c", set={"lr_schedule": "hold"})
    lab.trainer.train()
    expected = natural[:2]
    for begin, end, value in [(2, 8, 0.05), (8, 11, 0.002)]:
        expected += [value * natural[t] / max(natural[begin : t + 1]) for t in range(begin, end)]
    held = 0.002 * natural[11] / max(natural[8:12])
    expected += [held] * 5
    assert lab.recorder.rates == pytest.approx(expected, rel=1e-12)
    assert list(lab.logged("learning_rate").values()) == pytest.approx(expected, rel=1e-12)
    assert [lab.ack(i).step for i in "abc"] == [2, 8, 11]
    before = 0.05 * natural[8] / max(natural[2:9])
    assert lab.ack("b").changes["learning_rate"] == (pytest.approx(before, rel=1e-12), 0.002)
    points = [(p.value, p.step) for p in lab.store.metric_history(lab.run_id, "live/learning_rate")]
    assert points == [(0.05, 2), (0.002, 8)]


def test_an_idle_live_control_changes_not_a_bit(tmp_path: Path) -> None:
    results = []
    for live in (False, True):
        lab = Lab(tmp_path / str(live))
        lab.make(live=live, max_steps=20, warmup_steps=4, lr_scheduler_type="cosine", weight_decay=0.1,
                 eval_strategy="steps", eval_steps=5)  # fmt: skip
        lab.trainer.train()
        results.append((weights(lab.trainer.model), lab.recorder.groups, lab.logged("loss")))
    (plain, plain_groups, plain_loss), (live_weights, groups, loss) = results
    assert all(map(torch.equal, plain, live_weights))
    assert (groups, loss) == (plain_groups, plain_loss)


def test_a_plateau_is_not_stepped_by_an_evaluation_on_demand(tmp_path: Path) -> None:
    rates = []
    for asked in (False, True):
        lab = Lab(tmp_path / str(asked))
        lab.make(
            max_steps=20,
            lr_scheduler_type="reduce_lr_on_plateau",
            lr_scheduler_kwargs={"patience": 0, "factor": 0.5, "threshold": 10.0, "threshold_mode": "abs"},
            metric_for_best_model="loss",
            eval_strategy="steps",
            eval_steps=5,
        )
        if asked:
            for step in (2, 5, 6, 10, 13):
                lab.tell(step, f"e{step}", command="evaluate")
        lab.trainer.train()
        rates.append(lab.recorder.rates)
        steps = [step for event, step in lab.recorder.events if event == "evaluate"]
        assert steps == ([2, 5, 5, 6, 10, 10, 13, 15, 20] if asked else [5, 10, 15, 20])
    assert rates[0] == rates[1]
    assert min(rates[0]) < 0.01, "the plateau was met at all"
    assert lab.ack("e5").result["metrics"]["eval_loss"] == pytest.approx(lab.logged("eval_loss")[5])


def test_what_was_scheduled_at_the_step_of_a_command_still_happens(lab: Lab) -> None:
    lab.make(
        max_steps=12,
        eval_strategy="steps",
        eval_steps=6,
        save_strategy="steps",
        save_steps=6,
        logging_steps=6,
    )
    lab.tell(6, "e", command="evaluate")
    lab.tell(6, "c", command="checkpoint")
    lab.trainer.train()
    assert lab.recorder.events.count(("evaluate", 6)) == 2
    assert lab.recorder.events.count(("save", 6)) == 2
    assert set(lab.logged("loss")) == {6, 12}
    assert lab.checkpoints() == ["checkpoint-12", "checkpoint-6"]


def test_logging_evaluation_and_saving_follow_their_new_steps(lab: Lab) -> None:
    lab.make(
        max_steps=24,
        logging_steps=3,
        eval_strategy="steps",
        eval_steps=6,
        save_strategy="steps",
        save_steps=12,
    )
    lab.tell(6, "a", set={"logging_steps": 5, "eval_steps": 4, "save_steps": 7})
    lab.trainer.train()
    assert set(lab.logged("loss")) == {3, 6, 10, 15, 20}
    assert [s for e, s in lab.recorder.events if e == "evaluate"] == [6, 8, 12, 16, 20, 24]
    assert [s for e, s in lab.recorder.events if e == "save"] == [7, 14, 21, 24]


def test_what_is_offered_follows_the_training(lab: Lab) -> None:
    lab.make(evaluates=False, logging_strategy="epoch")
    lab.tell(2, "e", command="evaluate")
    lab.tell(3, "s", set={"save_steps": 4})
    lab.tell(4, "l", set={"logging_steps": 4})
    lab.tell(5, "v", set={"eval_steps": 4})
    lab.trainer.train()
    surface = lab.surface()
    assert surface.commands == ("pause", "resume", "stop", "checkpoint", "cancel")
    assert {"save_steps", "logging_steps", "eval_steps"}.isdisjoint(surface.params)
    assert {lab.ack(i).code for i in "eslv"} == {"not_supported"}
    assert "evaluation data" in lab.ack("e").errors["command"]
    assert "'no'" in lab.ack("s").errors["save_steps"]


def test_limits_are_on_the_surface_and_hold(lab: Lab) -> None:
    lab.make(limits={"learning_rate": (0, 0.02), "max_grad_norm": (None, 5)})
    lab.tell(2, "high", set={"learning_rate": 0.021})
    lab.tell(2, "fits", set={"learning_rate": 0.02})
    lab.trainer.train()
    params = lab.surface().params
    assert (params["learning_rate"].min, params["learning_rate"].max) == (0, 0.02)
    assert (params["max_grad_norm"].min, params["max_grad_norm"].max) == (0, 5)
    assert lab.ack("high").code == "out_of_bounds"
    assert lab.ack("fits").status == "applied"


# --- pause, stop, checkpoint -------------------------------------------------------------------------


def test_a_paused_training_is_served_and_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    plain = Lab(tmp_path / "plain")
    plain.make(live=False)
    plain.trainer.train()

    lab = Lab(tmp_path / "live")
    lab.make()

    def client() -> None:
        wait_for(lambda: "p" in lab.answered(), "the pause")
        lab.send("e", command="evaluate")
        lab.send("c", command="checkpoint")
        lab.send("n", set={"learning_rate": float("nan")})
        wait_for(lambda: "n" in lab.answered(), "the answers")
        assert lab.status().state == "paused"
        assert lab.trainer.state.global_step == 4
        lab.send("r", command="resume")

    lab.tell(4, "p", command="pause")
    train_beside(lab.trainer, client)
    assert [lab.ack(i).step for i in "pecnr"] == [4] * 5
    assert [lab.ack(i).status for i in "pecr"] == ["applied"] * 4
    assert lab.ack("n").code == "out_of_bounds"
    assert lab.checkpoints() == ["checkpoint-4"]
    assert sorted(lab.recorder.events) == [("evaluate", 4), ("save", 4)]
    assert all(map(torch.equal, weights(plain.trainer.model), weights(lab.trainer.model)))


@pytest.mark.parametrize("strategy", ["steps", "epoch", "no"])
@pytest.mark.parametrize("save", [True, False])
def test_stop(lab: Lab, save: bool, strategy: str) -> None:
    options = {"save_steps": 5, "eval_strategy": "epoch"}
    lab.make(save_strategy=strategy, max_steps=40, **options)
    lab.tell(5, "s", command="stop", args={"save": save})
    lab.tell(5, "late", command="evaluate")
    result = lab.trainer.train()
    assert result.global_step == 5
    assert lab.checkpoints() == (["checkpoint-5"] if save else [])
    assert lab.recorder.events == ([("save", 5)] if save else [])
    assert lab.ack("s").result == ({"checkpoint": str(lab.folder / "out" / "checkpoint-5")} if save else {})
    assert lab.ack("late").code == "expired"
    assert lab.status().state == "stopped"
    assert lab.store.inner.get(lab.run_id).status == "KILLED"


def test_a_stop_whose_checkpoint_fails_is_failed_and_training_goes_on(lab: Lab) -> None:
    lab.make(callbacks=(FailsOnSave(at=5),))
    lab.tell(5, "s", command="stop")
    lab.trainer.train()
    assert lab.ack("s").code == "failed"
    assert lab.trainer.state.global_step == 12
    assert lab.status().state == "finished"


class FailsOnSave(TrainerCallback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.at:
            raise OSError(28, "No space left on device")


class FullDisk(Trainer):
    """Fails half-way through the checkpoint of step 5, as on a disk that is full."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.state.global_step == 5:
            raise OSError(28, "No space left on device")
        super()._save_optimizer_and_scheduler(output_dir)


@pytest.mark.parametrize("where", ["half-way", "in on_save"])
def test_a_checkpoint_that_fails_leaves_nothing_behind(lab: Lab, where: str) -> None:
    lab.make(
        callbacks=(FailsOnSave(at=5),) if where == "in on_save" else (), save_strategy="steps", save_steps=10
    )
    if where == "half-way":
        lab.trainer.__class__ = FullDisk
    lab.tell(5, "c", command="checkpoint")
    lab.tell(7, "again", command="checkpoint")
    lab.trainer.train()
    assert lab.ack("c").code == "failed"
    assert "No space left on device" in lab.ack("c").errors["command"]
    assert lab.checkpoints() == ["checkpoint-10", "checkpoint-12", "checkpoint-7"]
    assert lab.status().state == "finished"


def test_an_early_stop_on_demand_is_the_callbacks_own_decision(lab: Lab) -> None:
    """An evaluation on demand tells every callback, as the trainer's own evaluations do."""
    stopping = EarlyStoppingCallback(1000)
    lab.make(callbacks=(stopping,), eval_strategy="steps", eval_steps=4, metric_for_best_model="loss",
             load_best_model_at_end=True, save_strategy="steps", save_steps=4)  # fmt: skip
    lab.tell(6, "e", command="evaluate")
    lab.trainer.train()
    assert lab.ack("e").status == "applied"
    assert lab.trainer.state.global_step == 12


# --- ways to add it ----------------------------------------------------------------------------------


def _plain(folder: Path, *callbacks: TrainerCallback, **options: Any) -> Trainer:
    return Trainer(
        model=Net(),
        args=arguments(folder, **options),
        train_dataset=data(),  # type: ignore[arg-type]
        data_collator=collate,
        callbacks=list(callbacks),
    )


class Breaks(TrainerCallback):
    def __init__(self, event: str) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("the loss\nexploded \ud800")

        setattr(self, event, fail)


@pytest.mark.parametrize("event", ["on_step_begin", "on_step_end", "on_epoch_end", "on_log"])
@pytest.mark.parametrize("how", ["callbacks", "add_callback"])
def test_an_exception_is_told_and_goes_on(tmp_path: Path, how: str, event: str) -> None:
    store = FlakyStore()
    run_id = store.inner.create_run()
    control = LiveControl(POLL_S, store=store, run_id=run_id)
    trainer = _plain(tmp_path, *([control] if how == "callbacks" else []))
    if how == "add_callback":
        trainer.add_callback(control)
    trainer.add_callback(Breaks(event))
    with pytest.raises(RuntimeError, match="exploded"):
        trainer.train()
    run = store.inner.get(run_id)
    status = Lab(tmp_path, store, run_id).status()
    assert status.state == "failed"
    assert status.error == "RuntimeError: the loss\nexploded ?"
    assert run.status == "FAILED"


def test_limits_that_are_too_wide_fail_the_training_truthfully(lab: Lab) -> None:
    lab.make(limits={"learning_rate": (0, 7)})
    with pytest.raises(ConfigError, match="learning_rate can be narrowed within 0 to 1"):
        lab.trainer.train()


@pytest.mark.parametrize("limits", [
    {"speed": (0, 1)}, {"lr_schedule": (0, 1)}, {"learning_rate": (1, 0)}, {"learning_rate": 3},
    {"learning_rate": (0, float("nan"))}, {"learning_rate": (0, 1, 2)}, {"learning_rate": (True, 1)},
])  # fmt: skip
def test_limits_that_make_no_sense_are_refused_before_anything_runs(tmp_path: Path, limits: Any) -> None:
    with pytest.raises(ConfigError):
        LiveControl(limits=limits)
    with pytest.raises(ConfigError):
        attach(_plain(tmp_path), limits=limits)


@pytest.mark.parametrize("poll_interval", [0, -1, float("inf"), float("nan"), True])
def test_a_poll_interval_that_makes_no_sense_is_refused(poll_interval: Any) -> None:
    with pytest.raises(ConfigError):
        LiveControl(poll_interval)


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "4"])
def test_steps_between_agreements_that_make_no_sense_are_refused(steps: Any) -> None:
    with pytest.raises(ConfigError, match="rank_sync_steps must be a whole number from 1"):
        LiveControl(rank_sync_steps=steps)


def test_attach_twice_is_an_error(tmp_path: Path) -> None:
    trainer = _plain(tmp_path, LiveControl())
    with pytest.raises(ConfigError, match="already"):
        attach(trainer)


def test_store_and_run_go_together() -> None:
    with pytest.raises(ConfigError):
        LiveControl(store=FlakyStore())


def test_a_request_at_a_step_that_is_evaluated_after_it_holds_for_the_next_step(tmp_path: Path) -> None:
    """The scheduler steps after the boundary, and lowers its own rate: the next step still uses the value."""
    lab = Lab(tmp_path)
    lab.make(
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"patience": 0, "factor": 0.5, "threshold": 10.0, "threshold_mode": "abs"},
        metric_for_best_model="loss",
        eval_strategy="steps",
        eval_steps=3,
    )
    lab.tell(6, "a", set={"learning_rate": 0.003})
    lab.trainer.train()
    assert lab.ack("a").changes["learning_rate"] == (0.01, 0.003)
    # Steps 7 to 9 are in force at the value, and the evaluation after step 9 halves it.
    assert lab.recorder.rates[6:] == pytest.approx([0.003] * 3 + [0.0015] * 3, rel=1e-12)


# --- more than one training --------------------------------------------------------------------------


def test_a_second_training_of_the_same_trainer_begins_with_its_own_schedule(tmp_path: Path) -> None:
    """It is no resume: the first one has finished, and nobody told the second one anything."""
    lab = Lab(tmp_path)
    lab.make(lr_scheduler_type="linear")
    lab.tell(4, "a", set={"learning_rate": 0.05})
    lab.trainer.train()
    lab.script.at.clear()
    lab.trainer.train()
    assert lab.recorder.rates[12:] == pytest.approx(_natural("linear", 12), rel=1e-12)
    assert [e.id for e in lab.entries()] == ["a"]


def test_a_smaller_batch_after_running_out_of_memory_keeps_what_was_asked_for(tmp_path: Path) -> None:
    class TooBig(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if kwargs["train_dataloader"].total_batch_size > 4 and state.global_step == 5:
                raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")

    lab = Lab(tmp_path)
    lab.make(auto_find_batch_size=True, per_device_train_batch_size=8, callbacks=(TooBig(),))
    lab.tell(3, "a", set={"learning_rate": 0.05})
    lab.trainer.train()
    natural = _natural("linear", 12)
    assert lab.recorder.rates[-12:] == pytest.approx([0.05 * n / natural[0] for n in natural], rel=1e-12)
    assert lab.status().state == "finished"
    assert lab.status().step == 12
    assert lab.store.inner.get(lab.run_id).status == "FINISHED"
    assert [lab.ack("a").step] == [3]


def test_resume_with_callback_states_restored_from_the_checkpoint(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.make(max_steps=24)
    lab.tell(4, "a", set={"learning_rate": 0.05})
    lab.tell(8, "s", command="stop")
    lab.trainer.train()
    again = Lab(tmp_path, lab.store, lab.run_id)
    again.make(max_steps=24, restore_callback_states_from_checkpoint=True)
    again.tell(12, "b", set={"weight_decay": 0.5})
    control = again.control
    again.trainer.train(resume_from_checkpoint=True)
    natural = _natural("linear", 24)
    assert again.recorder.rates == pytest.approx([0.05 * n / natural[4] for n in natural[8:]], rel=1e-12)
    assert again.ack("b").step == 12
    assert again.status().state == "finished"
    assert control is not None
    assert control.run_id == lab.run_id, "the object that the user holds is the one that works"


def test_a_checkpoint_from_before_live_control_can_be_resumed_with_it(tmp_path: Path) -> None:
    plain = Lab(tmp_path)
    plain.make(live=False, save_strategy="steps", save_steps=6)
    plain.trainer.train()
    lab = Lab(tmp_path)
    lab.make(save_strategy="steps", save_steps=6)
    lab.tell(8, "a", set={"learning_rate": 0.05})
    lab.trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))
    assert lab.ack("a").status == "applied"
    assert saved(tmp_path, "checkpoint-12")["asked"] == {"learning_rate": 0.05}


def test_an_unbounded_gradient_norm_is_no_reason_to_fail(lab: Lab) -> None:
    lab.make(max_grad_norm=float("inf"))
    lab.tell(3, "a", set={"max_grad_norm": 1.0})
    lab.tell(4, "b", set={"learning_rate": 0.05})
    lab.trainer.train()
    assert lab.ack("b").status == "applied"
    assert lab.ack("a").code == "not_supported"


def test_live_control_logs_nothing_but_what_it_did(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.make()
    lab.tell(4, "a", set={"learning_rate": 0.05}, by="alice", reason="plateau")
    with caplog.at_level(logging.INFO, "ftlab_mlflow"):
        lab.trainer.train()
    ours = [record.message for record in caplog.records if record.name == "ftlab_mlflow"]
    assert ours == ["Applied learning_rate 0.00666667 → 0.05 at step 4 (alice: plateau)"]
