"""A run as it is shown: its state, why it takes no changes, how far a request is, from known tags."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any, get_args

import pytest
from control_samples import SURFACE, answer, live_run, live_tags, running

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.client import LiveRun
from ftlab_mlflow.control.messages import FINAL_STATES, Code, State, Update
from ftlab_mlflow.control.store import MemoryRunStore, Point, now_ms
from ftlab_mlflow.control.surface import Surface
from ftlab_mlflow.control.view import REJECTIONS, RequestProgress, RunView, age, progress_of, why_closed
from ftlab_mlflow.control.wire import utc_now

LONG_AGO = timedelta(seconds=45)


def view_of(run_tags: dict[str, str], status: Any = "RUNNING") -> RunView:
    store = MemoryRunStore()
    run_id = store.create_run("a run", run_tags)
    store.set_status(run_id, status)
    return RunView.of(store.get(run_id))


def sent_at(run: LiveRun, store: MemoryRunStore, seconds_before_status: float = 60, **fields: Any) -> str:
    """A request that is so much older than the trainer's last status."""
    at = run.status().at - timedelta(seconds=seconds_before_status)
    update_id = "r1"
    store.write(run.run_id, {tags.UPDATE_PREFIX + update_id: Update(at=at, by="bob", **fields).encode()})
    return update_id


def way(run: LiveRun) -> RequestProgress:
    view = RunView.of(run.data())
    (entry,) = view.entries
    return progress_of(entry, view)


# --- state -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mlflow_status", "state", "is_over"),
    [
        ("RUNNING", "running", False),
        ("SCHEDULED", "scheduled", False),
        ("FINISHED", "finished", True),
        ("FAILED", "failed", True),
        ("KILLED", "stopped", True),
    ],
)
def test_a_run_without_our_tags_has_mlflow_s_status_in_our_words(
    mlflow_status: Any, state: str, is_over: bool
) -> None:
    view = view_of({}, mlflow_status)
    assert (view.state, view.is_over, view.has_ended) == (state, is_over, False)


@pytest.mark.parametrize("state", get_args(State))
def test_a_run_is_over_when_its_trainer_says_so_whatever_mlflow_says(state: Any) -> None:
    for mlflow_status in ("RUNNING", "FINISHED"):
        view = view_of(live_tags(state=state), mlflow_status)
        assert view.state == state
        assert view.is_over == view.has_ended == (state in FINAL_STATES)


def test_a_silent_trainer_is_over_only_when_mlflow_says_that_the_run_has_ended() -> None:
    lost = live_tags(at=utc_now() - LONG_AGO)
    assert [view_of(lost, status).is_over for status in ("RUNNING", "FAILED", "KILLED")] == [
        False,
        True,
        True,
    ]
    broken = {tags.STATUS: "{"}
    assert [view_of(broken, status).state for status in ("RUNNING", "FAILED")] == ["unreadable"] * 2
    assert [view_of(broken, status).is_over for status in ("RUNNING", "FAILED")] == [False, True]


def test_an_eta_is_for_a_training_that_runs() -> None:
    for state in get_args(State):
        run, store = live_run(state=state)
        assert RunView.of(run.data()).eta_s is None
        store.write(run.run_id, {}, [Point("eta_s", 120.0, 130, now_ms() - 50_000)])
        assert RunView.of(run.data()).eta_s == (pytest.approx(70, abs=15) if state == "running" else None)


@pytest.mark.parametrize("estimate", [49.0, math.nan, math.inf])
def test_an_eta_that_is_used_up_or_none_is_not_shown(estimate: float) -> None:
    run, store = live_run(state="running")
    store.write(run.run_id, {}, [Point("eta_s", estimate, 130, now_ms() - 50_000)])
    assert RunView.of(run.data()).eta_s is None


# --- why nothing can be changed ----------------------------------------------------------------------


def test_a_run_that_listens_is_open() -> None:
    for state in ("starting", "running", "paused", "stopping"):
        assert why_closed(view_of(live_tags(state=state))) is None


def test_a_run_without_a_surface_says_how_to_add_one() -> None:
    for run_tags in ({}, {tags.STATUS: running().encode()}, {tags.SURFACE: SURFACE.encode()}):
        why = why_closed(view_of(run_tags))
        assert why is not None
        assert all(
            part in why for part in ("does not listen", "LiveControl()", "attach(trainer)", "ftlab train")
        )
    assert why_closed(view_of({}, "FINISHED")) == "The run is finished, and no trainer of it ever listened."


@pytest.mark.parametrize(
    ("state", "error", "why"),
    [
        ("finished", None, "The training has finished at step 130."),
        ("stopped", None, "The training was stopped at step 130. Resume the training to change it."),
        (
            "failed",
            "OOM: 3 GB",
            "The training failed at step 130 (OOM: 3 GB). Resume the training to change it.",
        ),
    ],
)
def test_a_training_that_is_over_says_how_it_ended(state: str, error: str | None, why: str) -> None:
    assert why_closed(view_of(live_tags(state=state, error=error))) == why
    without_surface = {tags.STATUS: running(state=state, error=error).encode()}
    assert why_closed(view_of(without_surface)) == why


def test_a_lost_trainer_says_since_when() -> None:
    why = why_closed(view_of(live_tags(at=utc_now() - timedelta(minutes=5))))
    assert why is not None
    assert "the last heartbeat was 5m ago, and one is due every 10s" in why
    assert why_closed(view_of(live_tags(at=utc_now() - timedelta(seconds=29)))) is None


def test_a_tag_that_cannot_be_read_is_named_with_the_reason() -> None:
    newer = view_of({tags.STATUS: running().encode(), tags.SURFACE: '{"v":2,"params":{},"commands":[]}'})
    why = why_closed(newer)
    assert why is not None
    assert why.startswith("ftlab.surface cannot be read: v: must be 1, got 2. ")
    cut = why_closed(view_of(live_tags() | {tags.STATUS: '{"v":1,"sta'}))
    assert cut is not None
    assert cut.startswith("ftlab.status cannot be read: message: is no JSON")


def test_a_surface_with_nothing_on_it_gives_its_reason_once() -> None:
    reason = "the ranks do not answer any more"
    withdrawn = Surface({}, (), {"learning_rate": reason, "weight_decay": reason})
    why = why_closed(view_of(live_tags() | {tags.SURFACE: withdrawn.encode()}))
    assert why == f"The training offers nothing to change: {reason}."
    bare = why_closed(view_of(live_tags() | {tags.SURFACE: Surface({}, ()).encode()}))
    assert bare == "The training offers nothing to change."


# --- the way of a request ----------------------------------------------------------------------------


def test_every_code_of_a_rejection_has_its_words() -> None:
    assert set(REJECTIONS) == set(get_args(Code))
    assert len(set(REJECTIONS.values())) == len(REJECTIONS)


@pytest.mark.parametrize(
    ("seconds", "stage"), [(-3, "sent"), (0, "sent"), (4.9, "sent"), (5, "seen"), (60, "seen")]
)
def test_a_request_is_seen_once_the_trainer_must_have_looked(seconds: float, stage: str) -> None:
    run, store = live_run(at=utc_now() - timedelta(seconds=2), every_s=10)
    sent_at(run, store, seconds, set={"learning_rate": 5e-5})
    assert way(run).stage == stage
    assert ("not seen yet" in str(way(run))) == (stage == "sent")
    if seconds == 0:
        assert str(way(run)) == "sent 2s ago, not seen yet"


def test_a_request_waits_for_its_step() -> None:
    run, store = live_run(step=130)
    sent_at(run, store, set={"learning_rate": 5e-5}, at_step=500)
    assert way(run) == RequestProgress("waiting", "waiting for step 500, now at step 130")
    sent_at(run, store, 1, set={"learning_rate": 5e-5}, at_step=500)
    assert str(way(run)) == "waiting for step 500, now at step 130 (sent 1s ago, perhaps not seen yet)"
    sent_at(run, store, set={"learning_rate": 5e-5}, at_step=130)
    assert way(run).stage == "seen"


def test_a_stop_is_under_way_until_the_training_has_ended() -> None:
    run, store = live_run(state="stopping")
    sent_at(run, store, 0, command="stop")
    assert way(run) == RequestProgress("seen", "under way: the training is stopping")


@pytest.mark.parametrize(
    ("status", "fields", "text"),
    [
        (
            {"at": utc_now() - LONG_AGO},
            {"set": {"a": 1}},
            "its trainer is lost: applied when the training is resumed",
        ),
        ({"state": "failed"}, {"set": {"a": 1}}, "the training failed: applied when the training is resumed"),
        (
            {"state": "stopped"},
            {"set": {"a": 1}, "expires": utc_now() + timedelta(days=1)},
            "the training was stopped: applied when the training is resumed unless it expires before",
        ),
        (
            {"state": "stopped"},
            {"command": "pause"},
            "the training was stopped: a command does not wait for a resume",
        ),
        ({"state": "finished"}, {"set": {"a": 1}}, "the training has finished without it"),
    ],
)
def test_what_becomes_of_a_request_that_no_trainer_takes(
    status: dict[str, Any], fields: dict[str, Any], text: str
) -> None:
    run, store = live_run(**status)
    sent_at(run, store, **fields)
    assert way(run).stage == "sent"
    assert str(way(run)).endswith(f" ago; {text}")


def test_a_request_to_a_run_that_nobody_listens_to_or_that_nobody_can_read() -> None:
    store = MemoryRunStore()
    run = LiveRun(store.create_run("plain"), store=store)
    text = Update(at=utc_now(), set={"learning_rate": 1}).encode()
    store.write(run.run_id, {f"{tags.UPDATE_PREFIX}r1": text})
    assert str(way(run)) == "sent 0s ago; no trainer listens to this run"
    store.write(run.run_id, {f"{tags.UPDATE_PREFIX}r1": "{"})
    assert way(run).stage == "sent"
    assert str(way(run)).startswith("sent, but no trainer can read it (invalid: message: is no JSON")


def test_an_answer_is_told_in_words() -> None:
    run, store = live_run()
    request_id = sent_at(run, store, set={"learning_rate": 5e-5})
    answer(store, run.run_id, request_id, step=131, changes={"learning_rate": (8.7e-05, 5e-05)})
    assert way(run) == RequestProgress("applied", "applied at step 131: learning_rate 8.7e-05 → 5e-05")
    answer(store, run.run_id, request_id, step=131)
    assert str(way(run)) == "applied at step 131"
    answer(store, run.run_id, request_id, status="cancelled", step=140)
    assert way(run) == RequestProgress("cancelled", "cancelled at step 140, before it was applied")
    errors = {"learning_rate": "must be a finite number from 0 to 1, got 7"}
    answer(store, run.run_id, request_id, status="rejected", code="out_of_bounds", errors=errors)
    assert way(run) == RequestProgress(
        "rejected",
        "rejected at step 130: a value is outside of what is allowed "
        "(learning_rate: must be a finite number from 0 to 1, got 7)",
    )
    answer(store, run.run_id, request_id, status="rejected", code="too_new")
    assert str(way(run)) == "rejected at step 130: too_new"
    store.write(run.run_id, {tags.ACK_PREFIX + request_id: '{"v":2}'})
    assert way(run) == RequestProgress("answered", "answered, but the answer cannot be read")


def test_a_stale_request_shows_what_was_expected_and_what_is_there_now() -> None:
    run, store = live_run()
    expect = {"learning_rate": 3e-4, "weight_decay": 0.0, "gone": 1}
    request_id = sent_at(run, store, set={"learning_rate": 5e-5}, expect=expect)
    code, errors = SURFACE.problems(
        Update(at=utc_now(), set={"learning_rate": 5e-5}, expect={"learning_rate": 3e-4})
    ) or ("", {})
    answer(store, run.run_id, request_id, status="rejected", code=code, errors=errors | {"gone": "…"})
    found = way(run)
    assert code == "stale"
    assert found.text.startswith(
        "rejected at step 130: somebody else has changed it meanwhile "
        "(learning_rate: expected 0.0003, but 0.0001 was asked for"
    )
    assert found.stale == {"learning_rate": (3e-4, 1e-4), "gone": (1, None)}
    # A request that is sent again and expects what is there now passes the client's own check.
    again = {name: now for name, (_, now) in found.stale.items() if now is not None}
    assert run.update({"learning_rate": 5e-5}, expect=again).update.expect == {"learning_rate": 1e-4}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (-3, "0s"),
        (8.4, "8s"),
        (119, "119s"),
        (120, "2m"),
        (7199, "120m"),
        (7200, "2h"),
        (864_000, "10d"),
    ],
)
def test_ages_are_short(seconds: float | None, text: str) -> None:
    assert age(seconds) == text
