"""A conversation too long for its model is shortened: older tool results first, the question never."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ftlab_mlflow.chat import prompt
from ftlab_mlflow.chat.model import tokens_of
from ftlab_mlflow.chat.provider import AssistantMessage, Message, Request, ToolMessage, UserMessage

_ROWS, _CHARS = 3, 120
"""Rows of a list, and characters of a text, that a summary keeps."""


def size(request: Request) -> int:
    """About how many tokens a request has."""
    parts = [request.system]
    for message in request.messages:
        if isinstance(message, ToolMessage):
            parts.extend(result.text for result in message.results)
        else:
            parts.append(message.text)
        if isinstance(message, AssistantMessage):
            parts.extend(call.name + call.arguments for call in message.calls)
    parts.extend(f"{tool.name}{tool.description}{tool.schema}" for tool in request.tools)
    return sum(map(tokens_of, parts))


def shorter(messages: Sequence[Message]) -> Iterator[tuple[list[Message], str]]:
    """The conversation shorter and shorter, each with what was done to it in words.

    Tool results are summarised from the oldest on; then the oldest questions are left out with their answers.
    """
    kept = list(messages)
    whole = [index for index, message in enumerate(kept) if isinstance(message, ToolMessage)]
    while whole:
        # Half of what is left each time: a conversation has tens of them, and each try costs a request.
        some, whole = whole[: (len(whole) + 1) // 2], whole[(len(whole) + 1) // 2 :]
        for index in some:
            kept[index] = _summarised(kept[index])
        yield list(kept), "older tool results were summarised to fit the model's context"
    while later := [index for index, message in enumerate(kept) if index and _is_question(message)]:
        kept = kept[later[(len(later) - 1) // 2] :]
        yield list(kept), "the oldest questions were left out to fit the model's context"


def _is_question(message: Message) -> bool:
    return isinstance(message, UserMessage) and not message.by_us


def _summarised(message: Message) -> Message:
    assert isinstance(message, ToolMessage)
    return ToolMessage(tuple(replace(each, text=_summary(each.text)) for each in message.results))


def _summary(text: str) -> str:
    value = {"summary": _cut(prompt.data_of(text)), "whole": "call the tool again"}
    made = prompt.as_data("summary", value)
    return made if len(made) < len(text) else text


def _cut(value: Any, depth: int = 0) -> Any:
    """The begin of everything."""
    if isinstance(value, str):
        return value if len(value) <= _CHARS else f"{value[:_CHARS]}…"
    if isinstance(value, dict):
        items = list(value.items())[: 40 if depth == 0 else 12]
        return {name: _cut(each, depth + 1) for name, each in items if name != "policy"}
    if isinstance(value, list):
        more = [f"… {len(value) - _ROWS} more"] if len(value) > _ROWS else []
        return [*(_cut(each, depth + 1) for each in value[:_ROWS]), *more]
    return value
