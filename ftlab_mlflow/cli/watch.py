"""`watch`: follows one run until it ends; a live view in a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import click

from ftlab_mlflow.cli.look import REQUEST_HEADINGS, STATE_STYLES, request_row
from ftlab_mlflow.cli.opening import open_run
from ftlab_mlflow.cli.options import DURATION, common, run_argument
from ftlab_mlflow.cli.output import cell, console, emit, is_terminal, say, table
from ftlab_mlflow.control.client import LiveRun
from ftlab_mlflow.control.ledger import Entry
from ftlab_mlflow.control.view import (
    RunView,
    age,
    answer_text,
    entry_document,
    outcome_text,
    reasoned_text,
    request_text,
    steps_text,
)
from ftlab_mlflow.control.wire import shown_value
from ftlab_mlflow.errors import StoreUnavailable

if TYPE_CHECKING:
    from rich.console import RenderableType

_SHOWN_REQUESTS = 10
_MOVING = ("state", "step", "loss", "learning_rate", "error")
"""What makes a new line where the output is no terminal."""

Event = tuple[str, Mapping[str, Any], str]
"""Kind, what `--json` prints of it, and the line for a person."""


class _Screen(Protocol):
    """Where a watched run is shown."""

    def show(self, view: RunView) -> None:
        """The run was read."""

    def away(self, error: StoreUnavailable) -> None:
        """The tracking store did not answer; it is asked again."""


@click.command()
@run_argument
@click.option(
    "--interval", type=DURATION, metavar="TIME", default="1s", show_default=True, help="Between two looks."
)
@common
def watch(run: str, interval: float, tracking_uri: str | None, as_json: bool) -> None:
    """Follow one run until it ends or Ctrl-C: progress, loss, rate, requests as they are answered.

    Where the output is no terminal, and with --json, each change is one line.
    """
    live = open_run(run, tracking_uri)
    first = RunView.of(live.data())
    if first.status is None:
        live.status()  # raises what is wrong with it
    screen: _Screen = _Lines(as_json)
    shown: AbstractContextManager[Any] = nullcontext()
    if is_terminal() and not as_json and not console().is_dumb_terminal:
        screen = panel = _Panel()
        shown = panel.live
    try:
        with shown:
            _follow(live, first, screen, interval)
    except KeyboardInterrupt:
        pass  # the way to leave it


def _follow(run: LiveRun, view: RunView, screen: _Screen, interval: float) -> None:
    looks_after_end = 0
    while True:
        screen.show(view)
        if view.has_ended:
            # Answers that a trainer could not write together with its end come right after it.
            if looks_after_end or not view.pending:
                return
            looks_after_end += 1
        view = _look(run, screen, interval)


def _look(run: LiveRun, screen: _Screen, interval: float) -> RunView:
    while True:
        time.sleep(interval)
        try:
            return RunView.of(run.data())
        except StoreUnavailable as error:
            screen.away(error)


def changes(before: RunView | None, view: RunView) -> Iterator[Event]:
    """What is new since the look before. The first look tells the state and what is pending."""
    summary = view.summary()
    old = before.summary() if before else {}
    if not before or any(old[key] != summary[key] for key in _MOVING):
        yield "status", summary, status_line(view)
    known = {entry.id: entry.answered for entry in before.entries} if before else {}
    for entry in view.entries:
        is_new = entry.id not in known and (before is not None or not entry.answered)
        if is_new:
            who = entry.update and entry.update.by
            yield "request", entry_document(entry), f"request {entry.id} by {who}: {reasoned_text(entry)}"
        if entry.answered and (is_new or known.get(entry.id) is False):
            yield "answer", entry_document(entry), _answer_line(entry)


def status_line(view: RunView) -> str:
    """State, progress, loss and rate on one line."""
    parts = [view.state, f"step {steps_text(view)}"]
    if view.loss is not None:
        parts.append(f"loss {view.loss:.4g}")
    if view.learning_rate is not None:
        parts.append(f"rate {view.learning_rate:.4g}")
    if view.status and view.status.error:
        parts.append(f"error: {view.status.error}")
    return "  ".join(parts)


def _answer_line(entry: Entry) -> str:
    at = f" at step {entry.ack.step}" if entry.ack else ""
    outcome = outcome_text(entry.ack) or request_text(entry)
    return f"{answer_text(entry)} {entry.id}{at}: {outcome}"


class _Lines:
    """One line a change, for a file, a pipe or another program."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._last: RunView | None = None
        self._is_away = False

    def show(self, view: RunView) -> None:
        if self._is_away:
            self._is_away = False
            self._print("back", {}, "the tracking store answers again")
        for event in changes(self._last, view):
            self._print(*event)
        self._last = view

    def away(self, error: StoreUnavailable) -> None:
        if not self._is_away:
            self._is_away = True
            self._print("away", {"message": str(error)}, f"waiting: {error}")

    def _print(self, kind: str, fields: Mapping[str, Any], line: str) -> None:
        if self._as_json:
            emit({"event": kind, **fields}, indent=None)
        else:
            say(f"{time.strftime('%H:%M:%S')}  {line}")


class _Panel:
    """A live view in a terminal, drawn anew at each look."""

    def __init__(self) -> None:
        from rich.live import Live

        self.live = Live(console=console(), auto_refresh=False)
        self._last: RunView | None = None

    def show(self, view: RunView) -> None:
        self._last = view
        self.live.update(_drawn(view, ""), refresh=True)

    def away(self, error: StoreUnavailable) -> None:
        if self._last is not None:
            self.live.update(_drawn(self._last, f"waiting: {error}"), refresh=True)


def _drawn(view: RunView, notice: str) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    head = Table.grid(padding=(0, 1), expand=True)
    head.add_column(no_wrap=True)
    head.add_column(ratio=1)
    head.add_column(no_wrap=True, justify="right")
    bar = ProgressBar(total=1, completed=view.progress or 0)
    head.add_row(cell(view.state, STATE_STYLES.get(view.state, "bold")), bar, cell(steps_text(view)))
    figures = {
        "loss": "–" if view.loss is None else f"{view.loss:.4g}",
        "rate": "–" if view.learning_rate is None else shown_value(view.learning_rate),
        "epoch": f"{view.status.epoch:g}" if view.status else "–",
        "heartbeat": f"{age(view.heartbeat_age_s)} ago",
    }
    parts: list[RenderableType] = [
        cell(f"{view.data.name} {view.data.run_id}", "bold"),
        head,
        cell("   ".join(f"{name} {figure}" for name, figure in figures.items())),
    ]
    if view.status and view.status.error:
        parts.append(cell(f"error: {view.status.error}", "red"))
    if notice:
        parts.append(cell(notice, "yellow"))
    if view.entries:
        parts += ["", table(REQUEST_HEADINGS, map(request_row, view.entries[-_SHOWN_REQUESTS:]))]
    return Group(*parts)
