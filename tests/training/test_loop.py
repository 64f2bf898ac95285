"""`LiveLoop` in real plain PyTorch loops: what is in force at which step, against twins and formulas."""

import io
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loop_tiny import RATES, Tiny, asked, batch, close, groups, net
from torch.optim import lr_scheduler as sched
from training_doubles import FlakyStore, wait_for

from ftlab_mlflow import ConfigError, LiveLoop
from ftlab_mlflow.control import tags

STEPS = 30
METRICS = [2.0, 1.5, 1.6, 1.6, 1.7, 1.4, 1.5, 1.5, 1.6, 1.0] * 3


def _cosine(step: int) -> float:
    """A warm-up of 4 steps, then a half cosine down to a tenth."""
    done = min(1.0, (step - 4) / (STEPS - 4))
    return (step + 1) / 5 if step < 4 else 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def _plateau(tiny: Tiny) -> None:
    tiny.scheduler = sched.ReduceLROnPlateau(tiny.optimizer, patience=0, factor=0.5)
    tiny.step_scheduler = lambda step: tiny.scheduler.step(METRICS[step])


def _by_hand(tiny: Tiny) -> None:
    def write(step: int) -> None:
        for group, rate in zip(tiny.optimizer.param_groups, RATES, strict=True):
            group["lr"] = rate * _cosine(step)

    tiny.write_rates = write


def _by_hand_sometimes(tiny: Tiny) -> None:
    """Every seventh step, and one group only."""

    def write(step: int) -> None:
        if step % 7 == 6:
            tiny.optimizer.param_groups[0]["lr"] = RATES[0] * _cosine(step)

    tiny.write_rates = write


def _by_hand_constant(tiny: Tiny) -> None:
    def write(step: int) -> None:
        for group, rate in zip(tiny.optimizer.param_groups, RATES, strict=True):
            group["lr"] = rate

    tiny.write_rates = write


def _with(make: Callable[[torch.optim.Optimizer], Any]) -> Callable[[Tiny], None]:
    return lambda tiny: setattr(tiny, "scheduler", make(tiny.optimizer))


def _tensors(tiny: Tiny) -> None:
    rates = [{**group, "lr": torch.tensor(group["lr"])} for group in groups(tiny.model)]
    tiny.optimizer = torch.optim.AdamW(rates, weight_decay=0.0, capturable=False, foreach=False)
    write = [torch.tensor(rate) for rate in RATES]

    def write_rates(step: int) -> None:
        for group, rate in zip(tiny.optimizer.param_groups, write, strict=True):
            group["lr"].copy_(rate * _cosine(step))

    tiny.write_rates = write_rates


SCHEDULES: dict[str, Callable[[Tiny], None]] = {
    "none": lambda tiny: None,
    "by hand": _by_hand,
    "by hand, sometimes": _by_hand_sometimes,
    "by hand, always the same": _by_hand_constant,
    "LambdaLR": _with(lambda o: sched.LambdaLR(o, _cosine)),
    "StepLR": _with(lambda o: sched.StepLR(o, 7, 0.5)),
    "CosineAnnealingWarmRestarts": _with(lambda o: sched.CosineAnnealingWarmRestarts(o, 6, 2)),
    "OneCycleLR": _with(lambda o: sched.OneCycleLR(o, [0.05, 0.01], total_steps=STEPS + 1)),
    "ReduceLROnPlateau": _plateau,
}


def _natural(schedule: Callable[[Tiny], None]) -> list[list[float]]:
    twin = Tiny()
    schedule(twin)
    twin.train_plain(STEPS)
    return twin.rates


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_asked_for_is_a_ceiling_on_the_loops_own_schedule(name: str) -> None:
    tiny = Tiny()
    SCHEDULES[name](tiny)
    tiny.tell(2, "a", set={"learning_rate": 0.004})
    tiny.tell(11, "b", set={"learning_rate": 0.05})
    tiny.lay()
    tiny.train(STEPS)
    natural = _natural(SCHEDULES[name])
    expected = natural[:2] + asked(natural[:11], 0.004, 2) + asked(natural, 0.05, 11)
    assert close(tiny.rates, expected)
    assert tiny.ack("b").changes["learning_rate"][1] == 0.05
    if tiny.scheduler:
        assert tiny.scheduler.get_last_lr() == [group["lr"] for group in tiny.optimizer.param_groups]


def test_rates_in_tensors_are_followed_with_their_precision() -> None:
    tiny = Tiny()
    _tensors(tiny)
    tiny.tell(8, "a", set={"learning_rate": 0.004})
    used: list[list[float]] = []
    tiny.watch = lambda: used.append([float(g["lr"]) for g in tiny.optimizer.param_groups])
    tiny.lay()
    tiny.train(STEPS)
    natural = _natural(_by_hand)
    expected = natural[:8] + asked(natural, 0.004, 8)
    assert used == [pytest.approx(row, rel=1e-6) for row in expected]


@pytest.mark.parametrize("name", ["by hand", "LambdaLR"])
def test_a_held_rate_stays_and_a_kept_one_goes_on_beneath_it(name: str) -> None:
    tiny = Tiny()
    SCHEDULES[name](tiny)
    tiny.tell(10, "hold", set={"lr_schedule": "hold", "learning_rate": 0.03})
    tiny.tell(18, "keep", set={"lr_schedule": "keep"})
    tiny.lay()
    tiny.train(STEPS)
    natural = _natural(SCHEDULES[name])
    share = RATES[1] / RATES[0]
    expected = natural[:10] + [[0.03, 0.03 * share]] * 8 + asked(natural, 0.03, 18)
    assert close(tiny.rates, expected)


def test_an_idle_live_loop_changes_nothing_at_all() -> None:
    for schedule in ("none", "by hand", "OneCycleLR"):
        plain, tiny = Tiny(), Tiny()
        for each in (plain, tiny):
            SCHEDULES[schedule](each)
        plain.train_plain(STEPS)
        scheduler_class = type(tiny.scheduler)
        tiny.lay()
        tiny.train(STEPS)
        assert tiny.used == plain.used
        assert all(map(torch.equal, tiny.weights(), plain.weights()))
        if tiny.scheduler:
            assert tiny.scheduler.state_dict() == plain.scheduler.state_dict()
        assert type(tiny.scheduler) is scheduler_class
        assert not tiny.optimizer._optimizer_step_pre_hooks
        assert not tiny.optimizer._optimizer_step_post_hooks


def test_the_weights_are_those_of_a_loop_that_assigns_the_same_by_hand() -> None:
    tiny, plain = Tiny(), Tiny()
    tiny.tell(7, "a", set={"learning_rate": 0.02, "weight_decay": 0.3, "adam_epsilon": 1e-4})
    tiny.tell(15, "b", set={"adam_beta1": 0.7, "adam_beta2": 0.98})
    tiny.lay()
    tiny.train(STEPS)

    def first() -> None:
        for group, rate in zip(plain.optimizer.param_groups, (0.02, 0.02 * 0.2), strict=True):
            group["lr"], group["eps"] = rate, 1e-4
        plain.optimizer.param_groups[0]["weight_decay"] = 0.3

    def second() -> None:
        for group in plain.optimizer.param_groups:
            group["betas"] = (0.7, 0.98)

    plain.at = {7: first, 15: second}
    plain.train_plain(STEPS)
    assert tiny.used == plain.used
    assert all(map(torch.equal, tiny.weights(), plain.weights()))


# --- values of the loop's own --------------------------------------------------------------------


def test_own_values_change_at_the_step_that_the_answer_names() -> None:
    tiny = Tiny()
    live = tiny.lay()
    mix = live.tunable("mix_ratio", 0.5, min=0, max=1, help="Share of the new data.")
    turns = live.tunable("turns", 3, min=1)
    noisy = live.tunable("noisy", False)
    mode = live.tunable("mode", "plain", choices=["plain", "hard"])
    tiny.watch = lambda: (mix.value, turns.value, noisy.value, mode.value)
    tiny.tell(4, "a", set={"mix_ratio": 1, "turns": 5})
    tiny.tell(4, "later", set={"mode": "hard"}, at_step=9)
    tiny.tell(6, "c", set={"noisy": True, "learning_rate": 0.02})
    tiny.train(12)
    assert tiny.seen == [
        *[(0.5, 3, False, "plain")] * 4,
        *[(1.0, 5, False, "plain")] * 2,
        *[(1.0, 5, True, "plain")] * 3,
        *[(1.0, 5, True, "hard")] * 3,
    ]
    assert isinstance(mix.value, float)
    assert [rates[0] for rates in tiny.rates] == [0.01] * 6 + [0.02] * 6
    assert [tiny.ack(i).step for i in ("a", "later", "c")] == [4, 9, 6]
    assert tiny.ack("a").changes == {"mix_ratio": (0.5, 1.0), "turns": (3, 5)}
    params = tiny.surface().params
    assert [*params][-4:] == ["mix_ratio", "turns", "noisy", "mode"]
    shown = params["mix_ratio"]
    assert (shown.type, shown.value, shown.asked, shown.min, shown.max) == ("float", 1, 1, 0, 1)
    assert shown.help == "Share of the new data."
    assert (params["mode"].choices, params["noisy"].type) == (("plain", "hard"), "bool")
    points = tiny.store.metric_history(tiny.run_id, "live/mix_ratio")
    assert [(point.step, point.value) for point in points] == [(4, 1.0)]


def test_all_of_a_request_or_nothing_and_the_reason_by_name() -> None:
    tiny = Tiny()
    live = tiny.lay(limits={"learning_rate": (None, 0.1)})
    mix = live.tunable("mix_ratio", 0.5, min=0, max=1)
    live.tunable("turns", 3)
    live.tunable("mode", "plain", choices=("plain", "hard"))
    tiny.watch = lambda: mix.value
    wrong: dict[str, tuple[str, dict[str, Any], str]] = {
        "bounds": ("out_of_bounds", {"mix_ratio": 1.5, "learning_rate": 0.02}, "mix_ratio"),
        "nan": ("out_of_bounds", {"mix_ratio": math.nan}, "mix_ratio"),
        "limit": ("out_of_bounds", {"learning_rate": 0.2, "mix_ratio": 0.7}, "learning_rate"),
        "type": ("wrong_type", {"turns": 2.5, "mix_ratio": 0.7}, "turns"),
        "bool": ("wrong_type", {"mix_ratio": True}, "mix_ratio"),
        "choice": ("out_of_bounds", {"mode": "soft"}, "mode"),
        "name": ("unknown_parameter", {"mix": 0.7, "mix_ratio": 0.7}, "mix"),
    }
    for request_id, (_, values, _) in wrong.items():
        tiny.tell(3, request_id, set=values)
    tiny.tell(3, "stale", set={"mix_ratio": 0.9}, expect={"mix_ratio": 0.4})
    tiny.train(6)
    for request_id, (code, _, culprit) in wrong.items():
        ack = tiny.ack(request_id)
        assert (ack.status, ack.code, [*ack.errors]) == ("rejected", code, [culprit])
    assert tiny.ack("stale").code == "stale"
    assert tiny.seen == [0.5] * 6
    assert tiny.rates == [list(RATES)] * 6


def test_a_value_by_hand_in_the_mlflow_ui() -> None:
    tiny = Tiny()
    mix = tiny.lay().tunable("mix_ratio", 0.5, min=0, max=1)

    def write() -> None:
        tiny.store.inner.write(tiny.run_id, {"ftlab.set.mix_ratio": "0.75"})
        tiny.looked()

    tiny.at[3] = write
    tiny.watch = lambda: mix.value
    tiny.train(6)
    assert tiny.seen == [0.5] * 3 + [0.75] * 3


# --- the optimizer's parameters ------------------------------------------------------------------


def test_weight_decay_is_for_weights_and_what_an_optimizer_lacks_is_said() -> None:
    tiny = Tiny()
    tiny.tell(3, "decay", set={"weight_decay": 0.2})
    tiny.tell(3, "beta", set={"adam_beta1": 0.5})
    tiny.optimizer = torch.optim.SGD(groups(tiny.model), lr=0.1)
    tiny.lay()
    tiny.train(6)
    assert [group["weight_decay"] for group in tiny.optimizer.param_groups] == [0.2, 0]
    ack = tiny.ack("beta")
    assert (ack.code, ack.errors) == ("not_supported", {"adam_beta1": "this optimizer has no adam_beta1"})
    assert [*tiny.surface().params] == ["learning_rate", "lr_schedule", "weight_decay"]

    whole = Tiny()
    whole.tell(3, "decay", set={"weight_decay": 0.2})
    whole.optimizer = torch.optim.SGD(whole.model.parameters(), lr=0.1)
    whole.lay()
    whole.train(6)
    assert whole.ack("decay").code == "not_supported"
    assert "biases" in whole.ack("decay").errors["weight_decay"]
    assert whole.optimizer.param_groups[0]["weight_decay"] == 0


# --- where a step is -----------------------------------------------------------------------------


def test_a_boundary_is_an_optimizer_step_and_not_a_call() -> None:
    """Gradients of three batches make a step: nothing may change in between."""
    tiny = Tiny()
    live = tiny.lay()
    mix = live.tunable("mix_ratio", 0.5)
    used = []
    with live:
        for micro in range(12):
            used.append(mix.value)
            x, y = batch(micro)
            torch.nn.functional.mse_loss(tiny.model(x), y).backward()
            if micro % 3 == 2:
                tiny.optimizer.step()
                tiny.optimizer.zero_grad()
            if micro == 4:
                tiny.send("a", set={"mix_ratio": 0.9})
                tiny.looked()
            assert live.step() is False
        assert live.steps_done == 4
    assert used == [0.5] * 6 + [0.9] * 6
    assert tiny.ack("a").step == 2
    assert tiny.status().step == 4


def test_a_step_that_a_scaler_skips_is_none() -> None:
    tiny = Tiny()
    live = tiny.lay()
    scaler = torch.amp.GradScaler("cpu")
    with live:
        for factor in (1.0, math.inf, 1.0):
            x, y = batch(0)
            scaler.scale(factor * torch.nn.functional.mse_loss(tiny.model(x), y)).backward()
            scaler.step(tiny.optimizer)
            scaler.update()
            tiny.optimizer.zero_grad()
            live.step()
    assert (live.steps_done, tiny.status().step) == (2, 2)


# --- commands ------------------------------------------------------------------------------------


def test_commands_are_done_when_they_are_answered() -> None:
    tiny = Tiny()
    done: list[tuple[str, int]] = []

    def evaluate() -> dict[str, Any]:
        done.append(("evaluate", tiny.live.steps_done))
        return {"accuracy": torch.tensor(0.75), "loss": math.nan}

    def checkpoint() -> str:
        done.append(("checkpoint", tiny.live.steps_done))
        return f"/out/step-{tiny.live.steps_done}.pt"

    tiny.lay(evaluate=evaluate, checkpoint=checkpoint)
    tiny.tell(3, "e", command="evaluate")
    tiny.tell(5, "c", command="checkpoint")
    tiny.tell(7, "s", command="stop")
    tiny.train(STEPS)
    assert done == [("evaluate", 3), ("checkpoint", 5), ("checkpoint", 7)]
    assert tiny.ack("e").result == {"metrics": {"accuracy": 0.75, "loss": "nan"}}
    assert tiny.ack("c").result == {"checkpoint": "/out/step-5.pt"}
    assert (tiny.ack("s").step, tiny.ack("s").result) == (7, {"checkpoint": "/out/step-7.pt"})
    assert len(tiny.rates) == 7
    assert tiny.live.should_stop
    assert (tiny.live.outcome, tiny.status().state) == ("stopped", "stopped")
    assert tiny.store.get(tiny.run_id).status == "KILLED"


def test_a_command_that_fails_or_is_not_there_does_not_hurt_the_loop() -> None:
    tiny = Tiny()

    def evaluate() -> dict[str, float]:
        raise RuntimeError("no data left")

    tiny.lay(evaluate=evaluate)
    tiny.tell(3, "e", command="evaluate")
    tiny.tell(3, "c", command="checkpoint")
    tiny.tell(3, "r", command="rollback")
    tiny.tell(9, "s", command="stop", args={"save": True})
    tiny.train(STEPS)
    assert (tiny.ack("e").code, tiny.ack("e").errors) == ("failed", {"command": "RuntimeError: no data left"})
    for command in ("checkpoint", "rollback"):
        ack = tiny.ack(command[0])
        assert (ack.code, ack.errors["command"]) == (
            "not_supported",
            f"this loop has no function for {command}",
        )
    assert "checkpoint" not in tiny.surface().commands
    assert (tiny.ack("s").status, tiny.ack("s").result) == ("applied", {}), "it says that nothing was saved"
    assert len(tiny.rates) == 9


def test_a_paused_loop_evaluates_changes_and_goes_on() -> None:
    tiny = Tiny()
    live = tiny.lay(evaluate=lambda: {"loss": float(len(tiny.rates))})
    mix = live.tunable("mix_ratio", 0.5)
    tiny.watch = lambda: mix.value
    tiny.tell(4, "p", command="pause")

    def client() -> None:
        assert tiny.ack("p").step == 4
        assert tiny.status().state == "paused"
        tiny.send("e", command="evaluate")
        tiny.send("m", set={"mix_ratio": 0.6})
        assert tiny.ack("e").result == {"metrics": {"loss": 4.0}}
        assert tiny.ack("m").step == 4
        assert len(tiny.rates) == 4
        tiny.send("r", command="resume")

    tiny.beside(client, 8)
    assert tiny.seen == [0.5] * 4 + [0.6] * 4
    assert tiny.status().state == "finished"


# --- the end -------------------------------------------------------------------------------------


def test_status_and_surface_from_the_first_moment_on() -> None:
    tiny = Tiny()
    live = tiny.lay(max_steps=50, method="gan")
    live.tunable("mix_ratio", 0.5)
    states: list[str] = []
    with live:
        wait_for(lambda: tags.STATUS in tiny.tags() and tiny.status().state == "running", "the status")
        assert "mix_ratio" in tiny.surface().params
        assert live.run_id == tiny.run_id
        states.append(live.outcome or "")
        live.epoch = 0.25
        tiny.one(0)
        live.step()
    status = tiny.status()
    assert (status.state, status.step, status.max_steps, status.epoch) == ("finished", 1, 50, 0.25)
    assert (status.method, status.error, states) == ("gan", None, ["running"])
    assert tiny.store.get(tiny.run_id).status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "state", "text", "status"),
    [
        (ZeroDivisionError("no data left"), "failed", "ZeroDivisionError: no data left", "FAILED"),
        (KeyboardInterrupt(), "stopped", None, "KILLED"),
    ],
)
def test_an_exception_ends_the_run_truthfully(
    error: BaseException, state: str, text: str | None, status: str
) -> None:
    tiny = Tiny()

    def fail() -> None:
        raise error

    tiny.tell(3, "late", set={"learning_rate": 0.02}, at_step=20)
    tiny.at[5] = fail
    tiny.lay()
    with pytest.raises(type(error)):
        tiny.train(STEPS)
    assert (tiny.status().state, tiny.status().error, tiny.status().step) == (state, text, 5)
    assert tiny.store.get(tiny.run_id).status == status
    assert "ftlab.ack.late" not in tiny.tags(), "it waits for the one who resumes"


def test_start_and_finish_without_a_block() -> None:
    tiny = Tiny()
    live = tiny.lay()
    live.finish()  # has not begun: there is nothing to end
    live.start()
    tiny.one(0)
    live.step()
    live.finish(RuntimeError("a callback failed"))
    live.finish()
    assert (tiny.status().state, tiny.status().error) == ("failed", "RuntimeError: a callback failed")


def test_the_store_is_away_and_the_loop_goes_on() -> None:
    tiny = Tiny()
    tiny.store.away = True

    def back() -> None:
        tiny.store.away = False
        tiny.looked()

    tiny.at[10] = back
    tiny.tell(12, "a", set={"learning_rate": 0.02})
    tiny.lay()
    tiny.train(15)
    assert [rates[0] for rates in tiny.rates] == [0.01] * 12 + [0.02] * 3
    assert tiny.status().state == "finished"


# --- checkpoints ---------------------------------------------------------------------------------


def _stored(tiny: Tiny) -> dict[str, Any]:
    """A checkpoint as it lies on disk: loaded the safe way."""
    file = io.BytesIO()
    torch.save(tiny.checkpoint(), file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def _resumable(run: Tiny | None = None) -> tuple[Tiny, Any]:
    tiny = Tiny(run.store, run.run_id) if run else Tiny()
    SCHEDULES["LambdaLR"](tiny)
    mix = tiny.lay().tunable("mix_ratio", 0.5, min=0, max=1)
    tiny.watch = lambda: mix.value
    return tiny, mix


def test_a_resume_is_the_same_training_bit_for_bit() -> None:
    whole, broken = _resumable()[0], _resumable()[0]
    kept: list[dict[str, Any]] = []
    for tiny in (whole, broken):
        tiny.tell(4, "a", set={"learning_rate": 0.05, "adam_beta2": 0.99, "mix_ratio": 0.7})
        tiny.tell(9, "b", set={"lr_schedule": "hold", "weight_decay": 0.1})
    broken.at[12] = lambda: kept.append(_stored(broken))
    broken.tell(13, "s", command="stop")
    whole.train(STEPS)
    broken.train(STEPS)
    again, _ = _resumable(broken)
    again.load(kept[0])
    assert again.live.steps_done == 12
    again.train(STEPS)
    assert broken.used[:12] + again.used == whole.used
    assert broken.seen[:12] + again.seen == whole.seen
    assert all(map(torch.equal, again.weights(), whole.weights()))
    assert again.surface().params["learning_rate"].asked == 0.05


def test_a_resume_keeps_what_was_applied_after_its_checkpoint() -> None:
    tiny, _ = _resumable()
    kept: list[dict[str, Any]] = []
    tiny.tell(4, "a", set={"learning_rate": 0.05, "mix_ratio": 0.7})
    before = tiny.at[4]
    tiny.at[6] = lambda: kept.append(_stored(tiny))
    tiny.tell(9, "b", set={"mix_ratio": 0.8, "learning_rate": 0.03})
    tiny.tell(10, "c", set={"mix_ratio": 0.9})
    tiny.tell(12, "s", command="stop")
    tiny.train(STEPS)
    assert before is not None
    tiny.send("waiting", set={"adam_beta2": 0.9})
    tiny.send("old", command="stop")
    again, mix = _resumable(tiny)
    again.load(kept[0])
    again.train(STEPS)
    natural = _natural(SCHEDULES["LambdaLR"])
    assert again.seen == [0.9] * (STEPS - 6)
    assert mix.value == 0.9
    assert close(again.rates, asked(natural, 0.03, 6))
    assert [each[0]["betas"][1] for each in again.used] == [0.9] * (STEPS - 6)
    assert (again.ack("waiting").step, again.ack("old").code) == (6, "expired")
    assert [again.ack(i).step for i in "abc"] == [4, 9, 10], "answered once"


def test_an_answer_that_was_not_written_rides_in_the_checkpoint() -> None:
    tiny, _ = _resumable()
    kept: list[dict[str, Any]] = []

    def away() -> None:
        tiny.store.refused = {"ftlab.ack.a"}

    tiny.at[4] = away
    tiny.tell(4, "a", set={"mix_ratio": 0.7})
    tiny.at[5] = lambda: kept.append(_stored(tiny))
    tiny.train(8)
    assert list(kept[0]["live"]["unconfirmed"]) == ["a"]
    assert "ftlab.ack.a" not in tiny.tags()
    again, _ = _resumable(tiny)
    again.store.refused = set()
    again.load(kept[0])
    again.train(8)
    assert (again.ack("a").step, again.ack("a").changes) == (4, {"mix_ratio": (0.5, 0.7)})
    assert again.seen == [0.7] * 3


def test_a_checkpoint_of_another_run_brings_its_values_and_not_its_answers() -> None:
    tiny, _ = _resumable()
    kept: list[dict[str, Any]] = []
    tiny.tell(4, "a", set={"mix_ratio": 0.7, "learning_rate": 0.05})
    tiny.at[6] = lambda: kept.append(_stored(tiny))
    tiny.train(8)
    other, _ = _resumable()
    other.load(kept[0])
    other.tell(8, "new", set={"mix_ratio": 0.8}, expect={"mix_ratio": 0.7, "learning_rate": 0.05})
    other.train(10)
    assert other.seen == [0.7] * 2 + [0.8] * 2
    assert close(other.rates, asked(_natural(SCHEDULES["LambdaLR"]), 0.05, 4)[2:6])
    assert "ftlab.ack.a" not in other.tags()


def test_the_next_loop_on_a_finished_run_begins_as_launched() -> None:
    tiny, _ = _resumable()
    tiny.tell(4, "a", set={"mix_ratio": 0.7})
    tiny.train(6)
    again, _ = _resumable(tiny)
    again.train(3)
    assert again.seen == [0.5] * 3


# --- what is refused -----------------------------------------------------------------------------


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
