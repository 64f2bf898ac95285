"""The thread between the store and the step boundary, from a tag to the answer and to the end."""

import json
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from listener_line import POLL_S, Line, NewLine
from training_doubles import LIMIT_S, FlakyStore, request, wait_for

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Ledger, read_entry
from ftlab_mlflow.control.messages import Ack, Status
from ftlab_mlflow.control.surface import Surface
from ftlab_mlflow.control.wire import format_time, utc_now
from ftlab_mlflow.training import listener as listener_module
from ftlab_mlflow.training.listener import Listener


def test_a_request_is_answered_with_its_point_and_the_surface(line: Line) -> None:
    line.begin()
    line.send("a", set={"rate": 0.2}, by="alice")
    ack = line.ack("a")
    assert ack.changes == {"rate": (0.1, 0.2)}
    assert line.store.metric_history(line.run_id, "live/rate")[0][:3] == ("live/rate", 0.2, ack.step)
    written = [write for write in line.store.writes if tags.ACK_PREFIX + "a" in write]
    assert len(written) == 1
    assert Surface.decode(written[0][tags.SURFACE]).params["rate"].asked == 0.2, "answer and surface at once"


def test_requests_of_one_look_go_by_time_then_id_and_later_looks_come_later(line: Line) -> None:
    line.begin()
    line.store.away = True  # so that all of them are seen in one look
    now = utc_now()
    for i, (request_id, seconds) in enumerate([("z", 1), ("b", 2), ("a", 2), ("y", 3), ("x", 0)]):
        at = format_time(now + timedelta(seconds=seconds))
        line.send(request_id, set={"rate": (i + 1) / 10}, at=at)
    line.store.away = False
    line.looked()
    line.send("earlier", set={"rate": 0.9}, at=format_time(now - timedelta(hours=1)))
    line.looked()
    line.step()
    order = sorted(("x", "z", "a", "b", "y", "earlier"), key=lambda i: line.ack(i).at)
    assert order == ["x", "z", "a", "b", "y", "earlier"]
    assert line.trainee.rate == 0.9


def test_a_request_that_has_an_answer_is_not_applied(line: Line) -> None:
    ack = Ack("rejected", 3, utc_now(), "s0", code="stale").encode()
    broken = {tags.ACK_PREFIX + "b": "an answer nobody can read"}
    line.send("a", set={"rate": 0.2})
    line.send("b", set={"rate": 0.3})
    line.store.inner.write(line.run_id, {tags.ACK_PREFIX + "a": ack, **broken})
    line.begin()
    line.send("c", set={"rate": 0.4})
    line.store.inner.write(line.run_id, {tags.ACK_PREFIX + "c": ack})
    line.looked()
    line.step()
    line.looked()
    assert line.trainee.rate == 0.1
    assert line.tags()[tags.ACK_PREFIX + "a"] == ack


def test_an_answer_is_written_once_even_if_the_store_loses_its_own_answer(line: Line) -> None:
    line.begin()
    line.store.loses_answers = True
    line.send("a", set={"rate": 0.2})
    wait_for(lambda: (line.step(), line.store.failures > 4)[1], "some failures")
    line.store.loses_answers = False
    line.ack("a")
    line.looked()
    texts = {w[tags.ACK_PREFIX + "a"] for w in line.store.writes if tags.ACK_PREFIX + "a" in w}
    assert len(texts) == 1
    assert line.trainee.done == ["apply rate"]
    assert len(line.store.metric_history(line.run_id, "live/rate")) == 1


def test_every_request_of_many_writers_is_answered_once(line: Line) -> None:
    line.begin()
    writers = [
        threading.Thread(target=lambda w=w: [line.send(f"{w}-{i}", set={"rate": i / 100}) for i in range(50)])
        for w in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    acks = [line.ack(f"{w}-{i}") for w in range(4) for i in range(50)]
    assert len({ack.at for ack in acks}) == 200
    assert line.trainee.done == ["apply rate"] * 200
    written = [key for write in line.store.writes for key in write if key.startswith(tags.ACK_PREFIX)]
    assert len(written) == len(set(written)) == 200


# --- heartbeat and surface -------------------------------------------------------------------------


def test_the_heartbeat_goes_on_while_training_is_busy(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "HEARTBEAT_S", 0.02)
    line.begin()
    line.trainee.gate = threading.Event()
    line.send("e", command="evaluate")
    line.looked()
    busy = threading.Thread(target=line.step, daemon=True)
    busy.start()
    assert line.trainee.entered.wait(LIMIT_S)
    times: set[Any] = set()

    def beats() -> bool:
        times.add(Status.decode(line.tags()[tags.STATUS]).at)
        return len(times) >= 4

    wait_for(beats, "four heartbeats")
    line.trainee.gate.set()
    busy.join(LIMIT_S)


def test_the_surface_follows_a_schedule_now_and_then(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "SURFACE_S", 0.03)
    line.begin()
    line.trainee.rate = 0.07  # a schedule moved it

    def moved() -> bool:
        line.step()
        return Surface.decode(line.tags()[tags.SURFACE]).params["rate"].value == 0.07

    wait_for(moved, "the surface")
    assert Surface.decode(line.tags()[tags.SURFACE]).params["rate"].asked == 0.1


def test_no_heartbeat_comes_after_the_last_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat that was begun before the training ended must not be written after its final status."""
    monkeypatch.setattr(listener_module, "HEARTBEAT_S", 0.01)
    store = FlakyStore()
    run_id = store.inner.create_run()
    ending: list[threading.Thread] = []
    posted = threading.Event()
    state = {"now": "running"}

    def end() -> None:
        state["now"] = "finished"
        listener.post({tags.STATUS: "finished"})
        posted.set()

    def heartbeat() -> str:
        text = state["now"]
        if not ending:
            ending.append(threading.Thread(target=end))
            ending[0].start()
            posted.wait(0.2)  # it gets every chance to come first
        return text

    class Nobody:
        def deliver(self, entries: Any, *, sent_before: bool) -> None: ...
        def deliver_history(self, ledger: Ledger) -> None: ...
        def refresh_surface(self) -> None: ...
        def look_at_expiry(self, now: Any) -> None: ...
        def confirmed(self, keys: Any) -> None: ...
        def answer_rest(self) -> None: ...

    listener = Listener(store, run_id, heartbeat, POLL_S)
    listener.start(Nobody(), {}, listener.read_first())
    wait_for(posted.is_set, "the end")
    ending[0].join(LIMIT_S)
    listener.close(None)
    assert store.inner.get(run_id).tags[tags.STATUS] == "finished"


# --- the end ---------------------------------------------------------------------------------------


def test_the_end_delivers_what_is_left_and_sets_the_run_status(new_line: NewLine) -> None:
    line = new_line(poll_interval=60.0).begin()
    line.session.deliver(
        [read_entry({tags.UPDATE_PREFIX + "a": request(set={"rate": 0.2})}, "a")], sent_before=True
    )
    line.step()
    began = time.monotonic()
    assert line.end()
    assert time.monotonic() - began < 5, "a sleeping listener is woken"
    assert read_entry(line.tags() | {tags.UPDATE_PREFIX + "a": request(set={"rate": 0.2})}, "a").ack
    assert Status.decode(line.tags()[tags.STATUS]).state == "finished"
    assert line.store.inner.get(line.run_id).status == "FINISHED"


@pytest.mark.parametrize(("state", "status"), [("finished", "FINISHED"), ("stopped", "KILLED")])
def test_a_request_that_came_between_the_last_look_and_the_end_is_answered(
    new_line: NewLine, state: Any, status: Any
) -> None:
    line = new_line(poll_interval=60.0).begin()
    line.send("set", set={"rate": 0.2})
    line.send("bad", set={"rate": 7})
    line.send("cmd", command="stop")
    assert line.end(state, status)
    found = {i: read_entry(line.tags(), i).ack for i in ("set", "bad", "cmd")}
    codes = {i: ack.code if ack else None for i, ack in found.items()}
    assert codes == {
        "set": "expired" if state == "finished" else None,
        "bad": "out_of_bounds",
        "cmd": "expired",
    }
    assert line.trainee.done == []
    assert Status.decode(line.tags()[tags.STATUS]).state == state


def test_the_end_waits_for_a_store_that_comes_back(line: Line) -> None:
    line.begin()
    line.send("a", set={"rate": 0.2})
    line.looked()
    line.store.away = True
    line.step()
    wait_for(lambda: line.store.failures > 3, "failures")
    back = threading.Timer(0.3, lambda: setattr(line.store, "away", False))
    back.start()
    assert line.end("stopped", "KILLED")
    assert tags.ACK_PREFIX + "a" in line.tags()
    assert line.store.inner.get(line.run_id).status == "KILLED"
    back.join()


def test_the_end_gives_up_in_time_and_says_what_it_could_not_deliver(
    line: Line, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener_module, "DELIVERY_S", 0.3)
    line.begin()
    line.send("a", set={"rate": 0.2})
    line.looked()
    line.store.away = True
    line.step()
    began = time.monotonic()
    assert not line.end()
    assert time.monotonic() - began < 3
    (text,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert tags.ACK_PREFIX + "a" in text
    assert "FINISHED" in text


def test_closing_a_listener_that_never_began(store: FlakyStore) -> None:
    run_id = store.inner.create_run()
    listener = Listener(store, run_id, lambda: "", POLL_S)
    listener.post({"left": "x"})
    assert listener.close("FAILED")
    assert store.inner.get(run_id).status == "FAILED"
    assert store.inner.get(run_id).tags == {"left": "x"}


def test_the_listener_survives_what_it_does_not_expect(
    line: Line, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener_module, "DELIVERY_S", 0.1)
    line.begin()
    line.store.inner.write(line.run_id, {tags.UPDATE_PREFIX + "odd": json.dumps({"v": 1, "at": []})})
    assert line.ack("odd").code == "invalid"
    line.store.inner._runs.pop(line.run_id)  # somebody deleted the run
    wait_for(lambda: any("no run" in message for message in caplog.messages), "the warning")
    line.step()
    assert line.listener._thread.is_alive()
    assert not line.end()
