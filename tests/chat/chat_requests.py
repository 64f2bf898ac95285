"""Requests to models and what comes back, in short, for the tests of providers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftlab_mlflow.chat.provider import Completed, Message, Provider, Request, TextDelta, ToolSpec, UserMessage

TOOLS = [
    ToolSpec(
        name,
        f"What {name} does.",
        {"type": "object", "properties": {"run": {"type": "string"}}, "additionalProperties": False},
    )
    for name in ("get_run", "rank_runs")
]


def asked(*messages: Message | str, tools: Sequence[ToolSpec] = TOOLS, **more: Any) -> Request:
    """A request of a conversation; a string is what a person said."""
    said = [UserMessage(each) if isinstance(each, str) else each for each in messages or ("Hello?",)]
    return Request(**{"model": "some-model", "system": "Be brief.", "messages": said, "tools": tools, **more})


def told(provider: Provider, request: Request | None = None) -> tuple[list[str], Completed]:
    """All of a reply: its pieces of text, and its end."""
    with provider.stream(request or asked()) as stream:
        pieces = list(stream)
    *texts, end = pieces
    assert isinstance(end, Completed)
    return [text_of(each) for each in texts], end


def text_of(piece: TextDelta | Completed) -> str:
    """Of a piece that is text."""
    assert isinstance(piece, TextDelta)
    return piece.text


def calls_of(done: Completed) -> list[tuple[str, str]]:
    """Name and arguments of each call."""
    return [(call.name, call.arguments) for call in done.message.calls]
