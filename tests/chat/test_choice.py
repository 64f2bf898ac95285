"""Which model answers: who names it, what is refused before any request, what there is to choose from."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from model_servers import OpenAIServer

from ftlab_mlflow.chat import choice
from ftlab_mlflow.chat.catalog import catalog, left_out
from ftlab_mlflow.chat.choice import CATALOGED, Chosen, estimate, load_providers, offers, resolve, tokens_of
from ftlab_mlflow.chat.model import MILLION, Model, Price, Rates
from ftlab_mlflow.chat.offers import Group, price_class
from ftlab_mlflow.chat.provider import Provider, Request, Surroundings
from ftlab_mlflow.errors import ChatError, ModelNotUsable, ProviderError

KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "XAI_API_KEY")
TODAY = date(2026, 11, 27)

Providers = Mapping[str, Provider]
Toml = Callable[..., Providers]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no setting, and a `models.toml` of this test; Ollama's place is a port where nobody is."""
    for name in (*KEYS, "LOCAL_BASE_URL", "LOCAL_API_KEY", "ANALYTICS_DEFAULT_MODEL", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FTLAB_MODELS", str(tmp_path / "models.toml"))
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{free_port()}")


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


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


# --- who names it ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("all_keys")
def test_request_goes_before_preference_before_variable_before_the_default(
    toml: Toml, monkeypatch: pytest.MonkeyPatch
) -> None:
    providers = toml()

    def chosen(*given: str | None) -> tuple[str, str]:
        found = resolve(*given, providers)
        assert found.provider is providers[found.model.endpoint]
        return found.model.id, found.source

    assert chosen(None, None) == ("openai/gpt-4o-mini", "default")
    monkeypatch.setenv("ANALYTICS_DEFAULT_MODEL", " gpt-4.1 ")
    assert chosen(None, None) == ("openai/gpt-4.1", "environment")
    assert chosen("", " ") == ("openai/gpt-4.1", "environment")
    assert chosen(None, "xai/grok-4.3") == ("xai/grok-4.3", "preference")
    assert chosen("claude-sonnet-5", "xai/grok-4.3") == ("anthropic/claude-sonnet-5", "request")
    monkeypatch.setenv("ANALYTICS_DEFAULT_MODEL", " ")
    assert chosen("", None) == ("openai/gpt-4o-mini", "default")


@pytest.mark.usefixtures("all_keys")
@pytest.mark.parametrize("provider", CATALOGED)
def test_every_model_of_a_catalog_is_found_by_both_names_or_refused_in_words(provider: str) -> None:
    providers = load_providers(Surroundings())
    usable = 0
    for name, model in catalog(provider).items():
        for wanted in (name, f"{provider}/{name}"):
            if model.has_tools is False or (model.retires and model.retires <= TODAY):
                assert refused(providers, wanted).startswith(f"{provider}/{name} cannot be used: it ")
            else:
                assert resolve(wanted, None, providers, TODAY) == Chosen(model, providers[provider])
                usable += 1
    assert usable > 20


def test_a_model_of_a_server_is_found_by_endpoint_and_by_name_alone(toml: Toml) -> None:
    with (
        OpenAIServer(models=["qwen3:8b", "Qwen/Qwen3-8B", "both"]) as one,
        OpenAIServer(models=["both"]) as two,
    ):
        providers = toml(one=one.base_url, two=two.base_url)
        for wanted, found in {
            "one/qwen3:8b": "one/qwen3:8b",
            "qwen3:8b": "one/qwen3:8b",
            "one/Qwen/Qwen3-8B": "one/Qwen/Qwen3-8B",
            "Qwen/Qwen3-8B": "one/Qwen/Qwen3-8B",
            "both": "one/both",
            "two/both": "two/both",
        }.items():
            chosen = resolve(wanted, None, providers)
            assert chosen.model.id == found
            assert chosen.provider is providers[chosen.model.endpoint]
        assert not one.requests
        assert not two.requests


@pytest.mark.usefixtures("all_keys")
def test_a_name_that_is_in_a_catalog_is_asked_of_no_server(toml: Toml) -> None:
    with OpenAIServer(models=["gpt-4o-mini"]) as server:
        providers = toml(mine=server.base_url)
        assert resolve("gpt-4o-mini", None, providers).model.endpoint == "openai"
        assert resolve("openai/gpt-4o-mini", None, providers).model.endpoint == "openai"
        assert not server.listings
        assert resolve("mine/gpt-4o-mini", None, providers).model.endpoint == "mine"


def test_only_the_endpoint_that_is_named_is_asked(toml: Toml) -> None:
    with OpenAIServer(models=["a"]) as one, OpenAIServer(models=["a"]) as two:
        providers = toml(one=one.base_url, two=two.base_url)
        resolve("two/a", None, providers)
        assert (len(one.listings), len(two.listings)) == (0, 1)


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("all_keys")
def test_an_unknown_model_is_refused_with_the_nearest_and_where_to_look(toml: Toml, tmp_path: Path) -> None:
    providers = toml()
    text = refused(providers, "gpt-4o-mni")
    assert text.startswith('no model "gpt-4o-mni" is known; did you mean openai/gpt-4o-mini')
    assert "ftlab models lists all" in text
    assert f"a newer one needs an endpoint in {tmp_path / 'models.toml'}" in text
    assert "ollama, gateway could not be asked" in text
    assert "did you mean openai/gpt-4o-mini" in refused(providers, "GPT-4o-Mini")
    assert "did you mean anthropic/claude-sonnet-5" in refused(providers, "anthropic/claude-sonet-5")
    near = refused(providers, "gpt-3.5-turb")
    assert "gpt-3.5-turbo" not in near.replace('"gpt-3.5-turb"', "")  # what has retired is not advised


@pytest.mark.usefixtures("all_keys")
def test_an_endpoint_that_does_not_exist_is_said_with_those_that_do(toml: Toml) -> None:
    text = refused(toml(vllm="http://127.0.0.1:1/v1"), "mistral/large")
    assert 'no model "mistral/large" is known' in text
    assert 'there is no endpoint "mistral", but openai, anthropic, xai, vllm, gateway' in text


@pytest.mark.usefixtures("all_keys")
def test_odd_ids_are_refused_on_one_short_line() -> None:
    providers = load_providers(Surroundings())
    for odd in (
        "/",
        "openai/",
        "/gpt-4o",
        "a/b/c",
        "\x1b[31mred",
        "x" * 10_000,
        "openai/" + "y" * 10_000,
        "😀",
    ):
        text = refused(providers, odd)
        assert "no model " in text
        assert len(text) < 1500


@pytest.mark.usefixtures("all_keys")
def test_a_retired_model_names_its_successor_and_one_that_will_retire_does_not_matter_yet() -> None:
    providers = load_providers(Surroundings())
    retiring = [model for each in CATALOGED for model in catalog(each).values() if model.retires]
    assert retiring
    for model in retiring:
        assert model.retires is not None
        text = refused(providers, model.id, today=model.retires)
        assert text.startswith(f"{model.id} cannot be used: it retired on {model.retires}; ")
        if model.successor:
            assert text.endswith(f"its successor is {model.endpoint}/{model.successor}")
        if model.has_tools:
            assert resolve(model.id, None, providers, model.retires - timedelta(days=1)).model == model


@pytest.mark.usefixtures("all_keys")
def test_what_the_catalog_has_but_a_chat_cannot_use_says_why() -> None:
    providers = load_providers(Surroundings())
    for name, why in left_out("openai").items():
        for wanted in (name, f"openai/{name}"):
            assert refused(providers, wanted) == f"openai/{name} cannot be used: {why}"
    assert any("Responses API" in why for why in left_out("openai").values())
    without = next(
        model for model in catalog("openai").values() if model.has_tools is False and not model.retires
    )
    assert "cannot call functions" in refused(providers, without.id)


@pytest.mark.parametrize("provider", CATALOGED)
def test_without_a_key_the_variable_is_named(provider: str) -> None:
    providers = load_providers(Surroundings())
    model = next(model for model in catalog(provider).values() if model.has_tools and not model.retires)
    text = refused(providers, model.id)
    assert text.startswith(f"{model.id} cannot be used: ")
    assert f"set {provider.upper()}_API_KEY" in text


def test_a_server_that_is_not_there_is_said(toml: Toml) -> None:
    text = refused(toml(vllm=f"http://127.0.0.1:{free_port()}/v1"), "vllm/qwen")
    assert text.startswith("vllm/qwen cannot be used: ")
    assert "did you mean" not in text


def test_a_server_without_functions_is_said(tmp_path: Path) -> None:
    with OpenAIServer(models=["small"]) as server:
        toml = f'[endpoints.mine]\nbase_url = "{server.base_url}"\nhas_tools = false'
        (tmp_path / "models.toml").write_text(toml)
        assert "cannot call functions" in refused(load_providers(Surroundings()), "mine/small")


def test_a_broken_models_toml_is_said_and_keeps_nobody_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models.toml").write_text("[endpoints.openai]")
    providers = load_providers(Surroundings())
    assert "names of providers" in refused(providers, "vllm/qwen")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    assert resolve(None, None, providers).model.id == "openai/gpt-4o-mini"


# --- who named what is refused -----------------------------------------------------------------------


def test_what_was_not_asked_for_is_refused_with_who_named_it(
    toml: Toml, monkeypatch: pytest.MonkeyPatch
) -> None:
    providers = toml()
    assert refused(providers, "gpt-4o-mini").startswith("openai/gpt-4o-mini cannot be used")
    assert refused(providers, None).startswith("the default model: openai/gpt-4o-mini cannot be used")
    preferred = refused(providers, None, "gpt-3.5-turbo")
    assert preferred.startswith(
        "the model that you chose before: openai/gpt-3.5-turbo cannot be used: it retired"
    )
    monkeypatch.setenv("ANALYTICS_DEFAULT_MODEL", "gpt-9")
    assert refused(providers, None).startswith(
        'the model in ANALYTICS_DEFAULT_MODEL: no model "gpt-9" is known'
    )


def test_what_was_not_asked_for_is_refused_with_what_can_be_used(
    toml: Toml, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = refused(toml(), None)
    assert "No other can be used now (" in text
    assert "set OPENAI_API_KEY" in text
    assert "set XAI_API_KEY" in text
    monkeypatch.setenv("XAI_API_KEY", "sk-test")
    assert "There are models that can be used now of xai: `ftlab models`" in refused(toml(), None)
    with OpenAIServer(models=["qwen"]) as server:
        text = refused(toml(mine=server.base_url, away="http://127.0.0.1:1/v1"), None)
        assert "There are models that can be used now of xai, mine: `ftlab models`" in text


# --- what there is to choose from --------------------------------------------------------------------


def group(groups: list[Group], endpoint: str) -> Group:
    (found,) = (each for each in groups if each.endpoint == endpoint)
    return found


def test_all_models_are_offered_by_endpoint_with_why_not(monkeypatch: pytest.MonkeyPatch, toml: Toml) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with OpenAIServer(models=["a", "b"]) as server:
        groups = offers(toml(mine=server.base_url), TODAY)
        assert [each.endpoint for each in groups] == ["openai", "anthropic", "xai", "mine", "gateway"]
        mine = group(groups, "mine")
        assert (mine.provider, mine.why_not) == ("local", None)
        assert [(offer.model.id, offer.why_not, offer.price_class) for offer in mine.offers] == [
            ("mine/a", None, None),
            ("mine/b", None, None),
        ]
    openai = group(groups, "openai")
    assert openai.why_not is None
    assert {offer.model.name for offer in openai.offers} == set(catalog("openai"))
    for offer in openai.offers:
        gone = offer.model.retires is not None and offer.model.retires <= TODAY
        assert (offer.why_not is None) is (not gone and offer.model.has_tools is not False)
        will_go = offer.model.retires is not None and not gone
        assert any(mark.startswith(f"retires {offer.model.retires}") for mark in offer.marks) is will_go
    anthropic = group(groups, "anthropic")
    assert anthropic.why_not is not None
    assert "ANTHROPIC_API_KEY" in anthropic.why_not
    assert anthropic.offers
    assert all(offer.why_not for offer in anthropic.offers)


def test_an_offer_is_usable_exactly_where_it_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XAI_API_KEY", "sk-test")
    providers = {each: made for each, made in load_providers(Surroundings()).items() if each in CATALOGED}
    for each in offers(providers, TODAY):
        for offer in each.offers:
            if offer.why_not is None:
                assert resolve(offer.model.id, None, providers, TODAY).model == offer.model
            else:
                assert (
                    refused(providers, offer.model.id) == f"{offer.model.id} cannot be used: {offer.why_not}"
                )


_COLD = """
import sys, time
from ftlab_mlflow.chat import choice
from ftlab_mlflow.chat.provider import Surroundings
class Slow:
    def find_spec(self, name, *_):
        time.sleep(1.2 if name == "openai" else 0)
sys.meta_path.insert(0, Slow())
groups = choice.offers(choice.load_providers(Surroundings()), seconds=1)
print(*[offer.model.id for group in groups if group.endpoint == "local" for offer in group.offers])
"""


def test_the_time_for_a_server_begins_when_the_sdk_is_loaded() -> None:
    with OpenAIServer(models=["a"]) as server:
        environment = {**os.environ, "LOCAL_BASE_URL": server.base_url}
        command = [sys.executable, "-c", _COLD]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
    assert (done.returncode, done.stdout) == (0, "local/a\n"), done.stderr


def test_servers_that_hang_are_not_waited_for_longer_than_the_limit_all_together(toml: Toml) -> None:
    with silent_server() as one, silent_server() as two, OpenAIServer(models=["a"]) as server:
        providers = toml(one=one, two=two, mine=server.base_url)
        began = time.monotonic()
        groups = offers(providers, TODAY, seconds=0.7)
        assert time.monotonic() - began < 2
        for name in ("one", "two"):
            assert group(groups, name).why_not == "did not say within 0.7 s which models it serves"
            assert group(groups, name).offers == ()
        assert [offer.model.id for offer in group(groups, "mine").offers] == ["mine/a"]


def test_a_server_that_serves_nothing_or_is_away_is_a_group_that_says_so(toml: Toml) -> None:
    with OpenAIServer() as server:
        groups = offers(toml(empty=server.base_url, away=f"http://127.0.0.1:{free_port()}/v1"), TODAY)
    assert group(groups, "empty").why_not == "serves no model"
    assert group(groups, "away").why_not
    assert group(groups, "away").offers == ()


def test_the_price_class_is_in_steps_beside_the_default_s() -> None:
    default = catalog("openai")[choice.DEFAULT_MODEL].price
    assert default is not None
    (base,) = default.tiers

    def times(factor: float) -> Price:
        return Price((Rates(base.input * factor, base.output * factor),))

    assert price_class(default) == "$"
    for factor, wanted in (
        (0.001, "$"),
        (1.99, "$"),
        (2.01, "$$"),
        (7.99, "$$"),
        (8.01, "$$$"),
        (31.9, "$$$"),
    ):
        assert price_class(times(factor)) == wanted, factor
    assert price_class(times(32.1)) == "$$$$"
    assert price_class(times(0)) == "free"
    assert price_class(None) is None
    assert price_class(Price((Rates(base.input, base.output), Rates(999, 999, above_tokens=200_000)))) == "$"


# --- plug-ins ----------------------------------------------------------------------------------------

_PLUGINS = """
from ftlab_mlflow.chat.model import Model
from ftlab_mlflow.errors import MissingExtra

class Good:
    name = "good"
    def __init__(self, surroundings): self.uri = surroundings.tracking_uri
    def why_unavailable(self): return None
    def models(self): return [Model("good", "m1", "good", has_tools=True)]
    def stream(self, request): raise NotImplementedError

class Failing(Good):
    name = "failing"
    def models(self): raise ZeroDivisionError("a fault of\\nits own")

class Lost(Good):
    name = "openai"
    def models(self): return [Model("lost", "m1", "lost", has_tools=True)]

def broken(surroundings): raise RuntimeError("no luck \\x1b[31m")
def extra(surroundings): raise MissingExtra("boto3", "bedrock")
def nothing(surroundings): return None
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Providers]:
    """Providers of another package, installed as a wheel would be."""
    folder = tmp_path / "site"
    (folder / "other_models-1.0.dist-info").mkdir(parents=True)
    (folder / "other_models.py").write_text(_PLUGINS)
    (folder / "other_models-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: other-models\nVersion: 1.0\n"
    )
    entries = {
        "good": "Good",
        "failing": "Failing",
        "broken": "broken",
        "extra": "extra",
        "nothing": "nothing",
        "absent": "Absent",
        "openai": "Lost",
    }
    lines = "".join(f"{name} = other_models:{value}\n" for name, value in entries.items())
    (folder / "other_models-1.0.dist-info" / "entry_points.txt").write_text(
        f"[ftlab_mlflow.providers]\n{lines}"
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    importlib.invalidate_caches()
    yield load_providers(Surroundings("http://tracking"))
    sys.modules.pop("other_models", None)


def test_a_provider_of_another_package_serves(plugins: Providers) -> None:
    assert list(plugins)[:3] == ["openai", "anthropic", "xai"]
    assert list(plugins)[-6:] == ["absent", "broken", "extra", "failing", "good", "nothing"]
    good: Any = plugins["good"]
    assert good.uri == "http://tracking"
    assert resolve("good/m1", None, plugins).provider is good
    assert resolve("m1", None, plugins).provider is good


def test_a_provider_that_cannot_be_loaded_says_why_and_harms_no_other(
    plugins: Providers, caplog: pytest.LogCaptureFixture
) -> None:
    said = {
        "absent": "other_models:Absent cannot be loaded: AttributeError: ",
        "broken": "other_models:broken cannot be loaded: RuntimeError: no luck ",
        "extra": "boto3 is not installed: pip install 'ftlab-mlflow[bedrock]'",
        "nothing": "other_models:nothing cannot be loaded: TypeError: other_models:nothing makes no Provider",
    }
    groups = offers(plugins, TODAY)
    for name, why in said.items():
        reason = plugins[name].why_unavailable()
        assert reason is not None
        assert reason.startswith(why)
        assert reason.isprintable()
        assert group(groups, name).why_not == reason
        assert refused(plugins, f"{name}/m").startswith(f"{name}/m cannot be used: {why}")
        with pytest.raises(ChatError):
            plugins[name].models()
        with pytest.raises(ProviderError):
            plugins[name].stream(Request("m", "", []))
    with caplog.at_level(logging.DEBUG, "ftlab_mlflow"):
        load_providers(Surroundings())
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for why in said.values():
        assert any(why in text for text in warned)
    assert any(record.exc_info and record.exc_info[0] is RuntimeError for record in caplog.records)
    assert [offer.model.id for offer in group(groups, "good").offers] == ["good/m1"]


def test_a_provider_that_fails_when_it_is_asked_is_a_group_that_says_so(plugins: Providers) -> None:
    why = "failed: ZeroDivisionError: a fault of its own"
    assert group(offers(plugins, TODAY), "failing").why_not == why
    assert refused(plugins, "failing/m") == f"failing/m cannot be used: {why}"


def test_a_second_provider_of_a_name_does_not_take_it(
    plugins: Providers, caplog: pytest.LogCaptureFixture
) -> None:
    assert {model.provider for model in plugins["openai"].models()} == {"openai"}
    with caplog.at_level(logging.WARNING, "ftlab_mlflow"):
        load_providers(Surroundings())
    assert any("a second openai, which is not used" in record.getMessage() for record in caplog.records)


# --- what it will cost -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a", 1), ("four", 1), ("fives", 2), ("学" * 4, 3), ("\ud800", 1)]
)
def test_tokens_of_a_text(text: str, tokens: int) -> None:
    assert tokens_of(text) == tokens


def test_the_estimate_is_of_two_requests_with_the_tier_of_each() -> None:
    rates, long = Rates(1, 10), Rates(100, 1000, above_tokens=2000)
    model = Model("p", "m", "p", price=Price((rates, long)))
    assert estimate(model, 100) == pytest.approx((100 + 100 * 10 + 1700 + 400 * 10) / MILLION)
    assert estimate(model, 100, 5) == pytest.approx((100 + 100 * 10 + 1700 + 5 * 10) / MILLION)
    # The second request is the longer one.
    assert estimate(model, 1000, 0) == pytest.approx((1000 + 100 * 10 + 2600 * 100) / MILLION)
    assert estimate(Model("p", "m", "p"), 100) is None
    assert estimate(Model("p", "m", "p", price=Price((Rates(0, 0),))), 100) == 0
