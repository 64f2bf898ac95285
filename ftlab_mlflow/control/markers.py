"""The applied requests of a run as marks on a chart: where, what, by whom, why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from ftlab_mlflow.control.ledger import Entry
from ftlab_mlflow.control.messages import Ack, Update
from ftlab_mlflow.control.view import assigned
from ftlab_mlflow.control.wire import one_line, shown_value


@dataclass(frozen=True)
class Marker:
    """One applied request. All texts are plain, on one line, and may hold anything: whoever renders, escapes.

    Attributes:
        step: Optimizer steps done when it was applied; step + 1 is the first with the new values.
        nth: 0 for the first that was applied at its step, then 1, 2, …
        time: When it was applied.
        command: The command's name; None where parameters were changed.
        changes: Parameter, old and new value.
        text: The whole of it: `learning_rate 8.7e-05 → 5e-05; weight_decay 0 → 0.01`, `stop save=true`.
    """

    id: str
    step: int
    nth: int
    time: datetime
    command: str | None
    changes: tuple[tuple[str, str, str], ...]
    text: str
    by: str
    via: str
    reason: str


def markers(entries: Iterable[Entry]) -> tuple[Marker, ...]:
    """A mark for every applied request, in the order of application.

    A request that is applied again when a run is resumed, or rolled back, is still one request with one mark.
    """
    applied = [(e.id, e.update, e.ack) for e in entries if e.update and e.ack and e.ack.status == "applied"]
    applied.sort(key=lambda item: (item[2].at, item[0]))
    at_step: Counter[int] = Counter()
    made = []
    for request_id, update, ack in applied:
        made.append(_marker(request_id, update, ack, at_step[ack.step]))
        at_step[ack.step] += 1
    return tuple(made)


def turns(marks: Iterable[Marker]) -> list[tuple[int, int]]:
    """Of each rollback the step that it went back to, and when, in ms since the epoch."""
    return [(mark.step, round(mark.time.timestamp() * 1000)) for mark in marks if mark.command == "rollback"]


def _marker(request_id: str, update: Update, ack: Ack, nth: int) -> Marker:
    changes = tuple(
        (one_line(name), one_line(shown_value(old)), one_line(shown_value(new)))
        for name, (old, new) in ack.changes.items()
    )
    command = None if update.command is None else one_line(update.command)
    asked = "" if command is None else " ".join([command, *assigned(update.args)])
    said = [asked] if asked else []
    said += [f"{name} {old} → {new}" for name, old, new in changes]
    return Marker(
        id=request_id,
        step=ack.step,
        nth=nth,
        time=ack.at,
        command=command,
        changes=changes,
        text=one_line("; ".join(said) or " ".join(assigned(update.set or {}))),
        by=one_line(update.by or ""),
        via=one_line(update.via or ""),
        reason=one_line(update.reason or ""),
    )
