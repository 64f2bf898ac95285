"""One session from request to answer: every rejection, transactions, order, waiting, pause, stop, the end."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from training_doubles import COMMANDS, LIMIT_S, Desk, Trainee, entry, new_session, request, wait_for

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.messages import Ack
from ftlab_mlflow.control.wire import format_time, utc_now
from ftlab_mlflow.training.session import Session


class Bench:
    """A session at step 7 of a training, with its desk."""

    def __init__(self, **session: Any) -> None:
        self.trainee, self.desk = Trainee(), Desk()
        self.session = new_session(self.trainee, self.desk, **session)
        self.session.begin(7, {}, None)
        self.session.running()

    def send(self, request_id: str, text: str | None = None, *, before: bool = False, **fields: Any) -> None:
        self.session.deliver([entry(request_id, text, **fields)], sent_before=before)

    def ask(self, request_id: str, text: str | None = None, **fields: Any) -> Ack:
        """Sends a request and has it served at the boundary of the step that the session is at."""
        self.send(request_id, text, **fields)
        self.session.boundary(self.session.step)
        return self.desk.ack(request_id)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def _past(seconds: float = 1.0) -> str:
    return format_time(utc_now() - timedelta(seconds=seconds))


# --- every rejection ---------------------------------------------------------------------------------

REJECTED: list[tuple[str, str, str]] = [
    ("invalid", "not JSON", "message"),
    ("invalid", request(set={"rate": 0.2})[:-4], "message"),
    ("invalid", "[" * 900, "message"),
    ("invalid", "[1]", "message"),
    ("invalid", '{"v":1,"v":1}', "message"),
    ("invalid", request(set={"rate": 0.2}, reason="x" * 8000), "message"),
    ("invalid", '{"set":{"rate":0.2}}', "v"),
    ("invalid", '{"v":1,"set":{"rate":0.2}}', "at"),
    ("invalid", request(), "message"),
    ("invalid", request(set={"rate": 0.2}, command="stop"), "message"),
    ("invalid", request(set={}), "set"),
    ("invalid", request(set={"rate": 0.2}, when=3), "when"),
    ("invalid", request(set={"rate": 0.2}, at_step=-1), "at_step"),
    ("invalid", request(set={"rate": 0.2}, expires="tomorrow"), "expires"),
    ("invalid", request(command="pause", args={"why": 1}), "command"),
    ("invalid", request(command="cancel"), "command"),
    ("unsupported_version", '{"v":2,"anything":[]}', "v"),
    ("unsupported_version", '{"v":true,"at":"x"}', "v"),
    ("unknown_parameter", request(set={"speed": 1}), "speed"),
    ("unknown_parameter", request(set={"rate": 0.2, "speed": 1}), "speed"),
    ("unknown_parameter", request(set={"rate": 0.2}, expect={"speed": 1}), "speed"),
    ("unknown_command", request(command="dance"), "command"),
    ("wrong_type", request(set={"rate": "fast"}), "rate"),
    ("wrong_type", request(set={"rate": True}), "rate"),
    ("wrong_type", request(set={"rate": None}), "rate"),
    ("wrong_type", request(set={"rate": [0.1]}), "rate"),
    ("wrong_type", request(set={"steps": 8.0}), "steps"),
    ("wrong_type", request(set={"steps": True}), "steps"),
    ("wrong_type", request(set={"flag": 1}), "flag"),
    ("wrong_type", request(set={"mode": 1}), "mode"),
    ("wrong_type", request(command="stop", args={"save": "no"}), "command"),
    ("wrong_type", request(command="cancel", args={"id": 5}), "command"),
    ("out_of_bounds", request(set={"rate": float("nan")}), "rate"),
    ("out_of_bounds", request(set={"rate": float("inf")}), "rate"),
    ("out_of_bounds", request(set={"rate": -0.001}), "rate"),
    ("out_of_bounds", request(set={"rate": 1.001}), "rate"),
    ("out_of_bounds", request(set={"steps": 0}), "steps"),
    ("out_of_bounds", request(set={"steps": 10**400}), "steps"),
    ("out_of_bounds", request(set={"mode": "sideways"}), "mode"),
    ("out_of_bounds", request(set={"rate": 0.5, "steps": 13}), "rate"),
    ("not_supported", request(set={"batch": 4}), "batch"),
    ("not_supported", request(command="rollback"), "command"),
    ("stale", request(set={"rate": 0.2}, expect={"rate": 0.11}), "rate"),
    ("stale", request(command="stop", expect={"steps": 6}), "steps"),
    ("stale", request(set={"flag": True}, expect={"flag": 0}), "flag"),
    ("expired", request(set={"rate": 0.2}, expires=_past()), "expires"),
    ("failed", request(command="cancel", args={"id": "nobody"}), "command"),
]


@pytest.mark.parametrize(("code", "text", "about"), REJECTED, ids=range(len(REJECTED)))
def test_a_bad_request_is_answered_and_changes_nothing(
    bench: Bench, code: str, text: str, about: str
) -> None:
    ack = bench.ask("bad", text)
    assert (ack.status, ack.code, ack.step, ack.session) == ("rejected", code, 7, "s1")
    assert list(ack.errors) == [about]
    assert ack.errors[about]
    assert bench.trainee == Trainee(entered=bench.trainee.entered)
    assert bench.session.state == "running"
    assert bench.ask("good", set={"rate": 0.2}).changes == {"rate": (0.1, 0.2)}
    assert bench.desk.answered() == ["bad", "good"]


def test_the_text_of_a_rejection_says_what_is_allowed(bench: Bench) -> None:
    ack = bench.ask("a", set={"rate": float("nan"), "steps": 2.5, "mode": "x"})
    assert ack.errors == {
        "rate": "must be a finite number from 0 to 1, got nan",
        "steps": "must be a whole number from 1, got 2.5",
        "mode": 'must be one of keep, hold, got "x"',
    }
    assert "the data is a stream" in bench.ask("b", set={"batch": 4}).errors["batch"]


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 65, "ö", "a/b", "a.b"])
def test_a_request_under_an_odd_id_is_invalid_under_that_id(bench: Bench, request_id: str) -> None:
    ack = bench.ask(request_id, set={"rate": 0.2})
    assert ack.code == "invalid"
    assert bench.trainee.rate == 0.1


def test_an_answer_to_a_monstrous_request_fits_into_a_tag(bench: Bench) -> None:
    bench.ask("a", set={"\n" * 60 + str(i): 1 for i in range(20)})
    bench.ask("b", set={"ä" * 7000: 1})
    bench.ask("c", command="\\" * 3500)
    for post, _ in bench.desk.posts:
        assert all(len(value) <= tags.MAX_VALUE_LENGTH for value in post.values())


# --- transactions ------------------------------------------------------------------------------------


def test_an_applied_change_is_read_back_and_drawn(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "ftlab_mlflow"):
        ack = bench.ask(
            "a", set={"mode": "hold", "steps": 9, "rate": 0.2}, by="alice", reason="plateau\nof \x1b[31mmine"
        )
    assert ack.changes == {"rate": (0.1, 0.2), "steps": (5, 9), "mode": ("keep", "hold")}
    assert ack.status == "applied"
    assert bench.desk.points() == [("live/rate", 0.2, 7), ("live/steps", 9.0, 7), ("live/mode", 1.0, 7)]
    params = bench.desk.surface().params
    assert (params["rate"].value, params["rate"].asked, params["late"].asked) == (0.2, 0.2, 1.0)
    assert caplog.messages[0] == "Applied rate 0.1 → 0.2 at step 7 (alice: plateau of  [31mmine)"


@pytest.mark.parametrize("what", ["apply late", "read late"])
def test_all_of_a_request_or_nothing(bench: Bench, what: str) -> None:
    bench.trainee.breaks = {what}
    ack = bench.ask("a", set={"late": 3.0, "rate": 0.2, "mode": "hold"})
    assert (ack.status, ack.code) == ("rejected", "failed")
    assert ack.errors == {"late": f"RuntimeError: {what} is broken"}
    bench.trainee.breaks = set()
    assert (bench.trainee.rate, bench.trainee.mode, bench.trainee.late) == (0.1, "keep", 1.0)
    assert bench.desk.points() == []
    assert bench.session.saved_state()["values"] == {}
    assert bench.ask("b", set={"rate": 0.3}, expect={"rate": 0.1, "mode": "keep"}).status == "applied"


def test_one_wrong_value_of_two_keeps_the_good_one_out(bench: Bench) -> None:
    assert bench.ask("a", set={"steps": 9, "rate": 7}).code == "out_of_bounds"
    assert bench.trainee.steps == 5


def test_expect_is_about_what_was_asked_for_not_what_is_in_force(bench: Bench) -> None:
    bench.trainee.rate = 0.03  # a schedule moved it
    assert bench.ask("a", set={"rate": 0.2}, expect={"rate": 0.03}).code == "stale"
    assert bench.ask("b", set={"rate": 0.2}, expect={"rate": 0.1 * (1 + 1e-12)}).changes["rate"] == (
        0.03,
        0.2,
    )
    assert bench.ask("c", set={"rate": 0.4}, expect={"rate": 0.1}).code == "stale"
    assert bench.ask("d", set={"rate": 0.4}, expect={"rate": 0.2, "steps": 5}).status == "applied"


# --- order, waiting, withdrawing ---------------------------------------------------------------------


def test_two_requests_at_one_boundary_are_two_transactions_in_order(bench: Bench) -> None:
    bench.send("b", set={"rate": 0.2})
    bench.send("a", set={"rate": 0.3}, expect={"rate": 0.2})
    bench.session.boundary(8)
    assert bench.desk.ack("b").changes["rate"] == (0.1, 0.2)
    assert bench.desk.ack("a").changes["rate"] == (0.2, 0.3)
    assert bench.desk.answered() == ["b", "a"]


def test_answers_have_strictly_increasing_times_also_after_the_clock_was_set_back() -> None:
    desk = Desk()
    session = new_session(Trainee(), desk)
    ahead = datetime.now(UTC) + timedelta(hours=1)
    old = entry("old", set={"rate": 0.2})
    ledger = Ledger((type(old)("old", old.update, None, True, Ack("applied", 3, ahead, "s0")),))
    session.begin(3, {}, ledger)
    for i in range(50):
        session.deliver([entry(f"r{i}", set={"rate": 0.3})], sent_before=False)
    session.boundary(4)
    times = [ack.at for _, ack in desk.answers()]
    assert len(times) == 50
    assert all(a < b for a, b in zip([ahead, *times], times, strict=False))


def test_at_step_waits_for_its_step(bench: Bench) -> None:
    bench.send("late", set={"rate": 0.9}, at_step=10)
    bench.send("now", set={"rate": 0.2}, at_step=3)
    for step in (7, 8, 9):
        bench.session.boundary(step)
        assert bench.trainee.rate == 0.2
    bench.session.boundary(10)
    assert bench.desk.ack("late").step == 10
    assert bench.trainee.rate == 0.9


def test_a_request_that_can_never_be_applied_is_answered_at_once(bench: Bench) -> None:
    assert bench.ask("a", set={"rate": 7}, at_step=1000).code == "out_of_bounds"
    assert bench.ask("b", command="dance", at_step=1000).code == "unknown_command"


def test_stale_is_decided_when_the_request_is_due(bench: Bench) -> None:
    bench.send("late", set={"rate": 0.9}, at_step=9, expect={"rate": 0.3})
    bench.session.boundary(7)
    assert bench.desk.answered() == []
    bench.ask("b", set={"rate": 0.3})
    bench.session.boundary(9)
    assert bench.desk.ack("late").status == "applied"


def test_a_waiting_request_expires_without_its_step(bench: Bench) -> None:
    soon = utc_now() + timedelta(milliseconds=30)
    bench.send("late", set={"rate": 0.9}, at_step=1000, expires=format_time(soon))
    bench.session.boundary(8)
    assert bench.desk.answered() == []
    wait_for(lambda: utc_now() > soon, "the time to pass")
    bench.session.look_at_expiry(utc_now())
    bench.session.boundary(9)
    assert (bench.desk.ack("late").code, bench.desk.ack("late").step) == ("expired", 9)


def test_cancel(bench: Bench) -> None:
    bench.send("late", set={"rate": 0.9}, at_step=10)
    ack = bench.ask("c1", command="cancel", args={"id": "late"})
    assert (ack.status, bench.desk.ack("late").status) == ("applied", "cancelled")
    assert bench.desk.answered() == ["late", "c1"]
    assert bench.ask("c2", command="cancel", args={"id": "late"}).code == "failed"
    bench.session.boundary(11)
    assert bench.trainee.rate == 0.1
    assert bench.desk.answered() == ["late", "c1", "c2"]


def test_cancel_meets_a_request_of_the_same_boundary_that_comes_after_it(bench: Bench) -> None:
    bench.send("c", command="cancel", args={"id": "x"})
    bench.send("x", set={"rate": 0.9})
    bench.session.boundary(8)
    assert bench.desk.ack("x").status == "cancelled"
    assert bench.trainee.rate == 0.1


# --- commands ----------------------------------------------------------------------------------------


def test_an_answer_comes_after_the_thing_has_happened(bench: Bench) -> None:
    bench.trainee.gate = threading.Event()
    bench.send("e", command="evaluate")
    with _in_thread(lambda: bench.session.boundary(8)):
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


@contextmanager
def _in_thread(work: Callable[[], object]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield thread
    thread.join(LIMIT_S)
    assert not thread.is_alive()


def test_while_paused_everything_else_is_served(bench: Bench) -> None:
    bench.send("p", command="pause")
    with _in_thread(lambda: bench.session.boundary(8)) as training:
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
        bench.send("late", set={"rate": 0.9}, expires=_past(), at_step=99)
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
    with _in_thread(lambda: bench.session.boundary(8)):
        wait_for(lambda: "p" in bench.desk.answered(), "the pause")
        bench.send("s", command="stop", args={"save": False})
    assert bench.session.state == "stopping"


def test_a_pause_ends_with_a_signal(bench: Bench) -> None:
    bench.send("p", command="pause")
    with _in_thread(lambda: bench.session.boundary(8)):
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
    bench.send("x", set={"rate": 0.3}, expires=_past(), before=True)
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


# --- going back ----------------------------------------------------------------------------------


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
    with _in_thread(lambda: bench.session.boundary(20)):
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


# --- for a while ---------------------------------------------------------------------------------


def test_a_parameter_that_cannot_be_changed_now_is_not_offered_and_says_why(bench: Bench) -> None:
    bench.ask("a", set={"steps": 9})
    bench.trainee.gone = {"steps": "the warm-up is over"}
    bench.session.refresh_surface()
    bench.session.boundary(8)
    assert "steps" not in bench.desk.surface().params
    ack = bench.ask("b", set={"steps": 11, "rate": 0.2})
    assert (ack.code, ack.errors) == ("not_supported", {"steps": "the warm-up is over"})
    assert (bench.trainee.steps, bench.trainee.rate) == (9, 0.1)
    assert bench.session.saved_state()["values"] == {"steps": 9}, "what was asked for is still in force"


def test_it_is_decided_when_the_request_is_due(bench: Bench) -> None:
    bench.send("a", set={"steps": 9}, at_step=10)
    bench.session.boundary(8)
    assert bench.desk.answered() == []
    bench.trainee.gone = {"steps": "the warm-up is over"}
    bench.session.boundary(10)
    assert bench.desk.ack("a").code == "not_supported"


def test_a_withdrawn_session_answers_everything_with_the_reason() -> None:
    bench = Bench()
    bench.ask("a", set={"rate": 0.2})
    bench.send("waits", set={"rate": 0.3}, at_step=12)
    bench.session.boundary(8)
    bench.session.withdraw("rank 1 is lost")
    surface = bench.desk.surface()
    assert (surface.params, surface.commands) == ({}, ())
    assert (surface.unsupported["rate"], surface.unsupported["pause"]) == ("rank 1 is lost",) * 2
    assert bench.ask("b", set={"rate": 0.4}).errors == {"rate": "rank 1 is lost"}
    assert bench.ask("c", command="stop").errors == {"command": "rank 1 is lost"}
    bench.session.boundary(12)
    assert bench.desk.ack("waits").code == "not_supported"
    assert bench.trainee.rate == 0.2
    assert bench.session.saved_state()["values"] == {"rate": 0.2}


def test_a_pause_keeps_calling_idle_in_the_training_thread() -> None:
    threads: list[threading.Thread] = []
    bench = Bench(idle=lambda: threads.append(threading.current_thread()))
    bench.session.boundary(8)
    assert threads == []
    bench.send("p", command="pause")
    with _in_thread(lambda: bench.session.boundary(9)) as training:
        wait_for(lambda: len(threads) >= 3, "three calls")
        bench.send("r", command="resume")
    assert set(threads) == {training}


def test_a_history_that_comes_after_the_end_changes_nothing(bench: Bench) -> None:
    bench.ask("a", set={"rate": 0.2})
    ledger = _history(bench.desk, a={"set": {"rate": 0.2}})
    session, _, trainee = _resumed({}, None)
    session.end("finished")
    session.deliver_history(ledger)
    session.answer_rest()
    assert trainee.rate == 0.1


# --- what survives -----------------------------------------------------------------------------------


def _resumed(
    saved: Any, ledger: Ledger | None, trainee: Trainee | None = None
) -> tuple[Session, Desk, Trainee]:
    desk, trainee = Desk(), trainee or Trainee()
    session = new_session(trainee, desk, session_id="s2")
    session.begin(20, json.loads(json.dumps(saved)), ledger)
    return session, desk, trainee


def _history(desk: Desk, **requests: dict[str, Any]) -> Ledger:
    """The ledger that these requests and the desk's answers make."""
    run_tags = {tags.UPDATE_PREFIX + i: request(**fields) for i, fields in requests.items()}
    run_tags |= {tags.ACK_PREFIX + i: ack.encode() for i, ack in desk.answers()}
    return Ledger.read(run_tags)


def test_a_checkpoint_holds_values_and_answers_that_are_not_written_yet(bench: Bench) -> None:
    bench.ask("a", set={"rate": 0.2, "mode": "hold"})
    bench.ask("b", set={"steps": 0})
    bench.session.confirmed([tags.ACK_PREFIX + "b", tags.STATUS])
    session, desk, trainee = _resumed(bench.session.saved_state(), Ledger.read({}))
    assert (trainee.rate, trainee.mode, trainee.steps) == (0.2, "hold", 5)
    assert desk.ack("a") == bench.desk.ack("a"), "the very same answer, of the session that gave it"
    assert desk.answered() == ["a"]
    assert session.surface().params["rate"].asked == 0.2
    session.deliver([entry("a", set={"rate": 0.2, "mode": "hold"})], sent_before=True)
    session.confirmed([tags.ACK_PREFIX + "a"])  # the listener may be faster than the boundary
    session.boundary(20)
    assert desk.answered() == ["a"], "answered once"


def test_what_was_applied_after_the_checkpoint_is_applied_again_in_order(bench: Bench) -> None:
    bench.ask("a", set={"rate": 0.2})
    saved = bench.session.saved_state()
    bench.ask("c", set={"rate": 0.3, "steps": 9})
    bench.ask("b", set={"rate": 0.4})
    bench.ask("bad", set={"rate": 5})
    ledger = _history(
        bench.desk,
        a={"set": {"rate": 0.2}},
        b={"set": {"rate": 0.4}},
        c={"set": {"rate": 0.3, "steps": 9}},
        bad={"set": {"rate": 5}},
    )
    session, desk, trainee = _resumed(saved, ledger)
    assert (trainee.rate, trainee.steps) == (0.4, 9)
    assert trainee.done == ["apply rate", "apply rate", "apply steps", "apply rate"]
    assert desk.answered() == []
    assert session.surface().params["steps"].asked == 9
    assert session.saved_state()["values"] == {"rate": 0.4, "steps": 9}


def test_without_a_checkpoint_the_whole_history_is_applied(bench: Bench) -> None:
    bench.ask("a", set={"rate": 0.2, "steps": 9})
    bench.ask("b", set={"rate": 0.4})
    ledger = _history(bench.desk, a={"set": {"rate": 0.2, "steps": 9}}, b={"set": {"rate": 0.4}})
    _, _, trainee = _resumed({}, ledger)
    assert (trainee.rate, trainee.steps) == (0.4, 9)


def test_a_history_that_comes_late_is_applied_at_the_next_boundary(bench: Bench) -> None:
    bench.ask("a", set={"rate": 0.2})
    saved = bench.session.saved_state()
    bench.ask("b", set={"rate": 0.4})
    session, desk, trainee = _resumed(saved, None)
    assert trainee.rate == 0.2
    session.boundary(21)
    assert desk.answered() == []
    session.deliver_history(_history(bench.desk, a={"set": {"rate": 0.2}}, b={"set": {"rate": 0.4}}))
    session.boundary(22)
    assert trainee.rate == 0.4


def test_a_value_that_this_training_cannot_have_is_left_out_aloud(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.ask("a", set={"rate": 0.2})
    saved = bench.session.saved_state()
    saved["values"] |= {"gone": 1}
    saved["asked"] |= {"gone": 1}
    requests = {"x": {"set": {"other": 3, "rate": 0.3}}, "y": {"set": {"mode": 5}}}
    run_tags = {tags.UPDATE_PREFIX + i: request(**fields) for i, fields in requests.items()}
    later = utc_now() + timedelta(seconds=5)
    run_tags |= {tags.ACK_PREFIX + i: Ack("applied", 9, later, "s1").encode() for i in requests}
    _, _, trainee = _resumed(saved, Ledger.read(run_tags))
    assert (trainee.rate, trainee.mode) == (0.3, "keep")
    assert any("other of step 9 cannot be changed here" in message for message in caplog.messages)
