"""A text as a checker reads it: its sentences, the names and the numbers in it, in order."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_NUMBER = re.compile(
    r"(?<![\w.])([-+]?)(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)"
    r"(?:(?:[eE]|\s?(?:×|x|·|\*|\\times)\s?10\^?\{?)([-+]?\d+)\}?)?(?=(?:s|min|h|[kKM])\b|\W|$)"
)
_SIGNS = str.maketrans({"−": "-", "–": "-", "‑": "-", "\u202f": " ", "\u00a0": " ", "’": "'"})
_RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_NOTHING_SAID = re.compile(
    r"\[unverified\]|\b[0-9a-f]{16,32}\b|\b\d{4}-\d\d-\d\d(?:[T ][\d:.]+Z?)?\b|^\s*\d+[.)](?=\s)",
    re.MULTILINE,
)
"""Marks of ours, ids, dates and the places in a list: no numbers of an answer."""
SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_UNIT = re.compile(
    r"\s*(?:(s|secs?|seconds?)|(min|mins|minutes?)|(h|hrs?|hours?)|(k|K)|(M|million)|(%|percent))\b|\s*(%)"
)
_FACTORS = {"k": 1e3, "m": 1e6}


@dataclass(frozen=True)
class Number:
    """A number in a text.

    Attributes:
        at: Where it begins. value: As it stands there. decimals: Digits behind its point.
        unit: `s`, `min`, `h`, `k`, `m` (million), `%`, or nothing that is known.
    """

    at: int
    value: float
    decimals: int
    unit: str = ""

    @property
    def factor(self) -> float:
        """What its unit multiplies it with."""
        return _FACTORS.get(self.unit, 1.0)

    @property
    def plain(self) -> float:
        """With thousand and million multiplied out."""
        return self.value * self.factor


@dataclass(frozen=True)
class Text:
    """A text. names: What counts as a name in it."""

    text: str
    names: Collection[str] = ()

    @cached_property
    def clean(self) -> str:
        """With one kind of minus and of exponents, without marks, ids and dates; as long as before."""
        plain = self.text.translate(_SIGNS)
        plain = re.sub("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: found[0].translate(_RAISED), plain)
        return _NOTHING_SAID.sub(lambda found: " " * len(found[0]), plain)

    @cached_property
    def found(self) -> list[tuple[int, str]]:
        """The names in it with their places, in order; of `a-1` and `a-10` the longer one."""
        if not self.names:
            return []
        longest = sorted(self.names, key=len, reverse=True)
        pattern = "|".join(re.escape(name) for name in longest)
        return [(m.start(), m[0]) for m in re.finditer(rf"(?<![\w/-])(?:{pattern})(?![\w/]|-\w)", self.clean)]

    @cached_property
    def nameless(self) -> str:
        """The text with blanks in place of names."""
        text = self.clean
        for at, name in self.found:
            text = text[:at] + " " * len(name) + text[at + len(name) :]
        return text

    @cached_property
    def numbers(self) -> list[Number]:
        """The numbers in it, but for those in names; `1 h 20 min` is one."""
        found: list[Number] = []
        for match in _NUMBER.finditer(self.nameless):
            digits = match[2].replace(",", "")
            value = float(f"{match[1]}{digits}e{match[3] or 0}")
            decimals = len(digits.partition(".")[2]) - int(match[3] or 0)
            unit = _UNIT.match(self.nameless, match.end())
            kind = ""
            if unit:
                kinds = ("s", "min", "h", "k", "m", "%", "%")
                kind = next(kind for kind, text in zip(kinds, unit.groups(), strict=True) if text)
            number = Number(match.start(), value, decimals, kind)
            before = found[-1] if found else None
            between = self.nameless[before.at : match.start()] if before else ""
            if before and number.unit in SECONDS and _is_rest(before, number, between):
                found[-1] = _sum(before, number)
            else:
                found.append(number)
        return found

    @cached_property
    def sentences(self) -> list[tuple[int, str]]:
        """Its sentences, lines, conclusions and cells of tables, each with its place."""
        parts, at = [], 0
        for match in re.finditer(
            r"(?<=[.!?;:])\s+|\n+|\||,?\s(?=(?:so|thus|hence|therefore|meaning)\b)", self.clean
        ):
            parts.append((at, self.clean[at : match.start()]))
            at = match.end()
        return [(at, part) for at, part in [*parts, (at, self.clean[at:])] if part.strip()]


def _is_rest(before: Number, number: Number, between: str) -> bool:
    """Whether a time goes on: minutes after hours, seconds after minutes."""
    order = ("h", "min", "s")
    if before.unit not in order or number.unit not in order or len(between) > 16:
        return False
    return order.index(before.unit) < order.index(number.unit) and not re.search(r"[(=]", between)


def _sum(first: Number, second: Number) -> Number:
    value = first.value * SECONDS[first.unit] / SECONDS[second.unit] + second.value
    return Number(first.at, value, second.decimals, second.unit)


def numbers_in(value: Any) -> Iterator[float]:
    """All numbers in a JSON value, those in its texts too, and how many parts each list and object has."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        yield float(value)
    elif isinstance(value, str):
        yield from (number.plain for number in Text(value).numbers)
    elif isinstance(value, Mapping):
        yield float(len(value))
        for key, each in value.items():
            yield from numbers_in(str(key))
            yield from numbers_in(each)
    elif isinstance(value, Sequence):
        yield float(len(value))
        for each in value:
            yield from numbers_in(each)
