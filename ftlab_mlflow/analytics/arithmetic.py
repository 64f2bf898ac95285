"""Arithmetic on numbers that somebody wrote as text: parsed, never evaluated as Python."""

from __future__ import annotations

import ast
import math
import operator
import statistics
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field

from ftlab_mlflow.analytics.answer import Answer
from ftlab_mlflow.errors import AnalyticsError

_MOST = 500
"""Characters of an expression, and so bounds on what it costs."""
_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: math.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "abs": abs,
    "exp": math.exp,
    "log": math.log,
    "log10": math.log10,
    "max": lambda *values: max(values),
    "mean": lambda *values: math.fsum(values) / len(values),
    "median": lambda *values: statistics.median(values),
    "min": lambda *values: min(values),
    "sqrt": math.sqrt,
    "std": lambda *values: statistics.stdev(values),
    "sum": lambda *values: math.fsum(values),
}


def calculate(
    expression: Annotated[str, Field(min_length=1, max_length=_MOST)],
    numbers: Annotated[dict[str, float], Field(max_length=50)] | None = None,
    *,
    tracking_uri: str | None = None,
) -> Answer:
    """Arithmetic: ``+ - * / // % **``, brackets, and abs, exp, log (natural), log10, max, mean, median, min,
    sqrt, std (of a sample), sum.

    Args:
        expression: Such as ``(a - b) / a * 100`` or ``mean(1.5, 2, 4)``, in 64-bit floating point.
        numbers: Values of the names in it.
        tracking_uri: Not used: nothing is read.

    Returns:
        ``expression, numbers, value, policy``.

    Raises:
        AnalyticsError: It is no such expression, a name has no value, or the value is not finite.
    """
    del tracking_uri
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        value = float(_value(tree.body, numbers or {}))
    except SyntaxError as error:
        raise AnalyticsError(f"{expression!r} is no arithmetic: {error.msg}") from error
    except (ArithmeticError, ValueError, TypeError, RecursionError, statistics.StatisticsError) as error:
        raise AnalyticsError(f"{expression!r} has no value: {error}") from error
    policy = "in 64-bit floating point; what is not finite is an error"
    return {"expression": expression, "numbers": numbers or {}, "value": value, "policy": policy}


def _value(node: ast.expr, names: Mapping[str, float]) -> float:
    """Raises: OverflowError: it, or what it is made of, is not finite."""
    value = _raw_value(node, names)
    if not math.isfinite(value):
        raise OverflowError(f"{_shown(node)} is not finite")
    return value


def _raw_value(node: ast.expr, names: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id=name):
            if name in names:
                return names[name]
            known = ", ".join(sorted(names)) or "none"
            raise AnalyticsError(f"{name} has no value; `numbers` gives values to names, there are: {known}")
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left, names), _value(right, names))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand, names))
        case ast.Call(func=ast.Name(id=name), args=[_, *_] as args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(arg, names) for arg in args))
    allowed = f"numbers, names, + - * / // % ** and {', '.join(_FUNCTIONS)}"
    raise AnalyticsError(f"{_shown(node)!r} is not allowed in an expression; allowed are {allowed}")


def _shown(node: Any) -> str:
    return ast.unparse(node)[:60]
