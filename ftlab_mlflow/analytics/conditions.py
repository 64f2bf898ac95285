"""Conditions on runs: which field, how it is compared, with what. Params are text, compared as numbers."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ftlab_mlflow.analytics.columns import RunColumns, RunHead, Wanted
from ftlab_mlflow.errors import AnalyticsError

Op = Literal["=", "!=", ">", ">=", "<", "<=", "contains", "starts_with", "in", "exists", "missing"]
Scalar = bool | int | float | Annotated[str, StringConstraints(max_length=500)]
FieldName = Annotated[
    str,
    StringConstraints(
        pattern=r"^((params|tags|metrics)\.(?s:.+)|name|run_id|status|start_time|end_time|duration_s)$"
    ),
]
"""``params.x``, ``tags.x``, ``metrics.x`` (the last value), or one of the attributes every run has."""
_LARGEST = Decimal(sys.float_info.max)
"""What is beyond is no number of a training: it would not fit into one."""
_NUMBERS: dict[str, Callable[[Decimal, Decimal], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
}


class Condition(BaseModel):
    """One condition. A run without the field meets ``missing`` alone.

    Attributes:
        field: What is compared; times are Unix seconds.
        op: How. ``in`` takes a list, ``exists`` and ``missing`` no value, ``contains`` and ``starts_with``
            compare text in any case.
        value: With what. A number, or text that is one, is compared with numbers alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    field: FieldName
    op: Op
    value: Scalar | Annotated[list[Scalar], Field(max_length=50)] | None = Field(default=None)


def wanted(fields: set[str]) -> Wanted:
    """The columns that fields need."""
    kinds: dict[str, set[str]] = {"params": set(), "tags": set(), "metrics": set()}
    for field in fields:
        kind, dot, name = field.partition(".")
        if dot and kind in kinds:
            kinds[kind].add(name)
    metrics = frozenset((name, "last") for name in kinds["metrics"])
    return Wanted(metrics, frozenset(kinds["params"]), frozenset(kinds["tags"]))


def value_of(field: str, head: RunHead, columns: RunColumns) -> str | float | None:
    """What a run says in a field: text, or a number where MLflow keeps one; None where it says nothing."""
    kind, _, name = field.partition(".")
    if kind == "params":
        return columns.params[name].get(head.run_id)
    if kind == "tags":
        return columns.tags[name].get(head.run_id)
    if kind == "metrics":
        found = columns.metrics[name, "last"].get(head.run_id)
        return None if found is None else found.value
    times: Mapping[str, int | None] = {"start_time": head.started, "end_time": head.ended}
    if field in times:
        at = times[field]
        return None if at is None else at / 1000
    if field == "duration_s":
        return None if head.started is None or head.ended is None else (head.ended - head.started) / 1000
    return {"name": head.label, "run_id": head.run_id, "status": head.status}[field]


def number_of(value: object) -> Decimal | None:
    """A value as an exact number, text too; None where it is none, or not finite."""
    if isinstance(value, bool):
        return None
    try:
        number = Decimal(value.strip()) if isinstance(value, str) else Decimal(repr(value))
    except (InvalidOperation, AttributeError):
        return None
    if not number.is_finite() or number.copy_abs() > _LARGEST:
        return None
    return number


def meets(condition: Condition, value: str | float | None) -> bool | None:
    """Whether a run meets a condition; None where the two cannot be compared.

    Raises:
        AnalyticsError: The condition makes no sense: a list without ``in``, no value where one is needed.
    """
    op, asked = condition.op, condition.value
    _check(condition)
    if op in ("exists", "missing"):
        return (value is not None) == (op == "exists")
    if value is None:
        return False
    if op == "in":
        assert isinstance(asked, list)
        return any(_is_equal(value, each) for each in asked)
    assert isinstance(asked, bool | int | float | str)
    if op in ("contains", "starts_with"):
        text, part = str(value).casefold(), str(asked).casefold()
        return part in text if op == "contains" else text.startswith(part)
    if op in ("=", "!="):
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return _is_equal(value, asked) == (op == "=")
    a, b = number_of(value), number_of(asked)
    if a is not None and b is not None:
        return _NUMBERS[op](a, b)
    if isinstance(value, str) and isinstance(asked, str) and b is None and a is None:
        return {">": value > asked, ">=": value >= asked, "<": value < asked, "<=": value <= asked}[op]
    return None


def _is_equal(value: str | float, asked: Any) -> bool:
    a, b = number_of(value), number_of(asked)
    if a is not None and b is not None:
        return a == b
    if isinstance(asked, bool):
        return str(value).casefold() == str(asked).casefold()  # params hold Python's True as text
    return str(value) == str(asked)


def _check(condition: Condition) -> None:
    op, asked = condition.op, condition.value
    said = f"condition on {condition.field}"
    if op in ("exists", "missing") and asked is not None:
        raise AnalyticsError(f"{said}: {op} takes no value, got {asked!r}")
    if any(
        isinstance(each, float) and not math.isfinite(each)
        for each in (asked if isinstance(asked, list) else [asked])
    ):
        raise AnalyticsError(f"{said}: a value must be finite, got {asked!r}")
    if op == "in" and not isinstance(asked, list):
        raise AnalyticsError(f"{said}: in takes a list, got {asked!r}")
    if op not in ("in", "exists", "missing") and (asked is None or isinstance(asked, list)):
        raise AnalyticsError(f"{said}: {op} takes one value, got {asked!r}")
