"""`set`, the commands and `cancel`: what is asked of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import click

from ftlab_mlflow.cli.opening import open_run
from ftlab_mlflow.cli.options import ASSIGNMENT, DURATION, MOMENT, common, run_argument
from ftlab_mlflow.cli.output import emit, say
from ftlab_mlflow.control.client import SentUpdate
from ftlab_mlflow.control.view import ack_document, outcome_text, update_text
from ftlab_mlflow.control.wire import Scalar

_F = TypeVar("_F", bound=Callable[..., Any])
Assignments = tuple[tuple[str, str], ...]

_WAIT_S = 30.0


def _asking(command: _F) -> _F:
    """The options of every verb that asks a run for something."""
    for option in (
        click.option(
            "--timeout", type=DURATION, metavar="TIME", help="With --wait: at most so long.  [default: 30s]"
        ),
        click.option(
            "--wait", is_flag=True, help="Wait for the answer; exit 1 if rejected, 3 if none comes."
        ),
        click.option("--reason", metavar="TEXT", help="Why, for the history."),
    ):
        command = option(command)
    return common(command)


def _due(command: _F) -> _F:
    """The option of every verb that can be asked for ahead of time."""
    return click.option(
        "--at-step", type=click.IntRange(min=0), metavar="N", help="Not before N optimizer steps are done."
    )(command)


@click.command("set")
@click.argument("run")
@click.argument("values", nargs=-1, type=ASSIGNMENT, metavar="NAME=VALUE...")
@click.option(
    "--expect",
    multiple=True,
    type=ASSIGNMENT,
    metavar="NAME=VALUE",
    help="Only if this is the value last asked for; can be given more than once.",
)
@click.option("--expires", type=MOMENT, metavar="TIME", help="Not later than in 10m, or at an ISO 8601 time.")
@_due
@_asking
def set_(
    run: str,
    values: Assignments,
    expect: Assignments,
    expires: datetime | None,
    at_step: int | None,
    reason: str | None,
    wait: bool,
    timeout: float | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Change parameters of RUN while it trains: all of them at one step, or none.

    `ftlab status` lists the parameters with their bounds.
    """
    if not values:
        hint = f": ftlab set latest {run}" if "=" in run else " such as learning_rate=5e-5"
        raise click.UsageError(f"give the run and at least one NAME=VALUE{hint}")
    waited = _wait_s(wait, timeout)
    texts, expected = unique("", values), unique("--expect ", expect)
    live = open_run(run, tracking_uri)
    surface = live.surface()
    sent = live.update(
        surface.read(texts),
        reason=reason,
        expect=surface.read(expected),
        at_step=at_step,
        expires=expires,
    )
    _finish(sent, waited, as_json)


def unique(option: str, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Texts by name. Raises: click.UsageError: a name is given twice."""
    texts: dict[str, str] = {}
    for name, text in pairs:
        if name in texts:
            raise click.UsageError(f"{option}{name} is given twice")
        texts[name] = text
    return texts


@click.command()
@run_argument
@_due
@_asking
def pause(run: str, **options: Any) -> None:
    """Hold a training at its next step. While it is paused, everything else is still served."""
    _command(run, "pause", **options)


@click.command()
@run_argument
@_due
@_asking
def resume(run: str, **options: Any) -> None:
    """Let a paused training go on."""
    _command(run, "resume", **options)


@click.command()
@run_argument
@click.option("--save/--no-save", default=True, show_default=True, help="Write a checkpoint first.")
@_due
@_asking
def stop(run: str, save: bool, **options: Any) -> None:
    """End a training at its next step. It is answered when the training has ended."""
    _command(run, "stop", {"save": save}, **options)


@click.command()
@run_argument
@_due
@_asking
def checkpoint(run: str, **options: Any) -> None:
    """Write a checkpoint now. The answer has its path."""
    _command(run, "checkpoint", **options)


@click.command()
@run_argument
@_due
@_asking
def evaluate(run: str, **options: Any) -> None:
    """Evaluate now. The answer has the metrics."""
    _command(run, "evaluate", **options)


@click.command()
@run_argument
@click.option("--checkpoint", metavar="NAME", help="A directory such as checkpoint-500.  [default: the last]")
@_due
@_asking
def rollback(run: str, checkpoint: str | None, **options: Any) -> None:
    """Go back to a checkpoint: weights, optimizer, schedule, random state, data.

    What was asked for since stays in force. Later checkpoints are set aside.
    """
    _command(run, "rollback", {"checkpoint": checkpoint} if checkpoint else None, **options)


@click.command()
@click.argument("run")
@click.argument("id")
@_asking
def cancel(run: str, id: str, **options: Any) -> None:
    """Withdraw the request ID of RUN, if it is still pending. `ftlab status` lists those."""
    _command(run, "cancel", {"id": id}, at_step=None, **options)


def _command(
    run: str,
    name: str,
    args: Mapping[str, Scalar] | None = None,
    *,
    at_step: int | None,
    reason: str | None,
    wait: bool,
    timeout: float | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    waited = _wait_s(wait, timeout)
    sent = open_run(run, tracking_uri).command(name, reason=reason, at_step=at_step, **(args or {}))
    _finish(sent, waited, as_json)


def _wait_s(wait: bool, timeout: float | None) -> float | None:
    if timeout is not None and not wait:
        raise click.UsageError("--timeout is for --wait: give both")
    return (timeout or _WAIT_S) if wait else None


def _finish(sent: SentUpdate, wait_s: float | None, as_json: bool) -> None:
    run_id, what = sent.run.run_id, update_text(sent.update)
    # On stderr where stdout is for the answer: whoever is interrupted while waiting needs the id.
    say(f"Sent {sent.id} to run {run_id[:8]}: {what}", err=as_json or wait_s is not None)
    ack = None if wait_s is None else sent.wait(wait_s)
    if as_json:
        emit({"run_id": run_id, "id": sent.id, "answer": ack_document(ack) if ack else None})
    elif ack is None:
        say(f"Not waited for: {sent.run.why_silent()}.")
        say(f"`ftlab history {run_id}` shows the answer; to withdraw it: ftlab cancel {run_id} {sent.id}")
    else:
        say(f"Applied at step {ack.step}: {outcome_text(ack) or what}")
