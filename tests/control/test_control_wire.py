"""How values travel: strict JSON, UTC times, time-ordered ids, text that is safe to print."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from itertools import count, pairwise

import pytest
from control_samples import AT, AT_TEXT, value_or_error
from hypothesis import given
from hypothesis import strategies as st

from ftlab_mlflow.control import tags, wire
from ftlab_mlflow.errors import MessageError

# --- ids ---------------------------------------------------------------------------------------------


def test_an_id_is_a_uuid_of_version_7_with_the_time_now() -> None:
    before = time.time_ns() // 1_000_000
    text = wire.new_id()
    after = time.time_ns() // 1_000_000
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert before <= parsed.int >> 80 <= after
    assert tags.is_valid_id(text)


def test_the_fraction_of_a_millisecond_is_in_the_id() -> None:
    fractions = []
    for _ in range(200):
        fractions.append((uuid.UUID(wire.new_id()).int >> 64 & 0xFFF) / 4096)
        time.sleep(0.00013)  # so that the ids are not the counter of one another
    assert min(fractions) < 0.25
    assert max(fractions) > 0.75


def test_ids_increase_strictly_within_a_millisecond() -> None:
    ids = [wire.new_id() for _ in range(20_000)]
    assert all(a < b for a, b in pairwise(ids))


@pytest.mark.parametrize("step_ns", [0, -1, -3_600 * 10**9, 100])
def test_ids_increase_though_the_clock_stands_still_or_goes_back(
    monkeypatch: pytest.MonkeyPatch, step_ns: int
) -> None:
    last = wire.new_id()
    clock = count(time.time_ns(), step_ns)
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    ids = [last, *(wire.new_id() for _ in range(10))]
    assert all(uuid.UUID(a).int >> 64 < uuid.UUID(b).int >> 64 for a, b in pairwise(ids))


def test_ids_from_threads_are_distinct_and_increase_in_each() -> None:
    made: list[list[str]] = [[] for _ in range(8)]
    barrier = threading.Barrier(8)

    def make(mine: list[str]) -> None:
        barrier.wait()
        mine.extend(wire.new_id() for _ in range(2_000))

    threads = [threading.Thread(target=make, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(mine == sorted(mine) for mine in made)
    # The 76 bits of time and counter alone are distinct, not only the random rest.
    assert len({uuid.UUID(text).int >> 64 for mine in made for text in mine}) == 16_000


@pytest.mark.parametrize("request_id", ["a", "0-_Z", "x" * 64])
def test_valid_ids(request_id: str) -> None:
    assert tags.is_valid_id(request_id)


@pytest.mark.parametrize("request_id", ["", "x" * 65, "a.b", "a b", "ä", "a\n", "a/b", "１"])
def test_invalid_ids(request_id: str) -> None:
    assert not tags.is_valid_id(request_id)


# --- times -------------------------------------------------------------------------------------------


def test_a_time_is_iso_8601_utc_with_milliseconds() -> None:
    assert wire.format_time(AT) == AT_TEXT
    assert wire.format_time(AT.replace(microsecond=0)) == "2026-11-21T19:00:00.000Z"
    assert (
        wire.format_time(datetime(2026, 11, 22, 0, 30, 0, 123_000, timezone(timedelta(hours=5.5)))) == AT_TEXT
    )


def test_utc_now_has_whole_milliseconds() -> None:
    before = datetime.now(UTC)
    now = wire.utc_now()
    assert before - timedelta(milliseconds=1) < now <= datetime.now(UTC)
    assert now.microsecond % 1000 == 0
    assert wire.parse_time(wire.format_time(now)) == now


@given(st.datetimes(timezones=st.timezones()))
def test_any_time_survives_to_the_millisecond(at: datetime) -> None:
    try:
        expected = at.astimezone(UTC)
    except OverflowError:  # the first or last day of the calendar, elsewhere
        return
    expected = expected.replace(microsecond=expected.microsecond // 1000 * 1000)
    assert wire.parse_time(wire.format_time(at)) == expected


@pytest.mark.parametrize(
    "text", ["2026-11-21T19:00:00.123Z", "2026-11-21T19:00:00.123+00:00", "2026-11-21T21:00:00.123+02:00"]
)
def test_any_time_zone_is_read(text: str) -> None:
    assert wire.parse_time(text) == AT
    assert wire.parse_time(text).utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "value",
    ["", "now", "2026-11-21", "2026-11-21T19:00:00", "2026-13-01T00:00:00Z", "0001-01-01T00:00:00+23:59",
     "9999-12-31T23:59:59-23:59", "2026-11-21T19:00:00.123Z ", 1_795_287_600, None, True, [], {}],
)  # fmt: skip
def test_what_is_no_time_is_a_value_error_that_shows_how_to_write_one(value: object) -> None:
    with pytest.raises(ValueError, match="must be an ISO 8601 time in UTC such as 2026-11-21"):
        wire.parse_time(value)


# --- JSON --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ('{"a":1}x', "is no JSON"),
        ("{'a':1}", "is no JSON"),
        ('{"a":1,"a":1}', 'the key "a" appears twice'),
        ('{"x":{"a":1,"b":2,"a":3}}', 'the key "a" appears twice'),
        ("[1]", "must be a JSON object, got a list"),
        ("1e999", "must be a JSON object, got inf"),
        ("null", "must be a JSON object, got null"),
        ('{"a":' + "1" * 5000 + "}", "4300 digits"),
        ('{"a":"\\ud800"}', "surrogates not allowed"),
        ('{"\\udfff":1}', "surrogates not allowed"),
        ('{"a":"\udc80"}', "surrogates not allowed"),
        ("[" * 5000, "is nested too deeply"),
        ('{"a":' * 1300, "is nested too deeply"),
        ("[" * 100_000, "has 100000 characters, at most 8000 are allowed"),
        (f'{{"a":"{"x" * 7993}"}}', "has 8001 characters, at most 8000 are allowed"),
    ],
)
def test_what_is_no_object_is_invalid_and_says_why(text: str, says: str) -> None:
    with pytest.raises(MessageError) as caught:
        wire.load_object(text)
    assert caught.value.code == "invalid"
    assert says in caught.value.errors["message"]
    assert len(str(caught.value)) < 200


def test_exactly_8000_characters_are_read() -> None:
    text = f'{{"a":"{"ä" * 7992}"}}'
    assert len(text) == 8000
    assert wire.load_object(text) == {"a": "ä" * 7992}


def test_a_deep_but_readable_object_is_read() -> None:
    text = '{"a":' + "[" * 900 + "]" * 900 + "}"
    with ThreadPoolExecutor(1) as fresh_stack:  # the test runner's own frames leave too little room
        value = fresh_stack.submit(wire.load_object, text).result()
    for _ in range(900):
        (value,) = value.values() if isinstance(value, dict) else value
    assert value == []


def test_numbers_that_are_not_finite_are_read_so_that_the_parameter_can_refuse_them() -> None:
    value = wire.load_object('{"a":NaN,"b":Infinity,"c":-Infinity,"d":1e999}')
    assert [str(v) for v in value.values()] == ["nan", "inf", "-inf", "inf"]


@given(st.text())
def test_loading_is_total(text: str) -> None:
    outcome = value_or_error(wire.load_object, text)
    assert isinstance(outcome, dict) or (outcome.code == "invalid" and outcome.errors)


def test_what_is_written_is_compact_and_readable() -> None:
    text = wire.dump_object({"a": [1, 2.5, True, None], "grüße": "→"})
    assert text == '{"a":[1,2.5,true,null],"grüße":"→"}'


def test_8000_characters_are_written_and_8001_are_not() -> None:
    assert len(wire.dump_object({"a": "x" * 7992})) == 8000
    with pytest.raises(MessageError, match="has 8001 characters, a tag holds 8000") as caught:
        wire.dump_object({"a": "x" * 7993})
    assert caught.value.code == "invalid"


def _nested(levels: int) -> list[object]:
    value: list[object] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "\ud800", object(), {1, 2}, b"bytes", _nested(100_000)],
    ids=["nan", "inf", "surrogate", "object", "set", "bytes", "deep"],
)  # fmt: skip
def test_what_json_cannot_hold_is_not_written(value: object) -> None:
    with pytest.raises(MessageError, match="cannot be written") as caught:
        wire.dump_object({"a": value})
    assert caught.value.code == "invalid"


# --- what people see ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("nan"), "nan"),
        (5e-05, "5e-05"),
        (8, "8"),
        (True, "true"),
        (None, "null"),
        ("a\nb", '"a\\nb"'),
        ({"a": 1}, "an object"),
        ([1, 2], "a list"),
        ("x" * 100, '"' + "x" * 58 + "…"),
        pytest.param(10**5000, "a number of 16610 bits", id="huge"),
        pytest.param(-(10**5000), "a number of 16610 bits", id="negative"),
    ],
)
def test_a_value_is_shown_short_and_on_one_line(value: object, text: str) -> None:
    assert wire.shown(value) == text


@given(st.text(st.characters()))
def test_one_line_has_nothing_that_moves_a_cursor(text: str) -> None:
    line = wire.one_line(text)
    assert len(line) == len(text)
    assert line.isprintable()
    assert len(line.splitlines()) <= 1


@pytest.mark.parametrize(
    ("value", "finite"),
    [(1, True), (0.5, True), (True, False), ("1", False), (None, False), (float("nan"), False),
     (float("-inf"), False), (10**308, True), (10**309, False), ([], False)],
)  # fmt: skip
def test_is_finite(value: object, finite: bool) -> None:
    assert wire.is_finite(value) is finite


def test_text_without_lone_surrogates() -> None:
    assert wire.unicode("grüße 🙂") == "grüße 🙂"
    assert wire.unicode("a\udc80b") == "a?b"
