"""Pieces of Markdown: foreign text that stays text, figures, times, tables; readable unrendered, too."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ftlab_mlflow.analytics import units
from ftlab_mlflow.analytics.metric_table import describe
from ftlab_mlflow.chat.visible import visible
from ftlab_mlflow.control.wire import one_line

SPARKS = "▁▂▃▄▅▆▇█"
GAP = "·"
"""Where a sparkline has no finite value."""
LONG = 500
"""Characters of a sentence of somebody."""
_CELL = 120
"""Characters of a text in a table."""
_WIDEST = 60
"""Columns are filled with spaces up to so many characters, for whoever reads them as they are."""
_SHORT_ID = 8
_MARKS = re.compile(
    r"""[`*\[\]<|$]                       # code, emphasis, links, HTML, cells, formulas
    | \\(?=[!-/:-@\[-`{-~]|$)             # what would escape the next character
    | (?<![^\W_])_ | _(?![^\W_])          # within a word an underscore is no mark
    | ~(?=~) | (?<=~)~                    # struck through
    | &(?=\#?\w+;)                        # an entity
    | :(?=[\w+/-]+[:\[])                  # an emoji or a directive
    """,
    re.VERBOSE,
)


def plain(text: object, limit: int = _CELL) -> str:
    """Foreign text that Markdown shows as it is, on one line, cut to a length.

    It may stand anywhere but at the begin of a line, where more characters are marks.
    """
    line = " ".join(one_line(visible(str(text))).split())
    cut = line if len(line) <= limit else f"{line[: limit - 1]}…"
    return _MARKS.sub(r"\\\g<0>", cut) or '""'


def code(text: str) -> str | None:
    """Text to be copied, as inline code; None where that cannot show it. Not for tables."""
    if not text or not text.isprintable() or text != " ".join(visible(text).split()):
        return None
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def block(text: str) -> str:
    """Lines to be copied. None of them may begin with a backtick."""
    return f"```\n{text}\n```"


class Right(str):
    """A heading of a column of numbers."""

    __slots__ = ()


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of headings and cells that are Markdown, filled up so that it can be read as it is, too."""
    are_right = [isinstance(heading, Right) for heading in headings]
    lines = [list(headings), *(list(row) for row in rows)]
    widths = [max(3, *(min(_WIDEST, len(line[place])) for line in lines)) for place in range(len(headings))]

    def row(cells: Sequence[str]) -> str:
        filled = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(cells, widths, are_right, strict=True)
        ]
        return f"| {' | '.join(filled)} |"

    rule = [
        f"{'-' * (width - 1)}:" if is_right else "-" * width
        for width, is_right in zip(widths, are_right, strict=True)
    ]
    return "\n".join([row(lines[0]), row(rule), *map(row, lines[1:])])


def joined(*parts: str) -> str:
    """Paragraphs and tables below each other; empty ones are left out."""
    return "\n\n".join(part for part in parts if part)


def bullets(lines: Iterable[str]) -> str:
    """A list. No line may begin with foreign text."""
    return "\n".join(f"- {line}" for line in lines)


def known(value: float | str | None) -> float | None:
    """A number of an answer: what JSON cannot hold is text there (`answer.shown`)."""
    return float(value) if isinstance(value, str) else value


def figure(value: float | str | None, unit: str = "") -> str:
    """A value of an answer with its unit, rounded; `NaN`, `+∞` and what there is not as such."""
    return units.format_value(known(value), unit)


def figures(values: Sequence[float | str | None], unit: str = "") -> list[str]:
    """Values of one column: with as many digits as it takes to tell apart those that differ."""
    numbers = [known(value) for value in values]
    shown = {
        number: units.number(number) for number in numbers if number is not None and math.isfinite(number)
    }
    digits = 4
    while not unit and len(set(shown.values())) < len(shown) and digits < 17:
        digits += 1
        shown = {number: f"{number:,.{digits}g}" for number in shown}
    return [
        shown[number] if not unit and number in shown else units.format_value(number, unit)
        for number in numbers
    ]


def metric_figures(values: Sequence[float | str | None], metric: str) -> list[str]:
    """`figures` of a metric, in its unit."""
    return figures(values, describe(metric).unit)


def param(value: object) -> str:
    """A parameter's value as it was written; a number of a group exactly."""
    if value is None:
        return units.NOTHING
    return repr(value) if isinstance(value, float) else plain(value)


def text(value: object, limit: int = _CELL) -> str:
    """Foreign text that may be missing."""
    return units.NOTHING if value is None or value == "" else plain(value, limit)


def moment(seconds: float | None) -> str:
    """Unix seconds as a time in UTC."""
    if seconds is None:
        return units.NOTHING
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
    except (OverflowError, ValueError, OSError):  # the clock of some machine was wrong
        return f"{seconds:g} s"


def status(value: str) -> str:
    """MLflow's status of a run; what went wrong is marked."""
    return f"✗ {plain(value)}" if value in ("FAILED", "KILLED") else plain(value)


def money(value: float | None, currency: str) -> str:
    """A sum of money; what is not known is not 0."""
    if value is None:
        return "unknown"
    amount = f"{value:,.2f}" if value == 0 or abs(value) >= 0.01 else units.number(value)
    return f"{amount} {plain(currency)}"


def short_ids(run_ids: Iterable[str]) -> dict[str, str]:
    """How each id begins, with as many characters as tell it from the others here."""
    ids = list(dict.fromkeys(run_ids))
    length = _SHORT_ID
    while len({id[:length] for id in ids}) < len(ids):
        length += 1
    return {id: plain(id[:length]) for id in ids}


def counts(of: Mapping[str, Any]) -> str:
    """How many of each: `8 FINISHED, 1 FAILED`."""
    return ", ".join(f"{count:,} {status(name)}" for name, count in of.items()) or "none"


def sparkline(values: Sequence[float | str | None], width: int = 40, *, log: bool = False) -> str:
    """The shape of a series in a few characters, each the mean of a piece; `GAP` where none is finite."""
    numbers = [known(value) for value in values]
    if log:
        numbers = [math.log10(n) if n is not None and 0 < n < math.inf else None for n in numbers]
    count = min(width, len(numbers))
    pieces = [numbers[len(numbers) * at // count : len(numbers) * (at + 1) // count] for at in range(count)]
    means = [_mean(piece) for piece in pieces]
    finite = [mean for mean in means if mean is not None]
    low, span = (min(finite), max(finite) - min(finite)) if finite else (0.0, 0.0)
    return "".join(GAP if mean is None else _spark((mean - low) / span if span else 0.5) for mean in means)


def _spark(share: float) -> str:
    return SPARKS[min(len(SPARKS) - 1, int(share * len(SPARKS)))]


def _mean(values: Iterable[float | None]) -> float | None:
    """Of the finite ones, in quarters: the difference of two means must not overflow."""
    finite = [value / 4 for value in values if value is not None and math.isfinite(value)]
    return sum(value / len(finite) for value in finite) if finite else None
