"""Values of a loop's own that can be changed while it runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.surface import Param, ParamType
from ftlab_mlflow.control.wire import Scalar, is_finite, shown
from ftlab_mlflow.errors import ConfigError
from ftlab_mlflow.training.tunable import Tunable

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_TYPES: Mapping[type, ParamType] = {bool: "bool", int: "int", float: "float", str: "enum"}

T = TypeVar("T", bound=Scalar)


class LiveValue(Generic[T]):
    """A value of the loop's own. It changes at step boundaries only, inside of `LiveLoop.step`."""

    def __init__(self, value: T) -> None:
        self._value = value

    @property
    def value(self) -> T:
        """The value in force."""
        return self._value


def own_tunable(
    name: str,
    held: LiveValue[Any],
    low: float | None,
    high: float | None,
    choices: tuple[str, ...],
    help: str,
) -> Tunable:
    """The tunable of a held value, which is its default until then.

    Raises:
        ConfigError: The name is none, or the default does not fit.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == tags.HAND_COMMAND:
        raise ConfigError(
            f"a tunable's name is letters, digits and _, and not {tags.HAND_COMMAND!r}, got {shown(name)}"
        )
    default = held.value
    kind = _TYPES.get(type(default))
    if kind is None:
        raise ConfigError(f"{name}: the default must be a float, an int, a bool or a text, got {default!r}")
    if (kind == "enum") != bool(choices):
        raise ConfigError(f"{name}: a text needs choices, and only a text has them")
    if len(set(choices)) < len(choices) or not all(isinstance(c, str) and c for c in choices):
        raise ConfigError(f"{name}: choices must be different texts, got {choices!r}")
    bounds = [bound for bound in (low, high) if bound is not None]
    if bounds and kind not in ("int", "float"):
        raise ConfigError(f"{name}: min and max are for numbers")
    if not all(map(is_finite, bounds)) or bounds != sorted(bounds):
        raise ConfigError(f"{name}: min and max must be finite and in order, got {low!r} and {high!r}")
    if problem := Param(kind, default, default, low, high, choices).problem(default):
        raise ConfigError(f"{name}: the default {problem[1]}")

    def put(value: Scalar) -> None:
        held._value = type(default)(value)  # a float may be asked for as 1

    return Tunable(
        name=name,
        type=kind,
        help=help,
        read=lambda: held.value,
        apply=put,
        capture=lambda: held.value,
        restore=put,
        asked=default,
        min=low,
        max=high,
        choices=choices,
    )
