"""Whether the numbers in an answer come from the tools: what was returned, and marks behind what was not."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from ftlab_mlflow.chat import pieces
from ftlab_mlflow.chat.pieces import Piece, Reader
from ftlab_mlflow.chat.quantities import PERCENT
from ftlab_mlflow.chat.stated import WORD, Claim, Moment, Stated
from ftlab_mlflow.chat.visible import visible

MARK = " [unverified]"
"""Stands behind a number that no tool returned."""
_SLACK = 1e-9
"""Of a float that was computed in another order."""
_ABOVE_ONE = math.nextafter(1, 2)
_EPOCH = (1e9, 2.2e9)
"""Numbers that may be Unix seconds: of the years 2001 to 2039."""
_ECHOES = frozenset(["next", "expression", "reason"])
"""Parts of a result that repeat what the model wrote."""
_NAMES = frozenset(["name", "label", "experiment", "run_name", "runName"])
"""Names are quoted, but prove nothing: whoever starts a run may call it `loss=0.001`."""
_LONGEST_NAME = 200
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_LITERAL = re.compile(r"(?<!\w)(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_DIGIT = re.compile(r"\d")
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_HUNDRED = re.compile(r"\b100\b")
_PERCENT = re.compile("percent|pct|%")
_WITHIN_WORD = re.compile("[-/@]")
_SIZE = re.compile(r"\d[\d.]*(?:[bmkt]|bit)")
_WORD_CHARACTER = re.compile(rf"[{WORD}]")
_AHEAD = re.compile(rf"[^{WORD}]+")


class Facts:
    """What the tools of a conversation have returned. It grows.

    Numbers are taken from everywhere but from names and from what repeats the model's own arguments, also
    where they stand in texts; the number of objects of a list or a table counts as returned, without a unit.
    What people write, as the question, is no fact. What was calculated is one, unless it is only what the
    model wrote as an operand.

    Attributes:
        names: Names and short texts in results, which may be quoted with the numbers in them.
    """

    def __init__(self) -> None:
        self._values: set[float] = set()
        self._counts: set[int] = set()
        self._moments: set[Moment] = set()
        self._parts: set[str] = set()
        self.names = _Names()
        self._sorted: tuple[list[float], list[float]] | None = None

    def add(self, result: Mapping[str, Any]) -> None:
        """Takes in the result of a tool: JSON values."""
        expression = result.get("expression") if "value" in result else None
        if isinstance(expression, str) and self._is_echo(expression, result):
            return
        self._sorted = None
        own = {key: value for key, value in result.items() if key not in _ECHOES}
        left: list[tuple[Any, bool, bool]] = [(own, False, bool(_HUNDRED.search(str(expression))))]
        while left:
            value, is_name, is_percent = left.pop()
            if isinstance(value, Mapping):
                self._words(value)
                is_percent = is_percent or bool(_PERCENT.search(str(value.get("metric"))))
                for key, each in value.items():
                    left.append((each, _is_name(key), is_percent or bool(_PERCENT.search(key))))
                self._count(value.values())
            elif isinstance(value, list | tuple):
                left += ((each, is_name, is_percent) for each in value)
                self._count(value)
            elif isinstance(value, str):
                self._text(value, is_name=is_name)
            elif isinstance(value, int | float) and not isinstance(value, bool):
                self._value(value, is_percent=is_percent)

    def has(self, claim: Claim) -> bool:
        """Whether a tool returned what a text states.

        A number may be rounded in its last place, and be given in another unit: percent of a share, minutes
        of seconds, GB of bytes, thousands. Without a sign it stands for its opposite, too. The very number
        has to be what is 0, and what is whole and below 100 without a unit, unless it is said to be about
        that. A number of percent is a hundred times a share; it is what was returned itself only where that
        is above 1, or was called a percentage.
        """
        if claim.text.lower() in self._parts:
            return True
        return any(all(map(self._holds, reading)) for reading in claim.readings)

    @staticmethod
    def _is_echo(expression: str, result: Mapping[str, Any]) -> bool:
        """Whether a calculation's value is one of its operands, which prove nothing: the model wrote them."""
        numbers = result.get("numbers")
        named = numbers.values() if isinstance(numbers, Mapping) else ()
        operands = (abs(float(each)) for each in (*_LITERAL.findall(expression), *named))
        value = abs(float(result["value"]))
        return any(math.isclose(each, value, rel_tol=_SLACK) for each in operands)

    def _words(self, value: Mapping[str, Any]) -> None:
        for key in value:
            if _DIGIT.search(key):
                self._text(key, is_name=not _NUMBER.fullmatch(key))

    def _count(self, values: Iterable[Any]) -> None:
        """As many as there are, if they are objects."""
        values = list(values)
        if values and all(isinstance(each, Mapping) for each in values):
            self._counts.add(len(values))

    def _value(self, value: float, *, is_percent: bool = False) -> None:
        try:
            number = float(value)
        except OverflowError:  # an integer beyond all floats
            return
        if not math.isfinite(number):
            return
        self._values.add(number)
        if is_percent:
            self._values.add(number * PERCENT[0])
        if _EPOCH[0] <= number <= _EPOCH[1]:
            at = datetime.fromtimestamp(number, UTC)
            for each in (at, at + timedelta(seconds=30)):  # cut, and rounded to the minute
                self._moment(Moment(each.year, each.month, each.day, f"{each:%H:%M:%S}"))

    def _moment(self, moment: Moment) -> None:
        """A moment, and all that it is less precisely."""
        day = moment[:3]
        self._moments |= {Moment(*day), Moment(None, *day[1:])}
        if moment.year is not None:
            self._values.add(float(moment.year))
        if moment.clock is not None:
            for clock in (moment.clock, moment.clock[:5]):
                self._moments |= {Moment(*day, clock), Moment(clock=clock)}

    def _text(self, text: str, *, is_name: bool) -> None:
        if not _DIGIT.search(text):
            return
        if _NUMBER.fullmatch(text):
            if not is_name:
                self._value(float(text))
            return
        if _RUN_ID.fullmatch(text):
            self._parts.update(text[:length] for length in (*range(6, 13), None))
            return
        if pieces.is_name(text):
            self._word(text, is_name=is_name)
            return
        reader = Reader()
        made = [*reader.feed(visible(text)), *reader.end()]
        for piece in made:
            if piece.is_word:
                self._word(piece.text, is_name=is_name)
            if piece.claim is not None and not is_name:
                self._stated(piece.claim)
        if len(made) > 1 and len(text) <= _LONGEST_NAME and any(piece.claim for piece in made):
            self.names.add(visible(text))

    def _word(self, text: str, *, is_name: bool) -> None:
        """A word as a whole; if it is no name that somebody gave to a run, parts as `0.5B` of it, too."""
        if not _DIGIT.search(text):
            return
        self._parts.add(text.lower())
        if not is_name:
            parts = _WITHIN_WORD.split(text.lower())
            self._parts.update(part for part in parts if not part[:1].isdecimal() or _SIZE.fullmatch(part))

    def _stated(self, claim: Claim) -> None:
        """What a text in a result states, is returned: as it is, and in the unit of tools."""
        for reading in claim.readings:
            for each in reading:
                if isinstance(each, Moment):
                    self._moment(each)
                else:
                    self._value(each.value)
                    self._value(each.value * each.factors[0])

    def _holds(self, stated: Stated | Moment) -> bool:
        if isinstance(stated, Moment):
            return stated in self._moments
        if not math.isfinite(stated.value):
            return False
        if stated.factors == (1.0,) and any(abs(n - stated.value) <= stated.half for n in self._counts):
            return True
        if self._sorted is None:
            self._sorted = sorted(self._values), sorted({abs(value) for value in self._values})
        signed, sizes = self._sorted
        for factor in stated.factors:
            size = abs(stated.value) * factor
            margin = stated.half * factor + size * _SLACK
            low, high = size - margin, size + margin
            if factor == 1 and stated.factors == PERCENT:
                low = max(low, _ABOVE_ONE)
            if not stated.is_signed:
                found = _has_between(sizes, low, high)
            elif stated.value < 0:
                found = _has_between(signed, -high, -low)
            else:
                found = _has_between(signed, low, high)
            if found:
                return True
        return False


def _is_name(key: str) -> bool:
    return key.rpartition(".")[2] in _NAMES


def _has_between(values: list[float], low: float, high: float) -> bool:
    place = bisect_left(values, low)
    return place < len(values) and values[place] <= high


class _Names:
    """Names and short texts with numbers in them, to be quoted as they are."""

    def __init__(self) -> None:
        self._all: set[str] = set()
        self._lengths: dict[str, list[int]] = {}
        self._sorted: list[str] | None = None

    def add(self, name: str) -> None:
        """Of a name that begins with a bracket, what is behind it."""
        ahead = _AHEAD.match(name)
        name = name[ahead.end() if ahead else 0 :].rstrip()
        if name in self._all or not any(c.isalpha() for c in name):
            return
        self._all.add(name)
        lengths = self._lengths.setdefault(name[0], [])
        if len(name) not in lengths:
            lengths.append(len(name))
            lengths.sort(reverse=True)
        self._sorted = None

    def at(self, text: str, at: int, is_whole: bool) -> int | None:
        """The longest name at a place; see `pieces.Quoted`."""
        lengths = self._lengths.get(text[at])
        if lengths is None:
            return 0
        rest = text[at : at + lengths[0] + 1]
        if len(rest) <= lengths[0] and not is_whole:
            if self._sorted is None:
                self._sorted = sorted(self._all)
            place = bisect_left(self._sorted, rest)
            if place < len(self._sorted) and self._sorted[place].startswith(rest):
                return None
        for length in lengths:
            if rest[:length] in self._all:
                follows = text[at + length : at + length + 1]
                if not follows and not is_whole:
                    return None
                if not _WORD_CHARACTER.match(follows):
                    return length
        return 0


class Marker:
    """Gives on the text of an answer as it streams, with `MARK` behind each number that no tool returned.

    The mark stands behind the unit, and behind what closes bold, slanted or code. At most a name or a number
    with its unit is held back, so that it does not matter how the text is cut. Characters that cannot be seen
    are left out; a mark that the model itself wrote is not doubled.

    Checked are numbers written in digits, anywhere in the text. Not checked are numbers in words (five, 2nd),
    digits in names (`run-12`, `v1.2`), addresses, and the numbers of lists, headings and footnotes. In a word
    that no result has, a decimal behind a letter is checked (`loss0.5`).

    Attributes:
        unverified: The numbers that were marked, as written, without units: each once, in order.
    """

    def __init__(self, facts: Facts) -> None:
        self.unverified: list[int | float] = []
        self._facts = facts
        self._reader = Reader(facts.names.at, facts.has)
        self._owed: str | None = None

    def feed(self, chunk: str) -> str:
        """What of the text can be given on now.

        Args:
            chunk: The next piece of it.
        """
        return "".join(map(self._marked, self._reader.feed(visible(chunk))))

    def end(self) -> str:
        """The rest of the text."""
        rest = "".join(map(self._marked, self._reader.end()))
        return rest if self._owed is None else f"{rest}{MARK}{self._owed}"

    def _marked(self, piece: Piece) -> str:
        text = piece.text
        if self._owed is not None:
            text = self._owed + text
            if MARK.startswith(text) and text != MARK:  # the model may be writing it itself
                self._owed = text
                return ""
            text = text if text.startswith(MARK) else f"{MARK}{text}"
            self._owed = None
        if piece.claim is not None and not self._facts.has(piece.claim):
            self.unverified += [n for n in piece.claim.said if n not in self.unverified]
            self._owed = ""
        return text
