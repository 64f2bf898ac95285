"""The thread between the store and the step boundary, over a store that fails and dawdles when told to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from training_doubles import LIMIT_S, FlakyStore, Trainee, new_session, request, wait_for

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Ledger, read_entry
from ftlab_mlflow.control.messages import Ack, State, Status
from ftlab_mlflow.control.store import Point
from ftlab_mlflow.control.surface import Surface
from ftlab_mlflow.control.wire import format_time, utc_now
from ftlab_mlflow.training import listener as listener_module
from ftlab_mlflow.training.listener import Listener

POLL_S = 0.005


class Line:
    """A training whose session listens on a run, over the whole way from tag to tag."""

    def __init__(self, store: FlakyStore, run_id: str, poll_interval: float = POLL_S) -> None:
        self.store, self.run_id = store, run_id
        self.trainee = Trainee()
        self.listener = Listener(
            store, run_id, lambda: self._describe(self.session.state), poll_interval=poll_interval
        )
        self.session = new_session(self.trainee, self.listener)
        self.closed = False

    def _describe(self, state: State) -> str:
        step = self.session.step
        return Status(state, step, 100, 0.0, utc_now(), 10.0, "s1", "h", 1, "sft").encode()

    def begin(self, step: int = 0, saved: dict[str, Any] | None = None) -> "Line":
        first = self.listener.read_first()
        self.session.begin(step, saved or {}, None if first is None else Ledger.read(first))
        self.listener.start(self.session, self.session.surface().params, first)
        self.session.boundary(step)
        self.session.running()
        return self

    def step(self) -> None:
        self.session.boundary(self.session.step + 1)

    def end(self, state: State = "finished", status: Any = "FINISHED") -> bool:
        self.session.end(state)
        self.closed = True
        return self.listener.close(status)

    def tags(self) -> dict[str, str]:
        return self.store.inner.get(self.run_id).tags

    def send(self, request_id: str, **fields: Any) -> None:
        self.store.inner.write(self.run_id, {tags.UPDATE_PREFIX + request_id: request(**fields)})

    def by_hand(self, name: str, text: str) -> None:
        self.store.inner.write(self.run_id, {tags.SET_PREFIX + name: text})

    def looked(self) -> None:
        """Waits until whatever is on the run now has been brought to the session."""
        seen = self.store.gets
        wait_for(lambda: self.store.gets >= seen + 2, "two looks at the tags")

    def ack(self, request_id: str) -> Ack:
        """The answer, once it is a tag on the run; training goes on meanwhile."""

        def answered() -> Ack | None:
            self.step()
            return read_entry(self.tags(), request_id).ack

        ack: Ack = wait_for(answered, f"the answer to {request_id}")
        return ack

    def by_tag(self) -> list[tuple[Any, str | None]]:
        """What was asked for by hand, in order, with the status of the answer."""
        self.looked()
        self.step()
        self.looked()
        entries = [e for e in Ledger.read(self.tags()).entries if e.update and e.update.via == "tag"]
        return [
            (e.update.set or e.update.command, e.ack and e.ack.status)  # type: ignore[union-attr]
            for e in sorted(entries, key=lambda e: e.ack.at if e.ack else utc_now())
        ]


NewLine = Callable[..., Line]


@pytest.fixture
def store() -> FlakyStore:
    return FlakyStore()


@pytest.fixture
def new_line(store: FlakyStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[NewLine]:
    monkeypatch.setattr(listener_module, "BACKOFF_S", (0.01, 0.08))
    lines: list[Line] = []
    run_id = store.inner.create_run()

    def make(**options: Any) -> Line:
        lines.append(Line(store, run_id, **options))
        return lines[-1]

    yield make
    store.away = store.loses_answers = False
    store.hurry()
    for line in lines:
        if not line.closed and line.listener._thread.ident is not None:
            line.listener.close(None)
        line.listener._thread.join(LIMIT_S) if line.listener._thread.ident else None
        assert not line.listener._thread.is_alive()


@pytest.fixture
def line(new_line: NewLine) -> Line:
    return new_line()


# --- from tag to tag ---------------------------------------------------------------------------------


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


# --- by hand -----------------------------------------------------------------------------------------


def test_a_value_by_hand_is_an_ordinary_request(line: Line) -> None:
    line.begin()
    line.by_hand("rate", " 5e-2 ")
    assert line.by_tag() == [({"rate": 0.05}, "applied")]
    (entry,) = Ledger.read(line.tags()).entries
    assert entry.update is not None
    assert (entry.update.by, entry.update.via) == ("tag", "tag")
    assert line.tags()[tags.SET_PREFIX + "rate"] == " 5e-2 ", "nobody rewrites somebody else's tag"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "8", 8),
        ("flag", "True", True),
        ("mode", "hold", "hold"),
        ("rate", "1", 1.0),
        ("late", "3", 3.0),
    ],
)
def test_a_value_by_hand_is_read_by_its_type(line: Line, name: str, text: str, value: Any) -> None:
    line.begin()
    line.by_hand(name, text)
    assert line.by_tag() == [({name: value}, "applied")]
    assert getattr(line.trainee, name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("steps", "8.5"),
        ("flag", "1"),
        ("mode", "true"),
        ("rate", "nan"),
        ("rate", ""),
        ("speed", "3"),
        ("rate", "7"),
    ],
)
def test_a_wrong_value_by_hand_is_rejected_once(line: Line, name: str, text: str) -> None:
    line.begin()
    line.by_hand(name, text)
    assert [status for _, status in line.by_tag()] == ["rejected"]
    line.looked()
    assert len(line.by_tag()) == 1


def test_a_value_left_standing_is_applied_once_and_a_new_one_again(line: Line) -> None:
    line.begin()
    line.by_hand("rate", "0.2")
    line.by_tag()
    line.send("other", set={"rate": 0.7})
    line.ack("other")
    line.looked()
    assert line.trainee.rate == 0.7
    line.by_hand("rate", "0.3")
    assert line.by_tag() == [({"rate": 0.2}, "applied"), ({"rate": 0.3}, "applied")]


def test_a_tag_that_is_deleted_and_written_again_is_new(line: Line) -> None:
    line.begin()
    line.by_hand("rate", "0.2")
    line.by_tag()
    line.store.inner.delete_tag(line.run_id, tags.SET_PREFIX + "rate")
    line.looked()
    line.by_hand("rate", "0.2")
    assert line.by_tag() == [({"rate": 0.2}, "applied")] * 2


def test_a_standing_value_is_not_applied_after_a_restart_a_changed_one_is(new_line: NewLine) -> None:
    first = new_line().begin()
    first.by_hand("rate", "0.2")
    first.by_hand("command", "checkpoint")
    first.by_hand("steps", "wrong")
    first.by_tag()
    first.send("other", set={"rate": 0.7})
    first.ack("other")
    first.end("stopped", "KILLED")
    first.by_hand("late", "4")
    second = new_line().begin()
    second.by_tag()
    assert (second.trainee.rate, second.trainee.late) == (0.7, 4.0)
    asked = [value for value, _ in second.by_tag()]
    assert len(asked) == 4
    assert asked[-1] == {"late": 4.0}
    assert "checkpoint" not in second.trainee.done


def test_a_command_by_hand(line: Line) -> None:
    line.begin()
    line.by_hand("command", "checkpoint")
    assert line.by_tag() == [("checkpoint", "applied")]
    line.by_hand("command", "dance")
    assert line.by_tag()[1:] == [("dance", "rejected")]
    assert line.trainee.done == ["checkpoint"]


def test_a_command_by_hand_that_was_written_before_is_expired(line: Line) -> None:
    line.by_hand("command", "stop")
    line.begin()
    assert line.by_tag() == [("stop", "rejected")]
    assert line.trainee.done == []


# --- the store goes away -----------------------------------------------------------------------------


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


# --- load --------------------------------------------------------------------------------------------


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


# --- heartbeat and surface ---------------------------------------------------------------------------


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


# --- the end -----------------------------------------------------------------------------------------


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
