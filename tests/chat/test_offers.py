"""What there is to choose from: models of every provider and server, and of providers of other packages."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from model_choices import TODAY, Providers, Toml, free_port, group, refused, silent_server
from model_servers import OpenAIServer

from ftlab_mlflow.chat.catalog import catalog
from ftlab_mlflow.chat.choice import resolve
from ftlab_mlflow.chat.model import Price, Rates
from ftlab_mlflow.chat.offers import DEFAULT_MODEL, offers, price_class
from ftlab_mlflow.chat.plugins import CATALOGED, load_providers
from ftlab_mlflow.chat.provider import Request, Surroundings
from ftlab_mlflow.errors import ChatError, ProviderError

pytestmark = pytest.mark.usefixtures("alone")


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
from ftlab_mlflow.chat.offers import offers
from ftlab_mlflow.chat.plugins import load_providers
from ftlab_mlflow.chat.provider import Surroundings
class Slow:
    def find_spec(self, name, *_):
        time.sleep(1.2 if name == "openai" else 0)
sys.meta_path.insert(0, Slow())
groups = offers(load_providers(Surroundings()), seconds=1)
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
    default = catalog("openai")[DEFAULT_MODEL].price
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
