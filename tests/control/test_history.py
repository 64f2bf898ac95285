"""A history as CSV and JSON against the raw tags, and which requests match what is looked for."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pandas as pd
import pytest
from control_samples import AT, acks, scalars, seconds, texts, updates
from hypothesis import given
from hypothesis import strategies as st

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.history import (
    ANSWERS,
    COLUMNS,
    answer_of,
    history_csv,
    history_json,
    matching,
    names_of,
)
from ftlab_mlflow.control.ledger import Entry, Ledger
from ftlab_mlflow.control.messages import Ack, Update


def tags_of(asked: dict[str, Update], answers: dict[str, Ack]) -> dict[str, str]:
    written = {tags.UPDATE_PREFIX + i: update.encode() for i, update in asked.items()}
    return written | {tags.ACK_PREFIX + i: ack.encode() for i, ack in answers.items()}


def rows_of(entries: tuple[Entry, ...] | list[Entry]) -> list[dict[str, str]]:
    """The CSV as any other program reads it."""
    return list(csv.DictReader(io.StringIO(history_csv(entries), newline=""), strict=True))


ENTRIES = Ledger.read(
    tags_of(
        {
            "a": Update(
                at=AT, set={"learning_rate": -5e-05, "weight_decay": 0.01}, expect={"learning_rate": 1e-4},
                by="alice", via="cli", reason="plateau,\n\"flat\"",
            ),
            "b": Update(at=seconds(1), set={"learning_rate": 7}, by="bob", via="tag", at_step=500),
            "c": Update(at=seconds(2), command="stop", args={"save": True}, by="Alice", expires=seconds(9)),
            "d": Update(at=seconds(3), set={"lr_schedule": "hold"}, reason="=cmd()"),
            "e": Update(at=seconds(4), set={"eval_steps": 5}, by="carol"),
        },
        {
            "a": Ack(
                "applied", 130, seconds(5), "s1",
                changes={
                    "learning_rate": (8.7e-05, -5e-05), "weight_decay": (0.0, 0.01), "max_steps": (10, 20)
                },
            ),
            "b": Ack(
                "rejected", 131, seconds(6), "s1", code="out_of_bounds", errors={"learning_rate": "got 7"}
            ),
            "c": Ack("applied", 140, seconds(7), "s1", result={"checkpoint": "out/checkpoint-140"}),
            "e": Ack("cancelled", 141, seconds(8), "s1"),
        },
    )
    | {tags.UPDATE_PREFIX + "cut": '{"v":1,"se', tags.ACK_PREFIX + "d": '{"v":2}'}
).entries  # fmt: skip


def test_a_history_as_a_spreadsheet_shows_it() -> None:
    shown = [
        (r["id"], r["parameter"], r["command"], r["asked"], r["old"], r["new"], r["answer"], r["step"])
        for r in rows_of(ENTRIES)
    ]
    assert shown == [
        ("cut", "", "", "", "", "", "pending", ""),
        ("a", "learning_rate", "", "-5e-05", "8.7e-05", "-5e-05", "applied", "130"),
        ("a", "weight_decay", "", "0.01", "0.0", "0.01", "applied", "130"),
        ("a", "max_steps", "", "", "10", "20", "applied", "130"),
        ("b", "learning_rate", "", "7", "", "", "rejected", "131"),
        ("c", "", "stop", "", "", "", "applied", "140"),
        ("d", "lr_schedule", "", "hold", "", "", "unreadable", ""),
        ("e", "eval_steps", "", "5", "", "", "cancelled", "141"),
    ]
    cut, first, *_, stop, formula, _ = rows_of(ENTRIES)
    assert "is no JSON" in cut["errors"]
    assert first | {
        "at_utc": "2026-11-21 19:00:00.123", "by": "alice", "via": "cli", "reason": 'plateau,\n"flat"',
        "expected": "0.0001", "answered_at_utc": "2026-11-21 19:00:05.123", "session": "s1", "code": "",
    } == first  # fmt: skip
    assert stop["request"] == "stop save=true"
    assert stop["expires_utc"] == "2026-11-21 19:00:09.123"
    assert json.loads(stop["result"]) == {"checkpoint": "out/checkpoint-140"}
    assert formula["reason"] == "'=cmd()"


def test_pandas_finds_numbers_and_times() -> None:
    table = pd.read_csv(io.StringIO(history_csv(ENTRIES)), parse_dates=["at_utc", "answered_at_utc"])
    assert tuple(table.columns) == COLUMNS
    assert [table[c].dtype.kind for c in ("old", "new", "step", "at_utc")] == ["f", "f", "f", "M"]
    assert table["new"].sum() == pytest.approx(-5e-05 + 0.01 + 20)


def test_no_request_gives_the_headings() -> None:
    assert history_csv([]) == ",".join(COLUMNS) + "\r\n"


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\n=1", "\r=1", "\x00=1", "＝1", "'=1", '"=1"',
     '="a","b"'],
)  # fmt: skip
def test_a_text_from_a_run_is_no_formula(text: str) -> None:
    update = Update(at=AT, set={text: text}, by=text, via=text, reason=text, expect={text: text})
    ack = Ack("applied", 1, AT, text, changes={text: (text, text)})
    (row,) = rows_of(Ledger.read(tags_of({"a": update}, {"a": ack})).entries)
    for column in ("by", "via", "reason", "parameter", "expected", "asked", "session", "old", "new"):
        assert row[column].lstrip()[0] not in "=+-@＝＋－＠", (column, row[column])
        assert row[column].removeprefix("'").strip() == text.replace("\x00", " ").strip()


# --- against the raw tags ----------------------------------------------------------------------------


def printable(text: str, keep: str = "\n") -> str:
    return "".join(c if c.isprintable() or c in keep else " " for c in text)


def same(cell: str, raw: Any) -> bool:
    """Whether a cell says what stands in the tag."""
    if raw is None:
        return cell == ""
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        return type(raw)(cell) == raw
    if isinstance(raw, str):
        return cell.removeprefix("'") == printable(raw)
    controls = "".join(map(chr, range(32)))  # JSON escapes these, so they are kept

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {printable(k, controls): clean(v) for k, v in value.items()}
        if isinstance(value, list):
            return [clean(v) for v in value]
        return printable(value, controls) if isinstance(value, str) else value

    return bool(json.loads(cell) == clean(raw))


_ids = st.text("abcXYZ019_-", min_size=1, max_size=3)


@given(st.dictionaries(_ids, updates, max_size=4), st.dictionaries(_ids, acks, max_size=4))
def test_a_csv_says_what_the_tags_say(asked: dict[str, Update], answers: dict[str, Ack]) -> None:
    run_tags = tags_of(asked, answers)
    raw = {key: json.loads(value) for key, value in run_tags.items()}
    order = sorted(asked, key=lambda i: (raw[f"ftlab.update.{i}"]["at"], i))
    rows = iter(rows_of(Ledger.read(run_tags).entries))
    for i in order:
        update, ack = raw[f"ftlab.update.{i}"], raw.get(f"ftlab.ack.{i}", {})
        changes, wanted, expected = ack.get("changes", {}), update.get("set", {}), update.get("expect", {})
        for name in list(dict.fromkeys([*wanted, *expected, *changes])) or [None]:
            row = next(rows)
            old, new = changes.get(name, (None, None))
            wants = {
                "id": i, "by": update.get("by"), "via": update.get("via"), "reason": update.get("reason"),
                "command": update.get("command"), "at_step": update.get("at_step"), "parameter": name,
                "asked": wanted.get(name), "expected": expected.get(name), "old": old, "new": new,
                "answer": ack.get("status", "pending"), "code": ack.get("code"), "step": ack.get("step"),
                "session": ack.get("session"), "result": ack.get("result"),
            }  # fmt: skip
            for column, value in wants.items():
                assert same(row[column], value), (column, row[column], value)
            for column, at in (
                ("at_utc", update["at"]),
                ("expires_utc", update.get("expires", "")),
                ("answered_at_utc", ack.get("at", "")),
            ):
                assert row[column] == at.replace("T", " ").rstrip("Z")
            for problem in ack.get("errors", {}).values():
                assert printable(problem) in row["errors"]
    assert next(rows, None) is None


@given(st.dictionaries(_ids, updates, max_size=4), texts, scalars)
def test_what_begins_a_cell_is_harmless_or_a_number(asked: dict[str, Update], text: str, value: Any) -> None:
    asked = {**asked, "x": Update(at=AT, set={"a": value, "b": f"={text}"}, reason=f"-{text}")}
    for row in rows_of(Ledger.read(tags_of(asked, {})).entries):
        for cell in row.values():
            if cell.lstrip()[:1] in tuple("=+-@＝＋－＠"):
                float(cell)  # raises, unless it is a number below 0
            assert all(c.isprintable() or c == "\n" for c in cell)


@given(st.dictionaries(_ids, updates, max_size=4), st.dictionaries(_ids, acks, max_size=4))
def test_a_json_holds_the_tags(asked: dict[str, Update], answers: dict[str, Ack]) -> None:
    run_tags = tags_of(asked, answers)
    text = history_json("r1", Ledger.read(run_tags).entries)
    assert text.isascii()
    document = json.loads(text)
    assert document["run_id"] == "r1"
    assert {request["id"] for request in document["requests"]} == set(asked)
    for request in document["requests"]:
        raw = json.loads(run_tags[tags.UPDATE_PREFIX + request["id"]])
        for key in set(raw) - {"v"}:
            assert request[key] == raw[key]
        answer = run_tags.get(tags.ACK_PREFIX + request["id"])
        assert request["pending"] == (answer is None)
        if answer is not None:
            ack = {key: value for key, value in json.loads(answer).items() if key != "v"}
            assert request["answer"] | ack == request["answer"]


# --- which match -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ({}, ["cut", "a", "b", "c", "d", "e"]),
        ({"by": ["alice"]}, ["a"]),
        ({"by": ["alice", "Alice"]}, ["a", "c"]),
        ({"by": [""]}, ["cut", "d"]),
        ({"parameters": ["learning_rate"]}, ["a", "b"]),
        ({"parameters": ["stop", "eval_steps"]}, ["c", "e"]),
        ({"parameters": ["max_steps"]}, ["a"]),
        ({"parameters": ["learning"]}, []),
        ({"answers": ["pending"]}, ["cut"]),
        ({"answers": ["applied", "cancelled"]}, ["a", "c", "e"]),
        ({"answers": ["rejected"]}, ["b"]),
        ({"answers": ["unreadable"]}, ["d"]),
        ({"text": "ALICE"}, ["a", "c"]),
        ({"text": " flat  plateau "}, ["a"]),
        ({"text": "got"}, ["b"]),
        ({"text": "checkpoint-140"}, ["c"]),
        ({"text": "out_of_bounds"}, ["b"]),
        ({"text": "nobody said this"}, []),
        ({"by": ["bob"], "answers": ["applied"]}, []),
        ({"by": ["bob"], "parameters": ["learning_rate"], "answers": ["rejected"], "text": "7"}, ["b"]),
    ],
)
def test_which_requests_match(wanted: dict[str, Any], ids: list[str]) -> None:
    assert [entry.id for entry in matching(ENTRIES, **wanted)] == ids


def test_every_request_has_one_answer_and_its_names() -> None:
    assert {answer_of(entry) for entry in ENTRIES} == set(ANSWERS)
    assert {entry.id: names_of(entry) for entry in ENTRIES} == {
        "cut": (),
        "a": ("learning_rate", "weight_decay", "max_steps"),
        "b": ("learning_rate",),
        "c": ("stop",),
        "d": ("lr_schedule",),
        "e": ("eval_steps",),
    }
