"""What the catalog says is what MLflow's files say, read another way; offline, light, and who comes next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from ftlab_mlflow.chat.catalog import catalog, left_out
from ftlab_mlflow.chat.model import Model, Price, Rates, Usage
from ftlab_mlflow.chat.succession import successors
from ftlab_mlflow.errors import ChatError

PROVIDERS = ("openai", "anthropic", "xai")
M = Decimal(1_000_000)


def raw(provider: str) -> dict[str, dict[str, Any]]:
    """MLflow's file, found by what was installed."""
    (file,) = (
        each
        for each in metadata.files("mlflow") or []
        if each.as_posix() == f"mlflow/utils/model_catalog/{provider}.json"
    )
    models: dict[str, dict[str, Any]] = json.loads(Path(str(file.locate())).read_text())["models"]
    return models


def in_a_process(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- against MLflow's own files ----------------------------------------------------------------------


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_entry_is_a_model_or_left_out_with_a_reason(provider: str) -> None:
    models, others = catalog(provider), left_out(provider)
    assert {*models, *others} == set(raw(provider))
    assert not set(models) & set(others)
    assert len(models) > 20
    for name, reason in others.items():
        assert len(reason) > 10, name
    for name, entry in raw(provider).items():
        if entry["mode"] != "chat":
            assert name in others
        if name in others and entry["mode"] == "chat":
            assert any(word in name for word in ("realtime", "audio", "search", "computer", "container"))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_model_is_what_the_catalog_says(provider: str) -> None:
    entries = raw(provider)
    for name, model in catalog(provider).items():
        entry = entries[name]
        window = entry.get("context_window", {})
        assert (model.provider, model.name, model.endpoint) == (provider, name, provider)
        assert model.id == f"{provider}/{name}"
        assert model.has_tools is entry["capabilities"]["function_calling"]
        assert model.context_tokens == window.get("max_input")
        assert model.max_output_tokens == window.get("max_output")
        assert type(model.context_tokens) in (int, type(None))
        day = entry.get("deprecation_date")
        assert (model.retires and model.retires.isoformat()) == day


def expected_cost(pricing: Mapping[str, Any], usage: Usage) -> Decimal | None:
    """The same sum, from the file's numbers, in another order and with exact arithmetic."""
    rates = {key: value for key, value in pricing.items() if key.endswith("_per_million_tokens")}
    tiers = sorted(pricing.get("long_context", []), key=lambda tier: int(tier["threshold_tokens"]))
    for tier in tiers:
        if usage.input_tokens > tier["threshold_tokens"]:
            rates = {**rates, **tier}
    if not rates.get("input_per_million_tokens") and not rates.get("output_per_million_tokens"):
        return None
    if "input_per_million_tokens" not in rates or "output_per_million_tokens" not in rates:
        return None
    read, write = rates["input_per_million_tokens"], rates["output_per_million_tokens"]
    total = Decimal(0)
    for tokens, rate in (
        (usage.output_tokens, write),
        (usage.cache_write_tokens, rates.get("cache_write_per_million_tokens", read)),
        (usage.cached_tokens, rates.get("cache_read_per_million_tokens", read)),
        (usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens, read),
    ):
        total += Decimal(str(rate)) * tokens / M
    return total


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_cost_is_that_of_an_independent_sum_at_and_around_every_tier(provider: str) -> None:
    entries, seen_tiers = raw(provider), 0
    for name, model in catalog(provider).items():
        pricing = entries[name].get("pricing", {})
        thresholds = [int(tier["threshold_tokens"]) for tier in pricing.get("long_context", [])]
        seen_tiers += len(thresholds)
        sizes = {0, 1, 1000, 1_000_000, *(t + d for t in thresholds for d in (-1, 0, 1))}
        for size in sizes:
            for cached, written in ((0, 0), (size // 2, 0), (size // 3, size // 5), (size, 0), (0, size)):
                usage = Usage(size, 777, cached, written)
                wanted = expected_cost(pricing, usage)
                if wanted is None:
                    assert model.price is None, name
                else:
                    assert model.price is not None, name
                    assert model.price.cost(usage) == pytest.approx(float(wanted), rel=1e-12, abs=1e-15)
    assert provider == "anthropic" or seen_tiers > 5


def test_a_long_request_costs_more_from_the_first_token_on() -> None:
    model = next(model for model in catalog("openai").values() if model.price and len(model.price.tiers) > 1)
    assert model.price is not None
    low, high = model.price.tiers
    at, above = (model.price.cost(Usage(high.above_tokens + more, 0)) for more in (0, 1))
    assert at == pytest.approx(high.above_tokens * low.input / 1e6)
    assert above == pytest.approx((high.above_tokens + 1) * high.input / 1e6)


def test_what_a_price_does_not_say_about_the_cache_costs_as_input() -> None:
    price = Price((Rates(2.0, 8.0),))
    assert price.cost(Usage(1000, 10, 400, 300)) == pytest.approx((1000 * 2 + 10 * 8) / 1e6)
    assert price.cost(Usage(0, 0)) == 0


def test_the_order_of_tiers_does_not_matter() -> None:
    base, middle, top = Rates(1, 1), Rates(2, 2, above_tokens=100), Rates(3, 3, above_tokens=200)
    for tiers in ((base, middle, top), (top, base, middle)):
        price = Price(tiers)
        assert [price.rates(n).input for n in (0, 100, 101, 200, 201)] == [1, 1, 2, 2, 3]
    assert Price((top, middle)).rates(0) is middle


# --- offline and light -------------------------------------------------------------------------------

_OFFLINE = """
import socket, sys
class Blocked(socket.socket):
    def connect(self, *_): raise AssertionError("a connection")
    connect_ex = connect
def blocked(*_, **__): raise AssertionError("a look-up")
socket.socket = Blocked
socket.create_connection = socket.getaddrinfo = blocked
from ftlab_mlflow.chat import catalog, choice, offers, recommendation
print(sum(len(catalog.catalog(each)) for each in ("openai", "anthropic", "xai")))
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_it_needs_no_network_and_loads_no_sdk_whatever_mlflow_is_told() -> None:
    printed = in_a_process(_OFFLINE, MLFLOW_MODEL_CATALOG_URI="http://127.0.0.1:9/catalog")
    count, loaded = printed.splitlines()
    assert int(count) == sum(len(catalog(each)) for each in PROVIDERS)
    heavy = {"mlflow", "openai", "anthropic", "torch", "transformers", "streamlit", "sqlalchemy", "pandas"}
    assert not heavy & set(loaded.split())


# --- another MLflow ----------------------------------------------------------------------------------

_OF_A_FOLDER = """
import dataclasses, json, sys
sys.path.insert(0, sys.argv[1])
from ftlab_mlflow.chat.catalog import catalog, left_out
from ftlab_mlflow.errors import ChatError
try:
    models = {name: dataclasses.asdict(model) for name, model in catalog("openai").items()}
    print(json.dumps([models, dict(left_out("openai"))], default=str))
except ChatError as error:
    print(json.dumps(str(error)))
"""


def of_another_mlflow(folder: Path, text: str | None) -> Any:
    """What is read from an `mlflow` with this catalog of openai, or with none."""
    (folder / "mlflow").mkdir(parents=True)
    (folder / "mlflow" / "__init__.py").write_text("raise AssertionError('imported')")
    if text is not None:
        (folder / "mlflow" / "utils" / "model_catalog").mkdir(parents=True)
        (folder / "mlflow" / "utils" / "model_catalog" / "openai.json").write_text(text)
    return json.loads(in_a_process(_OF_A_FOLDER, str(folder)))


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        '{"models": {}}',
        '{"schema_version": "2.0", "models": {}}',
        '{"schema_version": "1.0", "models": []}',
        '{"schema_version": "1.0", "models": {"a": 1}}',
        "[" * 100_000,
    ],
    ids=["absent", "empty", "list", "no version", "newer", "models a list", "model a number", "deep"],
)
def test_a_catalog_of_another_form_is_an_error_in_words(text: str | None, tmp_path: Path) -> None:
    error = of_another_mlflow(tmp_path, text)
    assert "the catalog of models is not where MLflow 3.17 has it" in error
    assert "models.toml" in error
    assert len(error) < 600


def entry(**fields: Any) -> dict[str, Any]:
    return {"mode": "chat", "capabilities": {"function_calling": True}, **fields}


def pricing(read: Any, write: Any, **more: Any) -> dict[str, Any]:
    return {"pricing": {"input_per_million_tokens": read, "output_per_million_tokens": write, **more}}


def test_what_is_missing_or_odd_in_an_entry_is_unknown_and_never_0(tmp_path: Path) -> None:
    entries = {
        "bare": {"mode": "chat"},
        "floats": entry(context_window={"max_input": 2000000.0, "max_output": "many"}),
        "zero": entry(**pricing(0, 0.0)),
        "no-output": entry(pricing={"input_per_million_tokens": 1.0}),
        "text-price": entry(**pricing("1", 2)),
        "negative": entry(**pricing(-1, 2)),
        "bool": entry(**pricing(True, 2)),
        "half-free": entry(**pricing(0, 2)),
        "inherits": entry(
            **pricing(
                1,
                2,
                cache_read_per_million_tokens=0.1,
                long_context=[
                    {"threshold_tokens": 200, "output_per_million_tokens": 9},
                    {"threshold_tokens": 100, "input_per_million_tokens": 3},
                ],
            )
        ),
        "bad-tier": entry(**pricing(1, 2, long_context=[{"input_per_million_tokens": 3}])),
        "bad-tiers": entry(**pricing(1, 2, long_context="soon")),
        "bad-day": entry(deprecation_date="2026-02-30"),
        "day": entry(deprecation_date="2026-02-28"),
        "imagined": {"mode": "hologram"},
        "modeless": {},
        "gpt-realtime-9": entry(),
    }
    text = json.dumps({"schema_version": "1.1", "models": entries})
    models, others = of_another_mlflow(tmp_path, text)
    assert set(others) == {"imagined", "modeless", "gpt-realtime-9"}
    assert "hologram" in others["imagined"]
    unpriced = {name for name, model in models.items() if model["price"] is None}
    assert unpriced == set(models) - {"half-free", "inherits"}
    assert models["inherits"]["price"]["tiers"] == [
        {"input": 1, "output": 2, "cached": 0.1, "cache_write": None, "above_tokens": 0},
        {"input": 3, "output": 2, "cached": 0.1, "cache_write": None, "above_tokens": 100},
        {"input": 1, "output": 9, "cached": 0.1, "cache_write": None, "above_tokens": 200},
    ]
    assert models["floats"]["context_tokens"] == 2_000_000
    assert models["floats"]["max_output_tokens"] is None
    assert models["bare"]["has_tools"] is None
    assert (models["bad-day"]["retires"], models["day"]["retires"]) == (None, "2026-02-28")


@pytest.mark.parametrize("name", ["nobody", "../openai", "", "open ai", "OPENAI"])
def test_a_provider_that_is_not_in_the_catalog_is_an_error(name: str) -> None:
    with pytest.raises(ChatError, match="has no provider"):
        catalog(name)


def test_what_was_read_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        catalog("openai")["mine"] = next(iter(catalog("openai").values()))  # type: ignore[index]
    assert catalog("openai") is catalog("openai")


# --- who comes next ----------------------------------------------------------------------------------

SOON = date(2026, 12, 11)


def line_up(*rows: tuple[str, float, bool]) -> dict[str, Model]:
    """A provider's models: name, dollars, whether it retires."""
    return {
        name: Model(
            "openai",
            name,
            "openai",
            has_tools=True,
            retires=SOON if retires else None,
            price=Price((Rates(dollars, dollars),)),
        )
        for name, dollars, retires in rows
    }


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        # The same name without its date, as long as that lives on in a later version.
        ([("gpt-4o-2024-05-13", 5, True), ("gpt-4o-2024-08-06", 3, False), ("gpt-4o", 3, False)], "gpt-4o"),
        # It does not: the undated name will go with its only version.
        ([("gpt-5-2025-08-07", 5, True), ("gpt-5", 5, False), ("gpt-5.6", 9, False)], "gpt-5.6"),
        # Versions are numbers, also behind a dash, before the word, and with a date in the middle.
        ([("claude-sonnet-4-5", 3, True), ("claude-sonnet-4-10", 3, False)], "claude-sonnet-4-10"),
        ([("claude-3-7-sonnet-20250219", 3, True), ("claude-sonnet-5-5", 3, False)], "claude-sonnet-5-5"),
        ([("grok-4.20-0309-fast", 1, True), ("grok-4.3-fast", 1, False)], "grok-4.3-fast"),
        ([("grok-4.3", 1, True), ("grok-4.20", 1, False)], None),
        ([("o1", 9, True), ("o3", 20, False)], "o3"),
        ([("gpt-4-1106-preview", 9, True), ("gpt-5.6", 20, False), ("gpt-5.6-mini", 1, False)], "gpt-5.6"),
        # Another line: what costs at most half as much again.
        ([("gpt-3.5-turbo", 1, True), ("gpt-6-sol", 1.6, False), ("gpt-5-luna", 1.5, False)], "gpt-5-luna"),
        ([("gpt-3.5-turbo", 1, True), ("gpt-6-sol", 1.6, False)], None),
        # Another family: of the same line.
        ([("o4-mini", 2, True), ("gpt-5.4-mini", 2, False), ("gpt-6-luna", 1, False)], "gpt-5.4-mini"),
        # Never itself, an older one, one that retires as well, a preview, or a dated double.
        ([("gpt-5", 1, True)], None),
        ([("gpt-5", 1, True), ("gpt-4", 1, False)], None),
        ([("gpt-5-nano", 1, True), ("gpt-4-mini", 1, False)], None),
        ([("gpt-5", 1, True), ("gpt-6", 1, True)], None),
        ([("gpt-5", 1, True), ("gpt-6-preview", 1, False)], None),
        ([("gpt-5", 1, True), ("gpt-6-2026-01-01", 1, False), ("gpt-6", 1, False)], "gpt-6"),
        ([("gpt-5", 1, True), ("gpt-6-2026-01-01", 1, False)], "gpt-6-2026-01-01"),
        ([("gpt-5", 1, True), ("gpt-5-latest", 1, False)], None),
    ],
)
def test_the_successor(rows: list[tuple[str, float, bool]], wanted: str | None) -> None:
    old = rows[0][0]
    assert successors(line_up(*rows))[old].successor == wanted
    assert successors(line_up(*reversed(rows)))[old].successor == wanted


def test_a_successor_can_call_functions() -> None:
    models = line_up(("gpt-5", 1, True), ("gpt-6", 1, False), ("gpt-5.5", 1, False))
    for has_tools in (False, None):
        models["gpt-6"] = Model("openai", "gpt-6", "openai", has_tools=has_tools)
        assert successors(models)["gpt-5"].successor == "gpt-5.5"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_successor_in_the_catalog_is_there_and_stays(provider: str) -> None:
    models = catalog(provider)
    retiring = [model for model in models.values() if model.retires]
    for model in models.values():
        if model.successor is None:
            continue
        after = models[model.successor]
        assert model.retires is not None
        assert after.name != model.name
        assert after.retires is None
        assert after.has_tools is True
    assert sum(model.successor is None for model in retiring) <= len(retiring) / 10
