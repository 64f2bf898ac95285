"""A run's tags read as a history, against an oracle that goes through the raw JSON."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta
from typing import Any

from control_samples import AT, seconds
from hypothesis import given
from hypothesis import strategies as st

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Ledger, request_ids
from ftlab_mlflow.control.messages import Ack, Update


def tags_of(updates: dict[str, Update], acks: dict[str, Ack]) -> dict[str, str]:
    written = {tags.UPDATE_PREFIX + i: update.encode() for i, update in updates.items()}
    return written | {tags.ACK_PREFIX + i: ack.encode() for i, ack in acks.items()}


def applied(after_s: float, **fields: Any) -> Ack:
    return Ack("applied", 1, seconds(after_s), "s1", **fields)


def ask(after_s: float, value: float = 1.0) -> Update:
    return Update(at=seconds(after_s), set={"learning_rate": value})


def test_requests_are_in_the_order_of_time_and_then_of_id() -> None:
    ledger = Ledger.read(tags_of({"c": ask(1), "b": ask(2), "a": ask(2), "d": ask(0)}, {}))
    assert [entry.id for entry in ledger.entries] == ["d", "c", "a", "b"]


def test_times_in_other_zones_are_ordered_by_what_they_mean() -> None:
    text = '{"v":1,"command":"pause","at":"2026-11-21T20:30:00+02:00"}'
    run_tags = tags_of({"a": ask(0)}, {}) | {tags.UPDATE_PREFIX + "b": text}
    assert [entry.id for entry in Ledger.read(run_tags).entries] == ["b", "a"]


def test_pending_is_what_has_no_answer_readable_or_not() -> None:
    run_tags = tags_of({i: ask(0) for i in "abcd"}, {"a": applied(1)})
    run_tags |= {tags.ACK_PREFIX + "b": "garbage", tags.ACK_PREFIX + "c": '{"v":2}'}
    ledger = Ledger.read(run_tags)
    assert [entry.id for entry in ledger.pending] == ["d"]
    assert [entry.answered for entry in ledger.entries] == [True, True, True, False]
    assert [entry.ack is not None for entry in ledger.entries] == [True, False, False, False]


def test_what_cannot_be_read_is_an_entry_with_its_error_before_all_others() -> None:
    run_tags = tags_of({"a": ask(-1e9)}, {}) | {
        tags.UPDATE_PREFIX + "z": "{cut",
        tags.UPDATE_PREFIX + "y": '{"v":9}',
        tags.UPDATE_PREFIX + "no valid id": ask(0).encode(),
        tags.UPDATE_PREFIX: ask(0).encode(),
    }
    entries = {entry.id: entry for entry in Ledger.read(run_tags).entries}
    assert list(entries) == ["", "no valid id", "y", "z", "a"]
    assert all(entries[i].update is None for i in ("", "no valid id", "y", "z"))
    codes = {i: entry.error.code for i, entry in entries.items() if entry.error}
    assert codes == {"": "invalid", "no valid id": "invalid", "y": "unsupported_version", "z": "invalid"}


def test_a_request_under_an_invalid_id_is_answered_under_that_same_id() -> None:
    run_tags = {tags.UPDATE_PREFIX + "a b": "x"}
    assert [entry.id for entry in Ledger.read(run_tags).pending] == ["a b"]
    answer = Ack("rejected", 1, AT, "s1", code="invalid").encode()
    assert not Ledger.read(run_tags | {tags.ACK_PREFIX + "a b": answer}).pending


def test_other_tags_are_no_requests() -> None:
    run_tags = {"mlflow.runName": "x", tags.STATUS: "x", "ftlab.updates.a": "x", "xftlab.update.a": "x"}
    run_tags |= {tags.ACK_PREFIX + "orphan": applied(1).encode(), tags.SET_PREFIX + "learning_rate": "1"}
    assert request_ids(run_tags) == []
    assert Ledger.read(run_tags) == Ledger(())
    assert Ledger.read(run_tags).last_ack_at is None


def test_applied_sets_are_in_the_order_of_application_not_of_asking() -> None:
    updates = {"a": ask(0, 1), "b": ask(1, 2), "c": ask(2, 3)}
    acks = {"a": applied(30), "b": applied(10), "c": applied(20)}
    ledger = Ledger.read(tags_of(updates, acks))
    assert [update.set for update, _ in ledger.applied_sets()] == [
        {"learning_rate": 2}, {"learning_rate": 3}, {"learning_rate": 1}
    ]  # fmt: skip
    assert [ack.at for _, ack in ledger.applied_sets(after=seconds(10))] == [seconds(20), seconds(30)]
    assert ledger.applied_sets(after=seconds(30)) == []
    assert ledger.last_ack_at == seconds(30)


def test_only_applied_sets_are_replayed() -> None:
    updates = {i: ask(0) for i in "ab"} | {"c": Update(at=AT, command="pause"), "d": ask(3, 4), "e": ask(4)}
    acks = {
        "a": Ack("rejected", 1, seconds(1), "s1", code="stale"),
        "b": Ack("cancelled", 1, seconds(2), "s1"),
        "c": applied(3),
        "d": applied(4),
    }
    ledger = Ledger.read(tags_of(updates, acks))
    assert ledger.applied_sets() == [(updates["d"], acks["d"])]


# --- against an oracle -------------------------------------------------------------------------------

_ids = st.text("abcXYZ019_-", min_size=1, max_size=3)
_times = st.integers(0, 4).map(seconds)
_requests = st.builds(Update, at=_times, set=st.just({"a": 1})) | st.builds(
    Update, at=_times, command=st.just("pause")
)
_answers = st.builds(
    Ack,
    status=st.sampled_from(["applied", "rejected", "cancelled"]),
    step=st.just(1),
    at=st.integers(0, 10**6).map(lambda ms: AT + timedelta(milliseconds=ms)),
    session=st.just("s"),
)


@given(
    st.dictionaries(_ids, _requests, max_size=8),
    st.dictionaries(_ids, _answers, max_size=8),
    st.none() | st.integers(0, 10**6).map(lambda ms: AT + timedelta(milliseconds=ms)),
    st.randoms(use_true_random=False),
)
def test_a_history_against_the_raw_json(
    updates: dict[str, Update], acks: dict[str, Ack], after: datetime | None, shuffler: random.Random
) -> None:
    if len({ack.at for ack in acks.values()}) < len(acks):  # the trainer's times increase strictly
        return
    items = list(tags_of(updates, acks).items())
    shuffler.shuffle(items)
    ledger = Ledger.read(dict(items))

    raw = {key: json.loads(value) for key, value in items}
    asked = {
        key.removeprefix("ftlab.update."): v for key, v in raw.items() if key.startswith("ftlab.update.")
    }
    # A time of this form sorts as text, and so do these ids.
    order = sorted(asked, key=lambda i: (asked[i]["at"], i))
    assert [entry.id for entry in ledger.entries] == order
    assert [entry.id for entry in ledger.pending] == [i for i in order if f"ftlab.ack.{i}" not in raw]
    in_force = sorted(
        raw[f"ftlab.ack.{i}"]["at"]
        for i in asked
        if "set" in asked[i] and raw.get(f"ftlab.ack.{i}", {}).get("status") == "applied"
    )
    limit = "" if after is None else after.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    found = [ack.at.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z" for _, ack in ledger.applied_sets(after)]
    assert found == [at for at in in_force if at > limit]


@given(st.dictionaries(st.sampled_from(["ftlab.update.", "ftlab.ack."]).flatmap(
    lambda prefix: st.text(max_size=4).map(prefix.__add__)), st.text(max_size=20)))  # fmt: skip
def test_any_tags_are_read(run_tags: dict[str, str]) -> None:
    ledger = Ledger.read(run_tags)
    assert {entry.id for entry in ledger.entries} == {
        key.removeprefix("ftlab.update.") for key in run_tags if key.startswith("ftlab.update.")
    }
    assert all(entry.error for entry in ledger.entries)
