"""The fields of TRL's dataclasses, with values checked against their types before anything is loaded.

`TrlParser` sets what a config file says as argparse defaults, which nothing checks. Here a value from a file
and one from the command line go through the same check, and an error names where the value was given.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ftlab_mlflow.errors import ConfigError

_BOOLEANS = {
    **dict.fromkeys(("yes", "true", "t", "y", "1"), True),
    **dict.fromkeys(("no", "false", "f", "n", "0"), False),
}
_NULLS = ("none", "null")
_MINIMA = {
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "num_train_epochs": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_length": 1,
    "lora_r": 1,
    "early_stopping_patience": 1,
    "early_stopping_threshold": 0,
}
"""Below these, the trainer fails late or trains nothing."""


class _Wrong(Exception):
    """A value does not fit a type."""


@dataclass(frozen=True)
class Field:
    """One field of a dataclass.

    Attributes:
        name: Its name. hint: Its resolved type. choices: Allowed values; empty if any will do.
    """

    name: str
    hint: Any
    choices: tuple[str, ...]

    @property
    def members(self) -> tuple[Any, ...]:
        """The members of a union; of any other type, the type itself."""
        if get_origin(self.hint) in (Union, types.UnionType):
            return get_args(self.hint)
        return (self.hint,)

    @property
    def is_flag(self) -> bool:
        """Whether ``--name`` without a value means true."""
        return bool in self.members

    @property
    def is_list(self) -> bool:
        """Whether it takes several values on the command line."""
        return not self.is_nested and any(get_origin(member) in (list, tuple) for member in self.members)

    @property
    def is_nested(self) -> bool:
        """Whether it is a list of dataclasses, which only a file can hold."""
        return self.nested is not None

    @property
    def nested(self) -> Any:
        """The dataclass of which it is a list, or None."""
        found = [get_args(m)[0] for m in self.members if get_origin(m) is list]
        return next((t for t in found if dataclasses.is_dataclass(t)), None)

    def check(self, value: Any, where: str) -> Any:
        """The value in the field's type.

        Args:
            where: What an error calls the value, such as ``--learning_rate``.

        Raises:
            ConfigError: It does not fit.
        """
        try:
            checked = self._converted(value, where)
        except _Wrong:
            raise ConfigError(f"{where} must be {self._kind()}, got {shown(value)}") from None
        minimum = _MINIMA.get(self.name)
        if minimum is not None and isinstance(checked, int | float) and checked < minimum:
            raise ConfigError(f"{where} must be at least {minimum}, got {shown(value)}")
        return checked

    def _converted(self, value: Any, where: str) -> Any:
        if self.name == "resume_from_checkpoint" and str(value).lower() in ("true", "false"):
            # transformers takes true for "the last one", whatever the type says.
            return str(value).lower() == "true" or None
        if self.name == "scale_rewards" and isinstance(value, bool):
            return value  # TRL's older form of `group` and `none`, whatever the type says
        if self.choices:
            return self._choice(value)
        if self.nested is not None:
            return self._nested_values(value, where)
        may_be_null = type(None) in self.members
        if value is None and may_be_null:
            return None
        if isinstance(value, str) and may_be_null and str not in self.members and value.lower() in _NULLS:
            return None
        for member in sorted(self.members, key=_rank):
            try:
                return _as(member, value)
            except _Wrong:
                continue
        raise _Wrong

    def _choice(self, value: Any) -> Any:
        if value is None and type(None) in self.members:
            return None
        if value is False and "no" in self.choices:
            return "no"  # YAML 1.1 reads a bare `no` as false
        if isinstance(value, Enum):
            value = value.value
        if value not in self.choices:
            raise _Wrong
        return value

    def _nested_values(self, value: Any, where: str) -> list[dict[str, Any]]:
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise _Wrong
        known = fields_of([self.nested])
        return [
            {
                key: field_named(known, key, f"{where}[{i}].{key}").check(item[key], f"{where}[{i}].{key}")
                for key in item
            }
            for i, item in enumerate(value)
        ]

    def _kind(self) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.nested is not None:
            return "a list of mappings"
        kinds = [_kind(member) for member in sorted(self.members, key=_rank)]
        return " or ".join(dict.fromkeys(kinds))


def fields_of(dataclass_types: Iterable[Any]) -> dict[str, Field]:
    """The fields of dataclasses by name."""
    found = {}
    for dataclass_type in dataclass_types:
        hints = get_type_hints(dataclass_type)
        for field in dataclasses.fields(dataclass_type):
            if field.init:
                choices = _choices(hints[field.name], field.metadata.get("choices"))
                found[field.name] = Field(field.name, hints[field.name], choices)
    return found


def field_named(known: Mapping[str, Field], name: str, where: str) -> Field:
    """The field of that name.

    Raises:
        ConfigError: There is none; the text says what may have been meant.
    """
    if name in known:
        return known[name]
    close = difflib.get_close_matches(str(name), known, n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(f"{where} is unknown{meant}")


def shown(value: Any) -> str:
    """A value as an error text shows it: short, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _choices(hint: Any, listed: Iterable[Any] | None) -> tuple[str, ...]:
    if listed is not None:
        return tuple(str(choice) for choice in listed)
    for member in get_args(hint) or (hint,):
        if isinstance(member, type) and issubclass(member, Enum) and issubclass(member, str):
            return tuple(str(choice.value) for choice in member)
    return ()


def _rank(member: Any) -> int:
    """The order in which the members of a union are tried: the stricter, the earlier."""
    order = (type(None), bool, int, float, str, list, dict)
    plain = get_origin(member) or member
    return order.index(plain) if plain in order else order.index(str)


def _as(member: Any, value: Any) -> Any:
    """The value as this type.

    Raises:
        _Wrong: It is of another type.
    """
    plain = get_origin(member) or member
    if plain is type(None):
        if value is None:
            return None
    elif plain is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _BOOLEANS:
            return _BOOLEANS[value.lower()]
    elif plain in (int, float):
        return _number(value, whole=plain is int)
    elif plain is str:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(value)
    elif plain is list:
        items = value if isinstance(value, list) else [value]
        return [_as((get_args(member) or (str,))[0], item) for item in items]
    elif plain is tuple:
        kinds = get_args(member)
        if isinstance(value, list | tuple) and len(value) == len(kinds):
            return tuple(_as(kind, item) for kind, item in zip(kinds, value, strict=True))
    elif plain is dict:
        if isinstance(value, dict):
            return value
    elif plain is Literal:
        if value in get_args(member):
            return value
    else:
        return value  # a type of a library's own: its class checks it
    raise _Wrong


def _number(value: Any, *, whole: bool) -> int | float:
    if isinstance(value, str):
        # YAML 1.1 reads 5e-5 as text, and so does a command line. A whole number stays one: transformers
        # takes a `logging_steps` of 1.0 for a share of the steps.
        if re.fullmatch(r"[+-]?\d+", value.strip()):
            return int(value)
        try:
            value = float(value)
        except ValueError:
            raise _Wrong from None
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise _Wrong
    if not whole:
        return value
    if not math.isfinite(value) or value != math.floor(value):
        raise _Wrong
    return int(value)


def _kind(member: Any) -> str:
    plain = get_origin(member) or member
    if plain is list:
        return "a list of numbers" if get_args(member) == (float,) else "a list of strings"
    if plain is tuple:
        return f"{len(get_args(member))} numbers"
    if plain is Literal:
        return " or ".join(str(choice).lower() for choice in get_args(member))
    kinds = {
        type(None): "null",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a string",
        dict: "a mapping",
    }
    return kinds.get(plain, f"a {getattr(plain, '__name__', plain)}")
