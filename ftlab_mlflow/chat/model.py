"""A language model as a thing to choose: what it takes, what it can, what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

MILLION = 1_000_000


@dataclass(frozen=True)
class Usage:
    """Tokens of one or more requests.

    Attributes:
        input_tokens: All of the input, those from and to the cache included.
        cached_tokens: Of these, read from the provider's cache.
        cache_write_tokens: Of these, written to it.
        output_tokens: All of the output, thinking included.
    """

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
        )


@dataclass(frozen=True)
class Rates:
    """US dollars per million tokens, for requests of more than `above_tokens` of input.

    Attributes:
        cached, cache_write: None: as `input`.
    """

    input: float
    output: float
    cached: float | None = None
    cache_write: float | None = None
    above_tokens: int = 0


@dataclass(frozen=True)
class Price:
    """What a model costs. tiers: The highest that a request's input exceeds holds for all of the request."""

    tiers: Sequence[Rates]

    def cost(self, usage: Usage) -> float:
        """US dollars of one request."""
        fitting = [tier for tier in self.tiers if usage.input_tokens > tier.above_tokens]
        rates = max(fitting or self.tiers, key=lambda tier: tier.above_tokens if fitting else -tier.above_tokens)
        plain = max(0, usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens)
        cached = rates.input if rates.cached is None else rates.cached
        written = rates.input if rates.cache_write is None else rates.cache_write
        total = plain * rates.input + usage.cached_tokens * cached + usage.cache_write_tokens * written
        return (total + usage.output_tokens * rates.output) / MILLION


@dataclass(frozen=True)
class Model:
    """A model that can be chosen. None is: not known.

    Attributes:
        provider: Who serves it, as entry points name it.
        name: As that provider knows it.
        endpoint: The named endpoint of provider `local` that serves it; elsewhere the provider.
        context_tokens, max_output_tokens: What it takes and gives at most.
        has_tools: Whether it can call functions.
        retires: The day from which its provider does not promise it any more.
        successor: The name of a newer model of its line, where it retires.
        price: None: nobody knows, which is not 0.
    """

    provider: str
    name: str
    endpoint: str
    context_tokens: int | None = None
    max_output_tokens: int | None = None
    has_tools: bool | None = None
    retires: date | None = None
    successor: str | None = None
    price: Price | None = None

    @property
    def id(self) -> str:
        """As a person names it: `openai/gpt-4o-mini`, or of an endpoint named `ollama`: `ollama/qwen3:8b`."""
        return f"{self.endpoint}/{self.name}"
