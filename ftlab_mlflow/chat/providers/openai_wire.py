"""Chat completions, the wire format of OpenAI that many others serve, over OpenAI's SDK."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from threading import Lock
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
from ftlab_mlflow.chat.providers import foreign, sdk_errors
from ftlab_mlflow.chat.providers.calls import PiecemealCalls, as_object, ids_of, sendable
from ftlab_mlflow.chat.providers.connection import CONNECT_S, Line, Pieces
from ftlab_mlflow.chat.providers.foreign import Unfinished, events
from ftlab_mlflow.chat.providers.service import NO_TEMPERATURE, Service, sdk
from ftlab_mlflow.control.wire import unicode

Finish = Literal["end", "calls", "length", "refused"]

_FINISH: Mapping[str, Finish] = {"length": "length", "content_filter": "refused"}
_LIMITS = {"max_completion_tokens": "max_tokens", "max_tokens": "max_completion_tokens"}
"""The option that says how much output there may be, in both of its spellings."""
_MAY_GO = ("stream_options", "temperature", "tool_choice", *_LIMITS)
_DONE = "[DONE]"
_NO_LIMIT = "{model} takes no limit of {limit} tokens of output: its own is used"


class ChatCompletions:
    """Speaks it. What a server did not take of a request is remembered by address and model.

    Args:
        provider: Whose `native` is read and written.
        limit: How the servers spell the limit of output.
    """

    def __init__(self, provider: str, limit: Literal["max_tokens", "max_completion_tokens"]) -> None:
        self._provider, self._limit = provider, limit
        self._changes: dict[tuple[str, str], dict[str, str | None]] = {}
        self._lock = Lock()

    def pieces(self, service: Service, request: Request, line: Line) -> Pieces:
        """The reply to a request. Raises: as `Provider.stream`."""
        told = sendable(_payload(request, self._provider, self._limit))
        changes = self._changes_of(service, request)
        while True:
            payload = _changed(told, changes)
            try:
                yield from self._reply(line, service, request, payload, _note(request, changes))
            except _Refused as refused:
                if not _adapt(changes, payload, refused.said):
                    sdk_errors.raise_ours(refused.error, service, request.model, has_begun=False)
            else:
                with self._lock:
                    self._changes[service.base_url, request.model] = changes
                return

    def _changes_of(self, service: Service, request: Request) -> dict[str, str | None]:
        with self._lock:
            return dict(self._changes.get((service.base_url, request.model), {}))

    def _reply(
        self, line: Line, service: Service, request: Request, payload: dict[str, Any], note: str | None
    ) -> Pieces:
        import httpx2

        reading = _Reading(ids_of(request.messages))
        timeout = httpx2.Timeout(request.timeout_s, connect=CONNECT_S)
        content_type = None
        try:
            # As the body, not as arguments, each value of which the SDK looks at: 25 ms with all our tools.
            with client_of(service, line.http).chat.completions.create(
                model=request.model, messages=[], stream=True, extra_body=payload, timeout=timeout
            ) as stream:
                content_type = stream.response.headers.get("content-type", "")
                yield from reading.texts(events(stream.response.iter_bytes()))
            if not reading.is_whole:
                raise Unfinished("a finish")
        except Exception as error:
            said = sdk_errors.refusal(error, service)
            if said is not None and not reading.has_begun:
                raise _Refused(said, error) from error
            if not reading.is_whole or said is not None:  # else it ended before its connection did
                sdk_errors.raise_ours(
                    error, service, request.model, has_begun=reading.has_begun, content_type=content_type
                )
        yield reading.completed(self._provider, request.model, note)


class _Refused(Exception):
    """A server's refusal that another form of the request may avoid."""

    def __init__(self, said: sdk_errors.Refusal, error: Exception) -> None:
        super().__init__(said.message)
        self.said, self.error = said, error


def client_of(service: Service, http: Any) -> Any:
    """The SDK's client of a service."""
    openai = sdk("openai")
    of_openai = ("OpenAI-Organization", "OpenAI-Project")
    kept_back = {} if service.has_organizations else dict.fromkeys(of_openai, openai.Omit())
    return openai.OpenAI(
        api_key=service.key,
        base_url=service.base_url,
        max_retries=0,
        http_client=http,
        default_headers={**kept_back, **service.headers},
    )


# --- the request -------------------------------------------------------------------------------------


def _payload(request: Request, provider: str, limit: str) -> dict[str, Any]:
    payload: dict[str, Any] = {
        "model": request.model,
        "messages": _messages(request, provider),
        "stream_options": {"include_usage": True},
        limit: request.max_tokens,
    }
    if request.temperature is not None:
        payload["temperature"] = request.temperature
    if request.tools:
        payload["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": each.name,
                    "description": each.description,
                    "parameters": dict(each.schema),
                },
            }
            for each in request.tools
        ]
        if not request.may_call:
            payload["tool_choice"] = "none"
    return payload


def _messages(request: Request, provider: str) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    if request.system:
        made.append({"role": "system", "content": request.system})
    for message in request.messages:
        made += _message(message, provider, request.model)
    return made


def _message(message: Message, provider: str, model: str) -> list[dict[str, Any]]:
    if isinstance(message, UserMessage):
        return [{"role": "user", "content": message.text}]
    if isinstance(message, ToolMessage):
        return [
            {"role": "tool", "tool_call_id": each.call_id, "content": each.text} for each in message.results
        ]
    if not message.calls:
        return [{"role": "assistant", "content": message.text}] if message.text else []
    native = message.native if isinstance(message.native, Mapping) else {}
    extras = native.get("extras", {}) if native.get("by") == [provider, model] else {}
    calls = [
        {
            "id": call.id,
            "type": "function",
            # Servers that parse it refuse what a model wrote wrong before.
            "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            **extras.get(call.id, {}),
        }
        for call in message.calls
    ]
    return [{"role": "assistant", "content": message.text or None, "tool_calls": calls}]


def _arguments(text: str) -> str:
    return text if as_object(text) else "{}"


# --- what a server does not take ---------------------------------------------------------------------


def _changed(payload: Mapping[str, Any], changes: Mapping[str, str | None]) -> dict[str, Any]:
    """A request with options under other names, or (None) without them."""
    made = dict(payload)
    for name, other in changes.items():
        if name not in made:
            continue
        value = made.pop(name)
        if other is not None:
            made[other] = value
        elif name == "tool_choice":  # it was "none": without tools it can call none either
            made.pop("tools", None)
    return made


def _adapt(changes: dict[str, str | None], payload: Mapping[str, Any], said: sdk_errors.Refusal) -> bool:
    """Changes what a refusal names; whether there was something."""
    for name in _MAY_GO:
        if name in payload and said.names(name):
            other = _LIMITS.get(name)
            was_renamed = other in changes
            changes[name] = None if was_renamed or said.is_of_too_much_output else other
            return True
    return False


def _note(request: Request, changes: Mapping[str, str | None]) -> str | None:
    """What a person chose and does not get."""
    notes = []
    if request.temperature is not None and "temperature" in changes:
        notes.append(NO_TEMPERATURE)
    if any(name in changes and changes[name] is None for name in _LIMITS):
        notes.append(_NO_LIMIT)
    text = "; ".join(notes).format(model=request.model, limit=request.max_tokens)
    return text or None


# --- the reply ---------------------------------------------------------------------------------------


class _Reading:
    """A reply as far as it has come.

    Attributes:
        has_begun: The server has sent a part of it.
    """

    def __init__(self, taken: set[str]) -> None:
        self.has_begun = False
        self._finish = ""
        self._is_done = False
        self._taken = taken
        self._text: list[str] = []
        self._calls = PiecemealCalls()
        self._usage: Any = None

    def texts(self, data: Iterable[str]) -> Iterator[TextDelta]:
        """Reads events to the end, and gives the text on the way."""
        for each in data:
            if each.strip() == _DONE:
                self._is_done = True
                return
            chunk = foreign.object_of(each)
            if chunk.get("error"):
                raise foreign.ErrorEvent(chunk)
            self.has_begun = True
            self._usage = chunk.get("usage") or self._usage
            for choice in foreign.objects_in(chunk, "choices")[:1]:
                yield from self._add(choice)

    def _add(self, choice: Mapping[str, Any]) -> Iterator[TextDelta]:
        if not choice.keys() & {"delta", "finish_reason"}:
            raise foreign.Malformed("a choice holds nothing")
        self._finish = foreign.text_in(choice, "finish_reason") or self._finish
        delta = foreign.object_in(choice, "delta")
        for call in foreign.objects_in(delta, "tool_calls"):
            self._calls.add(call)
        if text := foreign.text_in(delta, "content") or foreign.text_in(delta, "refusal"):
            self._text.append(unicode(text))
            yield TextDelta(self._text[-1])

    @property
    def is_whole(self) -> bool:
        """Whether the server has said that it ended. Some say no reason for it: `[DONE]` is all."""
        said = bool(self._text or self._calls.has_any)
        return bool(self._finish) or (self._is_done and said and self._calls.are_whole)

    def completed(self, provider: str, model: str, note: str | None) -> Completed:
        """All of it."""
        calls, extras = self._calls.whole(self._taken)
        native = {"by": [provider, model], "extras": extras} if extras else None
        finish = _FINISH.get(self._finish, "calls" if calls else "end")
        message = AssistantMessage("".join(self._text), calls, native)
        return Completed(message, usage_of(self._usage), finish, note)


def usage_of(usage: Any) -> Usage | None:
    """What a server says that a request took; None where it does not say, or what cannot be."""
    try:
        said = foreign.object_in({"usage": usage}, "usage")
        taken, given, total = (
            foreign.tokens_in(said, f"{each}_tokens") for each in ("prompt", "completion", "total")
        )
        details = foreign.object_in(said, "prompt_tokens_details")
        cached, written = (foreign.tokens_in(details, f"{each}_tokens") for each in ("cached", "cache_write"))
    except foreign.Malformed:
        return None
    if taken is None or given is None:
        return None
    output = max(given, (total or 0) - taken)  # xAI counts thinking into the total only
    return Usage(taken, output, min(taken, cached or 0), min(taken, written or 0))
