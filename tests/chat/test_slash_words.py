"""Words of slash commands: conditions, and calls that are typed and read back."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftlab_mlflow.chat.scope import Scope
from ftlab_mlflow.chat.slash_commands import COMMANDS
from ftlab_mlflow.chat.slash_subject import Subject
from ftlab_mlflow.chat.slash_words import conditions_in, line, split


@pytest.mark.parametrize(
    ("words", "condition"),
    [
        ("params.lr>1e-4", ("params.lr", ">", "1e-4")),
        ("params.lr >= 1e-4", ("params.lr", ">=", "1e-4")),
        ("metrics.eval/loss< 2", ("metrics.eval/loss", "<", "2")),
        ("'params.my param'!=True", ("params.my param", "!=", True)),
        ("name~sft", ("name", "contains", "sft")),
        ("name ~ 'a b'", ("name", "contains", "a b")),
        ("name starts_with sft", ("name", "starts_with", "sft")),
        ("tags.team = ''", ("tags.team", "=", "")),
        ("tags.note==x", ("tags.note", "=", "=x")),
        ("status in failed,KILLED", ("status", "in", ["FAILED", "KILLED"])),
        ("status=finished", ("status", "=", "FINISHED")),
        ("start_time>2026-11-21", ("start_time", ">", 1795219200.0)),
        ("end_time < 2026-11-21T01:00+01:00", ("end_time", "<", 1795219200.0)),
        ("duration_s>60", ("duration_s", ">", "60")),
    ],
)
def test_conditions(words: str, condition: tuple[str, str, Any]) -> None:
    field, op, value = condition
    assert conditions_in(split(words)) == [{"field": field, "op": op, "value": value}]


def test_several_conditions() -> None:
    found = conditions_in(split("params.lr exists name~a tags.x missing status = FAILED"))
    assert [(each["field"], each["op"], each.get("value")) for each in found] == [
        ("params.lr", "exists", None),
        ("name", "contains", "a"),
        ("tags.x", "missing", None),
        ("status", "=", "FAILED"),
    ]


_NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=12)


@given(_NAMES, st.sampled_from(("=", "!=", ">", "contains", "starts_with", "in", "exists")), _NAMES, _NAMES)
def test_a_call_is_typed_so_that_it_is_read_back(experiment: str, op: str, name: str, text: str) -> None:
    value = {"in": [text], "exists": None}.get(op, text)
    condition = {"field": f"params.{name}", "op": op} | ({} if value is None else {"value": value})
    arguments = {"experiment": experiment, "where": [condition], "limit": 20, "offset": 40}
    typed = line("search_runs", arguments)
    if typed is None:
        assert re.search(r"[=!<>~,]|^\s|\s$", name + text) or not text.strip()
        return
    called = COMMANDS["runs"].parse(typed.removeprefix("/runs "), Subject(Scope(), None))
    if text.casefold() in ("true", "false"):
        return
    assert called.arguments == {"experiment": experiment, "where": [condition], "offset": 40}
