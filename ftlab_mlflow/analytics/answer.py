"""The shape of answers: what is shown, what there is, what was left out and why, how to get the rest."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ftlab_mlflow.errors import AnalyticsError
from ftlab_mlflow.settings import answer_chars

Answer = dict[str, Any]
"""An answer as JSON values."""


_TEXT = 500
"""Characters of one value."""


def shown(value: float | None) -> float | str | None:
    """A number as JSON has it; what is not finite as text: ``NaN``, ``inf``, ``-inf``."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else str(value)


def listed(
    rows: Sequence[Mapping[str, Any]],
    *,
    arguments: Mapping[str, Any],
    offset: int,
    limit: int,
    omitted: Mapping[str, int] | None = None,
    **more: Any,
) -> Answer:
    """A list: as many rows from `offset` on as are asked for and fit, and what gets the next ones.

    Args:
        rows: All of them, in order.
        arguments: Of this call.
        omitted: How many there were beside them, by reason.
        more: What else the answer says.
    """
    page = rows[offset : offset + limit]
    while True:
        end = offset + len(page)
        answer = {
            "rows": [dict(row) for row in page],
            "total": len(rows),
            "omitted": {reason: count for reason, count in (omitted or {}).items() if count},
            "next": {**arguments, "offset": end} if end < len(rows) else None,
            **more,
        }
        if size(answer) <= answer_chars():
            return answer
        if len(page) <= 1:
            return tightened(answer, ("rows",))
        page = page[: len(page) * 3 // 4]


def shortened(
    answer: Answer, parts: Sequence[str], *, arguments: Mapping[str, Any], skip: Mapping[str, int] | None
) -> Answer:
    """An answer without the last names of its longest part, again and again, until it has its size.

    Args:
        parts: Keys of objects in it. ``total`` says how many names each had, ``omitted`` how many are left
            out at the end, ``next`` what gets these.
        arguments: Of this call.
        skip: Names to leave out at the begin of each part.

    Raises:
        AnalyticsError: `skip` names no part.
    """
    skip = dict(skip or {})
    if unknown := sorted(skip.keys() - set(parts)):
        raise AnalyticsError(f"skip: there is no part {unknown[0]!r}; there are {', '.join(parts)}")
    total = {part: len(answer[part]) for part in parts}
    for part, count in skip.items():
        answer[part] = dict(list(answer[part].items())[count:])
    answer |= {"total": total, "omitted": {}, "next": None}
    while size(answer) > answer_chars() and any(len(answer[part]) > 1 for part in parts):
        longest = max((part for part in parts if len(answer[part]) > 1), key=lambda part: size(answer[part]))
        items = list(answer[longest].items())
        answer[longest] = dict(items[: max(1, len(items) * 3 // 4)])
        reached = {part: min(skip.get(part, 0) + len(answer[part]), total[part]) for part in parts}
        answer["omitted"] = {
            part: total[part] - reached[part] for part in parts if reached[part] < total[part]
        }
        answer["next"] = {**arguments, "skip": reached} if answer["omitted"] else None
    return tightened(answer, parts)


def clipped(text: str, limit: int = _TEXT) -> str:
    """A text as an answer has it: of a long one the begin, and how long it is."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"


def tightened(answer: Answer, parts: Sequence[str]) -> Answer:
    """An answer with the texts in some parts of it so short that it has its size, if that can be."""
    whole = {part: answer[part] for part in parts}
    for limit in (_TEXT, 200, 80, 30):
        if size(answer) <= answer_chars():
            break
        answer |= {part: _short(value, limit) for part, value in whole.items()}
    return answer


def _short(value: Any, limit: int) -> Any:
    """With all texts clipped, those of keys left as they are."""
    if isinstance(value, str):
        return clipped(value, limit)
    if isinstance(value, Mapping):
        return {key: _short(each, limit) for key, each in value.items()}
    return [_short(each, limit) for each in value] if isinstance(value, list) else value


def size(answer: Answer) -> int:
    """Characters of an answer as JSON."""
    return len(json.dumps(answer, ensure_ascii=False, allow_nan=False))
