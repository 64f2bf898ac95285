"""Which model to advise for a question: by what `benchmarks/chat` measured, else by a rule that says so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal

from ftlab_mlflow.chat.model import Model
from ftlab_mlflow.chat.offers import DEFAULT_MODEL, Group, Offer
from ftlab_mlflow.errors import ChatError

Need = Literal["lookup", "multi_step"]
_SAID_OF: dict[Need, str] = {"lookup": "one look-up", "multi_step": "several steps"}

_RELATING = re.compile(
    r"\b(?:compar\w+|versus|vs|differ\w*|why|explain\w*|caus\w+|because|diagnos\w+|wrong|trends?|correlat\w+"
    r"|effects?|affect\w*|should|recommend\w*|suggest\w*|improv\w+|propos\w+|summar\w+|overview|report|both"
    r"|then)\b"
)
_MOST_WORDS = 30
_GOOD = 0.8
"""The share of right answers, at the low end of its interval, from which a measured model is advised."""


def need_of(question: str) -> Need:
    """What a question takes: one look-up, or several steps.

    Several, where it has a word that relates or explains (such as compare, why, diagnose, trend, should,
    then), a second question mark, or more than 30 words. The words are English: in another language only the
    rest counts.
    """
    is_long = len(question.split()) > _MOST_WORDS
    if is_long or question.count("?") > 1 or _RELATING.search(question.casefold()):
        return "multi_step"
    return "lookup"


@dataclass(frozen=True)
class Measured:
    """How well a model answered the questions of one need in `benchmarks/chat`.

    Attributes:
        model: Its id, such as `openai/gpt-4o-mini`.
        questions, correct: How many there were, and were answered right.
        low, high: The 95 % interval of the share that is right, from 0 to 1.
    """

    model: str
    need: Need
    questions: int
    correct: int
    low: float
    high: float
    measured_on: date

    @property
    def share(self) -> float:
        """Of the questions, those answered right; from 0 to 1."""
        return self.correct / self.questions


@lru_cache
def measured() -> tuple[Measured, ...]:
    """The table that `benchmarks/chat` writes, in `measured.json` of this package; empty where nothing was.

    Raises:
        ChatError: It is damaged.
    """
    return read_table(files(__package__).joinpath("measured.json").read_text("utf-8"))


def read_table(text: str) -> tuple[Measured, ...]:
    """A table as `benchmarks/chat` writes it: a list of objects with the attributes of `Measured`.

    Raises:
        ChatError: It is none. The text names the entry.
    """
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ChatError(f"the table of measured models is no JSON: {error}") from error
    if not isinstance(entries, list):
        raise ChatError("the table of measured models is no list")
    return tuple(_entry(entry, number) for number, entry in enumerate(entries, 1))


def _entry(entry: Any, number: int) -> Measured:
    try:
        found = Measured(**{**entry, "measured_on": date.fromisoformat(entry["measured_on"])})
        shares = (0.0, found.low, found.share, found.high, 1.0)
        is_right = found.need in _SAID_OF and isinstance(found.model, str) and list(shares) == sorted(shares)
    except (TypeError, KeyError, ValueError, ZeroDivisionError) as error:
        raise ChatError(f"entry {number} of the table of measured models is damaged: {error!r}") from error
    if not is_right:
        raise ChatError(f"entry {number} of the table of measured models is damaged: {entry!r}")
    return found


@dataclass(frozen=True)
class Recommendation:
    """A model that is advised.

    Attributes:
        reason: Why, in words: what was measured, or that nothing was and which rule holds then.
        measured: What was measured of it; None: nothing, the rule holds.
    """

    need: Need
    model: Model
    reason: str
    measured: Measured | None = None


def recommend(
    question: str, groups: Sequence[Group], table: Sequence[Measured] | None = None
) -> Recommendation | None:
    """The model to advise for a question; None where none can be used.

    It is taken from those that can be used now. Of those that were measured for such questions with at least
    80 % right (at the low end of the interval), it is the cheapest that the measurement does not tell from
    the best. Where there are none, a rule holds: for one look-up the default model; for several steps the
    cheapest of a higher price class than the default's; without these the cheapest, or where no price is
    known the first.

    Args:
        groups: As `offers` gives them.
        table: By default `measured()`.
    """
    need = need_of(question)
    usable = [offer for group in groups for offer in group.offers if offer.why_not is None]
    if not usable:
        return None
    return _by_table(need, usable, measured() if table is None else table) or _by_rule(need, usable)


def _by_table(need: Need, usable: Sequence[Offer], table: Sequence[Measured]) -> Recommendation | None:
    offered = {offer.model.id: offer for offer in usable}
    good = [row for row in table if row.need == need and row.low >= _GOOD and row.model in offered]
    if not good:
        return None
    best = max(good, key=lambda row: row.share)
    as_good = [row for row in good if row.high >= best.low]
    row = min(as_good, key=lambda each: (_cost(offered[each.model]), -each.share, each.model))
    reason = (
        f"for {_SAID_OF[need]}: {row.correct} of {row.questions} questions answered right by benchmarks/chat "
        f"({row.low:.0%} to {row.high:.0%}) on {row.measured_on}; the cheapest that is not measurably worse "
        "than the best"
    )
    return Recommendation(need, offered[row.model].model, reason, row)


def _by_rule(need: Need, usable: Sequence[Offer]) -> Recommendation:
    staying = [offer for offer in usable if offer.model.retires is None] or usable
    unmeasured = (
        f"not measured: for {_SAID_OF[need]} benchmarks/chat has no good result of a usable model; by rule "
    )
    if need == "lookup":
        default = [offer for offer in staying if offer.model.id == f"openai/{DEFAULT_MODEL}"]
        if default:
            return Recommendation(need, default[0].model, f"{unmeasured}the default model")
    else:
        above = [offer for offer in staying if offer.price_class in ("$$", "$$$", "$$$$")]
        if above:
            rule = "the cheapest of a higher price class than the default model's"
            return Recommendation(need, _cheapest(above), unmeasured + rule)
    priced = [offer for offer in staying if offer.model.price is not None]
    if priced:
        return Recommendation(need, _cheapest(priced), f"{unmeasured}the cheapest that can be used")
    return Recommendation(need, staying[0].model, f"{unmeasured}the first that can be used")


def _cheapest(offers: Iterable[Offer]) -> Model:
    return min(offers, key=lambda offer: (_cost(offer), offer.model.id)).model


def _cost(offer: Offer) -> float:
    return float("inf") if offer.model.price is None else offer.model.price.blended
