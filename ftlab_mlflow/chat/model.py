"""A language model as a thing to choose: what it takes, what it can, what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

MILLION = 1_000_000
_BYTES_A_TOKEN = 4
_CALL_TOKENS, _RESULT_TOKENS, _ANSWER_TOKENS = 100, 1500, 400


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
    """What a model costs.

    Attributes:
        tiers: At least one. The highest that a request's input exceeds holds for all of the request; the
            lowest also for a request that exceeds none.
    """

    tiers: Sequence[Rates]

    def rates(self, input_tokens: int) -> Rates:
        """What holds for a request with so many tokens of input."""
        ordered = sorted(self.tiers, key=lambda tier: tier.above_tokens)
        exceeded = [tier for tier in ordered if input_tokens > tier.above_tokens]
        return exceeded[-1] if exceeded else ordered[0]

    def cost(self, usage: Usage) -> float:
        """US dollars of one request."""
        rates = self.rates(usage.input_tokens)
        cached = rates.input if rates.cached is None else rates.cached
        written = rates.input if rates.cache_write is None else rates.cache_write
        plain = max(0, usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens)
        return (
            plain * rates.input
            + usage.cached_tokens * cached
            + usage.cache_write_tokens * written
            + usage.output_tokens * rates.output
        ) / MILLION

    @property
    def blended(self) -> float:
        """US dollars per million tokens of a short request with three times as much input as output."""
        rates = self.rates(0)
        return (3 * rates.input + rates.output) / 4


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


def tokens_of(text: str) -> int:
    """About how many tokens a text has: a quarter of its bytes in UTF-8.

    So English has 4 characters a token, and Chinese 1.3. That is near enough to see what a question will cost
    and whether a conversation fits; only the provider counts exactly.
    """
    return -(-len(text.encode(errors="replace")) // _BYTES_A_TOKEN)


def estimate(model: Model, input_tokens: int, output_tokens: int = _ANSWER_TOKENS) -> float | None:
    """About how many US dollars the next question costs, if one look-up answers it; None: nobody knows.

    That is two requests: one that calls a tool (100 tokens of output), and one with its result (1500 more of
    input) that gives the answer. Nothing is counted as cached, so it is rather too much.

    Args:
        input_tokens: Of the whole conversation with the question, the system prompt and the tools.
        output_tokens: Of the answer.
    """
    if model.price is None:
        return None
    call = Usage(input_tokens, _CALL_TOKENS)
    answer = Usage(input_tokens + _CALL_TOKENS + _RESULT_TOKENS, output_tokens)
    return model.price.cost(call) + model.price.cost(answer)
