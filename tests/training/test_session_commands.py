"""One session's commands: pause, stop, evaluation, checkpoint, going back, and what is open at the end."""

import threading
from typing import Any

import pytest
from session_bench import Bench, in_thread, past
from training_doubles import COMMANDS, LIMIT_S, wait_for


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_an_answer_comes_after_the_thing_has_happened(bench: Bench) -> None:
    bench.trainee.gate = threading.Event()
    bench.send("e", command="evaluate")
    with in_thread(lambda: bench.session.boundary(8)):
        assert bench.trainee.entered.wait(LIMIT_S)
        assert bench.desk.answered() == []
        bench.trainee.gate.set()
    assert bench.desk.ack("e").result == {"metrics": {"eval_loss": 0.5, "eval_odd": "nan"}}
    assert bench.ask("c", command="checkpoint").result == {"checkpoint": "/somewhere/checkpoint-7"}


@pytest.mark.parametrize("command", ["checkpoint", "evaluate", "stop"])
def test_a_command_that_raises_is_failed_and_training_goes_on(bench: Bench, command: str) -> None:
    broken = "checkpoint" if command == "stop" else command
    bench.trainee.breaks = {broken}
    ack = bench.ask("a", command=command)
    assert (ack.code, ack.errors) == ("failed", {"command": f"RuntimeError: {broken} is broken"})
    assert bench.session.state == "running"
    assert bench.trainee.done == []


def test_while_paused_everything_else_is_served(bench: Bench) -> None:
    bench.send("p", command="pause")
    with in_thread(lambda: bench.session.boundary(8)) as training:
        wait_for(lambda: "p" in bench.desk.answered(), "the pause")
        for request_id, fields in {
            "set": {"set": {"rate": 0.2}},
            "bad": {"set": {"rate": 7}},
            "save": {"command": "checkpoint"},
            "eval": {"command": "evaluate"},
            "again": {"command": "pause"},
        }.items():
            bench.send(request_id, **fields)
            wait_for(lambda i=request_id: i in bench.desk.answered(), request_id)
        bench.send("late", set={"rate": 0.9}, expires=past(), at_step=99)
        wait_for(lambda: "late" in bench.desk.answered(), "the expiry")
        before = len(bench.desk.posts)
        bench.session.refresh_surface()
        wait_for(lambda: len(bench.desk.posts) > before, "the surface")
        assert training.is_alive()
        assert bench.session.state == "paused"
        bench.send("r", command="resume")
    assert bench.session.state == "running"
    assert bench.trainee.rate == 0.2
    assert bench.trainee.done == ["apply rate", "checkpoint", "evaluate"]
    assert bench.desk.states() == ["starting", "running", "paused", "running"]


def test_a_pause_ends_with_a_stop(bench: Bench) -> None:
    bench.send("p", command="pause")
    with in_thread(lambda: bench.session.boundary(8)):
        wait_for(lambda: "p" in bench.desk.answered(), "the pause")
        bench.send("s", command="stop", args={"save": False})
    assert bench.session.state == "stopping"


def test_a_pause_ends_with_a_signal(bench: Bench) -> None:
    bench.send("p", command="pause")
    with in_thread(lambda: bench.session.boundary(8)):
        wait_for(lambda: "p" in bench.desk.answered(), "the pause")
        bench.session.interrupt(bench.session.stop_now)
    assert bench.session.state == "stopping"


def test_stop_is_answered_when_the_training_has_ended(bench: Bench) -> None:
    bench.send("s", command="stop")
    bench.send("after", set={"rate": 0.9})
    bench.send("too", command="evaluate")
    bench.session.boundary(8)
    assert bench.desk.answered() == []
    assert bench.trainee.done == ["checkpoint", "stop"]
    bench.session.end("stopped")
    assert bench.desk.ack("s").result == {"checkpoint": "/somewhere/checkpoint-7"}
    assert bench.desk.ack("too").code == "expired"
    assert "after" not in bench.desk.answered(), "a set waits for the training that resumes this one"
    assert bench.trainee.rate == 0.1
    assert bench.desk.states() == ["starting", "running", "stopping", "stopped"]


def test_stop_without_save_writes_no_checkpoint(bench: Bench) -> None:
    bench.send("s", command="stop", args={"save": False})
    bench.session.boundary(8)
    bench.session.end("stopped")
    assert bench.trainee.done == ["stop"]
    assert bench.desk.ack("s").result == {}


def test_a_second_stop_is_answered_too(bench: Bench) -> None:
    bench.send("s1", command="stop", args={"save": False})
    bench.send("s2", command="stop")
    bench.session.boundary(8)
    bench.session.end("stopped")
    assert bench.desk.ack("s1").status == "applied"
    assert bench.desk.ack("s2").code == "expired"


@pytest.mark.parametrize("state", ["finished", "stopped", "failed"])
def test_at_the_end_every_request_has_an_answer_or_waits_for_the_resume(bench: Bench, state: Any) -> None:
    bench.send("set", set={"rate": 0.9}, at_step=1000)
    bench.send("cmd", command="checkpoint", at_step=1000)
    bench.session.boundary(8)
    bench.send("unseen set", set={"rate": 0.8})
    bench.send("unseen-set", set={"rate": 0.8})
    bench.send("unseen-bad", set={"rate": 8})
    bench.send("unseen-cmd", command="pause")
    bench.session.end(state)
    codes = {request_id: ack.code for request_id, ack in bench.desk.answers()}
    assert codes.pop("cmd") == codes.pop("unseen-cmd") == "expired"
    assert codes.pop("unseen-bad") == "out_of_bounds"
    assert codes.pop("unseen set") == "invalid"
    expected = {"set": "expired", "unseen-set": "expired"} if state == "finished" else {}
    assert codes == expected
    assert bench.trainee.done == []
    assert bench.desk.states()[-1] == state


def test_a_command_that_was_sent_before_the_session_is_expired(bench: Bench) -> None:
    bench.send("s", command="stop", before=True)
    bench.send("u", set={"rate": 0.2}, before=True)
    bench.send("x", set={"rate": 0.3}, expires=past(), before=True)
    bench.session.boundary(7)
    assert bench.desk.ack("s").code == "expired"
    assert bench.desk.ack("u").status == "applied"
    assert bench.desk.ack("x").code == "expired"
    assert bench.trainee.done == ["apply rate"]


def test_the_surface_is_posted_when_it_is_asked_for_and_not_at_every_step(bench: Bench) -> None:
    before = len(bench.desk.posts)
    for step in range(8, 50):
        bench.trainee.rate *= 0.99
        bench.session.boundary(step)
    assert len(bench.desk.posts) == before
    bench.session.refresh_surface()
    bench.session.boundary(50)
    assert len(bench.desk.posts) == before + 1
    param = bench.desk.surface().params["rate"]
    assert (param.value, param.asked) == (bench.trainee.rate, 0.1)


# --- going back ------------------------------------------------------------------------------------


class _GoingBack(Bench):
    """A session whose training can go back to step 7, at which ``rate`` was asked for."""

    def __init__(self, **then: Any) -> None:
        super().__init__(commands=(*COMMANDS, "rollback"))
        if then:
            self.ask("then", set=then)
        values = {name: getattr(self.trainee, name) for name in ("rate", "steps", "flag", "mode", "late")}
        self.trainee.kept = (7, self.session.saved_state(), values)
        self.session.boundary(20)


def test_going_back_keeps_what_was_asked_for_since_and_restores_the_rest() -> None:
    bench = _GoingBack(rate=0.2, mode="hold")
    bench.trainee.rate = 0.15  # a schedule moved it
    bench.ask("a", set={"late": 3.0})
    bench.ask("b", set={"steps": 9, "late": 4.0})
    bench.trainee.done.clear()
    ack = bench.ask("back", command="rollback", args={"checkpoint": "checkpoint-7"})
    assert (ack.status, ack.step) == ("applied", 7)
    assert ack.result == {"checkpoint": "/somewhere/checkpoint-7", "step": 7}
    now = bench.trainee
    assert (now.rate, now.mode, now.steps, now.late) == (0.2, "hold", 9, 4.0)
    assert now.done[0] == "rollback checkpoint-7"
    assert bench.session.step == 7
    assert bench.desk.surface().params["steps"].asked == 9
    assert bench.session.saved_state()["asked"] == {"rate": 0.2, "mode": "hold", "late": 4.0, "steps": 9}


def test_what_was_asked_for_since_comes_in_the_order_in_which_it_was_asked_for() -> None:
    bench = _GoingBack()
    bench.ask("a", set={"late": 3.0})
    bench.ask("b", set={"mode": "hold", "rate": 0.3})
    bench.ask("c", set={"steps": 9})
    bench.trainee.done.clear()
    bench.ask("back", command="rollback")
    assert bench.trainee.done == ["rollback None", "apply late", "apply rate", "apply mode", "apply steps"]


def test_a_request_for_a_step_keeps_waiting_over_a_rollback() -> None:
    bench = _GoingBack()
    bench.send("late", set={"rate": 0.9}, at_step=25)
    bench.ask("back", command="rollback")
    for step in (8, 20, 24):
        bench.session.boundary(step)
    assert bench.desk.answered() == ["back"]
    bench.session.boundary(25)
    assert bench.desk.ack("late").step == 25


def test_a_paused_training_goes_back_and_stays_paused() -> None:
    bench = _GoingBack()
    bench.send("p", command="pause")
    with in_thread(lambda: bench.session.boundary(20)):
        wait_for(lambda: "p" in bench.desk.answered(), "the pause")
        bench.send("back", command="rollback")
        wait_for(lambda: "back" in bench.desk.answered(), "the rollback")
        assert (bench.session.state, bench.session.step) == ("paused", 7)
        bench.send("r", command="resume")


def test_a_rollback_that_fails_changes_nothing() -> None:
    bench = _GoingBack(rate=0.2)
    bench.ask("a", set={"late": 3.0})
    bench.trainee.breaks = {"rollback gone"}
    ack = bench.ask("back", command="rollback", args={"checkpoint": "gone"})
    assert (ack.code, ack.step) == ("failed", 20)
    assert ack.errors == {"command": "RuntimeError: rollback gone is broken"}
    assert (bench.trainee.rate, bench.trainee.late) == (0.2, 3.0)


def test_a_rollback_says_which_value_it_could_not_keep() -> None:
    bench = _GoingBack()
    bench.ask("a", set={"late": 3.0})
    bench.trainee.breaks = {"apply late"}
    ack = bench.ask("back", command="rollback")
    assert (ack.status, ack.step) == ("applied", 7)
    assert ack.result["not_kept"]["late"].startswith("RuntimeError")
    assert bench.trainee.late == 1.0
