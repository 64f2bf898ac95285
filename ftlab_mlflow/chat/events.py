"""What happens while an answer is made, and what it is in the end. JSON in and out, for the app database."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ftlab_mlflow.chat.model import Usage

Stopped = Literal["rounds", "tokens", "time", "dollars", "tokens per day", "dollars per day", "user", "cut"]
"""What ended an answer early: a limit, the person, or a stream that was cut."""


@dataclass(frozen=True)
class ToolRun:
    """A tool that ran.

    Attributes:
        id: The call's. arguments: By name; empty where the model's were no JSON object.
        result: Of the analytics; where not `ok`, ``{"error": text}``.
        started: Seconds since the begin of the answer.
    """

    id: str
    name: str
    arguments: Mapping[str, Any]
    ok: bool
    result: Mapping[str, Any]
    seconds: float
    started: float = 0.0


@dataclass(frozen=True)
class Round:
    """One request to the model, and what it wanted to be called.

    Attributes:
        text: What it said before the calls, as it came.
        asked: What it wrote as arguments, by call id.
        started, seconds: Since the begin of the answer; until the reply's end.
        usage: None where the server did not say.
    """

    text: str
    runs: tuple[ToolRun, ...]
    asked: Mapping[str, str]
    usage: Usage | None
    started: float
    seconds: float


@dataclass(frozen=True)
class Answer:
    """A whole answer.

    Attributes:
        text: Markdown of the model, never empty, with what is not verified marked.
        model: Its id, such as `openai/gpt-4o-mini`; empty for a slash command.
        rounds: All requests in order; the last has no calls.
        usage: Summed; None where a server did not say.
        cost_usd: None where it is not known.
        unverified: Numbers in the text that no tool of the conversation returned.
        stopped: What ended it early.
        notes: What the reader should know about how it came to be.
        first_token_s: Seconds to the first text; None where there was none.
    """

    text: str
    model: str
    rounds: tuple[Round, ...] = ()
    usage: Usage | None = None
    cost_usd: float | None = None
    unverified: tuple[float, ...] = ()
    stopped: Stopped | None = None
    notes: tuple[str, ...] = ()
    first_token_s: float | None = None
    seconds: float = 0.0

    @property
    def runs(self) -> list[ToolRun]:
        """All tools that ran, in order."""
        return [run for each in self.rounds for run in each.runs]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Answer:
        """From `to_dict`, also of another version: names that are not known are left out."""
        found = _known(cls, data)
        found["rounds"] = tuple(_round(each) for each in data.get("rounds", ()))
        found["usage"] = _usage(data.get("usage"))
        for name in ("unverified", "notes"):
            found[name] = tuple(data.get(name, ()))
        return cls(**found)


def _round(data: Mapping[str, Any]) -> Round:
    found = _known(Round, data)
    found["runs"] = tuple(ToolRun(**_known(ToolRun, run)) for run in data.get("runs", ()))
    found["usage"] = _usage(data.get("usage"))
    return Round(**found)


def _usage(data: Mapping[str, Any] | None) -> Usage | None:
    return None if data is None else Usage(**_known(Usage, data))


def _known(kind: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {each.name for each in dataclasses.fields(kind)}
    return {name: value for name, value in data.items() if name in names}


@dataclass(frozen=True)
class Text:
    """The next piece of text, with what is not verified marked."""

    text: str


@dataclass(frozen=True)
class ToolStarted:
    """A tool begins. arguments: As the model wrote them."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ToolEnded:
    """A tool has ended."""

    run: ToolRun


@dataclass(frozen=True)
class Waiting:
    """The next try comes after some seconds. why: In words."""

    seconds: float
    why: str


@dataclass(frozen=True)
class Answered:
    """The end: always the last event of an answer that did not raise."""

    answer: Answer = field(repr=False)


Event = Text | ToolStarted | ToolEnded | Waiting | Answered
