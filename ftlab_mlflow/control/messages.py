"""The messages of the protocol: frozen values that validate, encode and decode themselves.

`docs/protocol.md` says what each field means. ``decode`` is total: any text gives a message or a
`MessageError`. A request with an unknown key is an error; in what a trainer writes (acks, surface, status)
unknown keys are ignored, so that an older client can read a newer trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from ftlab_mlflow.control import wire
from ftlab_mlflow.control.wire import Scalar, shown
from ftlab_mlflow.errors import MessageError

VERSION = 1

COMMANDS: Mapping[str, Mapping[str, type]] = {
    "pause": {},
    "resume": {},
    "stop": {"save": bool},
    "checkpoint": {},
    "evaluate": {},
    "rollback": {"checkpoint": str},
    "cancel": {"id": str},
}
"""Every command of the protocol with the types of its arguments."""

State = Literal["starting", "running", "paused", "stopping", "finished", "stopped", "failed"]
FINAL_STATES: tuple[State, ...] = ("finished", "stopped", "failed")
GOING_ON: tuple[State, ...] = ("starting", "running", "paused", "stopping")

AckStatus = Literal["applied", "rejected", "cancelled"]
Code = Literal[
    "invalid",
    "unsupported_version",
    "unknown_parameter",
    "unknown_command",
    "wrong_type",
    "out_of_bounds",
    "not_supported",
    "stale",
    "expired",
    "failed",
]
"""Why a request was rejected."""


def versioned(text: str) -> dict[str, Any]:
    """A tag's value as an object of this version of the protocol, or a `MessageError`."""
    value = wire.load_object(text)
    version = value.get("v")
    if version is None:
        raise MessageError("invalid", {"v": "is required"})
    if isinstance(version, bool) or version != VERSION:
        raise MessageError("unsupported_version", {"v": f"must be {VERSION}, got {shown(version)}"})
    return value


def _present(message: Mapping[str, Any]) -> str:
    return wire.dump_object({k: v for k, v in message.items() if v is not None})


def one_of(choices: tuple[str, ...]) -> Callable[[object], str]:
    """A check that a value is one of these strings."""

    def check(value: object) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, got {shown(value)}")
        return str(value)

    return check


@dataclass(frozen=True)
class Update:
    """One request: either `set` (parameters with their new values) or a `command`.

    Attributes:
        set: New value by parameter name.
        command: A name from `COMMANDS`.
        args: Arguments of the command.
        expect: The value last asked for, by parameter; the request is `stale` where it differs.
        at_step: Not before this many optimizer steps are done.
        expires: Rejected as `expired` if not applied by then.
        at: When it was made. by: Who made it. via: With what. reason: Why.
    """

    at: datetime
    set: Mapping[str, Any] | None = None
    command: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    expect: Mapping[str, Scalar] = field(default_factory=dict)
    at_step: int | None = None
    expires: datetime | None = None
    by: str | None = None
    via: str | None = None
    reason: str | None = None

    def encode(self) -> str:
        """Raises: MessageError: it is longer than a tag can hold."""
        return _present(
            {
                "v": VERSION,
                "set": self.set,
                "command": self.command,
                "args": dict(self.args) or None,
                "expect": dict(self.expect) or None,
                "at_step": self.at_step,
                "expires": self.expires and wire.format_time(self.expires),
                "by": self.by,
                "via": self.via,
                "at": wire.format_time(self.at),
                "reason": self.reason,
            }
        )

    @staticmethod
    def decode(text: str) -> Update:
        """Raises: MessageError: ``invalid`` or ``unsupported_version``."""
        value = versioned(text)
        fields = wire.Fields(value)
        update = Update(
            at=fields.take("at", wire.parse_time, required=True),
            set=fields.take("set", _parameters),
            command=fields.take("command", wire.text),
            args=fields.take("args", wire.mapping, {}),
            expect=fields.take("expect", _expectations, {}),
            at_step=fields.take("at_step", wire.whole),
            expires=fields.take("expires", wire.parse_time),
            by=fields.take("by", wire.text),
            via=fields.take("via", wire.text),
            reason=fields.take("reason", wire.text),
        )
        fields.only(
            ("v", "set", "command", "args", "expect", "at_step", "expires", "by", "via", "at", "reason")
        )
        if ("set" in value) == ("command" in value):
            fields.errors["message"] = "must have exactly one of set and command"
        if "args" in value and "command" not in value:
            fields.errors["args"] = "are for a command"
        fields.raise_if_wrong()
        return update


def _parameters(value: object) -> dict[str, Any]:
    parameters = wire.mapping(value)
    if not parameters:
        raise ValueError("must name at least one parameter")
    return parameters


def _expectations(value: object) -> dict[str, Scalar]:
    expected = wire.mapping(value)
    for name, scalar in expected.items():
        try:
            wire.scalar(scalar)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return expected


@dataclass(frozen=True)
class Ack:
    """What became of a request.

    Attributes:
        status: `applied`, `rejected` or `cancelled`.
        step: Optimizer steps finished when it took effect; the next step is the first that uses it.
        at: When. Strictly increasing over the acks of a run: it is the order of application.
        session: The training session that answered.
        changes: (old, new) by parameter, read back from where the trainer uses it.
        code: Why it was rejected. errors: What was wrong, by parameter.
        result: What a command produced.
    """

    status: AckStatus
    step: int
    at: datetime
    session: str
    changes: Mapping[str, tuple[Scalar, Scalar]] = field(default_factory=dict)
    code: Code | None = None
    errors: Mapping[str, str] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> str:
        """Takes anything: texts are shortened until it fits, and what JSON cannot hold becomes text."""
        message: dict[str, Any] = {
            "v": VERSION,
            "status": self.status,
            "code": self.code,
            "step": self.step,
            "at": wire.format_time(self.at),
            "session": self.session,
            "changes": {name: [_writable(v) for v in pair] for name, pair in self.changes.items()} or None,
            "errors": _writable(self.errors) or None,
            "result": _writable(self.result) or None,
        }
        try:
            return _present(message)
        except MessageError:
            # Foreign names and texts are in here: what was asked for may be long, the answer must not be.
            # A character is at most 6 as JSON: 5 * (50 + 200) * 6 < 8,000.
            errors = list(_writable(self.errors).items())[:5]
            message["errors"] = {k[:50]: v[:200] for k, v in errors} or None
            message["result"] = {"truncated": True} if self.result else None
            return _present(message)

    @staticmethod
    def decode(text: str) -> Ack:
        """Raises: MessageError: ``invalid`` or ``unsupported_version``."""
        fields = wire.Fields(versioned(text))
        ack = Ack(
            status=fields.take("status", one_of(get_args(AckStatus)), required=True),
            step=fields.take("step", wire.whole, required=True),
            at=fields.take("at", wire.parse_time, required=True),
            session=fields.take("session", wire.text, required=True),
            changes=fields.take("changes", _changes, {}),
            code=fields.take("code", wire.text),
            errors=fields.take("errors", wire.mapping, {}),
            result=fields.take("result", wire.mapping, {}),
        )
        fields.raise_if_wrong()
        return ack


def _changes(value: object) -> dict[str, tuple[Scalar, Scalar]]:
    changes = {}
    for name, pair in wire.mapping(value).items():
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{name}: must be [old, new], got {shown(pair)}")
        changes[name] = (wire.scalar(pair[0]), wire.scalar(pair[1]))
    return changes


def _writable(value: Any) -> Any:
    """The value with what JSON cannot hold as text: an evaluation may well say loss = nan."""
    if isinstance(value, Mapping):
        return {wire.unicode(str(k)): _writable(v) for k, v in value.items()}
    if isinstance(value, int | bool) or value is None or wire.is_finite(value):
        return value
    return wire.unicode(str(value))


@dataclass(frozen=True)
class Status:
    """State, progress and heartbeat of a trainer.

    Attributes:
        step, max_steps: Optimizer steps done, and to do in all.
        epoch: Passes over the data done, with the fraction of the present one.
        at: When this was written. every_s: Seconds between two heartbeats.
        session, host, pid: Which training process this is.
        method: `sft`, `dpo`, … error: Why it failed.
    """

    state: State
    step: int
    max_steps: int
    epoch: float
    at: datetime
    every_s: float
    session: str
    host: str
    pid: int
    method: str
    error: str | None = None

    @property
    def is_final(self) -> bool:
        """Whether the training has ended."""
        return self.state in FINAL_STATES

    def is_lost(self, now: datetime) -> bool:
        """Whether the heartbeat stopped (older than three of its periods) without a final state."""
        return not self.is_final and (now - self.at).total_seconds() > 3 * self.every_s

    def encode(self) -> str:
        """Cuts the error text to what a tag can hold."""
        return wire.dump_object(
            {
                "v": VERSION,
                "state": self.state,
                "step": self.step,
                "max_steps": self.max_steps,
                "epoch": self.epoch,
                "at": wire.format_time(self.at),
                "every_s": self.every_s,
                "session": self.session,
                "host": self.host,
                "pid": self.pid,
                "method": self.method,
                "error": self.error and wire.unicode(self.error[:1000]),
            }
        )

    @staticmethod
    def decode(text: str) -> Status:
        """Raises: MessageError: ``invalid`` or ``unsupported_version``."""
        fields = wire.Fields(versioned(text))
        status = Status(
            state=fields.take("state", one_of(get_args(State)), required=True),
            step=fields.take("step", wire.whole, required=True),
            max_steps=fields.take("max_steps", wire.whole, required=True),
            epoch=fields.take("epoch", wire.number, 0.0),
            at=fields.take("at", wire.parse_time, required=True),
            every_s=fields.take("every_s", wire.number, required=True),
            session=fields.take("session", wire.text, ""),
            host=fields.take("host", wire.text, ""),
            pid=fields.take("pid", wire.whole, 0),
            method=fields.take("method", wire.text, ""),
            error=fields.take("error", _optional_text),
        )
        fields.raise_if_wrong()
        return status


def _optional_text(value: object) -> str | None:
    return None if value is None else wire.text(value)
