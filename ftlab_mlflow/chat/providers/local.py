"""OpenAI-compatible servers of the user's own: Ollama, vLLM, llama.cpp, `transformers serve`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ftlab_mlflow.chat import endpoints
from ftlab_mlflow.chat.endpoints import Endpoint
from ftlab_mlflow.chat.model import Model
from ftlab_mlflow.chat.provider import Request, Surroundings
from ftlab_mlflow.chat.providers.completions import Completions
from ftlab_mlflow.chat.providers.connection import Streaming
from ftlab_mlflow.chat.providers.service import NO_KEY, Service, key_in, why_no_key, why_no_sdk
from ftlab_mlflow.errors import ModelNotUsable

_LIST_S = 5.0


class Local:
    """The endpoints of `models.toml` and the environment, each a `Provider` of its own named `local`."""

    def __init__(self, surroundings: Surroundings) -> None:
        """They depend on nothing of it."""

    def endpoints(self) -> Mapping[str, LocalEndpoint]:
        """By name. Raises: ConfigError: `models.toml` or a variable is wrong."""
        return {name: LocalEndpoint(each) for name, each in endpoints.endpoints().items()}


class LocalEndpoint:
    """One endpoint."""

    name = "local"

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._completions = Completions(self.name)

    def why_unavailable(self) -> str | None:
        """See `Provider`."""
        variable = self._endpoint.api_key_env
        return why_no_sdk("openai") or (why_no_key(self._endpoint.name, variable) if variable else None)

    def models(self) -> Sequence[Model]:
        """What the server says that it serves, or `models.toml` says in its place. See `Provider`."""
        if self._endpoint.models:
            return [self._model(name, None) for name in self._endpoint.models]
        found = self._completions.listed(self._service(), _LIST_S)
        return [self._model(each.id, getattr(each, "max_model_len", None)) for each in found]

    def stream(self, request: Request) -> Streaming:
        """See `Provider`."""
        return self._completions.stream(self._service(), request)

    def _model(self, name: str, served_tokens: Any) -> Model:
        """served_tokens: As vLLM says what context it serves."""
        known = self._endpoint.context_tokens
        if known is None and isinstance(served_tokens, int) and served_tokens > 0:
            known = served_tokens
        return Model(
            self.name,
            name,
            self._endpoint.name,
            context_tokens=known,
            has_tools=self._endpoint.has_tools,
            price=self._endpoint.price,
        )

    def _service(self) -> Service:
        endpoint = self._endpoint
        if reason := self.why_unavailable():
            raise ModelNotUsable(reason)
        key = key_in(endpoint.api_key_env) if endpoint.api_key_env else None
        return Service(endpoint.name, endpoint.base_url, key or NO_KEY, endpoint.api_key_env)
