"""The one adapter over the model catalog that MLflow bundles: what a provider's models are and cost.

It is read from the installed package, so nothing is downloaded and MLflow is not imported (which takes 2 s).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import date
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ftlab_mlflow.chat.model import Model, Price, Rates
from ftlab_mlflow.chat.succession import successors
from ftlab_mlflow.control.wire import shown
from ftlab_mlflow.errors import ChatError

_SCHEMA = "1."
_PROVIDER = re.compile(r"[a-z0-9][a-z0-9_-]*")

_NO_CHAT = {
    "responses": "its provider serves it over the Responses API only, and this chat speaks chat completions",
    "image_generation": "it makes images",
    "video_generation": "it makes videos",
    "embedding": "it makes embeddings, not text",
    "completion": "it completes text and takes no messages",
}
"""Why a model of another `mode` than chat cannot be used here."""
_NO_TEXT = {
    "realtime": "it is spoken with over a realtime connection, and this chat speaks chat completions",
    "audio": "it takes or gives sound, and this chat is text",
    "search": "it searches the web by itself, and takes no functions of ours",
    "computer": "it operates a computer over the Responses API, and this chat speaks chat completions",
    "container": "it is the price of a container, no model",
}
"""Why a model with this part in its name cannot be used here, although the catalog says its mode is chat."""


class _Catalog(NamedTuple):
    models: Mapping[str, Model]
    left_out: Mapping[str, str]


def catalog(provider: str) -> Mapping[str, Model]:
    """The models of a provider that a chat with text can use, by name. Also those that have retired.

    A price of the catalog that is 0, or lacks input or output, is unknown: the catalog writes 0 where a model
    was free for a time, or nobody filled it in, and a bill of $0 that is none is worse than none.
    `Model.successor` is derived, see `succession`.

    Args:
        provider: As MLflow names it, such as `openai`. What one provider's catalog says holds for no other.

    Raises:
        ChatError: The installed MLflow has no such catalog, or one of another form.
    """
    return _read(provider).models


def left_out(provider: str) -> Mapping[str, str]:
    """What else the provider's catalog has, by name, and why it cannot be used here.

    Raises:
        ChatError: As `catalog`.
    """
    return _read(provider).left_out


@lru_cache
def _read(provider: str) -> _Catalog:
    models: dict[str, Model] = {}
    others: dict[str, str] = {}
    for name, entry in sorted(_entries(provider).items()):
        why_not = _why_not(name, entry)
        if why_not:
            others[name] = why_not
        else:
            models[name] = _model(provider, name, entry)
    models = successors(models)
    return _Catalog(MappingProxyType(models), MappingProxyType(others))


def _entries(provider: str) -> dict[str, dict[str, Any]]:
    if not _PROVIDER.fullmatch(provider):
        raise ChatError(f"MLflow's model catalog has no provider {shown(provider)}")
    folder = _folder()
    try:
        data = json.loads((folder / f"{provider}.json").read_text("utf-8"))
        version, entries = str(data["schema_version"]), data["models"]
        if not version.startswith(_SCHEMA) or not all(isinstance(each, dict) for each in entries.values()):
            raise ValueError(f"its form {shown(version)} is not known here")
    except FileNotFoundError as error:
        if folder.is_dir():
            raise ChatError(f"MLflow's model catalog has no provider {shown(provider)}") from error
        raise ChatError(f"{_elsewhere()}: {folder} does not exist") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ChatError(f"{_elsewhere()}: {folder / provider}.json cannot be read: {error!r:.200}") from error
    return {str(name): entry for name, entry in entries.items()}


def _folder() -> Path:
    spec = find_spec("mlflow")
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise ChatError("MLflow is not installed, which bundles the catalog of models: pip install mlflow")
    return Path(places[0]) / "utils" / "model_catalog"


def _elsewhere() -> str:
    return (
        "the catalog of models is not where MLflow 3.17 has it; install an MLflow that is tested with this "
        "version of ftlab-mlflow, or name the model's server in models.toml"
    )


# --- one entry ---------------------------------------------------------------------------------------


def _why_not(name: str, entry: Mapping[str, Any]) -> str | None:
    mode = entry.get("mode")
    if mode != "chat":
        return _NO_CHAT.get(str(mode), f"its mode is {shown(mode)}, not chat")
    return next((why for part, why in _NO_TEXT.items() if part in name.split("-")), None)


def _model(provider: str, name: str, entry: Mapping[str, Any]) -> Model:
    window = _table(entry, "context_window")
    has_tools = _table(entry, "capabilities").get("function_calling")
    return Model(
        provider=provider,
        name=name,
        endpoint=provider,
        context_tokens=_tokens(window.get("max_input")),
        max_output_tokens=_tokens(window.get("max_output")),
        has_tools=has_tools if isinstance(has_tools, bool) else None,
        retires=_day(entry.get("deprecation_date")),
        price=_price(_table(entry, "pricing")),
    )


def _price(pricing: Mapping[str, Any]) -> Price | None:
    base = _rates(pricing, {})
    if base is None or not (base.input or base.output):
        return None
    tiers, more = [base], pricing.get("long_context", [])
    for tier in more if isinstance(more, list) else [more]:
        above = _tokens(tier.get("threshold_tokens")) if isinstance(tier, dict) else None
        rates = _rates(tier, pricing, above) if above else None
        if rates is None:  # a part of the price that cannot be read makes all of it unknown
            return None
        tiers.append(rates)
    return Price(tuple(sorted(tiers, key=lambda rates: rates.above_tokens)))


def _rates(tier: Mapping[str, Any], base: Mapping[str, Any], above: int = 0) -> Rates | None:
    """The rates of a tier; what it does not say is as in `base`."""
    kinds = ("input", "output", "cache_read", "cache_write")
    keys = [f"{kind}_per_million_tokens" for kind in kinds]
    read, write, cached, cache_write = (_rate(tier.get(key, base.get(key))) for key in keys)
    if read is None or write is None:
        return None
    return Rates(read, write, cached, cache_write, above)


def _table(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = entry.get(key)
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _rate(value: Any) -> float | None:
    return float(value) if _is_number(value) else None


def _tokens(value: Any) -> int | None:
    """A number of tokens; the catalog writes some as 2000000.0."""
    return int(value) if _is_number(value) and value >= 1 else None


def _day(value: Any) -> date | None:
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        return None
