"""How the command line prints: plain lines, tables and JSON, with foreign text made safe for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from ftlab_mlflow.control.wire import format_time, json_text, one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

_PIPE_WIDTH = 10_000
"""Width where the output is no terminal: there a line is for another program and is never folded."""

_NEVER_FOLDED = frozenset({"id", "state", "answer", "when", "pending request"})


def emit(document: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Prints one JSON document. Only ASCII, so that no character of it can act on a terminal."""
    click.echo(json_text(document, indent=indent))


def say(line: str, *, err: bool = False) -> None:
    """Prints one line of text that may hold foreign text."""
    click.echo(one_line(line), err=err)


def is_terminal() -> bool:
    """Whether a person is looking at stdout."""
    return sys.stdout.isatty()


def console() -> Console:
    """A rich console that takes no markup, and folds nothing where no person is looking."""
    from rich.console import Console

    width = None if is_terminal() else _PIPE_WIDTH
    return Console(markup=False, highlight=False, emoji=False, width=width)


def show(*parts: RenderableType) -> None:
    """Prints renderables one below the other."""
    target = console()
    for part in parts:
        target.print(part)


def cell(value: object, style: str = "") -> Text:
    """Foreign text as a table shows it: on one line, no control characters, no markup."""
    from rich.text import Text

    return Text(one_line("" if value is None else str(value)), style=style)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table of foreign texts. A heading that ends with `>` is a column of numbers.

    Where the terminal is narrow, long texts are folded, and figures, ids and times are not.
    """
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in headings:
        is_number = heading.endswith(">")
        made.add_column(
            heading.rstrip(">"),
            justify="right" if is_number else "left",
            overflow="fold",
            no_wrap=is_number or heading in _NEVER_FOLDED,
        )
    for row in rows:
        made.add_row(*(item if isinstance(item, Text) else cell(item) for item in row))
    return made


def clock(at: datetime | None) -> str:
    """A time as a person reads it, in this machine's time zone."""
    if at is None:
        return ""
    try:
        return f"{at.astimezone():%m-%d %H:%M:%S}"
    except (OverflowError, ValueError):  # the first or last day that there is, in another time zone
        return format_time(at)
