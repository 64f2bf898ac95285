"""What a demo shows at its end: read from the run's tags and metrics, not from memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftlab_mlflow.control.client import LiveRun
    from ftlab_mlflow.control.ledger import Entry
    from ftlab_mlflow.control.store import Point

_WINDOW = 5
"""Logged losses that are averaged before and after a change."""


def document(run: LiveRun, uri: str) -> dict[str, Any]:
    """Every request with its answer, and what each change did."""
    history = run.history()
    losses, rates = run.metric_history("loss"), run.metric_history("learning_rate")
    effects = [
        {
            "request": entry.id,
            "step": entry.ack.step,
            "loss_before": _mean([p for p in losses if p.step <= entry.ack.step][-_WINDOW:]),
            "loss_after": _mean([p for p in losses if p.step > entry.ack.step][:_WINDOW]),
            "learning_rate_before": _mean([p for p in rates if p.step <= entry.ack.step][-1:]),
            "learning_rate_after": _mean([p for p in rates if p.step > entry.ack.step][:1]),
            "learning_rate_at_end": _mean(rates[-1:]),
        }
        for entry in history
        if entry.ack and entry.ack.changes
    ]
    return {
        "run_id": run.run_id,
        "tracking_uri": uri,
        "state": run.status().state,
        "requests": [_row(entry) for entry in history],
        "effects": effects,
    }


def _row(entry: Entry) -> dict[str, Any]:
    from ftlab_mlflow.control.wire import shown_value

    update, ack = entry.update, entry.ack
    asked = update.command or ", ".join(f"{k}={v}" for k, v in (update.set or {}).items()) if update else "?"
    answer = "pending"
    if ack:
        parts = [f"{k} {shown_value(a)} → {shown_value(b)}" for k, (a, b) in ack.changes.items()]
        parts += [f"{ack.code}: {k} {text}" for k, text in ack.errors.items()]
        if "metrics" in ack.result:
            parts.append(f"eval_loss {ack.result['metrics'].get('eval_loss'):.4g}")
        answer = "; ".join(parts) or "done"
    return {
        "step": ack.step if ack else None,
        "request": asked,
        "status": ack.status if ack else "pending",
        "answer": answer,
        "reason": update.reason if update else None,
    }


def _mean(points: Sequence[Point]) -> float | None:
    return sum(point.value for point in points) / len(points) if points else None


def show(report: dict[str, Any]) -> None:
    """Prints a `document` as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    requests = Table(title="Every request and its answer (from the run's tags)", title_justify="left")
    for heading in ("step", "request", "status", "answer"):
        requests.add_column(heading, overflow="fold")
    for row in report["requests"]:
        requests.add_row(str(row["step"]), row["request"], row["status"], row["answer"])
    console.print(requests)

    table = Table(title="Before and after (from the run's metrics)", title_justify="left")
    for heading in ("step", "loss before", "loss after", "rate before", "rate after", "rate at end"):
        table.add_column(heading)
    for effect in report["effects"]:
        values = [effect[key] for key in effect if key not in ("request", "step")]
        cells = ["–" if value is None else f"{value:.4g}" for value in values]
        table.add_row(str(effect["step"]), *cells)
    console.print(table)
    console.print(f"Loss: mean of {_WINDOW} logged values. Run {report['run_id']} is {report['state']}.")
