"""Money and tokens of answers in words; what is not known is said to be so."""

from __future__ import annotations

from ftlab_mlflow.analytics import units
from ftlab_mlflow.app_store.usage import UsageRow
from ftlab_mlflow.chat.events import Answer
from ftlab_mlflow.chat.money import dollars


def took(answer: Answer) -> str:
    """Model, tokens, cost and time of an answer on a line."""
    if not answer.model:
        return f"without a model · {units.duration(answer.seconds)}"
    usage = answer.usage
    tokens = "tokens unknown"
    if usage:
        cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
        tokens = f"{usage.input_tokens:,}{cached} + {usage.output_tokens:,} tokens"
    return " · ".join([answer.model, tokens, dollars(answer.cost_usd), units.duration(answer.seconds)])


def known_cost(row: UsageRow) -> str:
    """What answers cost together: a sum is never of those whose cost is not known."""
    if row.unknown_cost_answers == row.answers:
        return "unknown"
    unknown = f" + {row.unknown_cost_answers:,} unknown" if row.unknown_cost_answers else ""
    return f"{dollars(row.cost_usd)}{unknown}"
