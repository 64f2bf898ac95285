"""Tool calls as they come in pieces; ids that every service takes; arguments as an object."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ftlab_mlflow.chat.provider import AssistantMessage, Message, ToolCall
from ftlab_mlflow.chat.providers.foreign import object_in, text_in
from ftlab_mlflow.control.wire import unicode

_ODD = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST_ID = 64
_DEEPEST = 100
"""Levels of arguments that are sent back: the JSON of Python, and of many a server, recurses."""


def ids_of(messages: Sequence[Message]) -> set[str]:
    """The ids of all calls in a conversation."""
    return {call.id for each in messages if isinstance(each, AssistantMessage) for call in each.calls}


def with_good_ids(calls: Iterable[tuple[str, str, str]], taken: Iterable[str]) -> tuple[ToolCall, ...]:
    """Calls with ids as `ToolCall.id` promises: those that the server gave, where they are good.

    Args:
        calls: Id, name and arguments as they came. taken: Ids of the conversation.
    """
    known = set(taken)
    made = []
    for given, name, arguments in calls:
        id = _ODD.sub("_", given)[:_LONGEST_ID]
        if not id or id in known:
            id = f"call_{uuid.uuid4().hex}"
        known.add(id)
        made.append(ToolCall(id, unicode(name), unicode(arguments)))
    return tuple(made)


def as_object(arguments: str) -> dict[str, Any]:
    """Arguments that a model wrote, for a service that takes an object only: `{}` where they are none, or
    nested too deep.
    """
    try:
        value = json.loads(arguments)
        json.dumps(value, allow_nan=False)  # no service takes NaN, which Python reads
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) and not _is_deep(value) else {}


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def sendable(payload: dict[str, Any]) -> dict[str, Any]:
    """A request without lone surrogates, which the SDKs cannot encode (a file name may have some)."""
    clean: dict[str, Any] = json.loads(json.dumps(payload, ensure_ascii=False).encode(errors="replace"))
    return clean


@dataclass
class _Piecemeal:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)


class PiecemealCalls:
    """The calls of one reply of chat completions, put together from deltas.

    OpenAI numbers the calls and gives id and name once. Others leave the number out or give all of them 0,
    repeat id and name, give no id, or give the same one to two calls.
    """

    def __init__(self) -> None:
        self._calls: list[_Piecemeal] = []
        self._at: dict[int, _Piecemeal] = {}

    def add(self, delta: Mapping[str, Any]) -> None:
        """The next piece: an item of `tool_calls`, any part of which may be missing."""
        function = object_in(delta, "function")
        id, name = text_in(delta, "id"), text_in(function, "name")
        arguments, index = function.get("arguments"), delta.get("index")
        last = self._calls[-1] if self._calls else None
        call = self._at.get(index) if isinstance(index, int) else last
        if call is None or _begins(call, id, name):
            call = _Piecemeal()
            self._calls.append(call)
        if isinstance(index, int):
            self._at[index] = call
        call.id, call.name = call.id or id, call.name or name
        if arguments:
            call.arguments.append(arguments if isinstance(arguments, str) else json.dumps(arguments))
        for extra in ("thought_signature", "extra_content"):
            if (value := delta.get(extra)) is not None and not _is_deep(value):
                call.extras[extra] = value

    @property
    def has_any(self) -> bool:
        """Whether a call has come so far that it has a name."""
        return any(each.name for each in self._calls)

    @property
    def are_whole(self) -> bool:
        """Whether each could be all that the model wants to say of it, as far as its JSON tells."""
        return all(_is_complete("".join(each.arguments) or "{}") for each in self._calls)

    def whole(self, taken: Iterable[str]) -> tuple[tuple[ToolCall, ...], dict[str, dict[str, Any]]]:
        """The calls, and by their ids what has to be sent back with them (signed thinking of Gemini)."""
        found = [each for each in self._calls if each.name]
        calls = with_good_ids(((each.id, each.name, "".join(each.arguments)) for each in found), taken)
        extras = {call.id: each.extras for call, each in zip(calls, found, strict=True) if each.extras}
        return calls, extras


def _begins(call: _Piecemeal, id: str, name: str) -> bool:
    """Whether a delta is the first of another call, although it is at the place of this one."""
    if id and call.id and id != call.id:
        return True
    if not name or not call.name:
        return False
    return name != call.name or _is_complete("".join(call.arguments))


def _is_complete(arguments: str) -> bool:
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        return False
    return True
