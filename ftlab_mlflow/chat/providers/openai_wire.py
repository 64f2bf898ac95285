"""Chat completions, the wire format of OpenAI that many others serve, over OpenAI's SDK."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from ftlab_mlflow.chat.providers import sdk_errors
from ftlab_mlflow.chat.providers.calls import PiecemealCalls, as_object, ids_of, sendable
from ftlab_mlflow.chat.providers.connection import CONNECT_S, Line, Pieces
from ftlab_mlflow.chat.providers.service import NO_TEMPERATURE, Service, sdk
from ftlab_mlflow.control.wire import unicode
from ftlab_mlflow.errors import ProviderError, StreamCut

Finish = Literal["end", "calls", "length", "refused"]

_FINISH: Mapping[str, Finish] = {"length": "length", "content_filter": "refused"}
_LIMITS = {"max_completion_tokens": "max_tokens", "max_tokens": "max_completion_tokens"}
"""The option that says how much output there may be, in both of its spellings."""
_MAY_GO = ("stream_options", "temperature", "tool_choice", *_LIMITS)
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
        client = client_of(service, line.http)
        told = sendable(_payload(request, self._provider, self._limit))
        changes = self._changes_of(service, request)
        while True:
            payload = _changed(told, changes)
            try:
                yield from self._reply(client, service, request, payload, _note(request, changes))
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
        self, client: Any, service: Service, request: Request, payload: dict[str, Any], note: str | None
    ) -> Pieces:
        import httpx2

        reading = _Reading(ids_of(request.messages))
        timeout = httpx2.Timeout(request.timeout_s, connect=CONNECT_S)
        try:
            # As the body, not as arguments, each value of which the SDK looks at: 25 ms with all our tools.
            with client.chat.completions.create(
                model=request.model, messages=[], stream=True, extra_body=payload, timeout=timeout
            ) as stream:
                yield from reading.texts(stream)
                content_type = stream.response.headers.get("content-type", "")
        except Exception as error:
            said = sdk_errors.refusal(error, service)
            if said is not None and not reading.has_begun:
                raise _Refused(said, error) from error
            if reading.finish is None or said is not None:
                sdk_errors.raise_ours(error, service, request.model, has_begun=reading.has_begun)
            content_type = ""  # the reply itself has come to its end before the connection did
        if not reading.has_begun and "event-stream" not in content_type:
            raise ProviderError(
                f"{service.name} answers at {service.place} with {content_type or 'nothing'} instead of a "
                f"stream: check {service.address_from}"
            )
        if reading.finish is None:
            raise StreamCut(f"{service.name} ended its reply without a finish")
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
        has_begun: The server has sent a part of it. finish: None: it has not said that it ended.
    """

    def __init__(self, taken: set[str]) -> None:
        self.has_begun = False
        self.finish: str | None = None
        self._taken = taken
        self._text: list[str] = []
        self._calls = PiecemealCalls()
        self._usage: Any = None

    def texts(self, chunks: Any) -> Iterator[TextDelta]:
        """Reads to the end, and gives the text on the way."""
        for chunk in chunks:
            self.has_begun = True
            self._usage = getattr(chunk, "usage", None) or self._usage
            for choice in (getattr(chunk, "choices", None) or [])[:1]:
                self.finish = choice.finish_reason or self.finish
                delta = choice.delta
                for call in getattr(delta, "tool_calls", None) or []:
                    self._calls.add(call)
                text = getattr(delta, "content", None) or getattr(delta, "refusal", None)
                if isinstance(text, str) and text:
                    self._text.append(unicode(text))
                    yield TextDelta(self._text[-1])

    def completed(self, provider: str, model: str, note: str | None) -> Completed:
        """All of it."""
        calls, extras = self._calls.whole(self._taken)
        native = {"by": [provider, model], "extras": extras} if extras else None
        finish = _FINISH.get(self.finish or "", "calls" if calls else "end")
        message = AssistantMessage("".join(self._text), calls, native)
        return Completed(message, usage_of(self._usage), finish, note)


def usage_of(usage: Any) -> Usage | None:
    """What a server says that a request took; None where it does not say."""
    taken, given = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if taken is None or given is None:
        return None
    total = _count(usage, "total_tokens") or 0
    details = getattr(usage, "prompt_tokens_details", None)
    return Usage(
        taken,
        max(given, total - taken),  # xAI counts thinking into the total only
        min(taken, _count(details, "cached_tokens") or 0),
        min(taken, _count(details, "cache_write_tokens") or 0),
    )


def _count(holder: Any, name: str) -> int | None:
    value = holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
    return value if isinstance(value, int) and value >= 0 else None
