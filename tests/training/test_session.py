"""One session from request to answer: every rejection, transactions, order, waiting."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from session_bench import Bench, in_thread, past
from training_doubles import Desk, Trainee, entry, new_session, request, wait_for

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.messages import Ack
from ftlab_mlflow.control.wire import format_time, utc_now


@pytest.fixture
def bench() -> Bench:
    return Bench()


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
    ("expired", request(set={"rate": 0.2}, expires=past()), "expires"),
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


# --- transactions ----------------------------------------------------------------------------------


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


# --- order, waiting, withdrawing -------------------------------------------------------------------


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


# --- for a while -----------------------------------------------------------------------------------


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
    with in_thread(lambda: bench.session.boundary(9)) as training:
        wait_for(lambda: len(threads) >= 3, "three calls")
        bench.send("r", command="resume")
    assert set(threads) == {training}
