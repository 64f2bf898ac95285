"""What a session keeps over a restart: values, answers that were not written, the run's history."""

import json
from datetime import timedelta
from typing import Any

import pytest
from session_bench import Bench
from training_doubles import Desk, Trainee, entry, new_session, request

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.messages import Ack
from ftlab_mlflow.control.wire import utc_now
from ftlab_mlflow.training.session import Session


@pytest.fixture
def bench() -> Bench:
    return Bench()


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


def test_a_history_that_comes_after_the_end_changes_nothing(bench: Bench) -> None:
    bench.ask("a", set={"rate": 0.2})
    ledger = _history(bench.desk, a={"set": {"rate": 0.2}})
    session, _, trainee = _resumed({}, None)
    session.end("finished")
    session.deliver_history(ledger)
    session.answer_rest()
    assert trainee.rate == 0.1
