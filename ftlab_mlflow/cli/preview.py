"""`preview`: what a change of the learning rate would do."""

from __future__ import annotations

from dataclasses import asdict

import click

from ftlab_mlflow.cli.change import Assignments, unique
from ftlab_mlflow.cli.opening import open_run
from ftlab_mlflow.cli.options import ASSIGNMENT, common
from ftlab_mlflow.cli.output import emit, say, show, table
from ftlab_mlflow.control.preview import Curve
from ftlab_mlflow.control.preview import preview as preview_of

_NAMES = ("learning_rate", "lr_schedule")


@click.command()
@click.argument("run")
@click.argument("values", nargs=-1, type=ASSIGNMENT, metavar="NAME=VALUE...")
@click.option("--at-step", type=click.IntRange(min=0), metavar="N", help="As if it waited for step N.")
@common
def preview(
    run: str, values: Assignments, at_step: int | None, tracking_uri: str | None, as_json: bool
) -> None:
    """Show the learning rate over the rest of RUN: as planned, and with a change. Nothing is sent.

    NAME is learning_rate or lr_schedule, or both. Without a NAME=VALUE: today's plan alone.
    """
    texts = unique("", values)
    if others := ", ".join(sorted(set(texts) - set(_NAMES))):
        raise click.UsageError(f"a preview is of {' and '.join(_NAMES)} only, not of {others}")
    live = open_run(run, tracking_uri)
    surface = live.surface()
    change = surface.read(texts)
    seen = preview_of(surface, **change, at_step=at_step)  # type: ignore[arg-type]  # it checks them itself
    curves = {"now": seen.today} | ({"changed": seen.changed} if change else {})
    if as_json:
        documents = {name: curve and asdict(curve) for name, curve in curves.items()}
        emit({"run_id": live.run_id, "change": change, **documents, "reason": seen.reason or None})
        return
    steps = sorted({step for curve in curves.values() if curve for step in curve.steps})
    if steps:
        rows = [(step, *(_rate(curve, step) for curve in curves.values())) for step in steps]
        show(table(("after step>", *(f"{name}>" for name in curves)), rows))
    if seen.reason:
        say(f"Not foreseen: {seen.reason}.")


def _rate(curve: Curve | None, step: int) -> str:
    return f"{curve.at(step):.6g}" if curve else "?"
