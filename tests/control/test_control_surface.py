"""What can be changed, and every reason for which a request does not fit it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from control_samples import AT, SURFACE
from hypothesis import given
from hypothesis import strategies as st

from ftlab_mlflow.control.messages import Update
from ftlab_mlflow.control.surface import Param, Surface, same_value
from ftlab_mlflow.errors import ConfigError, MessageError


def problems_of(**request: Any) -> tuple[str, dict[str, str]] | None:
    return SURFACE.problems(Update(at=AT, **request))


# --- values ------------------------------------------------------------------------------------------

TYPES: dict[str, Param] = {
    "float": Param("float", 0.5, 0.5),
    "int": Param("int", 1, 1),
    "bool": Param("bool", True, True),
    "enum": Param("enum", "a", "a", choices=("a", "b")),
}
TAKES = [
    ("float", 0.5), ("float", 1), ("float", -3), ("int", 8), ("int", -8), ("bool", True), ("bool", False),
    ("enum", "b"),
]  # fmt: skip
WRONG = [
    ("float", True), ("float", "0.5"), ("float", None), ("float", [0.5]), ("float", {}),
    ("int", 8.5), ("int", 8.0), ("int", True), ("int", "8"), ("int", None), ("int", math.nan),
    ("bool", 1), ("bool", 0), ("bool", "true"), ("bool", None), ("bool", 1.0),
    ("enum", 1), ("enum", True), ("enum", None), ("enum", ["a"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), TAKES)
def test_what_a_type_takes(kind: str, value: object) -> None:
    assert TYPES[kind].problem(value) is None


@pytest.mark.parametrize(("kind", "value"), WRONG)
def test_a_value_of_the_wrong_type(kind: str, value: object) -> None:
    problem = TYPES[kind].problem(value)
    assert problem is not None
    assert problem[0] == "wrong_type"
    assert problem[1].startswith("must be ")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_a_number_that_is_not_finite_is_out_of_bounds(value: float) -> None:
    problem = TYPES["float"].problem(value)
    assert problem is not None
    assert problem[0] == "out_of_bounds"


def test_an_unknown_choice_is_out_of_bounds() -> None:
    assert TYPES["enum"].problem("c") == ("out_of_bounds", 'must be one of a, b, got "c"')


@pytest.mark.parametrize(
    ("kind", "low", "high", "value", "fits"),
    [
        ("float", 0, 1, 0, True),
        ("float", 0, 1, 1, True),
        ("float", 0, 1, math.nextafter(0, -1), False),
        ("float", 0, 1, math.nextafter(1, 2), False),
        ("float", None, 1, -1e308, True),
        ("float", 0, None, 1e308, True),
        ("int", 1, 64, 1, True),
        ("int", 1, 64, 64, True),
        ("int", 1, 64, 0, False),
        ("int", 1, 64, 65, False),
        ("int", 1, None, 10**300, True),
        ("int", 1, 1e308, 10**309, False),
    ],
)
def test_bounds_are_included(kind: Any, low: float, high: float, value: float, fits: bool) -> None:
    problem = Param(kind, 1, 1, low, high).problem(value)
    assert (problem is None) == fits
    assert problem is None or problem[0] == "out_of_bounds"


def test_a_problem_says_what_is_allowed() -> None:
    said = Param("float", 0.1, 0.1, 0, 1).problem(math.nan)
    assert said == ("out_of_bounds", "must be a finite number from 0 to 1, got nan")
    assert Param("int", 8, 8, 1).problem(8.5) == ("wrong_type", "must be a whole number from 1, got 8.5")


_numbers = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)


@given(_numbers, st.none() | _numbers, st.none() | _numbers)
def test_bounds_against_exact_arithmetic(value: float, low: float | None, high: float | None) -> None:
    exact = Fraction(value)
    fits = (low is None or Fraction(low) <= exact) and (high is None or exact <= Fraction(high))
    assert (Param("float", 0.0, 0.0, low, high).problem(value) is None) == fits


# --- values that a person wrote ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", " 5e-5\n", 5e-5),
        ("learning_rate", "1", 1.0),
        ("logging_steps", "8", 8),
        ("use_cache", "TRUE", True),
        ("lr_schedule", "hold", "hold"),
    ],
)
def test_a_good_text_is_the_value_of_the_parameter_s_type(name: str, text: str, value: object) -> None:
    read = SURFACE.params[name].parse(text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("learning_rate", "7", "must be a finite number from 0 to 1, got 7.0"),
        ("learning_rate", "fast", 'must be a finite number from 0 to 1, got "fast"'),
        ("learning_rate", "", 'must be a finite number from 0 to 1, got ""'),
        ("logging_steps", "8.5", "must be a whole number from 1 to 64, got 8.5"),
        ("logging_steps", "true", "must be a whole number from 1 to 64, got true"),
        ("use_cache", "1", "must be true or false, got 1.0"),
        ("learning_rate", "1_0e-3", 'must be a finite number from 0 to 1, got "1_0e-3"'),
        ("learning_rate", "\uff10.5", 'must be a finite number from 0 to 1, got "\\uff10.5"'),
        ("learning_rate", "\u0660", 'must be a finite number from 0 to 1, got "\\u0660"'),
        ("learning_rate", "0." + "0" * 300, f'must be a finite number from 0 to 1, got "0.{"0" * 56}…'),
        ("logging_steps", "1_0", 'must be a whole number from 1 to 64, got "1_0"'),
        ("lr_schedule", "Hold", 'must be one of keep, hold, got "Hold"'),
    ],
)
def test_a_bad_text_is_refused_in_the_words_of_the_check(name: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        SURFACE.params[name].parse(text)
    assert str(refusal.value) == words
    problem = problems_of(set=SURFACE.read({name: text}))
    assert problem is not None
    assert problem[1] == {name: words}, "the trainer says the same"


def test_texts_are_read_together_also_of_what_the_run_does_not_have() -> None:
    texts = {"learning_rate": "5e-5", "logging_steps": "x", "momentum": "0.9", "nesterov": "true"}
    assert SURFACE.read(texts) == {
        "learning_rate": 5e-5, "logging_steps": "x", "momentum": 0.9, "nesterov": True
    }  # fmt: skip


# --- requests ----------------------------------------------------------------------------------------


def test_a_request_that_fits_has_no_problem() -> None:
    assert problems_of(set={"learning_rate": 5e-5, "logging_steps": 64, "use_cache": False}) is None
    assert problems_of(set={"lr_schedule": "hold"}, expect={"learning_rate": 1e-4, "weight_decay": 0}) is None
    assert problems_of(command="pause") is None
    assert problems_of(command="stop", args={"save": False}) is None
    assert problems_of(command="cancel", args={"id": "x"}) is None


@pytest.mark.parametrize(
    ("request_", "code", "names"),
    [
        ({"set": {"momentum": 0.9}}, "unknown_parameter", {"momentum"}),
        ({"set": {"learning_rate": 5e-5}, "expect": {"momentum": 0.9}}, "unknown_parameter", {"momentum"}),
        ({"set": {"max_steps": 9}}, "not_supported", {"max_steps"}),
        ({"set": {"logging_steps": 9}, "expect": {"max_steps": 9}}, "not_supported", {"max_steps"}),
        ({"set": {"learning_rate": "5e-5"}}, "wrong_type", {"learning_rate"}),
        ({"set": {"learning_rate": math.nan}}, "out_of_bounds", {"learning_rate"}),
        ({"set": {"learning_rate": 5e-5, "logging_steps": 65}}, "out_of_bounds", {"logging_steps"}),
        ({"set": {"logging_steps": 9}, "expect": {"learning_rate": 5e-5}}, "stale", {"learning_rate"}),
        ({"command": "dance"}, "unknown_command", {"command"}),
        ({"command": ""}, "unknown_command", {"command"}),
        ({"command": "evaluate"}, "not_supported", {"command"}),
        ({"command": "rollback", "args": {"checkpoint": 500}}, "wrong_type", {"command"}),
        ({"command": "pause", "args": {"save": True}}, "invalid", {"command"}),
        ({"command": "cancel"}, "invalid", {"command"}),
        ({"command": "stop", "args": {"save": 1}}, "wrong_type", {"command"}),
        ({"command": "cancel", "args": {"id": 7}}, "wrong_type", {"command"}),
    ],
)
def test_every_code_that_the_surface_gives(request_: dict[str, Any], code: str, names: set[str]) -> None:
    unsupported = {"max_steps": "an iterable dataset has no length", "evaluate": "there is no eval_dataset"}
    found = replace(SURFACE, unsupported=unsupported).problems(Update(at=AT, **request_))
    assert found is not None
    assert found[0] == code
    assert found[1].keys() == names
    assert all(found[1].values())


def test_the_reason_of_what_is_not_supported_is_said() -> None:
    reasons = {"evaluate": "there is no eval_dataset", "max_steps": "no length"}
    surface = Surface.decode(replace(SURFACE, unsupported=reasons).encode())
    found = surface.problems(Update(at=AT, command="evaluate"))
    assert found == ("not_supported", {"command": "there is no eval_dataset"})
    found = surface.problems(Update(at=AT, set={"max_steps": 9}))
    assert found == ("not_supported", {"max_steps": "no length"})


def test_what_the_run_has_is_said() -> None:
    _, errors = problems_of(set={"momentum": 0.9}) or ("", {})
    assert "it has learning_rate, weight_decay, logging_steps, use_cache, lr_schedule" in errors["momentum"]
    _, errors = problems_of(command="evaluate") or ("", {})
    assert "this run takes pause, resume, stop, checkpoint, rollback, cancel" in errors["command"]


def test_all_that_is_wrong_is_named_under_the_first_code() -> None:
    code, errors = problems_of(set={"weight_decay": -1, "momentum": 1, "use_cache": 1}) or ("", {})
    assert code == "out_of_bounds"
    assert errors.keys() == {"weight_decay", "momentum", "use_cache"}


def test_a_wrong_value_is_named_before_a_stale_expectation() -> None:
    code, errors = problems_of(set={"learning_rate": 2}, expect={"weight_decay": 1}) or ("", {})
    assert code == "out_of_bounds"
    assert errors.keys() == {"learning_rate"}


def test_an_expectation_is_compared_with_what_was_asked_not_with_what_a_schedule_made_of_it() -> None:
    lr = SURFACE.params["learning_rate"]
    assert lr.value != lr.asked
    assert problems_of(set={"logging_steps": 9}, expect={"learning_rate": lr.asked}) is None
    found = problems_of(set={"logging_steps": 9}, expect={"learning_rate": lr.value})
    assert found == ("stale", {"learning_rate": "expected 8.7e-05, but 0.0001 was asked for"})


def test_a_command_can_expect_too() -> None:
    assert problems_of(command="pause", expect={"logging_steps": 8}) is None
    found = problems_of(command="pause", expect={"logging_steps": 9, "use_cache": True})
    assert found == ("stale", {"logging_steps": "expected 9, but 8 was asked for"})


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (1e-4, 1e-4 * (1 + 9e-10), True),
        (1e-4, 1e-4 * (1 + 1.1e-9), False),
        (8, 8.0, True),
        (0, 0.0, True),
        (0.0, 1e-300, False),
        (1, True, False),
        (0, False, False),
        (True, True, True),
        (True, False, False),
        ("keep", "keep", True),
        ("keep", "hold", False),
        ("1", 1, False),
        (10**400, 10**400, True),
        (10**400, 1, False),
        (None, None, True),
        ([1], [1], True),
    ],
)
def test_the_same_value(a: object, b: object, same: bool) -> None:
    assert same_value(a, b) is same
    assert same_value(b, a) is same


@given(st.floats(1e-300, 1e300), st.floats(-3e-9, 3e-9).filter(lambda part: abs(abs(part) - 1e-9) > 1e-14))
def test_the_tolerance_is_relative_and_1e_9(value: float, part: float) -> None:
    other = value * (1 + part)
    exact = abs(Fraction(value) - Fraction(other)) <= Fraction(1, 10**9) * Fraction(max(value, other))
    assert same_value(value, other) is exact


# --- as text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "param",
    [
        {"type": "str", "value": 1, "asked": 1},
        {"type": "float", "asked": 1},
        {"type": "float", "value": 1},
        {"value": 1, "asked": 1},
        {"type": "float", "value": None, "asked": 1},
        {"type": "float", "value": 1, "asked": [1]},
        {"type": "float", "value": 1, "asked": 1, "min": "0"},
        {"type": "float", "value": 1, "asked": 1, "max": True},
        {"type": "enum", "value": "a", "asked": "a", "choices": "ab"},
        {"type": "enum", "value": "a", "asked": "a", "choices": [1]},
        {"type": "float", "value": 1, "asked": 1, "help": 7},
        "float",
        None,
        [],
    ],
)
def test_a_parameter_of_the_wrong_shape_is_invalid_and_named(param: object) -> None:
    with pytest.raises(MessageError, match="invalid: params: x: ") as caught:
        Surface.decode(json.dumps({"v": 1, "params": {"x": param}, "commands": []}))
    assert caught.value.code == "invalid"


@pytest.mark.parametrize("commands", [None, "pause", [1], {}])
def test_commands_are_a_list_of_names(commands: object) -> None:
    with pytest.raises(MessageError, match="invalid: commands: must be a list of strings"):
        Surface.decode(json.dumps({"v": 1, "params": {}, "commands": commands}))


def test_help_is_left_out_where_a_tag_could_not_hold_it() -> None:
    params = {f"p{i}": Param("float", 0.5, 0.5, 0, 1, help="x" * 300) for i in range(60)}
    text = Surface(params, ("pause",)).encode()
    assert len(text) <= 8000
    read = Surface.decode(text)
    assert read.params.keys() == params.keys()
    assert all(p == Param("float", 0.5, 0.5, 0, 1) for p in read.params.values())


def test_reasons_are_left_out_before_the_help_is() -> None:
    params = {f"p{i}": Param("float", 0.5, 0.5, help="x" * 100) for i in range(30)}
    surface = Surface(params, ("pause",), {f"q{i}": "y" * 100 for i in range(30)})
    assert Surface.decode(surface.encode()) == replace(surface, unsupported={})
    shorter = replace(surface, unsupported={"q": "y"})
    assert Surface.decode(shorter.encode()) == shorter


def test_a_reason_is_a_text() -> None:
    with pytest.raises(MessageError, match="invalid: unsupported: must be a string"):
        Surface.decode(json.dumps({"v": 1, "params": {}, "commands": [], "unsupported": {"x": 1}}))


def test_a_surface_that_no_tag_can_hold_is_not_written() -> None:
    with pytest.raises(MessageError, match="a tag holds 8000"):
        Surface({f"p{i}": Param("float", 0.5, 0.5) for i in range(500)}, ()).encode()
