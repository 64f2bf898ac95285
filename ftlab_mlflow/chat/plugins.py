"""Who serves models here: the providers that are installed, loaded and asked for their lists."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from queue import Empty, SimpleQueue
from typing import Protocol, cast, runtime_checkable

from ftlab_mlflow.chat.model import Model
from ftlab_mlflow.chat.provider import Completed, Provider, Request, Surroundings, TextDelta
from ftlab_mlflow.control.wire import one_line
from ftlab_mlflow.errors import ChatError, ConfigError, FTLabError, ProviderError

logger = logging.getLogger("ftlab_mlflow")

GROUP = "ftlab_mlflow.providers"
"""The entry points. Each is called with `Surroundings` and returns a `Provider`, or `Several`."""
ANSWER_S = 2.0
"""Seconds that a server has to say what it serves."""

CATALOGED = ("openai", "anthropic", "xai")
"""Providers whose models are those of MLflow's catalog: to ask them is to read a file."""

_FIRST = (*CATALOGED, "local", "gateway")
_OVER_SDK = ("local", "gateway")
"""Providers of ours that ask their servers over OpenAI's SDK."""
_METHODS = ("why_unavailable", "models", "stream")


@runtime_checkable
class Several(Protocol):
    """A provider with several endpoints, each of which serves, and fails, by itself."""

    def endpoints(self) -> Mapping[str, Provider]:
        """By the name that ids of their models begin with. Asks no server.

        Raises:
            ConfigError: What names them is wrong.
        """
        ...


def load_providers(surroundings: Surroundings) -> Mapping[str, Provider]:
    """All providers by endpoint: `openai`, `anthropic`, `xai`, those of `local` by their own names,
    `gateway`, then those of other packages by name.

    One that cannot be loaded is there all the same and says why in `why_unavailable`; the log has its cause.
    """
    found: dict[str, Provider] = {}
    entries = entry_points(group=GROUP)
    for entry in sorted(entries, key=_place):
        for endpoint, provider in _loaded(entry, surroundings).items():
            if endpoint in found:
                logger.warning("%s: a second %s, which is not used", entry.value, endpoint)
            else:
                found[endpoint] = provider
    return found


def _place(entry: EntryPoint) -> tuple[int, str, bool]:
    """Where it stands; of two of one name, ours is the first."""
    first = _FIRST.index(entry.name) if entry.name in _FIRST else len(_FIRST)
    return first, entry.name, not entry.value.startswith("ftlab_mlflow.")


def _loaded(entry: EntryPoint, surroundings: Surroundings) -> Mapping[str, Provider]:
    try:
        made = entry.load()(surroundings)
        if isinstance(made, Several):
            return dict(made.endpoints())
        if not all(callable(getattr(made, name, None)) for name in _METHODS):
            raise TypeError(f"{entry.value} makes no Provider: it lacks one of {', '.join(_METHODS)}")
        return {entry.name: cast(Provider, made)}
    except ConfigError as error:  # also MissingExtra: its text says what to do
        why = one_line(str(error))
    except Exception as error:
        why = one_line(f"{entry.value} cannot be loaded: {type(error).__name__}: {error}")[:300]
        logger.debug("the provider %s", entry.name, exc_info=error)
    logger.warning("the provider %s: %s", entry.name, why)
    return {entry.name: Unloaded(entry.name, why)}


@dataclass
class Unloaded:
    """Stands for a provider that could not be loaded."""

    name: str
    why: str

    def why_unavailable(self) -> str | None:
        return self.why

    def models(self) -> Sequence[Model]:
        raise ChatError(self.why)

    def stream(self, request: Request) -> AbstractContextManager[Iterator[TextDelta | Completed]]:
        raise ProviderError(self.why)


@dataclass(frozen=True)
class Listed:
    """What a provider said that it serves.

    Attributes:
        why_unavailable: As `Provider.why_unavailable`, or why it did not say what it serves; None: neither.
    """

    models: tuple[Model, ...] = ()
    why_unavailable: str | None = None


def ask(providers: Mapping[str, Provider], seconds: float = ANSWER_S) -> Mapping[str, Listed]:
    """What each serves, asked all at once. No server is waited for longer than `seconds`.

    Nothing is raised: what went wrong is in `Listed.why_unavailable`.
    """
    if any(provider.name in _OVER_SDK for provider in providers.values()):
        with suppress(ImportError):  # then why_unavailable says so
            # It takes 1 to 3 s, which are none of the server's.
            import_module("openai")
    answers: SimpleQueue[tuple[str, Listed]] = SimpleQueue()

    def work(endpoint: str, provider: Provider) -> None:
        answers.put((endpoint, _asked(endpoint, provider)))

    for endpoint, provider in providers.items():
        if endpoint in CATALOGED:
            work(endpoint, provider)
        else:
            threading.Thread(target=work, args=(endpoint, provider), name="ftlab-models", daemon=True).start()
    late = Listed(why_unavailable=f"did not say within {seconds:g} s which models it serves")
    found = dict.fromkeys(providers, late)
    end = time.monotonic() + seconds
    with suppress(Empty):
        for _ in providers:
            endpoint, listed = answers.get(timeout=max(0.0, end - time.monotonic()))
            found[endpoint] = listed
    return found


def _asked(endpoint: str, provider: Provider) -> Listed:
    why: str | None = None
    try:
        why = provider.why_unavailable()
        return Listed(tuple(provider.models()), why)
    except FTLabError as error:
        return Listed(why_unavailable=why or str(error))
    except Exception as error:  # of a package that we do not know
        failed = one_line(f"failed: {type(error).__name__}: {error}")[:300]
        logger.warning("the provider of %s %s", endpoint, failed)
        logger.debug("the provider of %s", endpoint, exc_info=error)
        return Listed(why_unavailable=why or failed)
