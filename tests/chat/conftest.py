"""Fixtures of the chat's tests: no key and no address of the machine's own, and every provider in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from chat_store import fill, service
from model_servers import AnthropicServer, OpenAIServer

from ftlab_mlflow.chat.provider import Provider, Surroundings
from ftlab_mlflow.chat.service import ChatService

_VARIABLES = (
    *(
        f"{each}_{what}"
        for each in ("OPENAI", "ANTHROPIC", "XAI", "LOCAL")
        for what in ("API_KEY", "BASE_URL")
    ),
    *("ANTHROPIC_AUTH_TOKEN", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OLLAMA_HOST", "ANALYTICS_DEFAULT_MODEL"),
    *(f"MLFLOW_TRACKING_{each}" for each in ("URI", "USERNAME", "PASSWORD", "TOKEN", "INSECURE_TLS")),
    *("FTLAB_MODELS", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"),
)


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "no-config"))


@pytest.fixture
def uri(new_sqlite: Callable[[Path], str], tmp_path: Path) -> str:
    """A tracking store with the runs of `chat_store`."""
    found = new_sqlite(tmp_path)
    fill(found)
    return found


@pytest.fixture
def chats(uri: str, tmp_path: Path) -> ChatService:
    """Chats of one person about these runs."""
    return service(uri, tmp_path)


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


@pytest.fixture(params=["openai", "anthropic", "xai", "local", "gateway"])
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Served:
    """Every provider, with `KEY`."""
    return served_by(request.param, monkeypatch, tmp_path)


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


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    """See `Make`."""
    return Make(monkeypatch, tmp_path)
