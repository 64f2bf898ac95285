"""`LiveRun`: finding a run, asking only for what the surface allows, and waiting for the answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from control_samples import AT, SURFACE, answer, live_run, live_tags, running

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.client import LiveRun, SentUpdate, resolve
from ftlab_mlflow.control.messages import Update
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.control.store import MemoryRunStore, Point
from ftlab_mlflow.control.wire import utc_now
from ftlab_mlflow.errors import (
    MessageError,
    NotLive,
    RunNotFound,
    StoreUnavailable,
    UpdateRejected,
    UpdateTimeout,
)

Live = tuple[LiveRun, MemoryRunStore]


@pytest.fixture
def live() -> Live:
    return live_run()


def requests(store: MemoryRunStore, run: LiveRun) -> dict[str, str]:
    return {key: text for key, text in store.get(run.run_id).tags.items() if ".update." in key}


@contextmanager
def meanwhile(act: Callable[[], Any], after_s: float = 0.3) -> Iterator[None]:
    """Does something in another thread a moment after the block began, and hands on its failure."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            time.sleep(after_s)
            act()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        assert failures == []


# --- which run ---------------------------------------------------------------------------------------


def hex_store(*ids: str) -> tuple[MemoryRunStore, dict[str, str]]:
    """A store with runs of several names; run ids by name."""
    store = MemoryRunStore()
    return store, {name: store.create_run(name) for name in ids}


def test_a_run_by_its_id_its_prefix_and_its_name() -> None:
    store, ids = hex_store("first", "second")
    for name, run_id in ids.items():
        assert resolve(store, run_id) == run_id
        assert resolve(store, run_id[:31]) == run_id
        assert resolve(store, name) == run_id


def test_of_several_runs_of_a_name_it_is_the_newest() -> None:
    store = MemoryRunStore()
    ids = [store.create_run("same") for _ in range(3)]
    assert resolve(store, "same") == ids[-1]


def test_a_name_that_looks_like_a_prefix_is_a_name() -> None:
    store, ids = hex_store("first")
    named = store.create_run(ids["first"][:6])
    assert resolve(store, ids["first"][:6]) == named


def test_a_prefix_of_several_runs_is_refused() -> None:
    store, ids = hex_store("first", "second")
    prefix = ids["first"][:6]  # the time of the same hour
    assert ids["second"].startswith(prefix)
    with pytest.raises(RunNotFound, match=f"several runs start with {prefix}: give more characters"):
        resolve(store, prefix)


@pytest.mark.parametrize("reference", ["nothing", "abc", "f" * 32, "F" * 32, "", "%", "x' or 'a", "a" * 500])
def test_what_is_no_run_is_not_found(reference: str) -> None:
    store, _ = hex_store("first")
    with pytest.raises(RunNotFound):
        resolve(store, reference)


def test_latest_is_the_newest_run_that_a_live_trainer_has_written_to() -> None:
    store = MemoryRunStore()
    with pytest.raises(RunNotFound, match="no live run yet: start one with `ftlab train sft`"):
        LiveRun(store=store)
    live = [store.create_run("live", live_tags()) for _ in range(2)]
    store.create_run("latest")
    assert LiveRun(store=store).run_id == live[-1]
    assert LiveRun("latest", store=store).run_id == live[-1]


def test_a_run_of_mlflow_is_found_by_all_its_names(tracking_uri: str) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    run_id = client.create_run("0", run_name="alice's run").info.run_id
    for reference in (run_id, run_id[:12], "alice's run"):
        assert LiveRun(reference, tracking_uri=tracking_uri).run_id == run_id
    with pytest.raises(RunNotFound):
        LiveRun("latest")
    for key, text in live_tags().items():
        client.set_tag(run_id, key, text)
    assert LiveRun().run_id == run_id
    assert repr(LiveRun()) == f"LiveRun('{run_id}')"


# --- reading -----------------------------------------------------------------------------------------


def test_what_a_run_says_of_itself(live: Live) -> None:
    run, store = live
    assert run.surface() == SURFACE
    assert run.status().state == "running"
    assert run.data().name == "a run"
    store.write(run.run_id, {}, [Point("loss", 2.0, 2, 2), Point("loss", 3.0, 1, 1)])
    assert [point.value for point in run.metric_history("loss")] == [3.0, 2.0]


def test_the_history_has_requests_with_their_answers_in_order(live: Live) -> None:
    run, store = live
    sent = [run.update(learning_rate=5e-5), run.pause(), run.update(weight_decay=0.1)]
    answer(store, run.run_id, sent[0].id)
    answer(store, run.run_id, sent[1].id, status="cancelled")
    history = run.history()
    assert [entry.id for entry in history] == [s.id for s in sent]
    assert [entry.update for entry in history] == [s.update for s in sent]
    assert [entry.ack and entry.ack.status for entry in history] == ["applied", "cancelled", None]


def test_a_run_that_never_listened_is_not_live() -> None:
    store = MemoryRunStore()
    run = LiveRun(store.create_run(), store=store)
    calls: list[Callable[[], Any]] = [run.surface, run.status, run.pause, lambda: run.update(learning_rate=1)]
    for call in calls:
        with pytest.raises(NotLive, match=r"add LiveControl\(\) or attach\(trainer\)"):
            call()
    assert run.history() == ()


# --- asking ------------------------------------------------------------------------------------------


def test_a_request_is_one_new_tag_that_says_it_all(live: Live) -> None:
    run, store = live
    before = store.get(run.run_id).tags
    expires = datetime(2036, 11, 21, 20, tzinfo=UTC)
    start = utc_now()
    sent = run.update(
        {"logging_steps": 4}, learning_rate=5e-5, reason="loss plateau", expect={"learning_rate": 1e-4},
        at_step=500, expires=expires,
    )  # fmt: skip
    after = store.get(run.run_id).tags
    assert after.keys() - before.keys() == {tags.UPDATE_PREFIX + sent.id}
    assert {key: after[key] for key in before} == before
    written = Update.decode(after[tags.UPDATE_PREFIX + sent.id])
    assert written == sent.update
    assert start <= written.at <= utc_now()
    assert written == Update(
        at=written.at, set={"logging_steps": 4, "learning_rate": 5e-5}, expect={"learning_rate": 1e-4},
        at_step=500, expires=expires, by="alice", via="python", reason="loss plateau",
    )  # fmt: skip


def test_parameters_whose_names_are_arguments_are_given_as_a_mapping(live: Live) -> None:
    run, _ = live
    assert run.update({"learning_rate": 5e-5, "weight_decay": 0.2}).update.set == {
        "learning_rate": 5e-5, "weight_decay": 0.2
    }  # fmt: skip
    with pytest.raises(UpdateRejected, match="unknown_parameter: reason: is no parameter"):
        run.update({"reason": 1})


@pytest.mark.parametrize(
    ("ask", "command", "args"),
    [
        (lambda run: run.pause(reason="why"), "pause", {}),
        (lambda run: run.resume(reason="why"), "resume", {}),
        (lambda run: run.stop(reason="why"), "stop", {"save": True}),
        (lambda run: run.stop(save=False, reason="why"), "stop", {"save": False}),
        (lambda run: run.checkpoint(reason="why"), "checkpoint", {}),
        (lambda run: run.rollback(reason="why"), "rollback", {}),
        (lambda run: run.rollback("checkpoint-5", reason="why"), "rollback", {"checkpoint": "checkpoint-5"}),
        (lambda run: run.cancel("abc", reason="why"), "cancel", {"id": "abc"}),
        (lambda run: run.command("stop", save=True, reason="why"), "stop", {"save": True}),
    ],
)
def test_commands(live: Live, ask: Callable[[LiveRun], SentUpdate], command: str, args: Any) -> None:
    run, store = live
    sent = ask(run)
    written = Update.decode(store.get(run.run_id).tags[tags.UPDATE_PREFIX + sent.id])
    assert written == sent.update
    assert (written.command, written.args, written.set) == (command, args, None)
    assert (written.by, written.via, written.reason) == ("alice", "python", "why")


@pytest.mark.parametrize(
    ("ask", "code", "name"),
    [
        (lambda run: run.update(learning_rate=float("nan")), "out_of_bounds", "learning_rate"),
        (lambda run: run.update(learning_rate=10**5000), "out_of_bounds", "learning_rate"),
        (lambda run: run.update(learning_rate=0.1, logging_steps=0), "out_of_bounds", "logging_steps"),
        (lambda run: run.update(learning_rate="1"), "wrong_type", "learning_rate"),
        (lambda run: run.update(logging_steps=8.5), "wrong_type", "logging_steps"),
        (lambda run: run.update(momentum=0.9), "unknown_parameter", "momentum"),
        (lambda run: run.update(learning_rate=0.1, expect={"use_cache": False}), "stale", "use_cache"),
        (lambda run: run.update(), "invalid", "set"),
        (lambda run: run.update(learning_rate=0.1, at_step=-1), "invalid", "at_step"),
        (lambda run: run.update(learning_rate=0.1, at_step=1.5), "invalid", "at_step"),
        (lambda run: run.update(learning_rate=0.1, reason=7), "invalid", "reason"),
        (lambda run: run.update(learning_rate=0.1, reason=object()), "invalid", "message"),
        (lambda run: run.update(learning_rate=0.1, reason="x" * 8000), "invalid", "message"),
        (lambda run: run.update(learning_rate=0.1, reason="\ud800"), "invalid", "message"),
        (lambda run: run.update(learning_rate=0.1, expires=datetime(2036, 1, 1)), "invalid", "expires"),
        (lambda run: run.evaluate(), "not_supported", "command"),
        (lambda run: run.command("dance"), "unknown_command", "command"),
        (lambda run: run.command("pause", save=True), "invalid", "command"),
        (lambda run: run.command("stop", save="yes"), "wrong_type", "command"),
        (lambda run: run.command("cancel"), "invalid", "command"),
    ],
)
def test_what_the_surface_does_not_allow_is_never_written(
    live: Live, ask: Callable[[LiveRun], SentUpdate], code: str, name: str
) -> None:
    run, store = live
    before = store.get(run.run_id).tags
    with pytest.raises(UpdateRejected) as caught:
        ask(run)
    assert caught.value.code == code
    assert caught.value.errors.keys() == {name}
    assert caught.value.id is None
    assert str(caught.value).startswith(f"{code}: {name}: ")
    assert len(str(caught.value)) < 250
    assert store.get(run.run_id).tags == before


def test_what_the_run_does_not_offer_is_refused_with_the_trainers_reason() -> None:
    reasons = {"max_steps": "the data is a stream", "evaluate": "there is no evaluation data"}
    surface = replace(SURFACE, unsupported=reasons)
    store = MemoryRunStore()
    run_id = store.create_run("a run", {**live_tags(), tags.SURFACE: surface.encode()})
    run = LiveRun(run_id, store=store)
    with pytest.raises(UpdateRejected, match=r"^not_supported: max_steps: the data is a stream$"):
        run.update(max_steps=9)
    with pytest.raises(UpdateRejected, match=r"^not_supported: command: there is no evaluation data$"):
        run.evaluate()


def test_a_reason_that_just_fits_is_written(live: Live) -> None:
    run, store = live
    spare = 8000 - len(run.update(learning_rate=0.1, reason="").update.encode())
    sent = run.update(learning_rate=0.1, reason="→" * spare)
    assert len(store.get(run.run_id).tags[tags.UPDATE_PREFIX + sent.id]) == 8000
    with pytest.raises(UpdateRejected, match="shorten the reason"):
        run.update(learning_rate=0.1, reason="→" * (spare + 1))


@pytest.mark.parametrize(
    ("state", "sets", "commands"),
    [("starting", True, True), ("running", True, True), ("paused", True, True), ("stopping", True, True),
     ("stopped", True, False), ("failed", True, False), ("finished", False, False)],
)  # fmt: skip
def test_what_a_run_takes_in_each_state(state: str, sets: bool, commands: bool) -> None:
    run, store = live_run(state=state)
    asks: list[tuple[Callable[[], Any], bool]] = [
        (lambda: run.update(learning_rate=0.1), sets), (run.resume, commands)
    ]  # fmt: skip
    for ask, taken in asks:
        before = len(requests(store, run))
        if taken:
            ask()
        else:
            with pytest.raises(NotLive, match=f"is {state}: it takes no more requests"):
                ask()
        assert len(requests(store, run)) == before + taken


def test_without_a_name_it_is_the_user_of_this_process() -> None:
    import getpass

    store = MemoryRunStore()
    run = LiveRun(store.create_run("x", live_tags()), store=store, via="cli")
    update = run.pause().update
    assert (update.by, update.via) == (getpass.getuser(), "cli")


# --- waiting -----------------------------------------------------------------------------------------


def test_the_answer_is_given_when_it_is_there(live: Live) -> None:
    run, store = live
    sent = run.update(learning_rate=5e-5)
    assert sent.ack() is None
    changes = {"learning_rate": (8.7e-05, 5e-05)}
    start = time.monotonic()
    with meanwhile(lambda: answer(store, run.run_id, sent.id, changes=changes)):
        ack = sent.wait(timeout=30)
    assert 0.25 < time.monotonic() - start < 5
    assert (ack.status, ack.step, ack.changes) == ("applied", 130, changes)
    assert sent.ack() == ack == sent.wait(timeout=0)


@pytest.mark.parametrize(
    ("status", "code", "errors", "raised"),
    [
        ("rejected", "stale", {"learning_rate": "expected 1"}, "stale"),
        ("rejected", None, {}, "rejected"),
        ("cancelled", None, {}, "cancelled"),
    ],
)
def test_a_refusal_is_raised(live: Live, status: str, code: Any, errors: dict[str, str], raised: str) -> None:
    run, store = live
    sent = run.update(learning_rate=5e-5)
    answer(store, run.run_id, sent.id, status=status, code=code, errors=errors)
    for ask in (sent.wait, sent.ack):
        with pytest.raises(UpdateRejected) as caught:
            ask()
        assert (caught.value.code, caught.value.errors, caught.value.id) == (raised, errors, sent.id)


def test_an_answer_of_a_newer_trainer_is_an_error_at_once(live: Live) -> None:
    run, store = live
    sent = run.update(learning_rate=5e-5)
    store.write(run.run_id, {tags.ACK_PREFIX + sent.id: '{"v":2}'})
    with pytest.raises(MessageError, match="unsupported_version: v: must be 1, got 2"):
        sent.wait(timeout=30)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ({}, r"the run is running at step 130, its last heartbeat was \d+ s ago; it is still pending"),
        ({"state": "paused"}, "the run is paused at step 130"),
        ({"at": AT - timedelta(days=3650)}, r"the run is lost, its last heartbeat was \d{9} s ago"),
        ({"state": "failed"}, "the run is failed; it is still pending"),
    ],
)
def test_a_timeout_says_why_nobody_may_have_answered(live: Live, status: dict[str, Any], says: str) -> None:
    run, store = live
    sent = run.update(learning_rate=5e-5)
    store.write(run.run_id, {tags.STATUS: running(**status).encode()})
    start = time.monotonic()
    with pytest.raises(UpdateTimeout, match=says) as caught:
        sent.wait(timeout=0.4)
    assert 0.4 <= time.monotonic() - start < 3
    assert f"no answer to {sent.id} after 0.4 s" in str(caught.value)


def test_a_status_that_cannot_be_read_does_not_hide_the_timeout(live: Live) -> None:
    run, store = live
    sent = run.update(learning_rate=5e-5)
    store.write(run.run_id, {tags.STATUS: "{cut"})
    with pytest.raises(UpdateTimeout, match="is no JSON"):
        sent.wait(timeout=0)
    store.delete_tag(run.run_id, tags.STATUS)
    with pytest.raises(UpdateTimeout, match=r"has no ftlab\.status"):
        sent.wait(timeout=0)


def test_a_request_that_somebody_deletes_is_answered_all_the_same(live: Live) -> None:
    run, store = live
    sent = run.update(learning_rate=5e-5)
    store.delete_tag(run.run_id, tags.UPDATE_PREFIX + sent.id)
    with pytest.raises(UpdateTimeout):
        sent.wait(timeout=0)
    answer(store, run.run_id, sent.id)
    assert sent.wait(timeout=0).status == "applied"


# --- over a server that goes away --------------------------------------------------------------------


def test_waiting_outlives_a_restart_of_the_server(mlflow_server: Any) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server.uri)
    run_id = client.create_run("0", run_name="restart").info.run_id
    for key, text in live_tags().items():
        client.set_tag(run_id, key, text)
    run = LiveRun(run_id, tracking_uri=mlflow_server.uri)
    sent = run.update(learning_rate=5e-5)
    mlflow_server.stop()
    try:
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{mlflow_server.port}"):
            sent.ack()
        with pytest.raises(
            UpdateTimeout, match=r"the tracking store .* failed: .*; it is still pending"
        ) as caught:
            sent.wait(timeout=1)
        assert isinstance(caught.value.__cause__, StoreUnavailable)

        def come_back() -> None:
            mlflow_server.start()
            answer(
                MlflowRunStore(mlflow_server.uri), run_id, sent.id, changes={"learning_rate": (1e-4, 5e-5)}
            )

        with meanwhile(come_back):
            assert sent.wait(timeout=60).changes == {"learning_rate": (1e-4, 5e-5)}
    finally:
        mlflow_server.start()
    assert [entry.id for entry in run.history()] == [sent.id]
