"""A question to a model, and all that its answer depends on."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

from ftlab_mlflow.chat.choice import Chosen
from ftlab_mlflow.chat.grounding import Facts
from ftlab_mlflow.chat.limits import Limits
from ftlab_mlflow.chat.provider import Message


@dataclass(frozen=True)
class Spent:
    """What answers have taken. usd: US dollars, as far as they are known."""

    usd: float = 0.0
    tokens: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.usd + other.usd, self.tokens + other.tokens)


@dataclass
class Asking:
    """One question.

    Attributes:
        history: What was said before; see `history.messages`. facts: What tools returned before; grows.
        context: What the question is about; see `prompt.question`.
        spent: By this person today, before this question.
        temperature: None is the model's own. max_tokens: Of output, of each request.
        stop: Set by whoever does not want the answer any more.
    """

    question: str
    chosen: Chosen
    tracking_uri: str | None = None
    history: Sequence[Message] = ()
    facts: Facts = field(default_factory=Facts)
    context: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    spent: Spent = field(default_factory=Spent)
    temperature: float | None = None
    max_tokens: int = 4096
    stop: threading.Event = field(default_factory=threading.Event)
    today: date = field(default_factory=lambda: datetime.now(UTC).date())
