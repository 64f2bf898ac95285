"""Anthropic's models, over its own SDK."""

from __future__ import annotations

import os
from collections.abc import Sequence
from threading import Lock

from ftlab_mlflow.chat.catalog import catalog
from ftlab_mlflow.chat.model import Model
from ftlab_mlflow.chat.provider import Request, Surroundings
from ftlab_mlflow.chat.providers import anthropic_wire, sdk_errors
from ftlab_mlflow.chat.providers.calls import ids_of
from ftlab_mlflow.chat.providers.connection import CONNECT_S, Line, Lines, Pieces, Streaming
from ftlab_mlflow.chat.providers.foreign import Unfinished, events
from ftlab_mlflow.chat.providers.service import (
    NO_TEMPERATURE,
    Service,
    key_in,
    sdk,
    why_no_key,
    why_no_sdk,
)
from ftlab_mlflow.errors import ContextOverflow, ModelNotUsable

_KEY = "ANTHROPIC_API_KEY"
_ADDRESS = "ANTHROPIC_BASE_URL"
_DEFAULT_ADDRESS = "https://api.anthropic.com"


class Anthropic:
    """Provider `anthropic`. The newest of its models take no temperature: it is then left out, and said."""

    name = "anthropic"

    def __init__(self, surroundings: Surroundings) -> None:
        self._lines = Lines(lambda **options: sdk("anthropic").DefaultHttpxClient(**options))
        self._without_temperature: set[tuple[str, str]] = set()
        self._lock = Lock()

    def why_unavailable(self) -> str | None:
        """See `Provider`."""
        return why_no_sdk("anthropic") or why_no_key(self.name, _KEY)

    def models(self) -> Sequence[Model]:
        """See `Provider`."""
        return list(catalog("anthropic").values())

    def stream(self, request: Request) -> Streaming:
        """See `Provider`."""
        if reason := why_no_key(self.name, _KEY):
            raise ModelNotUsable(reason)
        address = (os.environ.get(_ADDRESS) or "").strip() or _DEFAULT_ADDRESS
        service = Service(self.name, address, key_in(_KEY) or "", _KEY, address_from=_ADDRESS)
        return Streaming(self._lines, lambda line: self._pieces(service, request, line))

    def _pieces(self, service: Service, request: Request, line: Line) -> Pieces:
        import httpx2

        timeout = httpx2.Timeout(request.timeout_s, connect=CONNECT_S)
        payload = anthropic_wire.payload(request)
        if self._takes_no_temperature(service, request):
            payload.pop("temperature", None)
        while True:
            reading = anthropic_wire.Reading(ids_of(request.messages))
            content_type = None
            try:
                client = sdk("anthropic").Anthropic(
                    api_key=service.key, base_url=service.base_url, max_retries=0, http_client=line.http
                )
                # As the body, not as arguments: the SDK looks at each value of them, and has no temperature.
                with client.messages.stream(
                    model=request.model,
                    max_tokens=request.max_tokens,
                    messages=[],
                    extra_body=payload,
                    timeout=timeout,
                ) as stream:
                    content_type = stream.response.headers.get("content-type", "")
                    yield from reading.texts(events(stream.response.iter_bytes()))
                if not reading.is_whole:
                    raise Unfinished("a message_stop")
            except Exception as error:
                said = sdk_errors.refusal(error, service)
                if said and "temperature" in payload and said.names("temperature") and not reading.has_begun:
                    del payload["temperature"]
                    self._remember_no_temperature(service, request)
                    continue
                if said or not reading.is_whole:
                    sdk_errors.raise_ours(
                        error,
                        service,
                        request.model,
                        has_begun=reading.has_begun,
                        content_type=content_type,
                        expected="message of the Messages API",
                    )
            break
        if reading.had_no_room:
            raise service.error(ContextOverflow, f"the conversation fills all that {request.model} takes")
        is_without = request.temperature is not None and "temperature" not in payload
        yield reading.completed(NO_TEMPERATURE.format(model=request.model) if is_without else None)

    def _takes_no_temperature(self, service: Service, request: Request) -> bool:
        with self._lock:
            return (service.base_url, request.model) in self._without_temperature

    def _remember_no_temperature(self, service: Service, request: Request) -> None:
        with self._lock:
            self._without_temperature.add((service.base_url, request.model))
