"""`Provider`, the seam to whoever serves a language model, and what is said over it. No SDK in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ftlab_mlflow.chat.model import Model, Usage


@dataclass(frozen=True)
class ToolCall:
    """What a model wants to be called.

    Attributes:
        id: Of `[A-Za-z0-9_-]{1,64}`, unique in its conversation.
        arguments: As the model wrote them: JSON, or what should have been.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ToolResult:
    """What became of a call, as the model is told it."""

    call_id: str
    text: str
    is_error: bool = False


@dataclass(frozen=True)
class UserMessage:
    """What a person said; or we, to get an answer (`by_us`)."""

    text: str
    by_us: bool = False


@dataclass(frozen=True)
class AssistantMessage:
    """What a model said, and what it wants to be called.

    Attributes:
        native: The same in the provider's own form, where that says more (such as signed thinking). Only the
            provider that made it reads it.
    """

    text: str
    calls: tuple[ToolCall, ...] = ()
    native: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class ToolMessage:
    """The results of all calls of the message before it, in their order."""

    results: tuple[ToolResult, ...]


Message = UserMessage | AssistantMessage | ToolMessage


@dataclass(frozen=True)
class ToolSpec:
    """A tool as a model is told of it. schema: JSON Schema of its arguments."""

    name: str
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """One request to a model.

    Attributes:
        model: The name that the provider knows it by.
        tools: What it may call. May not be empty where a message holds calls.
        may_call: False: it has to answer in words.
        temperature: None is the model's own.
        max_tokens: Of output, at most.
        timeout_s: Seconds without a byte until the request has failed.
    """

    model: str
    system: str
    messages: Sequence[Message]
    tools: Sequence[ToolSpec] = ()
    may_call: bool = True
    temperature: float | None = None
    max_tokens: int = 4096
    timeout_s: float = 120.0


@dataclass(frozen=True)
class TextDelta:
    """The next piece of text."""

    text: str


@dataclass(frozen=True)
class Completed:
    """The end of a reply: always the last event of a stream that was not cut.

    Attributes:
        message: The whole of it.
        usage: None where the server did not say.
        finish: `end`; `calls`: it wants to call tools; `length`: `max_tokens` cut it; `refused`: the
            provider's filter did.
        note: What had to be left out of the request for this server to take it, such as the temperature.
    """

    message: AssistantMessage
    usage: Usage | None
    finish: Literal["end", "calls", "length", "refused"]
    note: str | None = None


class Provider(Protocol):
    """Serves models. Instances may be shared by threads."""

    name: str
    """As in `Model.provider`: `openai`, `anthropic`, `xai`, `local`, `gateway`, or another's own."""

    def why_unavailable(self) -> str | None:
        """What is missing to use it, and what to do, such as which variable to set; None where nothing is.

        Asks no server.
        """
        ...

    def models(self) -> Sequence[Model]:
        """What it serves, by catalog or by asking.

        Raises:
            ChatError: Its server did not say.
        """
        ...

    def stream(self, request: Request) -> AbstractContextManager[Iterator[TextDelta | Completed]]:
        """Sends a request and gives the reply as it comes. Leaving the context closes the connection, also
        from another thread: the iteration ends then. It is sent once: who calls it decides about another try.

        Raises (on entry and while iterating):
            ProviderError: BadKey, QuotaExceeded, RateLimited, ContextOverflow, StreamCut,
                ProviderUnavailable, or itself for another refusal. The text never holds a key.
            ModelNotUsable: The provider is unavailable, or the model takes no tools.
            MissingExtra: Its SDK is not installed.
        """
        ...


@dataclass(frozen=True)
class Surroundings:
    """What a provider may depend on, given to the entry point that makes it.

    Attributes:
        tracking_uri: Of MLflow, for its AI Gateway.
    """

    tracking_uri: str | None = None
