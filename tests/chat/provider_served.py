"""Every provider with its requests going to a loopback server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from model_servers import AnthropicServer, OpenAIServer

from ftlab_mlflow.chat.provider import Provider, Surroundings

KEY = "sk-test-0123456789abcdefGHIJ"
MODEL = "some-model"


@dataclass
class Served:
    """A provider whose requests go to a loopback server.

    Attributes:
        key_from: What its errors about the key name.
        use: ``use(server)`` makes the provider.
    """

    name: str
    key_from: str
    server: type[OpenAIServer | AnthropicServer]
    use: Callable[[Any], Provider]


def served_by(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Served:
    """One of them."""
    made = {
        "openai": "OpenAI",
        "anthropic": "Anthropic",
        "xai": "XAI",
        "local": "Local",
        "gateway": "Gateway",
    }
    kind = getattr(import_module(f"ftlab_mlflow.chat.providers.{name}"), made[name])

    def cloud(server: Any) -> Provider:
        monkeypatch.setenv(f"{name.upper()}_API_KEY", KEY)
        monkeypatch.setenv(f"{name.upper()}_BASE_URL", server.base_url)
        return kind(Surroundings())

    def local(server: Any) -> Provider:
        monkeypatch.setenv("VLLM_API_KEY", KEY)
        monkeypatch.setenv("FTLAB_MODELS", str(tmp_path / "models.toml"))
        text = f'[endpoints.vllm]\nbase_url = "{server.base_url}"\napi_key_env = "VLLM_API_KEY"\n'
        (tmp_path / "models.toml").write_text(text)
        return kind(Surroundings()).endpoints()["vllm"]

    def gateway(server: Any) -> Provider:
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", KEY)
        return kind(Surroundings(tracking_uri=server.address))

    use = {"local": local, "gateway": gateway}.get(name, cloud)
    key_from = {"local": "VLLM_API_KEY", "gateway": "MLFLOW_TRACKING_TOKEN"}.get(
        name, f"{name.upper()}_API_KEY"
    )
    return Served(name, key_from, AnthropicServer if name == "anthropic" else OpenAIServer, use)


class Make:
    """``make(name, server)`` makes a provider."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self._arguments = (monkeypatch, tmp_path)

    def __call__(self, name: str, server: Any) -> Provider:
        return served_by(name, *self._arguments).use(server)
