"""Fixtures of the chat's tests: no key and no address of the machine's own, and every provider in turn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from chat_store import fill, service
from model_choices import KEYS, Providers, Toml, free_port
from provider_served import Make, Served, served_by

from ftlab_mlflow.chat.plugins import load_providers
from ftlab_mlflow.chat.provider import Surroundings
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


@pytest.fixture(params=["openai", "anthropic", "xai", "local", "gateway"])
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Served:
    """Every provider, with `KEY`."""
    return served_by(request.param, monkeypatch, tmp_path)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    """See `Make`."""
    return Make(monkeypatch, tmp_path)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A `models.toml` of this test; Ollama's place is a port where nobody is."""
    monkeypatch.setenv("FTLAB_MODELS", str(tmp_path / "models.toml"))
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{free_port()}")


@pytest.fixture
def toml(tmp_path: Path) -> Toml:
    """``toml(vllm=url)`` names endpoints in `models.toml` and loads all providers."""

    def make(**urls: str) -> Providers:
        text = "".join(f'[endpoints.{name}]\nbase_url = "{url}"\n' for name, url in urls.items())
        (tmp_path / "models.toml").write_text(text)
        return load_providers(Surroundings())

    return make


@pytest.fixture
def all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.setenv(name, "sk-test")
