"""What is in the JSON of a server, which may be anything; and how its streams carry it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_MOST_TOKENS = 10**9
"""Per request. No model takes or gives so many: who says more does not count."""


class Malformed(Exception):
    """It is not what its wire format says."""


class ErrorEvent(Exception):
    """A server sent an error as a part of a stream.

    Attributes:
        body: Its JSON.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        super().__init__("an error in the stream")
        self.body = body


class Unfinished(Exception):
    """A stream ended well, but the reply in it did not."""


# --- server-sent events ------------------------------------------------------------------------------


def events(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of each event of a stream; also of the last, where no blank line is behind it.

    Here and not in the SDKs, whose readers drop that one, and do not tell whether OpenAI's `[DONE]` came.
    """
    data: list[str] = []
    for line in _lines(chunks):
        if line:
            field, _, value = line.decode(errors="replace").partition(":")
            if field == "data":
                data.append(value.removeprefix(" "))
        elif data:
            yield "\n".join(data)
            data = []
    if data:
        yield "\n".join(data)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines end with CR, LF or both, and chunks anywhere."""
    line = bytearray()
    for chunk in chunks:
        for piece in chunk.splitlines(keepends=True):
            if line.endswith(b"\r") and piece != b"\n":
                yield bytes(line[:-1])
                line.clear()
            line += piece
            if line.endswith(b"\n"):
                yield bytes(line.rstrip(b"\r\n"))
                line.clear()
    if line:
        yield bytes(line.rstrip(b"\r"))


# --- values ------------------------------------------------------------------------------------------


def object_of(text: str) -> Mapping[str, Any]:
    """The object that a text is. Raises: Malformed, or what Python's JSON does."""
    value = json.loads(text)
    if not isinstance(value, Mapping):
        raise Malformed(f"{type(value).__name__} in the place of an object")
    return value


def object_in(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An empty one where there is none. Raises: Malformed."""
    value = holder.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise Malformed(f"{name} is no object")
    return value or {}


def objects_in(holder: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """An empty list where there is none. Raises: Malformed."""
    value = holder.get(name)
    if value is not None and not (
        isinstance(value, list) and all(isinstance(each, Mapping) for each in value)
    ):
        raise Malformed(f"{name} is no list of objects")
    return value or []


def text_in(holder: Mapping[str, Any], name: str) -> str:
    """Empty where there is none."""
    value = holder.get(name)
    return value if isinstance(value, str) else ""


def tokens_in(holder: Mapping[str, Any], name: str) -> int | None:
    """A number of tokens; None where it is not said. Raises: Malformed: it cannot be."""
    value = holder.get(name)
    if value is not None and not (type(value) is int and 0 <= value <= _MOST_TOKENS):
        raise Malformed(f"{name} is no number of tokens")
    return value
