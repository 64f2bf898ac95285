"""The listener over a store that is away, slow, or refuses: nothing is lost, and training does not wait."""

import time
from itertools import pairwise

import pytest
from listener_line import Line, NewLine
from training_doubles import LIMIT_S, wait_for

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.store import Point


def test_answers_wait_in_order_while_the_store_is_away(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    line.begin()
    names = [f"r{i:03}" for i in range(150)]  # more than one write may hold
    for name in names:
        line.send(name, set={"rate": 0.2})
    line.looked()
    line.store.away = True
    line.step()
    assert line.trainee.done == ["apply rate"] * 150, "training does not notice"
    wait_for(lambda: line.store.failures > 8, "eight failures")
    assert not any(key.startswith(tags.ACK_PREFIX) for key in line.tags())
    line.store.away = False
    acks = [line.ack(name) for name in names]
    assert all(a.at < b.at for a, b in pairwise(acks))
    written = [key for write in line.store.writes for key in write if key.startswith(tags.ACK_PREFIX)]
    assert written == [tags.ACK_PREFIX + name for name in names]
    messages = [record.message for record in caplog.records if record.levelname == "WARNING"]
    away = [message for message in messages if "training goes on" in message]
    assert len(away) == 1, "warned once"
    wait_for(lambda: "The tracking store answers again" in caplog.messages, "the good news")


def test_the_pause_between_two_tries_grows_with_jitter_up_to_a_limit(line: Line) -> None:
    line.begin()
    line.looked()
    line.store.away = True
    wait_for(lambda: line.store.failures >= 9, "nine failures")
    pauses = [b - a for a, b in pairwise(line.store.failure_times)]
    for i, pause in enumerate(pauses):
        assert pause >= 0.75 * min(0.08, 0.01 * 2**i), f"pause {i}"
    assert len({round(pause, 4) for pause in pauses[3:]}) > 1, "no two runs come back in step"


def test_the_store_is_away_when_the_training_begins(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    line.send("pending", set={"rate": 0.2})
    line.send("stop", command="stop")
    line.by_hand("late", "4")
    line.store.away = True
    line.begin()
    for _ in range(20):
        line.step()
    line.store.away = False
    assert line.ack("pending").status == "applied"
    assert line.ack("stop").code == "expired"
    assert line.by_tag() == [({"late": 4.0}, "applied")]
    assert sum("training goes on" in message for message in caplog.messages) == 1


def test_what_the_store_refuses_takes_nothing_else_with_it(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    line.begin()
    line.store.refused = {tags.ACK_PREFIX + "b"}
    for request_id in "abc":
        line.send(request_id, set={"rate": 0.2})
    line.looked()
    line.store.away = True
    line.step()  # three answers in one write
    line.store.away = False
    line.ack("a")
    line.ack("c")
    assert tags.ACK_PREFIX + "b" not in line.tags()
    assert any(tags.ACK_PREFIX + "b" in record.message for record in caplog.records)


def test_an_answer_that_is_written_need_not_ride_in_checkpoints(line: Line) -> None:
    line.begin()
    line.send("a", set={"rate": 0.2})
    line.looked()
    line.store.away = True
    line.step()
    assert list(line.session.saved_state()["unconfirmed"]) == ["a"]
    line.store.away = False
    wait_for(lambda: not line.session.saved_state()["unconfirmed"], "the confirmation")
    assert tags.ACK_PREFIX + "a" in line.tags()


# --- load ------------------------------------------------------------------------------------------


def test_a_slow_store_is_asked_at_most_a_twentieth_of_the_time(line: Line) -> None:
    line.store.get_s = 0.03
    line.begin()
    wait_for(lambda: len(line.store.get_times) >= 4, "four looks")
    looks = line.store.get_times[1:4]  # the first is the one before the training
    gaps = [b - a for a, b in pairwise(looks)]
    assert min(gaps) >= 20 * 0.03, gaps


def test_one_slow_answer_is_no_reason_to_stay_away(line: Line) -> None:
    line.begin()
    line.looked()
    line.store.get_s = 0.5  # 20 times that would be 10 s of silence
    wait_for(lambda: line.store.get_times[-1] > line.store.got_times[-1], "a slow look")
    line.store.get_s = 0.0
    seen = line.store.gets
    wait_for(lambda: line.store.gets >= seen + 3, "the next looks", limit=5)


def test_a_fast_store_is_asked_at_the_poll_interval(new_line: NewLine) -> None:
    line = new_line(poll_interval=0.05).begin()
    wait_for(lambda: len(line.store.get_times) >= 6, "six looks")
    gaps = [b - a for a, b in pairwise(line.store.get_times[1:6])]
    assert min(gaps) >= 0.05 * 0.99
    assert sorted(gaps)[1] < 1.0


def test_posting_never_waits_for_the_store(line: Line) -> None:
    line.begin()
    line.send("a", set={"rate": 0.2})
    line.looked()
    line.store.write_s = LIMIT_S
    line.step()
    assert line.store.writing.wait(LIMIT_S)
    began = time.monotonic()
    for _ in range(1000):
        line.listener.post({tags.STATUS: "x"}, [Point("m", 1.0, 1, 1)])
        line.step()
    assert time.monotonic() - began < LIMIT_S / 4


def test_more_points_than_one_write_holds(line: Line) -> None:
    line.store.away = True
    line.begin()
    for i in range(40):
        line.listener.post({f"t{i}": "x"}, [Point("m", float(i), 50 * i + k, 0) for k in range(50)])
    line.store.away = False
    wait_for(lambda: "t39" in line.tags(), "the last tag")
    assert len(line.store.metric_history(line.run_id, "m")) == 2000
