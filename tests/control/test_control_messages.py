"""The messages of the protocol: they survive their text, any text is read, every rule of the tables holds."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any, get_args

import control_samples as samples
import pytest
from control_samples import AT, AT_TEXT, value_or_error
from hypothesis import given
from hypothesis import strategies as st

from ftlab_mlflow.control.messages import FINAL_STATES, Ack, State, Status, Update
from ftlab_mlflow.control.surface import Surface
from ftlab_mlflow.errors import MessageError

Message = type[Update] | type[Ack] | type[Status] | type[Surface]

UPDATE: dict[str, Any] = {"v": 1, "set": {"learning_rate": 5e-05}, "at": AT_TEXT}
COMMAND: dict[str, Any] = {"v": 1, "command": "stop", "args": {"save": True}, "at": AT_TEXT}
ACK: dict[str, Any] = {"v": 1, "status": "applied", "step": 130, "at": AT_TEXT, "session": "s1"}
STATUS: dict[str, Any] = {
    "v": 1, "state": "running", "step": 130, "max_steps": 1000, "epoch": 0.41, "at": AT_TEXT, "every_s": 10,
    "session": "s1", "host": "node7", "pid": 4242, "method": "sft", "error": None,
}  # fmt: skip
SURFACE: dict[str, Any] = {
    "v": 1,
    "params": {
        "learning_rate": {
            "type": "float",
            "value": 8.7e-05,
            "asked": 0.0001,
            "min": 0,
            "max": 1,
            "help": "…",
        },
        "lr_schedule": {"type": "enum", "value": "keep", "asked": "keep", "choices": ["keep", "hold"]},
    },
    "commands": ["pause", "stop"],
}
KINDS: list[tuple[Message, dict[str, Any]]] = [
    (Update, UPDATE), (Update, COMMAND), (Ack, ACK), (Status, STATUS), (Surface, SURFACE)
]  # fmt: skip
IDS = ["set", "command", "ack", "status", "surface"]


def text_of(sample: dict[str, Any], **changes: Any) -> str:
    """The sample as a tag's value; a change to `...` leaves the key out."""
    return json.dumps({k: v for k, v in (sample | changes).items() if v is not ...})


def errors_of(kind: Message, sample: dict[str, Any], **changes: Any) -> dict[str, str]:
    """By key, what is wrong with the changed sample, which must be invalid."""
    with pytest.raises(MessageError) as caught:
        kind.decode(text_of(sample, **changes))
    assert caught.value.code == "invalid"
    return caught.value.errors


# --- round trips -------------------------------------------------------------------------------------


@given(samples.updates)
def test_a_request_survives_its_text(update: Update) -> None:
    assert Update.decode(update.encode()) == update


@given(samples.acks)
def test_an_answer_survives_its_text(ack: Ack) -> None:
    assert Ack.decode(ack.encode()) == ack


@given(samples.statuses)
def test_a_status_survives_its_text(status: Status) -> None:
    assert Status.decode(status.encode()) == status


@given(samples.surfaces)
def test_a_surface_survives_its_text(surface: Surface) -> None:
    assert Surface.decode(surface.encode()) == surface


def test_a_request_is_written_as_the_protocol_shows_it() -> None:
    update = Update(
        at=AT, set={"learning_rate": 5e-05, "weight_decay": 0.01}, expect={"learning_rate": 0.0001},
        at_step=500, expires=AT + timedelta(hours=1), by="alice", via="cli", reason="loss plateau",
    )  # fmt: skip
    assert json.loads(update.encode()) == {
        "v": 1, "set": {"learning_rate": 5e-05, "weight_decay": 0.01}, "expect": {"learning_rate": 0.0001},
        "at_step": 500, "expires": "2026-11-21T20:00:00.123Z", "by": "alice", "via": "cli", "at": AT_TEXT,
        "reason": "loss plateau",
    }  # fmt: skip
    assert json.loads(Update(at=AT, command="pause").encode()) == {"v": 1, "command": "pause", "at": AT_TEXT}


def test_an_answer_is_written_as_the_protocol_shows_it() -> None:
    applied = Ack("applied", 130, AT, "s1", changes={"learning_rate": (8.7e-05, 5e-05)})
    assert json.loads(applied.encode()) == ACK | {"changes": {"learning_rate": [8.7e-05, 5e-05]}}
    rejected = Ack("rejected", 130, AT, "s1", code="out_of_bounds", errors={"learning_rate": "got nan"})
    assert json.loads(rejected.encode()) == ACK | {
        "status": "rejected", "code": "out_of_bounds", "errors": {"learning_rate": "got nan"}
    }  # fmt: skip


def test_surface_and_status_are_written_as_the_protocol_shows_them() -> None:
    assert json.loads(Surface.decode(json.dumps(SURFACE)).encode()) == SURFACE
    assert json.loads(Status.decode(json.dumps(STATUS)).encode()) == STATUS


# --- decoding is total -------------------------------------------------------------------------------

DECODERS = [Update.decode, Ack.decode, Status.decode, Surface.decode]
VALID = samples.updates | samples.acks | samples.statuses | samples.surfaces
ODD_VALUES = st.one_of(
    samples.values,
    st.sampled_from(
        [float("nan"), float("inf"), -float("inf"), 10**400, -(10**4000), AT_TEXT, "é", 1, 0, -1]
    ),
    st.lists(samples.values, max_size=3),
)


def is_read_by_all(text: str) -> None:
    for decode in DECODERS:
        outcome = value_or_error(decode, text)
        if isinstance(outcome, MessageError):
            assert outcome.code in ("invalid", "unsupported_version")
            assert outcome.errors
            assert all(isinstance(key, str) and said for key, said in outcome.errors.items())


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    is_read_by_all(text)


@given(VALID, st.data())
def test_a_message_cut_or_garbled_anywhere_is_read(message: Any, data: st.DataObject) -> None:
    text = message.encode()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    is_read_by_all(text[:start])
    is_read_by_all(text[:start] + data.draw(st.text(max_size=5)) + text[end:])
    is_read_by_all(text[:end] + text[start:])


@given(st.sampled_from(KINDS), st.data())
def test_any_value_in_any_field_is_read(kind: tuple[Message, dict[str, Any]], data: st.DataObject) -> None:
    _, sample = kind
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(sample)), ODD_VALUES, min_size=1))
    is_read_by_all(json.dumps(sample | changes))


@given(st.data())
def test_any_value_in_any_field_of_a_parameter_is_read(data: st.DataObject) -> None:
    keys = st.sampled_from(["type", "value", "asked", "min", "max", "choices", "help"])
    param = SURFACE["params"]["learning_rate"] | data.draw(st.dictionaries(keys, ODD_VALUES, min_size=1))
    is_read_by_all(json.dumps(SURFACE | {"params": {"x": param}}))


@pytest.mark.parametrize(
    "literal",
    ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 4000, "1" * 5000, '"\\ud800"', '"\udfff"',
     "[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900, "[" * 100_000, '{"a":1,"a":2}', "", "nul"],
    ids=lambda literal: f"{literal[:9]}x{len(literal)}".encode("ascii", "replace").decode(),
)  # fmt: skip
@pytest.mark.parametrize(("kind", "sample"), KINDS, ids=IDS)
def test_an_odd_literal_in_any_field_is_read(kind: Message, sample: dict[str, Any], literal: str) -> None:
    for key in sample:
        is_read_by_all(json.dumps(sample | {key: "HERE"}).replace('"HERE"', literal))


@pytest.mark.parametrize(("kind", "sample"), KINDS, ids=IDS)
def test_8001_characters_are_invalid_and_8000_are_not(kind: Message, sample: dict[str, Any]) -> None:
    text = json.dumps(sample)
    kind.decode(text + " " * (8000 - len(text)))
    with pytest.raises(MessageError, match="invalid: message: has 8001 characters"):
        kind.decode(text + " " * (8001 - len(text)))


@pytest.mark.parametrize(("kind", "sample"), KINDS, ids=IDS)
def test_a_key_that_appears_twice_is_invalid(kind: Message, sample: dict[str, Any]) -> None:
    text = json.dumps(sample)
    with pytest.raises(MessageError, match='invalid: message: the key "v" appears twice'):
        kind.decode('{"v":1,' + text[1:])


# --- what all messages share -------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "sample"), KINDS, ids=IDS)
def test_without_a_version_it_is_invalid(kind: Message, sample: dict[str, Any]) -> None:
    assert errors_of(kind, sample, v=...) == {"v": "is required"}
    assert errors_of(kind, sample, v=None) == {"v": "is required"}


@pytest.mark.parametrize("version", [0, 2, -1, "1", True, 1.5, [1], {}, 10**30])
@pytest.mark.parametrize(("kind", "sample"), KINDS, ids=IDS)
def test_another_version_is_unsupported(kind: Message, sample: dict[str, Any], version: object) -> None:
    with pytest.raises(MessageError) as caught:
        kind.decode(text_of(sample, v=version))
    assert caught.value.code == "unsupported_version"
    assert caught.value.errors["v"].startswith("must be 1, got ")


def test_a_newer_version_is_unsupported_whatever_else_it_says() -> None:
    with pytest.raises(MessageError) as caught:
        Update.decode('{"v":2,"colour":"green"}')
    assert caught.value.code == "unsupported_version"


@pytest.mark.parametrize(("kind", "sample"), KINDS[2:], ids=IDS[2:])
def test_an_unknown_key_in_what_a_trainer_writes_is_ignored(kind: Message, sample: dict[str, Any]) -> None:
    assert kind.decode(text_of(sample, colour="green")) == kind.decode(text_of(sample))


def test_an_unknown_key_of_a_parameter_is_ignored() -> None:
    param = SURFACE["params"]["learning_rate"] | {"colour": "green"}
    surface = Surface.decode(text_of(SURFACE, params={"x": param}))
    assert surface.params["x"] == Surface.decode(text_of(SURFACE)).params["learning_rate"]


@pytest.mark.parametrize("sample", [UPDATE, COMMAND], ids=IDS[:2])
def test_an_unknown_key_in_a_request_is_invalid(sample: dict[str, Any]) -> None:
    errors = errors_of(Update, sample, colour="green", sett={})
    assert errors.keys() == {"colour", "sett"}
    assert "allowed are v, set, command, args, expect, at_step" in errors["colour"]


@pytest.mark.parametrize(
    ("kind", "sample", "required"),
    [
        (Update, UPDATE, {"at"}),
        (Ack, ACK, {"status", "step", "at", "session"}),
        (Status, STATUS, {"state", "step", "max_steps", "at", "every_s"}),
        (Surface, SURFACE, {"params", "commands"}),
    ],
)
def test_what_is_required(kind: Message, sample: dict[str, Any], required: set[str]) -> None:
    for key in required:
        assert errors_of(kind, sample, **{key: ...}) == {key: "is required"}
    kind.decode(text_of({key: sample[key] for key in sample if key in required | {"v", "set"}}))


@pytest.mark.parametrize(
    ("kind", "sample"), [(Update, UPDATE), (Ack, ACK), (Status, STATUS)], ids=["update", "ack", "status"]
)
@pytest.mark.parametrize("at", ["2026-11-21", "2026-11-21T19:00:00", "soon", 1_795_287_600, None, True])
def test_a_time_without_a_zone_or_sense_is_invalid(kind: Message, sample: dict[str, Any], at: object) -> None:
    assert errors_of(kind, sample, at=at)["at"].startswith("must be an ISO 8601 time in UTC")


def test_everything_wrong_is_named_at_once() -> None:
    errors = errors_of(Update, UPDATE, at="soon", at_step=-1, by=7, colour="green")
    assert errors.keys() == {"at", "at_step", "by", "colour"}


# --- requests ----------------------------------------------------------------------------------------


def test_exactly_one_of_set_and_command() -> None:
    said = {"message": "must have exactly one of set and command"}
    assert errors_of(Update, UPDATE, set=...) == said
    assert errors_of(Update, UPDATE, command="pause") == said
    assert errors_of(Update, UPDATE, set=None, command="pause").keys() == {"set", "message"}
    assert Update.decode(text_of(UPDATE)).command is None
    assert Update.decode(text_of(COMMAND)).set is None


@pytest.mark.parametrize("value", [{}, [], "learning_rate=1", 1, None, True])
def test_set_is_an_object_that_names_a_parameter(value: object) -> None:
    assert errors_of(Update, UPDATE, set=value)["set"].startswith("must ")


def test_values_of_any_type_pass_so_that_the_parameter_can_refuse_them() -> None:
    asked = {"a": None, "b": [1], "c": {"d": 1}, "e": "x", "f": True, "g": 8.5}
    assert Update.decode(text_of(UPDATE, set=asked)).set == asked
    nan = Update.decode('{"v":1,"set":{"a":NaN},"at":"2026-11-21T19:00:00.123Z"}')
    assert nan.set is not None
    assert nan.set["a"] != nan.set["a"]


@pytest.mark.parametrize("value", [1, True, None, [], {}, ["pause"]])
def test_a_command_is_a_string(value: object) -> None:
    assert errors_of(Update, COMMAND, command=value)["command"].startswith("must be a string")


def test_args_are_an_object_and_for_a_command() -> None:
    assert errors_of(Update, COMMAND, args=[True])["args"].startswith("must be an object")
    assert errors_of(Update, UPDATE, args={"save": True}) == {"args": "are for a command"}
    assert errors_of(Update, UPDATE, args={}) == {"args": "are for a command"}
    assert Update.decode(text_of(COMMAND)).args == {"save": True}


@pytest.mark.parametrize("value", [None, [1], {"x": 1}])
def test_an_expectation_is_a_plain_value(value: object) -> None:
    errors = errors_of(Update, UPDATE, expect={"learning_rate": value})
    assert errors["expect"].startswith("learning_rate: must be a finite number, true, false or a string")


@pytest.mark.parametrize("value", [None, [], "a", 1])
def test_expect_is_an_object(value: object) -> None:
    assert errors_of(Update, UPDATE, expect=value)["expect"].startswith("must be an object")


def test_an_expectation_that_is_not_finite_is_invalid() -> None:
    text = '{"v":1,"set":{"a":1},"expect":{"a":NaN},"at":"2026-11-21T19:00:00.123Z"}'
    with pytest.raises(MessageError, match="expect: a: must be a finite number"):
        Update.decode(text)


@pytest.mark.parametrize("value", [-1, 1.5, 1.0, "1", True, None, []])
def test_at_step_is_a_whole_number_from_0(value: object) -> None:
    assert errors_of(Update, UPDATE, at_step=value)["at_step"].startswith("must be a whole number from 0")
    assert Update.decode(text_of(UPDATE, at_step=0)).at_step == 0


def test_expires_is_a_time() -> None:
    assert Update.decode(text_of(UPDATE, expires=AT_TEXT)).expires == AT
    assert errors_of(Update, UPDATE, expires="later").keys() == {"expires"}


@pytest.mark.parametrize("key", ["by", "via", "reason"])
def test_by_via_and_reason_are_strings(key: str) -> None:
    assert errors_of(Update, UPDATE, **{key: 7}) == {key: "must be a string, got 7"}


def test_a_request_of_more_than_8000_characters_is_not_written() -> None:
    spare = 8000 - len(Update(at=AT, command="pause", reason="").encode())
    assert len(Update(at=AT, command="pause", reason="ä" * spare).encode()) == 8000
    with pytest.raises(MessageError, match="has 8001 characters") as caught:
        Update(at=AT, command="pause", reason="ä" * (spare + 1)).encode()
    assert caught.value.code == "invalid"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_a_value_that_json_cannot_hold_is_not_written(value: object) -> None:
    with pytest.raises(MessageError, match="cannot be written"):
        Update(at=AT, set={"a": value}).encode()


# --- answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["done", "APPLIED", 1, None, [], True])
def test_the_status_of_an_answer(value: object) -> None:
    said = errors_of(Ack, ACK, status=value)["status"]
    assert said.startswith("must be one of applied, rejected, cancelled, got ")


@pytest.mark.parametrize(
    "changes", [{"a": 1}, {"a": [1]}, {"a": [1, 2, 3]}, {"a": [None, 1]}, {"a": [1, [2]]}, [], "a"]
)
def test_changes_are_pairs_of_plain_values(changes: object) -> None:
    assert errors_of(Ack, ACK, changes=changes).keys() == {"changes"}


def test_a_code_of_a_newer_trainer_is_read() -> None:
    assert Ack.decode(text_of(ACK, status="rejected", code="too_hot")).code == "too_hot"


def test_a_long_answer_is_shortened_until_it_fits() -> None:
    errors = {f"{i}" * 2000: "\0" * 5000 for i in range(9)}
    ack = Ack.decode(Ack("rejected", 130, AT, "s1", code="invalid", errors=errors).encode())
    assert (ack.status, ack.code, ack.step, ack.at, ack.session) == ("rejected", "invalid", 130, AT, "s1")
    assert ack.errors == {f"{i}" * 50: "\0" * 200 for i in range(5)}
    metrics = {f"eval_metric_{i}": 0.123456789 for i in range(1000)}
    assert Ack.decode(Ack("applied", 1, AT, "s1", result=metrics).encode()).result == {"truncated": True}


def test_an_answer_with_what_json_cannot_hold_is_written_as_text() -> None:
    ack = Ack(
        "applied", 130, AT, "s1",
        changes={"a": (float("inf"), 1.0)}, errors={"b": "no file \udc80"},
        result={"loss": float("nan"), "at": AT, "\udc80": None, "deep": {"x": -float("inf"), "n": 3}},
    )  # fmt: skip
    read = Ack.decode(ack.encode())
    assert read.changes == {"a": ("inf", 1.0)}
    assert read.errors == {"b": "no file ?"}
    assert read.result == {
        "loss": "nan", "at": str(AT), "?": None, "deep": {"x": "-inf", "n": 3}
    }  # fmt: skip


# --- status ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["done", "RUNNING", 1, None, [], True])
def test_the_states(value: object) -> None:
    assert errors_of(Status, STATUS, state=value)["state"].startswith("must be one of starting, running")
    assert set(FINAL_STATES) == {"finished", "stopped", "failed"}
    for state in get_args(State):
        status = Status.decode(text_of(STATUS, state=state))
        assert status.is_final == (state in ("finished", "stopped", "failed"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("step", -1), ("step", 1.5), ("max_steps", True), ("max_steps", "9"), ("epoch", "1"), ("epoch", True),
     ("every_s", None), ("every_s", "10"), ("pid", -1), ("pid", 1.0), ("host", 7), ("method", None),
     ("session", 1), ("error", 7)],
)  # fmt: skip
def test_a_field_of_the_wrong_type_is_invalid(key: str, value: object) -> None:
    assert errors_of(Status, STATUS, **{key: value}).keys() == {key}


@pytest.mark.parametrize("state", get_args(State))
def test_lost_is_a_heartbeat_older_than_three_periods_without_a_final_state(state: State) -> None:
    status = samples.running(state=state, at=AT, every_s=10)
    final = state in ("finished", "stopped", "failed")
    assert not status.is_lost(samples.seconds(30))
    assert status.is_lost(samples.seconds(30.001)) == (not final)


@pytest.mark.parametrize("every_s", [1e300, 10**300, 0, -5])
def test_a_period_without_sense_is_survived(every_s: float) -> None:
    status = Status.decode(text_of(STATUS, every_s=every_s))
    assert status.is_lost(samples.seconds(1)) == (every_s <= 0)


def test_a_long_or_broken_error_text_is_cut_to_what_a_tag_holds() -> None:
    status = samples.running(state="failed", error="\udc80" + "\0" * 100_000)
    read = Status.decode(status.encode())
    assert read.error == "?" + "\0" * 999
