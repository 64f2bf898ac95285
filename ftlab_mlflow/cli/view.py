"""A run and its requests as the command line shows them: read once from the tags and last metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Entry, Ledger
from ftlab_mlflow.control.messages import Ack, Status, Update
from ftlab_mlflow.control.store import RunData
from ftlab_mlflow.control.surface import Surface
from ftlab_mlflow.control.wire import shown, shown_value, utc_now
from ftlab_mlflow.errors import MessageError, describe


@dataclass(frozen=True)
class RunView:
    """One run at one moment.

    Attributes:
        status, surface: None where the tag is missing or cannot be read.
        now: When it was read.
    """

    data: RunData
    status: Status | None
    surface: Surface | None
    entries: tuple[Entry, ...]
    now: datetime

    @staticmethod
    def of(data: RunData) -> RunView:
        """Reads a run. Total: what cannot be read is left out."""
        return RunView(
            data=data,
            status=_read(data.tags, tags.STATUS, Status.decode),
            surface=_read(data.tags, tags.SURFACE, Surface.decode),
            entries=Ledger.read(data.tags).entries,
            now=utc_now(),
        )

    @property
    def state(self) -> str:
        """The trainer's state; `lost` when its heartbeat stopped, `unreadable` without a status."""
        if self.status is None:
            return "unreadable"
        return "lost" if self.status.is_lost(self.now) else self.status.state

    @property
    def has_ended(self) -> bool:
        """Whether the training is over."""
        return self.status is not None and self.status.is_final

    @property
    def progress(self) -> float | None:
        """Share of the optimizer steps that are done, from 0 to 1."""
        if self.status is None or not self.status.max_steps:
            return None
        return min(1.0, self.status.step / self.status.max_steps)

    @property
    def loss(self) -> float | None:
        """The last logged training loss; the mean of the whole training where only that was logged."""
        return self.data.metrics.get("loss", self.data.metrics.get("train_loss"))

    @property
    def learning_rate(self) -> float | None:
        """The rate in force; the last logged one where it cannot be changed."""
        if self.surface and (param := self.surface.params.get("learning_rate")):
            return float(param.value)
        return self.data.metrics.get("learning_rate")

    @property
    def heartbeat_age_s(self) -> float | None:
        """Seconds since the trainer last wrote its status."""
        return None if self.status is None else (self.now - self.status.at).total_seconds()

    @property
    def pending(self) -> tuple[Entry, ...]:
        """Requests without an answer, in order."""
        return tuple(entry for entry in self.entries if not entry.answered)

    def summary(self) -> dict[str, Any]:
        """The run in one flat JSON object."""
        status = self.status
        return {
            "run_id": self.data.run_id,
            "name": self.data.name,
            "state": self.state,
            "step": status and status.step,
            "max_steps": status and status.max_steps,
            "progress": self.progress,
            "epoch": status and status.epoch,
            "loss": self.loss,
            "learning_rate": self.learning_rate,
            "method": status and status.method,
            "started": self.data.started,
            "heartbeat": status and status.at,
            "error": status and status.error,
            "mlflow_status": self.data.status,
        }


def _read(run_tags: Mapping[str, str], key: str, decode: Any) -> Any:
    try:
        return decode(run_tags[key]) if key in run_tags else None
    except MessageError:
        return None


def steps_text(view: RunView) -> str:
    """Progress as `130/1000 13%`."""
    if view.status is None:
        return ""
    share = "" if view.progress is None else f" {view.progress:.0%}"
    return f"{view.status.step}/{view.status.max_steps}{share}"


def entry_document(entry: Entry) -> dict[str, Any]:
    """A request with its answer in one JSON object."""
    update = entry.update
    return {
        "id": entry.id,
        "at": update and update.at,
        "by": update and update.by,
        "via": update and update.via,
        "reason": update and update.reason,
        "set": update and update.set,
        "command": update and update.command,
        "args": update and dict(update.args),
        "expect": update and dict(update.expect),
        "at_step": update and update.at_step,
        "expires": update and update.expires,
        "unreadable": describe(entry.error.errors) if entry.error else None,
        "pending": not entry.answered,
        "answer": ack_document(entry.ack) if entry.ack else None,
    }


def ack_document(ack: Ack) -> dict[str, Any]:
    """An answer in one JSON object."""
    return {
        "status": ack.status,
        "code": ack.code,
        "step": ack.step,
        "at": ack.at,
        "session": ack.session,
        "changes": dict(ack.changes),
        "errors": dict(ack.errors),
        "result": dict(ack.result),
    }


def request_text(entry: Entry) -> str:
    """What was asked for, on one line."""
    return f"unreadable: {entry.error}" if entry.update is None else update_text(entry.update)


def reasoned_text(entry: Entry) -> str:
    """What was asked for and why, on one line."""
    reason = entry.update.reason if entry.update else None
    return f"{request_text(entry)} ({reason})" if reason else request_text(entry)


def update_text(update: Update) -> str:
    """What a request asks for, on one line."""
    values = update.args if update.set is None else update.set
    parts = [update.command or "", *_assigned(values)]
    if update.expect:
        parts.append(f"(if {' '.join(_assigned(update.expect))})")
    if update.at_step is not None:
        parts.append(f"(from step {update.at_step})")
    return " ".join(part for part in parts if part)


def _assigned(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value if isinstance(value, str) else shown(value)}" for name, value in values.items()]


def answer_text(entry: Entry) -> str:
    """The answer in a word: `applied`, the code of a rejection, `cancelled`, `pending`."""
    if not entry.answered:
        return "pending"
    return "unreadable" if entry.ack is None else entry.ack.code or entry.ack.status


def outcome_text(ack: Ack | None) -> str:
    """What came of a request: old → new by parameter, what a command produced, or what was wrong."""
    if ack is None:
        return ""
    parts = [f"{name} {shown_value(old)} → {shown_value(new)}" for name, (old, new) in ack.changes.items()]
    parts += [f"{name}: {text}" for name, text in ack.errors.items()]
    return "; ".join(parts + _results(ack.result))


def _results(result: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in result.items():
        if isinstance(value, Mapping):
            found += _results(value)
        else:
            found.append(f"{name} {value if isinstance(value, str) else shown_value(value)}")
    return found
