"""The scores of a model, from its results: as numbers with their intervals, and as tables."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from facts import CATEGORIES
from intervals import Estimate, mean, median, share
from results import Asked, Result

sys.path.append(str(Path(__file__).parents[1]))

from report import table


def scores(results: Collection[Result], seed: int) -> dict[str, Estimate]:
    """All scores by name. seed: Of the bootstrap."""

    def of_results(value: Callable[[Result], float | None]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = defaultdict(list)
        for result in results:
            if (number := value(result)) is not None:
                found[result.fact].append(number)
        return found

    def of_answers(value: Callable[[Asked], float | None]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = defaultdict(list)
        for result in results:
            found[result.fact] += [number for each in result.asked if (number := value(each)) is not None]
        return found

    def is_unanswerable(result: Result) -> bool:
        return result.category == "unanswerable"

    return {
        "correct": share(of_results(lambda r: r.is_right)),
        "grounded answers": share(of_answers(lambda a: not a.unverified)),
        "unverified numbers": mean(of_answers(lambda a: len(a.unverified)), seed),
        "abstention: precision": share(of_results(lambda r: is_unanswerable(r) if r.abstains else None)),
        "abstention: recall": share(of_results(lambda r: r.abstains if is_unanswerable(r) else None)),
        "tool calls": mean(of_answers(lambda a: len(a.calls)), seed),
        "failed calls": mean(of_answers(lambda a: a.failed), seed),
        "input tokens": mean(of_answers(lambda a: a.input_tokens), seed),
        "cached tokens": mean(of_answers(lambda a: a.cached_tokens), seed),
        "output tokens": mean(of_answers(lambda a: a.output_tokens), seed),
        "cost": mean(of_answers(lambda a: a.cost_usd), seed),
        "first text": median(of_answers(lambda a: a.first_token_s), seed),
        "whole answer": median(of_answers(lambda a: a.seconds), seed),
        "ended by a limit": share(of_answers(lambda a: a.stopped is not None)),
    }


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _count(value: float) -> str:
    return f"{value:,.0f}"


_ROWS: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("correct", "conversations with nothing but right answers", _percent),
    ("grounded answers", "answers without an unverified number", _percent),
    ("unverified numbers", "unverified numbers an answer", lambda v: f"{v:.2f}"),
    ("abstention: precision", "of those that abstain, rightly", _percent),
    ("abstention: recall", "of the unanswerable, abstained", _percent),
    ("tool calls", "tool calls an answer", lambda v: f"{v:.2f}"),
    ("failed calls", "of these, errors", lambda v: f"{v:.2f}"),
    ("input tokens", "input tokens an answer", _count),
    ("cached tokens", "of these, from the provider's cache", _count),
    ("output tokens", "output tokens an answer", _count),
    ("cost", "cost of an answer", lambda v: f"${v:.5f}"),
    ("first text", "time to the first text, tools included: median", lambda v: f"{v:.3f} s"),
    ("whole answer", "time of an answer: median", lambda v: f"{v:.3f} s"),
    ("ended by a limit", "answers that a limit ended", _percent),
)


_NEEDS = {"lookup": "all of one call", "multi_step": "all of several calls or questions"}


def tables(results: Collection[Result], seed: int) -> str:
    """The scores in Markdown: all of them, then how many are right by category and by need."""
    found = scores(results, seed)
    first = [[text, found[name].text(form)] for name, text, form in _ROWS]
    second = []
    for kind, names in (("category", dict(zip(CATEGORIES, CATEGORIES, strict=True))), ("need", _NEEDS)):
        for name, text in names.items():
            own = [result for result in results if getattr(result, kind) == name]
            if own:
                facts = len({result.fact for result in own})
                right = f"{sum(result.is_right for result in own)} of {len(own)}"
                second.append([text, str(facts), right, right_share(own).text(_percent)])
    head = ["what was asked", "facts", "right", "share (95 %)"]
    return f"{table(['score', 'value (95 %)'], first)}\n\n{table(head, second)}"


def right_share(results: Collection[Result]) -> Estimate:
    """How many of some results are right."""
    by_fact: dict[str, list[float]] = defaultdict(list)
    for result in results:
        by_fact[result.fact].append(result.is_right)
    return share(by_fact)


def measured(results: Collection[Result], model: str, day: str) -> list[dict[str, Any]]:
    """The entries of `ftlab_mlflow/chat/measured.json` for a model."""
    entries = []
    for need in ("lookup", "multi_step"):
        own = [result for result in results if result.need == need]
        if own:
            estimate = right_share(own)
            entries.append(
                {
                    "model": model,
                    "need": need,
                    "questions": len(own),
                    "correct": sum(result.is_right for result in own),
                    "low": round(estimate.low, 4),
                    "high": round(estimate.high, 4),
                    "measured_on": day,
                }
            )
    return entries


def document(results: Collection[Result], seed: int) -> dict[str, Any]:
    """The scores as JSON values; NaN as null."""
    return {
        name: {key: None if value != value else value for key, value in asdict(estimate).items()}
        for name, estimate in scores(results, seed).items()
    }
