"""Requests by hand: a tag that a person writes is handled once, however often the trainer restarts."""

from __future__ import annotations

import math

import pytest
from control_samples import SURFACE
from hypothesis import given
from hypothesis import strategies as st

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.hand import HandTags, hand_texts, to_update
from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.messages import Update
from ftlab_mlflow.control.surface import Param, read_text
from ftlab_mlflow.control.wire import Scalar, new_id

PARAMS = SURFACE.params


class Trainer:
    """A run's tags and what a trainer makes of those by hand, with every request written back."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {"mlflow.runName": "x"}
        self.restart()

    def restart(self) -> None:
        """A new process that knows nothing but the tags."""
        self._hand = HandTags(Ledger.read(self.tags), self.tags, PARAMS)

    def write(self, **texts: str) -> None:
        self.tags |= {tags.SET_PREFIX + name: text for name, text in texts.items()}

    def delete(self, name: str) -> None:
        del self.tags[tags.SET_PREFIX + name]

    def poll(self) -> list[dict[str, Scalar]]:
        """The requests that this look at the tags gives."""
        updates = self._hand.new(self.tags)
        for update in updates:
            self.tags[tags.UPDATE_PREFIX + new_id()] = update.encode()
        return [dict(u.set) if u.set else {"command": u.command or ""} for u in updates]


@pytest.fixture
def trainer() -> Trainer:
    return Trainer()


def test_a_standing_value_is_handled_once(trainer: Trainer) -> None:
    trainer.write(learning_rate="5e-5")
    assert trainer.poll() == [{"learning_rate": 5e-5}]
    assert trainer.poll() == []
    assert trainer.poll() == []


def test_a_standing_value_is_not_handled_again_after_a_restart(trainer: Trainer) -> None:
    trainer.write(
        learning_rate="5e-5", lr_schedule="hold", use_cache="false", momentum="0.9", command="pause"
    )
    assert len(trainer.poll()) == 5
    for _ in range(2):
        trainer.restart()
        assert trainer.poll() == []


def test_a_value_written_before_the_trainer_began_is_handled(trainer: Trainer) -> None:
    trainer.write(learning_rate="5e-5")
    trainer.restart()
    assert trainer.poll() == [{"learning_rate": 5e-5}]


def test_a_changed_value_is_handled(trainer: Trainer) -> None:
    trainer.write(learning_rate="5e-5", logging_steps="4")
    trainer.poll()
    trainer.write(learning_rate="6e-5")
    assert trainer.poll() == [{"learning_rate": 6e-5}]
    trainer.write(learning_rate="5e-5")
    assert trainer.poll() == [{"learning_rate": 5e-5}]


def test_a_value_changed_while_no_trainer_ran_is_handled(trainer: Trainer) -> None:
    trainer.write(learning_rate="5e-5")
    trainer.poll()
    trainer.write(learning_rate="6e-5")
    trainer.restart()
    assert trainer.poll() == [{"learning_rate": 6e-5}]


def test_a_value_changed_back_while_no_trainer_ran_is_handled(trainer: Trainer) -> None:
    for text in ("5e-5", "6e-5"):
        trainer.write(learning_rate=text)
        trainer.poll()
    trainer.write(learning_rate="5e-5")
    trainer.restart()
    assert trainer.poll() == [{"learning_rate": 5e-5}]


def test_a_tag_that_is_deleted_and_written_again_counts_as_new(trainer: Trainer) -> None:
    trainer.write(learning_rate="5e-5")
    trainer.poll()
    trainer.delete("learning_rate")
    assert trainer.poll() == []
    trainer.write(learning_rate="5e-5")
    assert trainer.poll() == [{"learning_rate": 5e-5}]
    assert trainer.poll() == []


def test_a_deleted_tag_asks_for_nothing(trainer: Trainer) -> None:
    trainer.write(learning_rate="5e-5")
    trainer.poll()
    trainer.delete("learning_rate")
    trainer.restart()
    assert trainer.poll() == []


def test_the_same_value_asked_for_by_somebody_else_is_not_by_hand(trainer: Trainer) -> None:
    other = to_update("learning_rate", "5e-5", PARAMS["learning_rate"])
    other = Update(at=other.at, set=other.set, by="alice", via="cli")
    trainer.tags[tags.UPDATE_PREFIX + new_id()] = other.encode()
    trainer.write(learning_rate="5e-5")
    trainer.restart()
    assert trainer.poll() == [{"learning_rate": 5e-5}]


def test_a_request_by_hand_is_an_ordinary_one_by_and_via_tag(trainer: Trainer) -> None:
    trainer.write(learning_rate="5e-5")
    trainer.poll()
    (entry,) = Ledger.read(trainer.tags).entries
    assert entry.update is not None
    assert (entry.update.by, entry.update.via, entry.update.set) == ("tag", "tag", {"learning_rate": 5e-5})
    assert entry.update.command is None


def test_a_command_by_hand(trainer: Trainer) -> None:
    trainer.write(command=" pause\n")
    assert trainer.poll() == [{"command": "pause"}]
    assert trainer.poll() == []
    trainer.restart()
    assert trainer.poll() == []
    trainer.write(command="resume")
    assert trainer.poll() == [{"command": "resume"}]


def test_an_unknown_parameter_is_asked_for_once_and_refused(trainer: Trainer) -> None:
    trainer.write(momentum="0.9")
    assert trainer.poll() == [{"momentum": 0.9}]
    assert trainer.poll() == []
    problem = SURFACE.problems(to_update("momentum", "0.9", None))
    assert problem is not None
    assert problem[0] == "unknown_parameter"


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("learning_rate", "fast", "wrong_type"),
        ("learning_rate", "", "wrong_type"),
        ("learning_rate", "nan", "wrong_type"),
        ("learning_rate", "1e999", "wrong_type"),
        ("learning_rate", "true", "wrong_type"),
        ("learning_rate", "7", "out_of_bounds"),
        ("logging_steps", "8.5", "wrong_type"),
        ("logging_steps", "eight", "wrong_type"),
        ("logging_steps", "[8]", "wrong_type"),
        ("logging_steps", "65", "out_of_bounds"),
        ("logging_steps", "9" * 200, "out_of_bounds"),
        ("use_cache", "yes", "wrong_type"),
        ("use_cache", "1", "wrong_type"),
        ("lr_schedule", "Hold", "out_of_bounds"),
        ("lr_schedule", "true", "out_of_bounds"),
        ("command", "dance", "unknown_command"),
        ("command", "", "unknown_command"),
    ],
)
def test_wrong_text_becomes_a_request_that_is_refused_once(
    trainer: Trainer, name: str, text: str, code: str
) -> None:
    problem = SURFACE.problems(to_update(name, text, PARAMS.get(name)))
    assert problem is not None
    assert problem[0] == code
    trainer.write(**{name: text})
    assert len(trainer.poll()) == 1
    trainer.restart()
    assert trainer.poll() == []


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", "5e-5", 5e-5),
        ("learning_rate", " 0.001\n", 0.001),
        ("learning_rate", "1", 1.0),
        ("logging_steps", "8", 8),
        ("use_cache", "true", True),
        ("use_cache", "False", False),
        ("lr_schedule", "hold", "hold"),
        (None, "8", 8),
        (None, "0.5", 0.5),
        (None, "true", True),
        (None, "text", "text"),
    ],
)
def test_a_text_is_read_by_the_type_of_the_parameter(name: str | None, text: str, value: Scalar) -> None:
    read = read_text(text, PARAMS[name] if name else None)
    assert read == value
    assert type(read) is type(value)


_params = st.none() | st.sampled_from(list(PARAMS.values()))


@given(st.text() | st.sampled_from(["[" * 5000, "1" * 5000, "NaN", "-Infinity", "1e999", "\ud800"]), _params)
def test_any_text_is_read_as_a_plain_value(text: str, param: Param | None) -> None:
    value = read_text(text, param)
    assert isinstance(value, str | bool | int | float)
    assert not isinstance(value, float) or math.isfinite(value)


_writable = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.dictionaries(st.sampled_from([*PARAMS, "momentum", "command"]), _writable))
def test_any_standing_text_is_handled_once_also_over_a_restart(texts: dict[str, str]) -> None:
    trainer = Trainer()
    trainer.write(**texts)
    assert len(trainer.poll()) == len(texts)
    assert trainer.poll() == []
    trainer.restart()
    assert trainer.poll() == []


def test_only_tags_with_the_prefix_are_by_hand() -> None:
    run_tags = {"ftlab.set.a": "1", "ftlab.settings": "2", "xftlab.set.b": "3", "ftlab.update.x": "4"}
    assert hand_texts(run_tags) == {"a": "1"}
