"""What tests of models that can be chosen share: places where nobody is, refusals, groups of offers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from typing import Any

import pytest

from ftlab_mlflow.chat.choice import resolve
from ftlab_mlflow.chat.offers import Group
from ftlab_mlflow.chat.provider import Provider
from ftlab_mlflow.errors import ModelNotUsable

KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "XAI_API_KEY")
TODAY = date(2026, 11, 27)

Providers = Mapping[str, Provider]
Toml = Callable[..., Providers]


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@contextmanager
def silent_server() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"


def refused(providers: Providers, model_id: str | None, preference: str | None = None, **more: Any) -> str:
    with pytest.raises(ModelNotUsable) as caught:
        resolve(model_id, preference, providers, **{"today": TODAY, **more})
    text = str(caught.value)
    assert text.isprintable()
    return text


def group(groups: list[Group], endpoint: str) -> Group:
    (found,) = (each for each in groups if each.endpoint == endpoint)
    return found
