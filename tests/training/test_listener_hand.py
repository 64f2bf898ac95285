"""What a person writes by hand, one tag a parameter, becomes an ordinary request."""

from typing import Any

import pytest
from listener_line import Line, NewLine

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Ledger


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
