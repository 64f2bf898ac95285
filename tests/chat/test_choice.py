"""Which model answers: who names it, what is refused before any request, what it will cost."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from model_choices import TODAY, Toml, free_port, refused
from model_servers import OpenAIServer

from ftlab_mlflow.chat.catalog import catalog, left_out
from ftlab_mlflow.chat.choice import Chosen, resolve
from ftlab_mlflow.chat.model import MILLION, Model, Price, Rates, estimate, tokens_of
from ftlab_mlflow.chat.plugins import CATALOGED, load_providers
from ftlab_mlflow.chat.provider import Surroundings

pytestmark = pytest.mark.usefixtures("alone")


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
