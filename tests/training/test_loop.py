"""`LiveLoop` in real plain PyTorch loops: values, steps, commands, the end."""

import math
from typing import Any

import pytest
import torch
from loop_schedules import STEPS
from loop_tiny import RATES, Tiny, batch
from training_doubles import wait_for

from ftlab_mlflow.control import tags


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


# --- where a step is -------------------------------------------------------------------------------


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


# --- commands --------------------------------------------------------------------------------------


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


# --- the end ---------------------------------------------------------------------------------------


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
