"""What a question is made of: three ways to ask, what a right answer says, how a perfect model would find it.

A script is that perfect model: it calls tools and puts its answer together from what they return, and from
nothing else. It never sees the oracle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from checking import Expectation

Category = Literal[
    "look-up",
    "rank",
    "filter",
    "aggregate",
    "compare",
    "trend",
    "diagnosis",
    "cost",
    "unanswerable",
    "several turns",
]
CATEGORIES: tuple[Category, ...] = get_args(Category)
Need = Literal["lookup", "multi_step"]
PHRASINGS = 3


@dataclass(frozen=True)
class Call:
    """A tool to call."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Done:
    """A call that was made before, and what came of it."""

    name: str
    result: Any


@dataclass(frozen=True)
class Talk:
    """What a script knows of the conversation.

    Attributes:
        done: The calls of earlier questions. context: What was picked on the page.
    """

    done: Sequence[Done] = ()
    context: Mapping[str, Any] = field(default_factory=dict)


Script = Callable[[Talk], Generator[Call, Any, str]]
"""Is sent the result of each call, and returns the answer."""


@dataclass(frozen=True)
class Turn:
    """One question of a conversation.

    Attributes:
        asked: Three ways to say it.
    """

    asked: tuple[str, str, str]
    expected: Expectation
    script: Script


@dataclass(frozen=True)
class Fact:
    """Something to be found out.

    Attributes:
        id: Unique. store: Which one it is about.
        need: Whether one call of a tool does, or several in a row are needed.
        experiment, runs: What was picked on the page, by name; the question does not say it then.
        abstains: The right answer is that it cannot be known.
    """

    id: str
    category: Category
    store: str
    turns: tuple[Turn, ...]
    need: Need = "lookup"
    experiment: str | None = None
    runs: tuple[str, ...] = ()

    @property
    def abstains(self) -> bool:
        return self.category == "unanswerable"


def one(tool: str, arguments: Mapping[str, Any], say: Callable[[Any], str]) -> Script:
    """A script of one call."""

    def script(talk: Talk) -> Generator[Call, Any, str]:
        found = yield Call(tool, _picked(arguments, talk.context))
        return say(found)

    return script


PICKED_RUN, PICKED_EXPERIMENT = object(), object()
"""Stand for what was picked on the page, in the arguments of `one`."""


def _picked(arguments: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(arguments)
    for name, value in arguments.items():
        if value is PICKED_RUN:
            made[name] = context["chosen_runs"][0]["run_id"]
        elif value is PICKED_EXPERIMENT:
            made[name] = context["experiment"]
    return made


def n(value: float) -> str:
    """A number as a script says it."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.5g}"


def listing(names: Iterable[str]) -> str:
    """Names in backticks."""
    return ", ".join(f"`{name}`" for name in names)


def checked(facts: Iterable[Fact]) -> list[Fact]:
    """Facts in order. Raises: ValueError: two have the same id, or a question leads to two scripts."""
    kept = list(facts)
    ids = [fact.id for fact in kept]
    asked = [text for fact in kept for turn in fact.turns for text in turn.asked]
    for each in (ids, asked):
        if twice := sorted({text for text in each if each.count(text) > 1}):
            raise ValueError(f"used twice: {twice}")
    return kept


def fingerprint(facts: Iterable[Fact]) -> str:
    """Of all questions and what is expected: results of different ones are not mixed."""
    said = [[fact.id, [[turn.asked, repr(turn.expected)] for turn in fact.turns]] for fact in facts]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
