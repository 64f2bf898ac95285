"""How values travel in a tag: strict JSON, UTC times, time-ordered ids, single-line text."""

from __future__ import annotations

import json
import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from ftlab_mlflow.control.tags import MAX_VALUE_LENGTH
from ftlab_mlflow.errors import MessageError

Scalar = bool | int | float | str
"""What a parameter's value can be."""


def utc_now() -> datetime:
    """The time now, in UTC, cut to whole milliseconds as it will be written."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def format_time(at: datetime) -> str:
    """ISO 8601 in UTC with milliseconds: ``2026-11-21T19:00:00.123Z``."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(value: object) -> datetime:
    """The time that an ISO 8601 text with a time zone means.

    Raises:
        ValueError: It is no such text.
    """
    hint = "must be an ISO 8601 time in UTC such as 2026-11-21T19:00:00.123Z"
    if not isinstance(value, str):
        raise ValueError(f"{hint}, got {shown(value)}")
    try:
        at = datetime.fromisoformat(value)
        if at.tzinfo is None:
            raise ValueError("no time zone")
        return at.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{hint}, got {shown(value)}") from error


_last_id = 0
_id_lock = threading.Lock()


def new_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7): sorts by time, also within one millisecond of one process."""
    global _last_id
    with _id_lock:
        # 48 bits of milliseconds, then 12 bits of the fraction of a millisecond (method 3).
        milliseconds, rest = divmod(time.time_ns(), 1_000_000)
        _last_id = stamp = max(_last_id + 1, milliseconds << 12 | rest * 4096 // 1_000_000)
    bits = (stamp >> 12) << 80 | 7 << 76 | (stamp & 0xFFF) << 64 | 2 << 62 | secrets.randbits(62)
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def shown(value: object, limit: int = 60) -> str:
    """A value as an error text shows it: short, on one line."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"a number of {value.bit_length()} bits"  # Python refuses to print a very long one
    text = str(value) if isinstance(value, float) else json.dumps(value, default=repr)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shown_value(value: Scalar) -> str:
    """A parameter's value as a log line and a table show it."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def one_line(text: str) -> str:
    """Foreign text made safe for a log line or a terminal: no control characters, no line breaks."""
    return "".join(c if c.isprintable() else " " for c in text)


def unicode(text: str) -> str:
    """Foreign text without lone surrogates, which no store takes (a file name may have some)."""
    return text.encode(errors="replace").decode()


def is_finite(value: object) -> bool:
    """Whether a value is a finite number (a bool is none; an int too long for a float is not finite)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for key, value in pairs:
        if key in keys:
            raise ValueError(f"the key {shown(key)} appears twice")
        keys[key] = value
    return keys


def load_object(text: str) -> dict[str, Any]:
    """Reads a tag's value as one JSON object. Total: any text gives a value or a `MessageError`.

    NaN and Infinity are read as numbers, so that the check of the parameter can say what it allows.

    Raises:
        MessageError: ``invalid``: too long, no JSON, a key twice, no object, text that is no Unicode.
    """
    try:
        if len(text) > MAX_VALUE_LENGTH:
            raise ValueError(f"has {len(text)} characters, at most {MAX_VALUE_LENGTH} are allowed")
        value = json.loads(text, object_pairs_hook=_unique)
        # A lone surrogate passes the parser and breaks every log, terminal and store after it.
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise MessageError("invalid", {"message": f"is no JSON: {error}"}) from error
    except RecursionError as error:
        raise MessageError("invalid", {"message": "is nested too deeply"}) from error
    except ValueError as error:
        raise MessageError("invalid", {"message": str(error)}) from error
    if not isinstance(value, dict):
        raise MessageError("invalid", {"message": f"must be a JSON object, got {shown(value)}"})
    return value


def dump_object(value: Mapping[str, Any]) -> str:
    """Writes a tag's value as compact JSON.

    Raises:
        MessageError: ``invalid``: longer than a tag can hold, or a value that JSON cannot hold.
    """
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
        text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise MessageError("invalid", {"message": f"cannot be written: {error}"}) from error
    if len(text) > MAX_VALUE_LENGTH:
        raise MessageError(
            "invalid",
            {
                "message": f"has {len(text)} characters, a tag holds {MAX_VALUE_LENGTH}: "
                "shorten the reason or change fewer parameters at once"
            },
        )
    return text


_DEEPEST = 20
"""Deeper than any document of ours: what is nested more is foreign, and cut."""


def json_text(document: Mapping[str, Any], *, indent: int | None = 2) -> str:
    """A document for people and programs as JSON, ASCII only.

    Times are as in a tag, numbers that JSON does not have are the texts that protobuf uses: ``"NaN"``, …
    """
    return json.dumps(_plain(document), indent=indent, allow_nan=False)


def _plain(value: Any, depth: int = 0) -> Any:
    if isinstance(value, dict | list) and depth > _DEEPEST:
        return shown(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


class Fields:
    """Takes a decoded object apart, field by field, and gathers what is wrong with it."""

    def __init__(self, value: Mapping[str, Any]) -> None:
        self._value = value
        self.errors: dict[str, str] = {}

    def take(
        self, key: str, check: Callable[[Any], Any], default: Any = None, *, required: bool = False
    ) -> Any:
        """The field's value as ``check`` returns it; its ValueError is what is wrong with the field."""
        if key not in self._value:
            if required:
                self.errors[key] = "is required"
            return default
        try:
            return check(self._value[key])
        except ValueError as error:
            self.errors[key] = str(error)
            return default

    def only(self, allowed: tuple[str, ...]) -> None:
        """Notes every key that is not allowed."""
        for key in self._value:
            if key not in allowed:
                self.errors[key] = f"unknown key; allowed are {', '.join(allowed)}"

    def raise_if_wrong(self) -> None:
        """Raises:
        MessageError: ``invalid``, with everything noted so far.
        """
        if self.errors:
            raise MessageError("invalid", self.errors)


def text(value: object) -> str:
    """A string; ValueError otherwise."""
    if not isinstance(value, str):
        raise ValueError(f"must be a string, got {shown(value)}")
    return value


def whole(value: object) -> int:
    """An integer from 0 that MLflow's steps can hold (63 bits); ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"must be a whole number from 0, below 2**63, got {shown(value)}")
    return value


def number(value: object) -> float:
    """A finite number; ValueError otherwise."""
    if not is_finite(value):
        raise ValueError(f"must be a finite number, got {shown(value)}")
    return value  # type: ignore[return-value]


def scalar(value: object) -> Scalar:
    """A finite number, a bool or a string; ValueError otherwise."""
    if isinstance(value, str | bool) or is_finite(value):
        return value  # type: ignore[return-value]
    raise ValueError(f"must be a finite number, true, false or a string, got {shown(value)}")


def mapping(value: object) -> dict[str, Any]:
    """An object; ValueError otherwise."""
    if not isinstance(value, dict):
        raise ValueError(f"must be an object, got {shown(value)}")
    return value
