"""Numbers as people read them, with units: losses, rates, durations, memory. Imports nothing heavy."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TypeGuard

NOTHING = "–"
"""Stands for a value that there is not."""

_DURATIONS = ((86_400, "d"), (3_600, "h"), (60, "min"))
_DECIMAL = ("B", "kB", "MB", "GB", "TB")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_BYTES = {"B": 1, "MB": 10**6, "GB": 10**9}
_COUNTED = frozenset({"steps", "tokens", "samples", "evaluations"})


def format_value(value: float | None, unit: str = "", *, binary: bool = False) -> str:
    """A value of a metric with its unit.

    Args:
        unit: As in `metric_table`: ``s`` is shown as a duration; ``B``, ``MB`` and ``GB`` (powers of ten) as
            memory; others follow the number.
        binary: Memory in powers of 1,024 (GiB) and not of 1,000 (GB).
    """
    if unit == "s":
        return duration(value)
    if unit in _BYTES:
        return memory(None if value is None else value * _BYTES[unit], binary=binary)
    text = count(value) if unit in _COUNTED else number(value)
    return f"{text} {unit}" if unit and _is_number(value) else text


def number(value: float | None) -> str:
    """Four significant digits: ``0.6931``, ``8.7e-05``, ``12,346``; zeros at the end are left out."""
    if not _is_number(value):
        return _other(value)
    size = abs(float(f"{value:.4g}"))
    if size and not 1e-3 <= size < 1e9:
        digits, exponent = f"{value:.3e}".split("e")
        return f"{_stripped(digits)}e{exponent}"
    return _stripped(f"{value:,.{_decimals(size)}f}")


def count(value: float | None) -> str:
    """A number of things, rounded to a whole one: ``1,234,567``."""
    return f"{value:,.0f}" if _is_number(value) else _other(value)


def duration(seconds: float | None) -> str:
    """The two largest units: ``3 h 12 min``, ``45 s``, ``8.25 s``, ``12 ms``."""
    if not _is_number(seconds):
        return _other(seconds)
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 0.9995:
        return f"{_stripped(f'{seconds * 1000:.3g}')} ms" if seconds else "0 s"
    if seconds < 9.995:
        return f"{_stripped(f'{seconds:.2f}')} s"
    parts = [*_DURATIONS, (1, "s")]
    for (size, unit), (smaller, its_unit) in pairwise(parts):
        whole, rest = divmod(round(seconds / smaller), size // smaller)
        if whole:
            return f"{whole:,} {unit} {rest} {its_unit}" if rest else f"{whole:,} {unit}"
    return f"{seconds:.0f} s"


def memory(size: float | None, *, binary: bool = False) -> str:
    """Bytes in the largest unit that fits, to three significant digits: ``1.53 GB``, binary ``1.42 GiB``."""
    if not _is_number(size):
        return _other(size)
    base, units = (1024.0, _BINARY) if binary else (1000.0, _DECIMAL)
    power = 0
    while abs(size) >= base - 0.5 and power < len(units) - 1:
        size, power = size / base, power + 1
    return f"{_stripped(f'{size:,.{_decimals(abs(size), 3)}f}')} {units[power]}"


def plotted(unit: str, *, binary: bool = False) -> tuple[float, str]:
    """A factor for the values of a chart in this unit, and the unit then: memory is in GB or GiB."""
    if unit not in _BYTES:
        return 1.0, unit
    return (_BYTES[unit] / 2**30, "GiB") if binary else (_BYTES[unit] / 10**9, "GB")


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _other(value: float | None) -> str:
    """What is no finite number, visibly so."""
    if value is None:
        return NOTHING
    return "NaN" if math.isnan(value) else "+∞" if value > 0 else "−∞"


def _decimals(size: float, significant: int = 4) -> int:
    """Decimal places that make so many significant digits."""
    return max(0, significant - 1 - math.floor(math.log10(size))) if size else 0


def _stripped(digits: str) -> str:
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
