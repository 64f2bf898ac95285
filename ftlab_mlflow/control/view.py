"""A run and its requests as command line and dashboard show them: read once from tags and last metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeVar

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Entry, Ledger
from ftlab_mlflow.control.messages import GOING_ON, Ack, Code, Status, Update
from ftlab_mlflow.control.store import NOT_ENDED, RunData
from ftlab_mlflow.control.surface import Surface
from ftlab_mlflow.control.wire import Scalar, shown, shown_value, utc_now
from ftlab_mlflow.errors import MessageError, describe

_M = TypeVar("_M")

_MLFLOW_STATES = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}
"""MLflow's status in the words of the protocol, for a run without a trainer of ours."""


@dataclass(frozen=True)
class RunView:
    """One run at one moment.

    Attributes:
        status, surface: None where the tag is missing or cannot be read.
        unreadable: Why a tag cannot be read, by its key.
        now: When it was read.
    """

    data: RunData
    status: Status | None
    surface: Surface | None
    entries: tuple[Entry, ...]
    unreadable: Mapping[str, str]
    now: datetime

    @staticmethod
    def of(data: RunData) -> RunView:
        """Reads a run. Total: what cannot be read is left out, and said in `unreadable`."""
        unreadable: dict[str, str] = {}
        return RunView(
            data=data,
            status=_read(data.tags, tags.STATUS, Status.decode, unreadable),
            surface=_read(data.tags, tags.SURFACE, Surface.decode, unreadable),
            entries=Ledger.read(data.tags).entries,
            unreadable=unreadable,
            now=utc_now(),
        )

    @property
    def state(self) -> str:
        """The trainer's state, `lost` when its heartbeat stopped, `unreadable` if its status is.

        Of a run that no trainer of this protocol has written to: MLflow's status in the same words.
        """
        if tags.STATUS in self.unreadable:
            return "unreadable"
        if self.status is None:
            return _MLFLOW_STATES.get(self.data.status, self.data.status.lower())
        return "lost" if self.status.is_lost(self.now) else self.status.state

    @property
    def has_ended(self) -> bool:
        """Whether its trainer has said that the training is over."""
        return self.status is not None and self.status.is_final

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be expected: the trainer says so, or it is silent and MLflow says so."""
        is_silent = self.state not in GOING_ON
        return self.has_ended or (is_silent and self.data.status not in NOT_ENDED)

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
    def eta_s(self) -> float | None:
        """Seconds left: the trainer's last estimate less the time since it was logged; None unless it runs.

        None also where the estimate is used up: it is from before a pause or a restart, or was wrong.
        """
        estimate = self.data.metrics.get("eta_s")
        if estimate is None or self.state != "running":
            return None
        left = estimate + self.data.logged_at["eta_s"] / 1000 - self.now.timestamp()
        return left if math.isfinite(left) and left > 0 else None

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


def _read(
    run_tags: Mapping[str, str], key: str, decode: Callable[[str], _M], unreadable: dict[str, str]
) -> _M | None:
    try:
        return decode(run_tags[key]) if key in run_tags else None
    except MessageError as error:
        unreadable[key] = describe(error.errors)
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
    parts = [update.command or "", *assigned(values)]
    if update.expect:
        parts.append(f"(if {' '.join(assigned(update.expect))})")
    if update.at_step is not None:
        parts.append(f"(from step {update.at_step})")
    return " ".join(part for part in parts if part)


def assigned(values: Mapping[str, Any]) -> list[str]:
    """`name=value` for each, as on a command line."""
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


def age(seconds: float | None) -> str:
    """A duration in one or two figures and a unit: `8s`, `5m`, `3h`, `12d`."""
    if seconds is None:
        return ""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


# --- why nothing can be changed ----------------------------------------------------------------------


def why_closed(view: RunView) -> str | None:
    """Why the run takes no changes now, and what to do about it; None when it takes some."""
    status, surface = view.status, view.surface
    if status is not None and status.is_final:
        error = f" ({status.error})" if status.error else ""
        todo = "" if status.state == "finished" else " Resume the training to change it."
        return f"The training {_ENDED[status.state]} at step {status.step}{error}.{todo}"
    if view.unreadable:
        why = "; ".join(f"{key} cannot be read: {text}" for key, text in view.unreadable.items())
        return f"{why}. Its trainer may speak a newer version of the protocol than this program."
    if status is None or surface is None:
        if view.is_over:
            return f"The run is {view.state}, and no trainer of it ever listened."
        return (
            "Its trainer does not listen, or has not begun: add LiveControl() or attach(trainer) to the "
            "script, or start it with `ftlab train`."
        )
    if status.is_lost(view.now):
        return (
            f"No sign of its trainer: the last heartbeat was {age(view.heartbeat_age_s)} ago, and one is due "
            f"every {age(status.every_s)}. If its process is dead, resume the training to change it."
        )
    if not surface.params and not surface.commands:
        reasons = "; ".join(dict.fromkeys(surface.unsupported.values()))
        return f"The training offers nothing to change{f': {reasons}' if reasons else ''}."
    return None


_ENDED = {"finished": "has finished", "stopped": "was stopped", "failed": "failed"}


# --- the way of a request ----------------------------------------------------------------------------

REJECTIONS: Mapping[Code, str] = {
    "invalid": "the request is no valid message",
    "unsupported_version": "the request is written in another version of the protocol",
    "unknown_parameter": "the run has no such parameter",
    "unknown_command": "there is no such command",
    "wrong_type": "a value is of the wrong type",
    "out_of_bounds": "a value is outside of what is allowed",
    "not_supported": "this training cannot do it",
    "stale": "somebody else has changed it meanwhile",
    "expired": "its time was over before it could be applied",
    "failed": "it was tried and failed, and nothing of it stayed in force",
}
"""The protocol's codes of a rejection in plain words."""

Stage = Literal["sent", "seen", "waiting", "applied", "rejected", "cancelled", "answered"]


@dataclass(frozen=True)
class RequestProgress:
    """How far a request is on its way.

    Attributes:
        stage: `sent`; `seen` by the trainer; `waiting` for its step; `applied`, `rejected` or `cancelled`;
            `answered` where the answer cannot be read.
        text: The same in words, for a person.
        stale: Of a request that was rejected as stale: the value that was expected and the one that was last
            asked for now (None if it is no longer on the surface), by parameter.
    """

    stage: Stage
    text: str
    stale: Mapping[str, tuple[Scalar, Scalar | None]] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text


def progress_of(entry: Entry, view: RunView) -> RequestProgress:
    """The way of a request so far.

    The protocol has no sign that a request was seen. It is inferred: a trainer looks at the tags at least
    twice a heartbeat period, so one that has written its status half a period after the request has looked
    since. The two times are of two clocks; where these differ by seconds, so does the answer.
    """
    if not entry.answered:
        return _pending(entry, view)
    ack = entry.ack
    if ack is None:
        return RequestProgress("answered", "answered, but the answer cannot be read")
    if ack.status == "cancelled":
        return RequestProgress("cancelled", f"cancelled at step {ack.step}, before it was applied")
    outcome = outcome_text(ack)
    if ack.status == "applied":
        return RequestProgress("applied", f"applied at step {ack.step}" + (f": {outcome}" if outcome else ""))
    code = ack.code or "failed"
    text = f"rejected at step {ack.step}: {REJECTIONS.get(code, code)}"
    stale = _stale(entry, view) if code == "stale" else {}
    return RequestProgress("rejected", f"{text} ({outcome})" if outcome else text, stale)


def _stale(entry: Entry, view: RunView) -> dict[str, tuple[Scalar, Scalar | None]]:
    assert entry.ack is not None
    params = view.surface.params if view.surface else {}
    expect = entry.update.expect if entry.update else {}
    return {
        name: (expect[name], params[name].asked if name in params else None)
        for name in entry.ack.errors
        if name in expect
    }


def _pending(entry: Entry, view: RunView) -> RequestProgress:
    update, status = entry.update, view.status
    if update is None:
        return RequestProgress("sent", f"sent, but no trainer can read it ({entry.error})")
    sent = f"sent {age((view.now - update.at).total_seconds())} ago"
    if status is None:
        return RequestProgress("sent", f"{sent}; no trainer listens to this run")
    if status.is_final or status.is_lost(view.now):
        return RequestProgress("sent", f"{sent}; {_without_trainer(update, view)}")
    is_seen = (status.at - update.at).total_seconds() >= status.every_s / 2
    if update.command == "stop" and status.state == "stopping":
        return RequestProgress("seen", "under way: the training is stopping")
    if update.at_step is not None and update.at_step > status.step:
        seen = "" if is_seen else f" ({sent}, perhaps not seen yet)"
        text = f"waiting for step {update.at_step}, now at step {status.step}{seen}"
        return RequestProgress("waiting", text)
    if is_seen:
        return RequestProgress("seen", "seen: the trainer has looked since, and it is due at the next step")
    return RequestProgress("sent", f"{sent}, not seen yet")


def _without_trainer(update: Update, view: RunView) -> str:
    """What becomes of a request that no trainer takes now (`docs/protocol.md`, order and restarts)."""
    ended = "its trainer is lost" if view.state == "lost" else f"the training {_ENDED[view.state]}"
    if view.state == "finished":
        return f"{ended} without it"
    if update.command is not None:
        return f"{ended}: a command does not wait for a resume"
    until = " unless it expires before" if update.expires else ""
    return f"{ended}: applied when the training is resumed{until}"
