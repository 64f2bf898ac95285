"""The marks of a chart, from histories built by hand."""

from __future__ import annotations

import dataclasses
import json

import pytest
from control_samples import AT, acks, seconds, updates
from hypothesis import given
from hypothesis import strategies as st

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.markers import Marker, markers
from ftlab_mlflow.control.messages import Ack, Update


def marks(asked: dict[str, Update], answers: dict[str, Ack]) -> tuple[Marker, ...]:
    run_tags = {tags.UPDATE_PREFIX + i: update.encode() for i, update in asked.items()}
    run_tags |= {tags.ACK_PREFIX + i: ack.encode() for i, ack in answers.items()}
    return markers(Ledger.read(run_tags).entries)


def test_a_change_of_parameters() -> None:
    update = Update(
        at=AT,
        set={"learning_rate": 5e-5, "weight_decay": 0.01},
        by="alice",
        via="cli",
        reason="loss\nplateau",
    )
    changes = {"learning_rate": (8.7e-05, 5e-05), "weight_decay": (0.0, 0.01)}
    assert marks({"a": update}, {"a": Ack("applied", 130, seconds(3), "s1", changes)}) == (
        Marker(
            id="a",
            step=130,
            nth=0,
            time=seconds(3),
            command=None,
            changes=(("learning_rate", "8.7e-05", "5e-05"), ("weight_decay", "0", "0.01")),
            text="learning_rate 8.7e-05 → 5e-05; weight_decay 0 → 0.01",
            by="alice",
            via="cli",
            reason="loss plateau",
        ),
    )


def test_commands_say_which() -> None:
    asked = {
        "a": Update(at=AT, command="pause"),
        "b": Update(at=AT, command="stop", args={"save": True}),
        "c": Update(at=AT, command="rollback", args={"checkpoint": "checkpoint-5"}),
    }
    answers = {i: Ack("applied", 10, seconds(n), "s1") for n, i in enumerate(asked)}
    found = marks(asked, answers)
    assert [(m.command, m.text) for m in found] == [
        ("pause", "pause"),
        ("stop", "stop save=true"),
        ("rollback", "rollback checkpoint=checkpoint-5"),
    ]
    assert all(m.changes == () and (m.by, m.via, m.reason) == ("", "", "") for m in found)


def test_several_at_one_step_are_told_apart_in_the_order_of_application() -> None:
    asked = {i: Update(at=AT, set={"learning_rate": 1}) for i in "abcde"}
    steps = {"a": 7, "b": 5, "c": 5, "d": 7, "e": 5}
    later = {"c": 0, "e": 1, "b": 2, "d": 3, "a": 4}
    found = marks(asked, {i: Ack("applied", steps[i], seconds(later[i]), "s1") for i in asked})
    assert [(m.id, m.step, m.nth) for m in found] == [
        ("c", 5, 0), ("e", 5, 1), ("b", 5, 2), ("d", 7, 0), ("a", 7, 1)
    ]  # fmt: skip


def test_only_what_was_applied_has_a_mark() -> None:
    asked = {i: Update(at=AT, command="pause") for i in "abcd"}
    answers = {
        "a": Ack("rejected", 1, AT, "s1", code="stale"),
        "b": Ack("cancelled", 1, AT, "s1"),
        "c": Ack("applied", 1, AT, "s1"),
    }
    assert [m.id for m in marks(asked, answers)] == ["c"]
    assert markers(()) == ()
    assert marks({}, {"orphan": Ack("applied", 1, AT, "s1")}) == ()


def test_texts_are_kept_as_they_are_but_on_one_line() -> None:
    hostile = "<b>x</b>**y**\x1b[31m\n%{x}"
    update = Update(at=AT, set={hostile: hostile}, by=hostile, via=hostile, reason=hostile)
    (mark,) = marks({"a": update}, {"a": Ack("applied", 1, AT, "s1", {hostile: (hostile, "z")})})
    plain = "<b>x</b>**y** [31m %{x}"
    assert mark.changes == ((plain, plain, "z"),)
    assert mark.text == f"{plain} {plain} → z"
    assert (mark.by, mark.via, mark.reason) == (plain, plain, plain)


def test_a_mark_cannot_be_changed() -> None:
    (mark,) = marks({"a": Update(at=AT, command="pause")}, {"a": Ack("applied", 1, AT, "s1")})
    with pytest.raises(dataclasses.FrozenInstanceError):
        mark.step = 2  # type: ignore[misc]


_ids = st.text("abcXYZ019_-", min_size=1, max_size=3)


@given(st.dictionaries(_ids, updates, max_size=6), st.dictionaries(_ids, acks, max_size=6))
def test_marks_against_the_raw_tags(asked: dict[str, Update], answers: dict[str, Ack]) -> None:
    raw = {i: json.loads(ack.encode()) for i, ack in answers.items() if i in asked}
    applied = {i: ack for i, ack in raw.items() if ack["status"] == "applied"}
    found = marks(asked, answers)
    assert [m.id for m in found] == sorted(applied, key=lambda i: (applied[i]["at"], i))
    assert len({(m.step, m.nth) for m in found}) == len(found)
    for m in found:
        ack = applied[m.id]
        assert (m.step, len(m.changes)) == (ack["step"], len(ack.get("changes", {})))
        said = (m.text, m.by, m.via, m.reason, *(text for change in m.changes for text in change))
        assert all(c.isprintable() for text in said for c in text)
        assert m.nth == sum(o.step == m.step for o in found[: found.index(m)])
