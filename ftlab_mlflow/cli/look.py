"""`runs`, `status`, `history`: what the runs say."""

from __future__ import annotations

import click

from ftlab_mlflow.cli.opening import open_run, open_store
from ftlab_mlflow.cli.options import common, run_argument
from ftlab_mlflow.cli.output import age, cell, clock, emit, say, show, table
from ftlab_mlflow.cli.view import (
    RunView,
    answer_text,
    entry_document,
    outcome_text,
    reasoned_text,
    request_text,
    steps_text,
)
from ftlab_mlflow.control.ledger import Entry
from ftlab_mlflow.control.surface import Param
from ftlab_mlflow.control.wire import shown_value

STATE_STYLES = {"running": "green", "paused": "yellow", "lost": "red", "failed": "red", "unreadable": "red"}
REQUEST_HEADINGS = ("when", "by", "request", "answer", "step>", "outcome")


@click.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many.")
@common
def runs(limit: int, tracking_uri: str | None, as_json: bool) -> None:
    """List live runs, newest first.

    A run is lost when its heartbeat stopped without an end.
    """
    views = [RunView.of(data) for data in open_store(tracking_uri).find(live=True, limit=limit)]
    if as_json:
        emit({"runs": [view.summary() for view in views]})
    elif views:
        headings = ("id", "name", "state", "step>", "loss>", "rate>", "method", "age>")
        show(table(headings, map(_run_row, views)))
    else:
        say("No live run yet: start one with `ftlab train sft` or `ftlab demo`.")


def _run_row(view: RunView) -> tuple[object, ...]:
    started = view.data.started
    return (
        view.data.run_id[:8],
        view.data.name,
        cell(view.state, STATE_STYLES.get(view.state, "")),
        steps_text(view),
        _figure(view.loss),
        _figure(view.learning_rate),
        view.status.method if view.status else "",
        age((view.now - started).total_seconds()) if started else "",
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


@click.command()
@run_argument
@common
def status(run: str, tracking_uri: str | None, as_json: bool) -> None:
    """Show one run: state, progress and heartbeat, parameters with their bounds, metrics, pending requests.

    Without RUN: the newest live run.
    """
    live = open_run(run, tracking_uri)
    view = RunView.of(live.data())
    if view.status is None:
        live.status()  # raises what is wrong with it
    if as_json:
        emit(_status_document(view))
        return
    _print_status(view)
    if view.surface and view.surface.params:
        headings = ("parameter", "in force>", "asked>", "type", "allowed")
        show("", table(headings, [_param_row(*item) for item in view.surface.params.items()]))
    if view.data.metrics:
        metrics = sorted(view.data.metrics.items())
        show("", table(("metric", "last>"), [(name, shown_value(value)) for name, value in metrics]))
    if view.pending:
        rows = [(entry.id, *_asked(entry, view)) for entry in view.pending]
        show("", table(("pending request", "age>", "by", "what"), rows))


def _status_document(view: RunView) -> dict[str, object]:
    status, surface = view.status, view.surface
    return view.summary() | {
        "heartbeat_age_s": view.heartbeat_age_s,
        "host": status and status.host,
        "pid": status and status.pid,
        "session": status and status.session,
        "parameters": {name: param.encode() for name, param in surface.params.items()} if surface else {},
        "commands": list(surface.commands) if surface else [],
        "unsupported": dict(surface.unsupported) if surface else {},
        "metrics": view.data.metrics,
        "pending": [entry_document(entry) for entry in view.pending],
    }


def _print_status(view: RunView) -> None:
    status = view.status
    assert status is not None
    say(f"{view.data.name} {view.data.run_id}")
    say(f"{view.state} at step {steps_text(view)}, epoch {status.epoch:g}, {status.method}")
    say(f"last heartbeat {age(view.heartbeat_age_s)} ago, process {status.pid} on {status.host}")
    if status.error:
        say(f"error: {status.error}")
    if view.surface:
        say(f"commands: {', '.join(view.surface.commands) or 'none'}")


def _param_row(name: str, param: Param) -> tuple[object, ...]:
    low = "" if param.min is None else f"from {param.min:g}"
    high = "" if param.max is None else f"to {param.max:g}"
    allowed = ", ".join(param.choices) or f"{low} {high}".strip()
    return name, shown_value(param.value), shown_value(param.asked), param.type, allowed


def _asked(entry: Entry, view: RunView) -> tuple[str, str, str]:
    update = entry.update
    since = age((view.now - update.at).total_seconds()) if update else ""
    return since, update.by or "" if update else "", request_text(entry)


@click.command()
@run_argument
@common
def history(run: str, tracking_uri: str | None, as_json: bool) -> None:
    """List the requests of a run with their answers, in the order in which they were made."""
    live = open_run(run, tracking_uri)
    entries = live.history()
    if as_json:
        emit({"run_id": live.run_id, "requests": [entry_document(entry) for entry in entries]})
    elif entries:
        show(table(REQUEST_HEADINGS, map(request_row, entries)))
    else:
        say(f"No requests yet. `ftlab set {run} learning_rate=…` makes one.")


def request_row(entry: Entry) -> tuple[object, ...]:
    """A request with its answer as one row under `REQUEST_HEADINGS`."""
    update, ack = entry.update, entry.ack
    answer = answer_text(entry)
    return (
        clock(update.at if update else None),
        " via ".join(text for text in (update.by, update.via) if text) if update else "",
        reasoned_text(entry),
        cell(answer, answer_style(answer)),
        ack and ack.step,
        outcome_text(ack) or (f"id {entry.id}" if answer == "pending" else ""),
    )


def answer_style(answer: str) -> str:
    """The colour of an answer."""
    return {"applied": "green", "pending": "yellow", "cancelled": ""}.get(answer, "red")
