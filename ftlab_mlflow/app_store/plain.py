"""Foreign values made such that every database takes them.

PostgreSQL refuses NUL in texts, and NaN and the infinities in JSON; none takes half of a surrogate pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ftlab_mlflow.control.wire import format_time, shown, unicode

_DEEPEST = 60
"""Deeper than any answer: what is nested more is cut."""


def plain_text(text: str) -> str:
    """A text without NUL, which becomes its symbol (U+2400), and without lone surrogates (``?``)."""
    return unicode(text).replace("\0", "\u2400")


def plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON that every database takes: texts as `plain_text`, tuples as lists, times as in a tag.

    Numbers that JSON does not have become the texts that protobuf uses: ``"NaN"``, ``"Infinity"``,
    ``"-Infinity"``. What JSON has no form for becomes its text.
    """
    if isinstance(value, str):
        return plain_text(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, Mapping | list | tuple) and depth < _DEEPEST:
        if isinstance(value, Mapping):
            return {plain_text(str(key)): plain(item, depth + 1) for key, item in value.items()}
        return [plain(item, depth + 1) for item in value]
    return plain_text(shown(value) if isinstance(value, dict | list) else str(value))
