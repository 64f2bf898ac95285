"""The wire formats behind `model_servers`: replies as server-sent events, what is wrong with a request."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from threading import Event
from typing import Any, Literal

_NUMBERS = count(1)

Raw = Sequence[dict[str, Any] | str | bytes]
"""Events of a stream as they are: a dict or a string is the data of one, bytes are sent untouched."""


@dataclass(frozen=True)
class Call:
    """A tool call. arguments: A string goes out as it is. id: None makes one."""

    name: str
    arguments: Mapping[str, Any] | str = field(default_factory=dict)
    id: str | None = None

    @property
    def text(self) -> str:
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments)


@dataclass(frozen=True)
class Tokens:
    """What a reply says that it used. input: All of it, cached and written to the cache included."""

    input: int = 100
    output: int = 20
    cached: int = 0
    written: int = 0
    total: int | None = None


@dataclass(frozen=True)
class Failure:
    """An HTTP error.

    Attributes:
        message, code, param, type: Of the service's own error object; type None is what fits the status.
        body: Sent in its place, such as an HTML page.
        hold: The answer comes when it is set.
    """

    status: int
    message: str = "it failed"
    code: str | None = None
    param: str | None = None
    type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None
    hold: Event | None = None


@dataclass(frozen=True)
class Reply:
    """A streamed reply.

    Attributes:
        text: Sent word by word. calls: After it, arguments in pieces of 5 characters.
        finish: `end`, `calls`, `length` or `refused`, or the service's own word; None is what fits.
        usage: None: it does not say.
        thinking: What it thinks before, in the service's own form.
        split: How the bytes are flushed: by `events`, single `bytes`, or cut at these positions.
        cut: It ends behind text and calls, without a finish: `socket` closes the connection, `end` ends well.
        error: An error object ends the stream behind text and calls.
        hold: The stream stands still before event number `hold_at` until this is set, or, with
            `hold_headers`, before the headers.
        raw: Is sent in place of all that the service would make of the rest.
    """

    text: str = ""
    calls: Sequence[Call] = ()
    finish: str | None = None
    usage: Tokens | None = field(default_factory=Tokens)
    thinking: str = ""
    split: Literal["events", "bytes"] | Sequence[int] = "events"
    cut: Literal["socket", "end"] | None = None
    error: Failure | None = None
    hold: Event | None = None
    hold_at: int = 0
    hold_headers: bool = False
    raw: Raw | None = None


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+\s*|\s+", text)


def _pieces(text: str) -> list[str]:
    return [text[at : at + 5] for at in range(0, len(text), 5)]


def _json(data: dict[str, Any]) -> bytes:
    """In UTF-8, so that a character can be cut; what is no character as an escape."""
    try:
        return json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(data).encode()


class OpenAIWire:
    """Chat completions."""

    FINISH: Mapping[str, str] = {
        "end": "stop", "calls": "tool_calls", "length": "length", "refused": "content_filter"
    }  # fmt: skip

    @staticmethod
    def event(data: dict[str, Any] | str) -> bytes:
        return b"data: " + (data.encode() if isinstance(data, str) else _json(data)) + b"\n\n"

    @staticmethod
    def listing(models: Sequence[dict[str, Any]]) -> dict[str, Any]:
        known = [{"object": "model", "created": 1_700_000_000, "owned_by": "test", **each} for each in models]
        return {"object": "list", "data": known}

    @staticmethod
    def failure(failure: Failure) -> dict[str, Any]:
        kind = failure.type or ("invalid_request_error" if failure.status < 500 else "server_error")
        error = {"message": failure.message, "type": kind, "param": failure.param, "code": failure.code}
        return {"error": error}

    @classmethod
    def events(cls, reply: Reply, request: Mapping[str, Any]) -> list[bytes]:
        asked = (request.get("stream_options") or {}).get("include_usage")
        base = {
            "id": f"chatcmpl-{next(_NUMBERS)}",
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": request["model"],
            **({"usage": None} if asked else {}),
        }

        def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            return {
                **base,
                "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}],
            }

        chunks: list[dict[str, Any] | str] = [chunk({"role": "assistant", "content": ""})]
        chunks += [chunk({"reasoning_content": each}) for each in _words(reply.thinking)]
        chunks += [chunk({"content": each}) for each in _words(reply.text)]
        for index, call in enumerate(reply.calls):
            made = f"call_{next(_NUMBERS)}" if call.id is None else call.id
            function = {"name": call.name, "arguments": ""}
            first = {"index": index, "id": made, "type": "function", "function": function}
            chunks.append(chunk({"tool_calls": [first]}))
            for piece in _pieces(call.text):
                chunks.append(chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}))
        if reply.error:
            chunks.append(cls.failure(reply.error))
        elif not reply.cut:
            finish = reply.finish or ("calls" if reply.calls else "end")
            chunks.append(chunk({}, cls.FINISH.get(finish, finish)))
            if asked and reply.usage:
                chunks.append({**base, "choices": [], "usage": cls._usage(reply.usage)})
            chunks.append("[DONE]")
        return [cls.event(each) for each in chunks]

    @staticmethod
    def _usage(tokens: Tokens) -> dict[str, Any]:
        return {
            "prompt_tokens": tokens.input,
            "completion_tokens": tokens.output,
            "total_tokens": tokens.input + tokens.output if tokens.total is None else tokens.total,
            "prompt_tokens_details": {"cached_tokens": tokens.cached},
        }


class AnthropicWire:
    """Messages."""

    FINISH: Mapping[str, str] = {
        "end": "end_turn", "calls": "tool_use", "length": "max_tokens", "refused": "refusal"
    }  # fmt: skip
    TYPES: Mapping[int, str] = {
        401: "authentication_error", 402: "billing_error", 403: "permission_error", 404: "not_found_error",
        413: "request_too_large", 429: "rate_limit_error", 500: "api_error", 504: "timeout_error",
        529: "overloaded_error",
    }  # fmt: skip

    @staticmethod
    def event(data: dict[str, Any] | str) -> bytes:
        if isinstance(data, str):
            return f"data: {data}\n\n".encode()
        return f"event: {data['type']}\ndata: ".encode() + _json(data) + b"\n\n"

    @staticmethod
    def listing(models: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"data": [{"type": "model", **each} for each in models], "has_more": False}

    @classmethod
    def failure(cls, failure: Failure) -> dict[str, Any]:
        kind = failure.type or cls.TYPES.get(failure.status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": failure.message}}

    @classmethod
    def events(cls, reply: Reply, request: Mapping[str, Any]) -> list[bytes]:
        tokens = reply.usage
        used = {} if tokens is None else {
            "input_tokens": tokens.input - tokens.cached - tokens.written,
            "cache_read_input_tokens": tokens.cached,
            "cache_creation_input_tokens": tokens.written,
            "output_tokens": 1,
        }  # fmt: skip
        message = {
            "id": f"msg_{next(_NUMBERS)}",
            "type": "message",
            "role": "assistant",
            "model": request["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": used,
        }
        events: list[dict[str, Any]] = [{"type": "message_start", "message": message}, {"type": "ping"}]
        for index, (block, deltas) in enumerate(cls._blocks(reply)):
            events.append({"type": "content_block_start", "index": index, "content_block": block})
            events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
            events.append({"type": "content_block_stop", "index": index})
        if reply.error:
            events.append(cls.failure(reply.error))
        elif not reply.cut:
            finish = reply.finish or ("calls" if reply.calls else "end")
            delta = {"stop_reason": cls.FINISH.get(finish, finish), "stop_sequence": None}
            out = {} if tokens is None else {"output_tokens": tokens.output}
            events += [{"type": "message_delta", "delta": delta, "usage": out}, {"type": "message_stop"}]
        return [cls.event(each) for each in events]

    @staticmethod
    def _blocks(reply: Reply) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
        if reply.thinking:
            deltas = [{"type": "thinking_delta", "thinking": each} for each in _words(reply.thinking)]
            deltas.append({"type": "signature_delta", "signature": "c2lnbmVk"})
            blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, deltas))
        if reply.text:
            deltas = [{"type": "text_delta", "text": each} for each in _words(reply.text)]
            blocks.append(({"type": "text", "text": ""}, deltas))
        for call in reply.calls:
            made = f"toolu_{next(_NUMBERS)}" if call.id is None else call.id
            start = {"type": "tool_use", "id": made, "name": call.name, "input": {}}
            deltas = [
                {"type": "input_json_delta", "partial_json": each} for each in ("", *_pieces(call.text))
            ]
            blocks.append((start, deltas))
        return blocks


def openai_problem(body: Mapping[str, Any]) -> str | None:
    """Why chat completions would refuse a request, in their words where they have some."""
    messages, tools = body.get("messages"), body.get("tools") or []
    if not isinstance(body.get("model"), str) or not body["model"]:
        return "you must provide a model parameter"
    if body.get("stream") is not True:
        return "this server only streams"
    if not isinstance(messages, list) or not messages:
        return "[] is too short - 'messages'"
    if "tool_choice" in body and not tools:
        return "'tool_choice' is only allowed when 'tools' are specified."
    if "max_tokens" in body and "max_completion_tokens" in body:
        return "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
    for tool in tools:
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", tool["function"]["name"]):
            return f"Invalid 'tools[].function.name': {tool['function']['name']!r}"
        if tool["function"]["parameters"].get("type") != "object":
            return "schema must be a JSON Schema of 'type: \"object\"'"
    waiting: list[str] = []
    for message in messages:
        role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
        if role == "tool":
            if message.get("tool_call_id") not in waiting:
                return (
                    "messages with role 'tool' must be a response to a preceeding message with 'tool_calls'."
                )
            waiting.remove(message["tool_call_id"])
        elif waiting:
            break
        if role not in ("system", "developer", "user", "assistant", "tool"):
            return f"Invalid value: {role!r} for a role"
        if content is None and not calls:
            return f"Invalid value for 'content': expected a string, got null, in a message of {role}"
        if calls is not None:
            if wrong := _openai_calls_problem(role, calls):
                return wrong
            waiting = [call["id"] for call in calls]
    if waiting:
        return (
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. These did not have response messages: {', '.join(waiting)}"
        )
    return None


def _openai_calls_problem(role: str, calls: Any) -> str | None:
    if role != "assistant" or not isinstance(calls, list) or not calls:
        return "[] is too short - 'messages[].tool_calls'"
    if len({call.get("id") for call in calls}) < len(calls):
        return "Duplicate 'tool_calls[].id'"
    for call in calls:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", call.get("id") or "") or call.get("type") != "function":
            return f"Invalid 'messages[].tool_calls[]': {call}"
        try:  # vLLM, Ollama and llama.cpp parse what a model wrote before
            parsed = json.loads(call["function"]["arguments"])
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            return f"Invalid arguments in 'messages[].tool_calls[]': {call['function']['arguments']}"
    return None


def anthropic_problem(body: Mapping[str, Any]) -> str | None:
    """Why messages would refuse a request, in their words where they have some."""
    messages, tools = body.get("messages"), body.get("tools") or []
    if not isinstance(body.get("max_tokens"), int) or body["max_tokens"] < 1:
        return "max_tokens: Field required"
    if not isinstance(body.get("model"), str) or not body["model"]:
        return "model: Field required"
    if body.get("stream") is not True:
        return "this server only streams"
    if not isinstance(messages, list) or not messages:
        return "messages: at least one message is required"
    if "tool_choice" in body and not tools:
        return "tool_choice may only be specified while providing tools"
    if not 0 <= (body.get("temperature") or 0) <= 1:
        return "temperature: range: 0..1"
    if [each["role"] for each in messages] != [("user", "assistant")[at % 2] for at in range(len(messages))]:
        return 'messages: roles must alternate between "user" and "assistant", the first is "user"'
    blocks = [_blocks_of(each["content"]) for each in messages]
    if any(not each for each in blocks):
        return "messages: all messages must have non-empty content"
    system = _blocks_of(body.get("system") or [])
    everything = [block for each in (system, *blocks) for block in each]
    if any(block["type"] == "text" and not block["text"].strip() for block in everything):
        return "messages: text content blocks must be non-empty"
    if sum("cache_control" in block for block in [*everything, *tools]) > 4:
        return "A maximum of 4 blocks with cache_control may be provided."
    if not tools and any(block["type"] in ("tool_use", "tool_result") for block in everything):
        return "Requests which have `tool_use` or `tool_result` blocks must define tools."
    for tool in tools:
        if tool["input_schema"].get("type") != "object" or not re.fullmatch(r"[\w-]{1,128}", tool["name"]):
            return f"tools: {tool['name']}: Field required"
    return _anthropic_tools_problem(messages, blocks)


def _blocks_of(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _anthropic_tools_problem(
    messages: Sequence[Mapping[str, Any]], blocks: Sequence[Sequence[Mapping[str, Any]]]
) -> str | None:
    waiting: list[str] = []
    for message, content in zip(messages, blocks, strict=True):
        kinds = [block["type"] for block in content]
        answered = [block["tool_use_id"] for block in content if block["type"] == "tool_result"]
        if missing := [each for each in waiting if each not in answered]:
            return f"`tool_use` ids were found without `tool_result` blocks immediately after: {missing}"
        if [each for each in answered if each not in waiting] or len(set(answered)) < len(answered):
            return f"unexpected `tool_use_id` found in `tool_result` blocks: {answered}"
        if kinds[: len(answered)] != ["tool_result"] * len(answered):
            return "tool_result blocks must come first in the content"
        calls = [block for block in content if block["type"] == "tool_use"]
        waiting = [block["id"] for block in calls]
        if message["role"] == "user" and (calls or "thinking" in kinds):
            return "`tool_use` blocks can only be in `assistant` messages"
        if message["role"] == "assistant" and answered:
            return "`tool_result` blocks can only be in `user` messages"
        for block in calls:
            if not isinstance(block["input"], dict) or not re.fullmatch(r"[a-zA-Z0-9_-]+", block["id"]):
                return f"tool_use: Input should be a valid dictionary, with an id of letters: {block}"
        if any(block["type"] == "thinking" and not block.get("signature") for block in content):
            return "thinking.signature: Field required"
        if len(set(waiting)) < len(waiting):
            return "`tool_use` ids must be unique"
    return f"`tool_use` ids were found without `tool_result` blocks: {waiting}" if waiting else None
