"""`ftlab models`: what can be asked, what it costs, and what is not known."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pytest
from cli_helpers import Ftlab

from ftlab_mlflow.chat.catalog import catalog

KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "XAI_API_KEY")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*KEYS, "LOCAL_BASE_URL", "LOCAL_API_KEY", "ANALYTICS_DEFAULT_MODEL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FTLAB_MODELS", str(tmp_path / "models.toml"))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")


@contextmanager
def lists(names: Sequence[str]) -> Iterator[str]:
    """A server that lists models as OpenAI does; gives its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join(10)


def rows(out: str) -> dict[str, list[str]]:
    """The cells of each model's row, by id."""
    cells = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]
    return {first: rest for first, *rest in cells if re.match(r"\w+/", first)}


def test_every_model_is_a_row_with_what_the_catalog_says(ftlab: Ftlab) -> None:
    result = ftlab("models", "--provider", "anthropic")
    assert (result.code, result.err) == (0, "")
    shown = rows(result.out)
    assert set(shown) == {model.id for model in catalog("anthropic").values()}
    for model in catalog("anthropic").values():
        context, read, write, *_ = shown[model.id]
        assert context.replace(",", "") == str(model.context_tokens)
        assert model.price is not None
        assert (float(read), float(write)) == (model.price.tiers[0].input, model.price.tiers[0].output)
        for tier in model.price.tiers[1:]:
            assert (
                f"above {tier.above_tokens:,} tokens {tier.input:.2f} in, {tier.output:.2f} out" in result.out
            )
    assert "anthropic: anthropic needs a key: set ANTHROPIC_API_KEY" in result.out
    assert "By default gpt-4o-mini answers" in result.out


def test_a_retired_model_is_marked_with_its_successor(ftlab: Ftlab) -> None:
    retired = next(
        m for m in catalog("openai").values() if m.retires and m.retires <= date.today() and m.successor
    )
    line = rows(ftlab("models", "--provider", "openai").out)[retired.id]
    assert line[-1].startswith(
        f"it retired on {retired.retires}; its successor is openai/{retired.successor}"
    )


def test_json_says_all_of_it(ftlab: Ftlab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANALYTICS_DEFAULT_MODEL", "xai/grok-4.3")
    monkeypatch.setenv("XAI_API_KEY", "sk-test")
    result = ftlab("models", "--provider", "xai", "--json")
    assert result.code == 0
    assert result.json["default"] == "xai/grok-4.3"
    (group,) = result.json["endpoints"]
    assert (group["endpoint"], group["provider"], group["why_not"]) == ("xai", "xai", None)
    documents = {document["id"]: document for document in group["models"]}
    assert set(documents) == {model.id for model in catalog("xai").values()}
    for model in catalog("xai").values():
        document = documents[model.id]
        assert document["context_tokens"] == model.context_tokens
        assert document["has_tools"] == model.has_tools
        assert document["retires"] == (model.retires and model.retires.isoformat())
        assert document["price_class"] in ("$", "$$", "$$$", "$$$$")
        assert model.price is not None
        assert [
            (tier["above_tokens"], tier["input"], tier["output"]) for tier in document["usd_per_million"]
        ] == [(tier.above_tokens, tier.input, tier.output) for tier in model.price.tiers]
        assert all(tier["cached"] is not None for tier in document["usd_per_million"])


def test_a_server_of_ones_own_lists_its_models_and_what_is_not_known_is_not_0(
    ftlab: Ftlab, tmp_path: Path
) -> None:
    with lists(["qwen3:8b", "evil\x1b[31m\nname"]) as url:
        free = f'[endpoints.free]\nbase_url = "{url}"\ninput_per_million = 0\noutput_per_million = 0\n'
        text = f'[endpoints.mine]\nbase_url = "{url}"\nhas_tools = false\n{free}models = ["one"]\n'
        (tmp_path / "models.toml").write_text(text)
        result = ftlab("models", "--provider", "local")
        document = ftlab("models", "--provider", "mine", "--json").json
    assert result.code == 0
    shown = rows(result.out)
    assert shown["mine/qwen3:8b"][:5] == ["unknown", "unknown", "unknown", "?", "no"]
    assert shown["free/one"] == ["unknown", "0.00", "0.00", "free", "yes"]
    assert "mine/evil [31m name" in result.out
    assert "\x1b" not in result.out
    assert "openai/" not in result.out
    assert document["endpoints"][0]["models"][0]["usd_per_million"] is None
    assert document["endpoints"][0]["models"][0]["price_class"] is None


def test_all_providers_are_listed_and_what_cannot_be_reached_says_so(ftlab: Ftlab) -> None:
    result = ftlab("models", "--json")
    assert result.code == 0
    groups = {group["endpoint"]: group for group in result.json["endpoints"]}
    assert list(groups)[:4] == ["openai", "anthropic", "xai", "ollama"]
    for group in groups.values():
        assert group["why_not"]
        assert all(model["why_not"] for model in group["models"])
    assert groups["ollama"]["models"] == []


def test_an_unknown_provider_is_wrong_usage_with_the_nearest(ftlab: Ftlab) -> None:
    result = ftlab("models", "--provider", "antropic")
    assert result.code == 2
    assert "--provider: there is no 'antropic'; did you mean anthropic?" in result.err
    assert ftlab("models", "--provider", "zzz", "--json").error["exit_code"] == 2


def test_a_broken_models_toml_is_said_and_the_others_are_listed(ftlab: Ftlab, tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text('[endpoints.a]\nbase_url = "http://x"\napi_key = "sk-secret-123"')
    result = ftlab("models")
    assert result.code == 0
    assert "models.toml: endpoints.a.api_key: no key may stand in this file" in result.out
    assert "sk-secret" not in result.out + result.err
    assert "openai/gpt-4o-mini" in result.out
