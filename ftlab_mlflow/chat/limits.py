"""How far an answer may go: requests, tokens, time and dollars, in itself and in a day."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from typing import Any

from ftlab_mlflow.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """What one answer, and one person in a day, may take. None: as much as it likes.

    Each is set by the environment: ``FTLAB_CHAT_ROUNDS``, ``…_TOKENS``, ``…_SECONDS``, ``…_USD``,
    ``…_TOKENS_PER_DAY`` and ``…_USD_PER_DAY``; ``none`` is None. Where a server does not say what a
    request took, it is estimated; where a price is not known, or nothing, dollars are no limit.

    Attributes:
        rounds: Requests to the model that may end in calls of tools.
        tokens: Of input and output of all requests.
        seconds: From the question to the end; a request that is under way is ended.
        usd: US dollars of all requests.
        usd_per_day_from: Where a person finds that limit.
    """

    rounds: float | None = 12
    tokens: float | None = 400_000
    seconds: float | None = 300
    usd: float | None = 1.0
    tokens_per_day: float | None = None
    usd_per_day: float | None = 10.0
    usd_per_day_from: str = "FTLAB_CHAT_USD_PER_DAY"

    @classmethod
    def from_environment(cls) -> Limits:
        """The limits in force.

        Raises:
            ConfigError: A variable holds no number above 0.
        """
        given: dict[str, Any] = {}
        for each in fields(cls):
            if each.name == "usd_per_day_from":
                continue
            variable = f"FTLAB_CHAT_{each.name.upper()}"
            text = os.environ.get(variable, "").strip()
            if text:
                given[each.name] = None if text.casefold() == "none" else _number(variable, text)
        return cls(**given)


def _number(variable: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{variable} must be a number above 0, or none for no limit, got {text!r}")
    return value
