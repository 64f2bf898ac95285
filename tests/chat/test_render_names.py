"""Answers as Markdown, with names, tags and reasons that would be marks: they stay text."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rendered import PARSER, cells_of, check
from slash_store import ASKED, Store

from ftlab_mlflow.analytics import call_tool
from ftlab_mlflow.chat import cells
from ftlab_mlflow.chat.render import markdown

NAMES = st.text(
    st.one_of(
        st.sampled_from(string.punctuation + " ab1\n\t\\"),
        st.characters(exclude_categories=("Cs",)),
        st.sampled_from("\u202e\u200b\x1b\x07\u2028\u3164"),
    ),
    max_size=30,
)
HOSTILE = (
    "a|b", "\\|", "\\", "x\\", "``", "`a`", "[a](http://evil.example)", "![i](http://evil.example/i.png)",
    "<img src=x onerror=alert(1)>", "<http://evil.example>", "&lt;b&gt; &#60;", "**b** _i_ __u__ ~~s~~",
    "# h", "- l", "> q", "1. n", "---", "```", "[r]: http://evil.example", "$x$", ":red[x] :smile:",
    "a\n\n| b | c |\n| - | - |", "\x1b[31mred\x07", "\u202eolleh", "  ", "", "–", "a" * 300, "|" * 40,
)  # fmt: skip


@pytest.fixture(scope="module")
def store(new_sqlite: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(new_sqlite(tmp_path_factory.mktemp("names")))


def test_errors_and_what_is_not_known_here() -> None:
    shown = markdown("rank_runs", {}, {"error": "no run '<b>|`x`\n# y'"})
    check(shown)
    assert shown.startswith("✗ no run")
    shown = markdown("later_tool", {}, {"x": "```\n# a\x1b[31m <b>", "y": [math.nan]})
    (token,) = PARSER.parse(shown)
    assert token.type == "fence"
    assert "\x1b" not in shown


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    check_text(text)


@given(NAMES)
def test_any_text_stays_text(text: str) -> None:
    check_text(text)


def check_text(text: str) -> None:
    line = " ".join("".join(c if c.isprintable() else " " for c in cells.visible(text)).split())
    expected = (line if len(line) <= 120 else f"{line[:119]}…") or '""'
    shown = cells.plain(text)
    tokens = check(
        cells.joined(f"**Run {shown}** (x)", cells.table((shown, cells.Right("b")), [(shown, shown)]))
    )
    assert cells_of(tokens) == [expected, "b", expected, expected]
    assert "".join(child.content for child in tokens[1].children or ()) == f"Run {expected} (x)"
    assert [child.type for child in tokens[1].children or () if child.type.endswith("_open")] == [
        "strong_open"
    ]


@given(NAMES)
def test_code_is_what_was_written(text: str) -> None:
    shown = cells.code(text)
    if shown is None:
        assert not text or not text.isprintable() or text != " ".join(cells.visible(text).split())
        return
    tokens = PARSER.parse(f"More: {shown} x")
    assert [(c.type, c.content) for c in tokens[1].children or ()][1] == ("code_inline", text)


def renamed(value: Any, name: str) -> Any:
    """An answer in which every text that others wrote is a name, keys too."""
    if isinstance(value, str):
        return value if value in ("NaN", "inf", "-inf", "lower", "higher", "step") else name
    if isinstance(value, Mapping):
        return {key: renamed(each, name) for key, each in value.items()}
    return [renamed(each, name) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("tool", [name for name in ASKED if name != "calculate"])
def test_an_answer_has_the_same_build_whatever_its_texts_are(store: Store, tool: str) -> None:
    answer = call_tool(tool, ASKED[tool], store.uri)
    whole = {"next": None, "is_allowed": False}  # what could be typed depends on the texts

    def build(name: str) -> list[str]:
        made = {**renamed(answer, name), **whole}
        if tool == "compare_runs":  # names of columns, or letters: depends on their lengths
            made["runs"] = {run_id: {"name": name, "status": name} for run_id in answer["runs"]}
        check(markdown(tool, ASKED[tool], {**made, "next": answer.get("next"), "is_allowed": True}))
        return [token.type for token in check(markdown(tool, ASKED[tool], made))]

    benign = build("name")
    for name in HOSTILE:
        if name:
            assert build(name) == benign, name


@given(NAMES)
def test_keys_are_texts_of_others_too(name: str) -> None:
    spread = {"runs": 1, "distinct": 1, "values": {name: 1}}
    described = {
        "experiment_id": "1", "runs": 1, "by_status": {name: 1}, "params": {name: spread},
        "constant_params": 0, "metrics": {name: {"runs": 1, "better": None, "title": name}},
        "tags": {name: 1}, "methods": {name: 1}, "models": {name: 1},
        "total": {"params": 1, "metrics": 1, "tags": 1}, "omitted": {name: 1},
        "next": {"experiment": name, "skip": {"params": 1}},
    }  # fmt: skip
    check(markdown("describe_experiment", {"experiment": name}, described))
    outcome = {"a": {"last": 1.0, "min": "NaN", "max": None}}
    compared = {
        "runs": {"a": {"name": name, "status": name}}, "params": {name: {"a": name}},
        "metrics": {name: outcome}, "omitted": {name: 1},
        "next": {"runs": [name], "metrics": [name], "skip": {"params": 1}},
    }  # fmt: skip
    check(markdown("compare_runs", {"runs": [name]}, compared))
