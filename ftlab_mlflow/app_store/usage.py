"""What answers took, summed: by day, model, user and chat. The reads behind `ChatStore.usage`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime, time, tzinfo
from typing import Any, Literal, NamedTuple

from sqlalchemy import Select, case, func, select

from ftlab_mlflow.app_store.models import StoredChat, StoredUsage

By = Literal["day", "model", "user", "chat"]

_MOST_TOKENS = 10**12
"""More than any answer has: what a server says beyond is not believed, and sums stay within 64 bits."""


@dataclass(frozen=True)
class UsageRow:
    """What some answers took together.

    Attributes:
        input_tokens: With the cached ones, and those written to the cache. Of the answers that are known.
        cost_usd: Of the answers whose cost is known; the others are in `unknown_cost_answers`.
        counted_usd, counted_tokens: What budgets count: what is not known is estimated in them.
        unknown_token_answers: Answers whose server did not say how many tokens they took.
        requests: Requests to models. seconds: Spent answering.
        day, model, user, chat_id: What the row is of; None where it was not asked for by that.
        title: Of the chat; None where it is deleted, or was not asked for.
    """

    answers: int
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    cost_usd: float
    unknown_cost_answers: int
    unknown_token_answers: int
    counted_usd: float
    counted_tokens: int
    requests: int
    seconds: float
    day: date | None = None
    model: str | None = None
    user: str | None = None
    chat_id: str | None = None
    title: str | None = None

    @property
    def tokens(self) -> int:
        """All tokens that are known."""
        return self.input_tokens + self.output_tokens


_SUMS = tuple(
    each.name for each in fields(UsageRow) if each.name not in ("day", "model", "user", "chat_id", "title")
)


class Spent(NamedTuple):
    """What somebody's answers of a day took. Attributes: as of `UsageRow`, without what is not known."""

    cost_usd: float
    tokens: int
    unknown_answers: int


def begin_of_day(day: date, zone: tzinfo) -> datetime:
    """The first moment of a day in a time zone."""
    return datetime.combine(day, time.min, zone)


def known_tokens(count: int | None) -> int | None:
    """A number of tokens as it is kept: None for what no answer can have taken."""
    return count if count is not None and 0 <= count <= _MOST_TOKENS else None


def known_number(value: float | None) -> float | None:
    """Dollars or seconds as they are kept: None for what is none."""
    return value if value is not None and math.isfinite(value) and value >= 0 else None


def rows_query(
    by: Sequence[By], user: str | None, since: datetime | None, until: datetime | None
) -> Select[*tuple[Any, ...]]:
    """What the database sums. Days are left to `merged`: databases do not know all time zones."""
    columns = {
        "day": StoredUsage.at,
        "model": StoredUsage.model,
        "user": StoredUsage.user,
        "chat": StoredUsage.chat_id,
    }
    keys = [columns[each] for each in by]
    query: Select[*tuple[Any, ...]] = select(*keys, *_sums())
    if "chat" in by:
        query = query.add_columns(func.min(StoredChat.title))
        query = query.outerjoin(StoredChat, StoredChat.id == StoredUsage.chat_id)
    if user is not None:
        query = query.where(StoredUsage.user == user)
    if since is not None:
        query = query.where(StoredUsage.at >= since)
    if until is not None:
        query = query.where(StoredUsage.at < until)
    return query.group_by(*keys)


def _sums() -> list[Any]:
    counted = {
        "answers": func.count(),
        "unknown_cost_answers": _unknown(StoredUsage.cost_usd),
        "unknown_token_answers": _unknown(StoredUsage.input_tokens),
    }
    return [
        counted[name] if name in counted else func.coalesce(func.sum(getattr(StoredUsage, name)), 0)
        for name in _SUMS
    ]


def _unknown(column: Any) -> Any:
    return func.sum(case((column.is_(None), 1), else_=0))


def merged(found: Sequence[Any], by: Sequence[By], zone: tzinfo) -> list[UsageRow]:
    """The rows of `rows_query` by day of a time zone: days in order, and the dearest first in each."""
    names = [{"chat": "chat_id"}.get(each, each) for each in by]
    groups: dict[tuple[Any, ...], list[Any]] = {}
    titles: dict[tuple[Any, ...], str | None] = {}
    for row in found:
        key = tuple(
            value.astimezone(zone).date() if name == "day" else value
            for name, value in zip(names, row, strict=False)
        )
        sums = row[len(by) : len(by) + len(_SUMS)]
        before = groups.get(key)
        groups[key] = list(sums) if before is None else [a + b for a, b in zip(before, sums, strict=True)]
        titles[key] = row[-1] if "chat" in by else None
    rows = [
        UsageRow(
            **{name: _number(name, value) for name, value in zip(_SUMS, sums, strict=True)},
            **dict(zip(names, key, strict=True)),
            title=titles[key],
        )
        for key, sums in groups.items()
        if sums[0]
    ]
    return sorted(rows, key=lambda row: (row.day or date.min, -row.cost_usd, -row.tokens))


def _number(name: str, value: Any) -> Any:
    return (
        float(value) if name in ("cost_usd", "counted_usd", "seconds") else int(value)
    )  # PostgreSQL sums to Decimal
