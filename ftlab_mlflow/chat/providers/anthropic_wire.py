"""Messages, the wire format of Anthropic: a request as it wants it, and a reply from its events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from ftlab_mlflow.chat.model import Usage
from ftlab_mlflow.chat.provider import (
    AssistantMessage,
    Completed,
    Message,
    Request,
    TextDelta,
    ToolMessage,
    UserMessage,
)
from ftlab_mlflow.chat.providers import foreign
from ftlab_mlflow.chat.providers.calls import as_object, sendable, with_good_ids
from ftlab_mlflow.control.wire import unicode

Block = dict[str, Any]
Finish = Literal["end", "calls", "length", "refused"]

_CACHE = {"type": "ephemeral"}
_FINISH: Mapping[str, Finish] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refused",
}
_THINKING = ("thinking", "redacted_thinking")
_KEPT: Mapping[str, Sequence[str]] = {
    "text": ("text",),
    "tool_use": ("id", "name"),
    "thinking": ("thinking", "signature"),
    "redacted_thinking": ("data",),
}
"""The texts of each kind of block."""
_TOKENS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")


# --- the request -------------------------------------------------------------------------------------


def payload(request: Request) -> dict[str, Any]:
    """The body of a request, without `stream`.

    System prompt and tools, and all that has been said, are marked for the cache: the next request begins
    with the same.
    """
    messages = _messages(request.messages)
    if messages:
        messages[-1]["content"][-1]["cache_control"] = _CACHE
    made: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_tokens,
        "messages": messages,
    }
    if request.system.strip():
        made["system"] = [{"type": "text", "text": request.system, "cache_control": _CACHE}]
    if request.temperature is not None:
        made["temperature"] = request.temperature
    if request.tools:
        made["tools"] = [
            {"name": each.name, "description": each.description, "input_schema": dict(each.schema)}
            for each in request.tools
        ]
        if not request.may_call:
            made["tool_choice"] = {"type": "none"}
    return sendable(made)


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """In turns of user and assistant: what follows from the same side is one message."""
    asked = [at for at, each in enumerate(messages) if isinstance(each, UserMessage) and not each.by_us]
    newest = asked[-1] if asked else 0
    made: list[dict[str, Any]] = []
    for at, message in enumerate(messages):
        role = "assistant" if isinstance(message, AssistantMessage) else "user"
        blocks = _blocks(message, with_thinking=at > newest)
        if not blocks:
            continue
        if made and made[-1]["role"] == role:
            made[-1]["content"] += blocks
        else:
            made.append({"role": role, "content": blocks})
    return made


def _blocks(message: Message, *, with_thinking: bool) -> list[Block]:
    if isinstance(message, UserMessage):
        return _text(message.text)
    if isinstance(message, ToolMessage):
        return [
            {
                "type": "tool_result",
                "tool_use_id": each.call_id,
                "content": each.text,
                **({"is_error": True} if each.is_error else {}),
            }
            for each in message.results
        ]
    if with_thinking and (native := _native(message)):
        return native
    return [*_text(message.text), *(_tool_use(each.id, each.name, each.arguments) for each in message.calls)]


def _native(message: AssistantMessage) -> list[Block]:
    """The blocks as they came, if they still are what the message says."""
    native = message.native if isinstance(message.native, Mapping) else {}
    blocks = [dict(each) for each in native.get("anthropic", ())]
    text = "".join(each["text"] for each in blocks if each["type"] == "text")
    ids = [each["id"] for each in blocks if each["type"] == "tool_use"]
    is_same = text == message.text and ids == [each.id for each in message.calls]
    return [each for each in blocks if each["type"] != "text" or each["text"].strip()] if is_same else []


def _text(text: str) -> list[Block]:
    return [{"type": "text", "text": text}] if text.strip() else []


def _tool_use(id: str, name: str, arguments: str) -> Block:
    return {"type": "tool_use", "id": id, "name": name, "input": as_object(arguments)}


# --- the reply ---------------------------------------------------------------------------------------


class Reading:
    """A reply as far as it has come.

    Put together here from the events: the SDK's own accumulation ends a reply with an exception where a
    model writes malformed JSON as arguments.

    Attributes:
        has_begun: The server has sent a part of it. is_whole: It has said that it ended.
    """

    def __init__(self, taken: set[str]) -> None:
        self.has_begun = False
        self.is_whole = False
        self._taken = taken
        self._blocks: dict[int, Block] = {}
        self._whole: dict[int, str] = {}
        self._json: dict[int, list[str]] = {}
        self._stop = ""
        self._tokens: dict[str, Any] = {}

    def texts(self, data: Iterable[str]) -> Iterator[TextDelta]:
        """Reads events to the end, and gives the text on the way."""
        for each in data:
            event = foreign.object_of(each)
            kind = foreign.text_in(event, "type")
            if kind == "error" or event.get("error"):
                raise foreign.ErrorEvent(event)
            if kind == "ping":
                continue
            self.has_begun = True
            if kind == "message_start":
                self._count(foreign.object_in(event, "message"))
            elif kind == "content_block_start":
                yield from self._begin(_index(event), foreign.object_in(event, "content_block"))
            elif kind == "content_block_delta":
                yield from self._add(_index(event), foreign.object_in(event, "delta"))
            elif kind == "message_delta":
                delta = foreign.object_in(event, "delta")
                self._stop = foreign.text_in(delta, "stop_reason") or self._stop
                self._count(event)
            elif kind == "message_stop":
                self.is_whole = True

    def _begin(self, index: int, block: Mapping[str, Any]) -> Iterator[TextDelta]:
        kind = foreign.text_in(block, "type")
        if kind not in _KEPT:
            return
        self._blocks[index] = {"type": kind, **{each: foreign.text_in(block, each) for each in _KEPT[kind]}}
        if kind == "text" and (text := self._blocks[index]["text"]):
            self._blocks[index]["text"] = ""
            yield from self._say(index, text)
        elif kind == "tool_use":
            if not self._blocks[index]["name"]:
                raise foreign.Malformed("a tool_use without a name")
            self._whole[index] = json.dumps(block.get("input") or {})

    def _add(self, index: int, delta: Mapping[str, Any]) -> Iterator[TextDelta]:
        block = self._blocks.get(index, {})
        kinds = (block.get("type"), foreign.text_in(delta, "type"))
        if kinds == ("text", "text_delta"):
            yield from self._say(index, foreign.text_in(delta, "text"))
        elif kinds == ("tool_use", "input_json_delta"):
            self._json.setdefault(index, []).append(foreign.text_in(delta, "partial_json"))
        elif kinds == ("thinking", "thinking_delta"):
            block["thinking"] += foreign.text_in(delta, "thinking")
        elif kinds == ("thinking", "signature_delta"):
            block["signature"] = foreign.text_in(delta, "signature")

    def _say(self, index: int, text: str) -> Iterator[TextDelta]:
        if text:
            said = unicode(text)
            self._blocks[index]["text"] += said
            yield TextDelta(said)

    def _count(self, holder: Mapping[str, Any]) -> None:
        """What it says last of each number counts."""
        usage = holder.get("usage")
        if isinstance(usage, Mapping):
            self._tokens |= {name: value for name, value in usage.items() if value is not None}

    @property
    def had_no_room(self) -> bool:
        """Whether it says nothing, because the conversation left no room for a reply."""
        return self._stop == "model_context_window_exceeded" and not self._blocks

    def completed(self, note: str | None) -> Completed:
        """All of it."""
        text = "".join(each["text"] for each in self._blocks.values() if each["type"] == "text")
        uses = {index: each for index, each in self._blocks.items() if each["type"] == "tool_use"}
        calls = with_good_ids(
            ((each["id"], each["name"], self._arguments(index)) for index, each in uses.items()), self._taken
        )
        for each, call in zip(uses.values(), calls, strict=True):
            each |= {"id": call.id, "input": as_object(call.arguments)}
        blocks = list(self._blocks.values())
        native = {"anthropic": blocks} if any(each["type"] in _THINKING for each in blocks) else None
        finish = _FINISH.get(self._stop, "calls" if calls else "end")
        return Completed(AssistantMessage(text, calls, native), self._usage(), finish, note)

    def _arguments(self, index: int) -> str:
        """As the model wrote them; a server may also send them whole."""
        return "".join(self._json.get(index, ())) or self._whole[index]

    def _usage(self) -> Usage | None:
        try:
            taken, read, written, given = (foreign.tokens_in(self._tokens, name) for name in _TOKENS)
        except foreign.Malformed:
            return None
        if taken is None or given is None:
            return None
        read, written = read or 0, written or 0
        return Usage(taken + read + written, given, read, written)


def _index(event: Mapping[str, Any]) -> int:
    value = event.get("index")
    if not isinstance(value, int):
        raise foreign.Malformed("a block without an index")
    return value
