"""Where a model is served, and with which key; the SDKs, loaded when they are needed."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from ftlab_mlflow.control.wire import one_line
from ftlab_mlflow.errors import ChatError, MissingExtra

logger = logging.getLogger("ftlab_mlflow")

Error = TypeVar("Error", bound=ChatError)

_KEY = re.compile(r"[!-~]+")
_LIKE_A_KEY = re.compile(r"\b(?:sk|xai|pk|gsk|hf)[-_][\w*.…-]{8,}|\b(?:Bearer|Basic)\s+[\w+/=.~-]{16,}")
_SHORTEST_SECRET = 4
_LONGEST_ERROR = 500


@dataclass(frozen=True)
class Service:
    """Where requests for a model go.

    Attributes:
        name: As texts name it: `openai`, or an endpoint's name.
        key: Goes into the header of the wire format; never into a text.
        key_from: What a person sets it with, in words: `OPENAI_API_KEY`; None where it is asked for none.
        headers: More headers; their values are secret, too.
        address_from: What a person sets the address with.
        has_organizations: It is told ``OPENAI_ORG_ID`` and ``OPENAI_PROJECT_ID``, which OpenAI's SDK reads.
    """

    name: str
    base_url: str
    key: str = field(repr=False)
    key_from: str | None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    address_from: str = "its base_url"
    has_organizations: bool = False

    @property
    def place(self) -> str:
        """The address as texts show it."""
        try:
            parts = urlsplit(self.base_url)
        except ValueError:
            return f"what {self.address_from} says"
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def error(self, kind: type[Error], text: str, *more: Any) -> Error:
        """An error of ours. All about a service are made here: any part of a text may be the server's.

        Args:
            text: It becomes one short line without secrets. more: Other arguments of `kind`.
        """
        return kind(short(self.without_secrets(text), _LONGEST_ERROR), *more)

    def without_secrets(self, text: str) -> str:
        """A text in which a server may have repeated what it was sent."""
        secrets = [self.key, *self.headers.values()]
        secrets += [part for value in self.headers.values() for part in value.split()]
        known = (NO_KEY, self.name)  # many give a server that asks for a key its own name
        for secret in sorted(secrets, key=len, reverse=True):
            if len(secret) >= _SHORTEST_SECRET and secret not in known:
                text = text.replace(secret, "…")
        return _LIKE_A_KEY.sub("…", text)


NO_KEY = "no-key"
"""What goes out to a server that asks for no key: the SDKs want one."""

NO_TEMPERATURE = "{model} takes no temperature of your choice: its own is used"
"""What a person is told where it had to be left out."""


def short(text: str, longest: int) -> str:
    """A text in one line that can be printed, cut to so many characters."""
    line = " ".join(one_line(text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def key_in(variable: str) -> str | None:
    """The key that a variable holds; None where it is not set or empty."""
    return (os.environ.get(variable) or "").strip() or None


def why_no_key(provider: str, variable: str) -> str | None:
    """What is wrong with the variable of a key; None: nothing."""
    key = key_in(variable)
    if key is None:
        return f"{provider} needs a key: set {variable}"
    if not _KEY.fullmatch(key):
        return f"{variable} holds blanks or letters that no key has: set it anew"
    return None


def sdk(name: str) -> Any:
    """The package `openai`, `anthropic` or `httpx2`, over which both of them speak.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or name, "chat") from error


def why_no_sdk(name: str) -> str | None:
    """What to do where a package is not installed; None: it is."""
    try:
        is_there = importlib.util.find_spec(name) is not None
    except Exception:  # of whatever finds packages here
        logger.debug("looking for %s", name, exc_info=True)
        is_there = False
    return None if is_there else str(MissingExtra(name, "chat"))
