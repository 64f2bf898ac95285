"""`runs`, `status`, `history`: what the runs say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import click

from ftlab_mlflow.cli.opening import open_run, open_table
from ftlab_mlflow.cli.options import common, run_argument
from ftlab_mlflow.cli.output import cell, clock, emit, say, show, table
from ftlab_mlflow.control.history import ANSWERS, history_csv, history_json, matching
from ftlab_mlflow.control.ledger import Entry
from ftlab_mlflow.control.messages import State
from ftlab_mlflow.control.surface import Param
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
from ftlab_mlflow.control.wire import shown_value, utc_now

if TYPE_CHECKING:
    from ftlab_mlflow.analytics.run_rows import RunRow
    from ftlab_mlflow.analytics.run_table import RunTable

STATE_STYLES = {"running": "green", "paused": "yellow", "lost": "red", "failed": "red", "unreadable": "red"}
STATES = (*get_args(State), "lost", "unreadable", "scheduled")
REQUEST_HEADINGS = ("when", "by", "request", "answer", "step>", "outcome")


@click.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many.")
@click.option("--all", "plain", is_flag=True, help="Also runs that no trainer of ours has written to.")
@click.option(
    "--experiment", "experiments", multiple=True, metavar="NAME", help="Of this experiment (or its id)."
)
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="In this state.")
@click.option("--method", "methods", multiple=True, help="Of this training method, such as sft.")
@click.option("--text", default="", help="With these words in the name or the model, or at the id's start.")
@click.option("--tag", default="", metavar="KEY[=VALUE]", help="With this tag.")
@common
def runs(limit: int, plain: bool, tracking_uri: str | None, as_json: bool, **wanted: Any) -> None:
    """List live runs, newest first.

    A run is lost when its heartbeat stopped without an end. Options that are given more than once take any of
    their values.
    """
    store = open_table(tracking_uri)
    rows = _matching(store, limit, plain, wanted)
    if as_json:
        emit({"runs": [_row_document(row, store) for row in rows]})
    elif rows:
        headings = ("id", "name", "state", "step>", "loss>", "best eval>", "rate>", "method", "age>")
        show(table(headings, map(_run_row, rows)))
    elif plain or any(wanted.values()):
        say(f"None of the {len(store.rows())} runs fits.")
    else:
        say("No live run yet: start one with `ftlab train sft` or `ftlab demo`.")


def _matching(store: RunTable, limit: int, plain: bool, wanted: Mapping[str, Any]) -> list[RunRow]:
    """The newest rows that fit; no more is read than it takes to find them."""
    from ftlab_mlflow.analytics.run_rows import filtered

    while True:
        store.refresh()
        if store.problem is not None:
            raise store.problem
        rows = [row for row in filtered(store.rows(), **wanted) if plain or row.is_live][:limit]
        lacks_best = any(row.best_eval_loss is None and row.last_eval_loss is not None for row in rows)
        if store.is_complete or (len(rows) == limit and not lacks_best):
            return rows


def _row_document(row: RunRow, store: RunTable) -> dict[str, object]:
    return store.view(row.run_id).summary() | {
        "method": row.method,
        "experiment": row.experiment,
        "model": row.model,
        "eval_loss": row.last_eval_loss,
        "best_eval_loss": row.best_eval_loss,
        "eta_s": row.eta_s,
        "ended": row.ended,
        "tags": dict(row.tags),
    }


def _run_row(row: RunRow) -> tuple[object, ...]:
    share = "" if row.progress is None else f" {row.progress:.0%}"
    return (
        row.run_id[:8],
        row.name,
        cell(row.state, STATE_STYLES.get(row.state, "")),
        "" if row.step is None else f"{row.step}/{row.max_steps or 0}{share}",
        _figure(row.loss),
        _figure(row.best_eval_loss),
        _figure(row.learning_rate),
        row.method or "",
        age((utc_now() - row.started).total_seconds()) if row.started else "",
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
@click.option("--by", multiple=True, metavar="NAME", help="Only requests of NAME.")
@click.option("--about", multiple=True, metavar="NAME", help="Only about this parameter or command.")
@click.option("--answer", multiple=True, type=click.Choice(ANSWERS), help="Only with this answer.")
@click.option("--text", default="", metavar="WORDS", help="Only where all these words occur.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV for a spreadsheet.")
@common
def history(
    run: str,
    by: tuple[str, ...],
    about: tuple[str, ...],
    answer: tuple[str, ...],
    text: str,
    as_csv: bool,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """List the requests of a run with their answers, in the order in which they were made.

    --by, --about and --answer can be given more than once: then one of them is enough.
    """
    if as_csv and as_json:
        raise click.UsageError("give --csv or --json, not both")
    live = open_run(run, tracking_uri)
    everything = live.history()
    entries = matching(everything, by=by, parameters=about, answers=answer, text=text)
    if as_json:
        click.echo(history_json(live.run_id, entries))
    elif as_csv:
        click.echo(history_csv(entries), nl=False)
    elif entries:
        show(table(REQUEST_HEADINGS, map(request_row, entries)))
    elif everything:
        say(f"None of the {len(everything)} requests matches.")
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
