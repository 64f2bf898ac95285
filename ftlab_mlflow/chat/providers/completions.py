"""What the providers share that speak chat completions: connections, and the way to a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from ftlab_mlflow.chat.provider import Request
from ftlab_mlflow.chat.providers.connection import Line, Lines, Streaming
from ftlab_mlflow.chat.providers.foreign import Malformed
from ftlab_mlflow.chat.providers.openai_wire import ChatCompletions, client_of
from ftlab_mlflow.chat.providers.sdk_errors import raise_ours
from ftlab_mlflow.chat.providers.service import Service, sdk


class Completions:
    """Sends requests of one provider to any service.

    Args:
        provider: Its name.
        limit: How its servers spell the limit of output.
        options: Of its HTTP clients; see `Lines`.
    """

    def __init__(
        self,
        provider: str,
        limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        options: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        self._lines = Lines(lambda **more: sdk("openai").DefaultHttpxClient(**more), options)
        self._wire = ChatCompletions(provider, limit)

    def stream(self, service: Service, request: Request) -> Streaming:
        """See `Provider.stream`."""
        return Streaming(self._lines, lambda line: self._wire.pieces(service, request, line))

    def listed(self, service: Service, timeout_s: float) -> list[Any]:
        """What a service says that it serves: objects with an `id` each.

        Raises:
            ProviderError, ModelNotUsable: It did not say.
        """
        with self._asking(service) as line:
            found = list(client_of(service, line.http).models.list(timeout=timeout_s).data)
            if not all(isinstance(each.id, str) for each in found):
                raise Malformed("a model without an id")
            return found

    def json_at(self, service: Service, url: str, headers: Mapping[str, str], timeout_s: float) -> Any:
        """The JSON at another address of a service; None where it answers with an error.

        Raises:
            ProviderError: It did not answer.
        """
        with self._asking(service) as line:
            response = line.http.get(url, headers=dict(headers), timeout=timeout_s)
            return response.json() if response.is_success else None

    @contextmanager
    def _asking(self, service: Service) -> Iterator[Line]:
        line = self._lines.take()
        try:
            yield line
        except Exception as error:
            raise_ours(error, service, "the list of models", has_begun=False, expected="list of models")
        finally:
            self._lines.give_back(line, is_whole=True)
