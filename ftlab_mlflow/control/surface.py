"""The surface: what can be changed in a run now, and whether a request fits it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ftlab_mlflow.control import wire
from ftlab_mlflow.control.messages import COMMANDS, VERSION, Code, Update, one_of, versioned
from ftlab_mlflow.control.plan import Plan
from ftlab_mlflow.control.wire import Scalar, shown
from ftlab_mlflow.errors import ConfigError, MessageError

ParamType = Literal["float", "int", "bool", "enum"]

Problem = tuple[Code, str]
"""A rejection code and a text that says what is allowed."""

MAX_TEXT = 200
"""Characters of a value that a person wrote; what is longer is no number, and is cut."""
_BOOLS = {"true": True, "false": False}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
"""Of Python's numbers those that everybody reads alike: no `1_0`, no digits of other scripts."""


@dataclass(frozen=True)
class Param:
    """One parameter on the surface.

    Attributes:
        type: `float`, `int`, `bool` or `enum`.
        value: In force now, read from where the trainer uses it.
        asked: Last asked for: the launch argument or the last applied request.
        min, max: Bounds, both included; None is unbounded.
        choices: Allowed values of an `enum`.
        help: One sentence for a person.
        plan: Of the learning rate: what its schedule will do.
    """

    type: ParamType
    value: Scalar
    asked: Scalar
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()
    help: str = ""
    plan: Plan | None = None

    def problem(self, value: object) -> Problem | None:
        """What is wrong with a new value, or None."""
        if self.type == "enum":
            allowed = ", ".join(self.choices)
            if not isinstance(value, str):
                return "wrong_type", f"must be one of {allowed}, got {shown(value)}"
            if value not in self.choices:
                return "out_of_bounds", f"must be one of {allowed}, got {shown(value)}"
            return None
        if self.type == "bool":
            if isinstance(value, bool):
                return None
            return "wrong_type", f"must be true or false, got {shown(value)}"
        kind = "a whole number" if self.type == "int" else "a finite number"
        text = f"must be {kind}{self._range()}, got {shown(value)}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "wrong_type", text
        if self.type == "int" and not isinstance(value, int):
            return "wrong_type", text
        if (
            not wire.is_finite(value)
            or (self.min is not None and value < self.min)
            or (self.max is not None and value > self.max)
        ):
            return "out_of_bounds", text
        return None

    def parse(self, text: str) -> Scalar:
        """The value that a person wrote: `5e-5`, `8`, `true`, `hold`.

        Raises:
            ConfigError: It is no such value, or not allowed; the text is that of `problem`.
        """
        value = read_text(text, self)
        if problem := self.problem(value):
            raise ConfigError(problem[1])
        return value

    def _range(self) -> str:
        low = "" if self.min is None else f" from {self.min:g}"
        return low + ("" if self.max is None else f" to {self.max:g}")

    def encode(self) -> dict[str, Any]:
        """The parameter as JSON values."""
        value = {"type": self.type, "value": self.value, "asked": self.asked}
        optional = {
            "min": self.min,
            "max": self.max,
            "choices": list(self.choices) or None,
            "help": self.help or None,
            "plan": self.plan and self.plan.encode(),
        }
        return value | {k: v for k, v in optional.items() if v is not None}

    @staticmethod
    def decode(value: object) -> Param:
        """Raises: ValueError: it is no parameter."""
        fields = wire.Fields(wire.mapping(value))
        param = Param(
            type=fields.take("type", one_of(get_args(ParamType)), required=True),
            value=fields.take("value", wire.scalar, required=True),
            asked=fields.take("asked", wire.scalar, required=True),
            min=fields.take("min", wire.number),
            max=fields.take("max", wire.number),
            choices=fields.take("choices", _texts, ()),
            help=fields.take("help", wire.text, ""),
            plan=fields.take("plan", Plan.decode),
        )
        for name, text in fields.errors.items():
            raise ValueError(f"{name} {text}")
        return param


def read_text(text: str, param: Param | None) -> Scalar:
    """A value that a person wrote, read by the parameter's type; text that does not fit stays text.

    What stays text is refused by the check of the parameter, which says what is allowed.

    Args:
        param: None if the run has no such parameter.
    """
    text = text.strip()
    if len(text) > MAX_TEXT or (param is not None and param.type == "enum"):
        return text[:MAX_TEXT]
    if text.lower() in _BOOLS:
        return _BOOLS[text.lower()]
    if not _NUMBER.fullmatch(text):
        return text
    try:
        value = json.loads(text) if param is None or param.type == "int" else float(text)
    except ValueError:  # a number to Python, none to JSON
        return text
    return value if math.isfinite(value) else text


def _without(key: str, params: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {k: v for k, v in param.items() if k != key} for name, param in params.items()}


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"must be a list of strings, got {shown(value)}")
    return tuple(value)


@dataclass(frozen=True)
class Surface:
    """What can be changed now: parameters and commands.

    Attributes:
        unsupported: Why a known parameter or command is not offered, by name.
    """

    params: Mapping[str, Param]
    commands: tuple[str, ...]
    unsupported: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> str:
        """Leaves out what a tag could not hold: first the plan, then the reasons, last the help texts."""
        params = {name: param.encode() for name, param in self.params.items()}
        message = {"v": VERSION, "params": params, "commands": list(self.commands)}
        unplanned = {"params": _without("plan", params)}
        reasons = {"unsupported": dict(self.unsupported)} if self.unsupported else {}
        for longer in (message | reasons, message | unplanned | reasons, message | unplanned):
            try:
                return wire.dump_object(longer)
            except MessageError:
                continue
        return wire.dump_object(message | {"params": _without("help", unplanned["params"])})

    @staticmethod
    def decode(text: str) -> Surface:
        """Raises: MessageError: ``invalid`` or ``unsupported_version``."""
        fields = wire.Fields(versioned(text))
        surface = Surface(
            params=fields.take("params", _params, required=True),
            commands=fields.take("commands", _texts, required=True),
            unsupported=fields.take("unsupported", _reasons, {}),
        )
        fields.raise_if_wrong()
        return surface

    def read(self, texts: Mapping[str, str]) -> dict[str, Scalar]:
        """Values that a person wrote, by parameter; `problems` says which of them are not allowed."""
        return {name: read_text(text, self.params.get(name)) for name, text in texts.items()}

    def problems(self, update: Update) -> tuple[Code, dict[str, str]] | None:
        """What is wrong with a request, as a code and texts by parameter, or None."""
        found: dict[str, Problem] = {}
        for name, value in (update.set or {}).items():
            if problem := self._problem(name, value):
                found[name] = problem
        for name in update.expect:
            if name not in found and name not in self.params:
                found[name] = self._missing(name)
        if update.command is not None and (problem := self._command_problem(update)):
            found["command"] = problem
        if not found:
            stale = {
                name: f"expected {shown(value)}, but {shown(self.params[name].asked)} was asked for"
                for name, value in update.expect.items()
                if not same_value(value, self.params[name].asked)
            }
            return ("stale", stale) if stale else None
        codes = [code for code, _ in found.values()]
        return codes[0], {name: text for name, (_, text) in found.items()}

    def _problem(self, name: str, value: object) -> Problem | None:
        param = self.params.get(name)
        return param.problem(value) if param else self._missing(name)

    def _missing(self, name: str) -> Problem:
        if name in self.unsupported:
            return "not_supported", self.unsupported[name]
        return "unknown_parameter", f"is no parameter of this run; it has {', '.join(self.params) or 'none'}"

    def _command_problem(self, update: Update) -> Problem | None:
        command = update.command or ""
        offered = f"this run takes {', '.join(self.commands) or 'no command'}"
        if command not in COMMANDS:
            return "unknown_command", f"{shown(command)} is no command; {offered}"
        if command not in self.commands:
            return "not_supported", self.unsupported.get(command, f"{command}: {offered}")
        allowed = COMMANDS[command]
        for name, value in update.args.items():
            if name not in allowed:
                known = ", ".join(allowed) or "none"
                return "invalid", f"{command} has no argument {shown(name)}; it has {known}"
            if not isinstance(value, allowed[name]):
                kind = "true or false" if allowed[name] is bool else "a string"
                return "wrong_type", f"{name} of {command} must be {kind}, got {shown(value)}"
        if command == "cancel" and "id" not in update.args:
            return "invalid", "cancel needs the id of a pending request"
        return None


def _reasons(value: object) -> dict[str, str]:
    return {name: wire.text(reason) for name, reason in wire.mapping(value).items()}


def _params(value: object) -> dict[str, Param]:
    params = {}
    for name, param in wire.mapping(value).items():
        try:
            params[name] = Param.decode(param)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return params


def same_value(a: object, b: object) -> bool:
    """Whether two values are the same to the protocol: numbers within a relative 1e-9."""
    if not wire.is_finite(a) or not wire.is_finite(b):
        return type(a) is type(b) and a == b
    return math.isclose(a, b, rel_tol=1e-9)  # type: ignore[arg-type]
