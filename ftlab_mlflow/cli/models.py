"""`models`: which language models the chat can use, and what they cost."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ftlab_mlflow.cli.options import common
from ftlab_mlflow.cli.output import cell, emit, say, show, table
from ftlab_mlflow.errors import ConfigError

if TYPE_CHECKING:
    from ftlab_mlflow.chat.model import Price
    from ftlab_mlflow.chat.offers import Group, Offer
    from ftlab_mlflow.chat.provider import Provider

HEADINGS = ("model", "context>", "$/M in>", "$/M out>", "class", "tools", "note")
UNKNOWN = "unknown"


@click.command()
@click.option("--provider", metavar="NAME", help="Only of this provider, or of this endpoint in models.toml.")
@common
def models(provider: str | None, tracking_uri: str | None, as_json: bool) -> None:
    """List the models that the chat can use, by provider, with their prices in US dollars per million tokens.

    Servers of your own are asked what they serve, for 2 seconds at most; those of openai, anthropic and xai
    come from the catalog in MLflow, without a request.
    """
    from ftlab_mlflow.chat.choice import DEFAULT_VARIABLE
    from ftlab_mlflow.chat.offers import DEFAULT_MODEL, offers
    from ftlab_mlflow.chat.plugins import load_providers
    from ftlab_mlflow.chat.provider import Surroundings
    from ftlab_mlflow.settings import Settings

    uri = Settings.resolve({"tracking_uri": tracking_uri}).tracking_uri
    providers = load_providers(Surroundings(uri))
    groups = offers(_named(provider, providers) if provider else providers)
    default = (os.environ.get(DEFAULT_VARIABLE) or "").strip() or DEFAULT_MODEL
    if as_json:
        emit({"default": default, "endpoints": [_group_document(group) for group in groups]})
        return
    for group in groups:
        _show(group)
    say(f"By default {default} answers; ftlab chat --model NAME or {DEFAULT_VARIABLE} changes that.")


def _named(name: str, providers: Mapping[str, Provider]) -> dict[str, Provider]:
    """Those of one provider, or one endpoint."""
    found = {each: made for each, made in providers.items() if name in (each, made.name)}
    if not found:
        names = sorted({*providers, *(made.name for made in providers.values())})
        near = difflib.get_close_matches(name, names, n=1)
        meant = f"; did you mean {near[0]}?" if near else ";"
        raise ConfigError(f"--provider: there is no {name!r}{meant} there are {', '.join(names)}")
    return found


# --- for people --------------------------------------------------------------------------------------


def _show(group: Group) -> None:
    kind = "" if group.endpoint == group.provider else f" ({group.provider})"
    why = f": {group.why_not}" if group.why_not else ""
    show(cell(f"{group.endpoint}{kind}{why}", "bold"))
    if group.offers:
        show(table(HEADINGS, (_row(offer, group) for offer in group.offers)))
    say("")


def _row(offer: Offer, group: Group) -> tuple[object, ...]:
    model = offer.model
    rates = model.price.rates(0) if model.price else None
    notes = [*offer.marks, *_tiers(model.price)]
    if offer.why_not and offer.why_not != group.why_not:
        notes.insert(0, offer.why_not)
    return (
        cell(model.id, "dim" if offer.why_not else ""),
        UNKNOWN if model.context_tokens is None else f"{model.context_tokens:,}",
        _dollars(rates.input if rates else None),
        _dollars(rates.output if rates else None),
        offer.price_class or "?",
        {True: "yes", False: "no", None: UNKNOWN}[model.has_tools],
        "; ".join(notes),
    )


def _dollars(rate: float | None) -> str:
    return UNKNOWN if rate is None else f"{rate:.2f}" if rate == round(rate, 2) else f"{rate:g}"


def _tiers(price: Price | None) -> list[str]:
    tiers = [each for each in price.tiers if each.above_tokens] if price else []
    return [
        f"above {each.above_tokens:,} tokens {_dollars(each.input)} in, {_dollars(each.output)} out"
        for each in tiers
    ]


# --- as JSON -----------------------------------------------------------------------------------------


def _group_document(group: Group) -> dict[str, Any]:
    return {
        "endpoint": group.endpoint,
        "provider": group.provider,
        "why_not": group.why_not,
        "models": [_document(offer) for offer in group.offers],
    }


def _document(offer: Offer) -> dict[str, Any]:
    model = offer.model
    return {
        "id": model.id,
        "why_not": offer.why_not,
        "marks": list(offer.marks),
        "context_tokens": model.context_tokens,
        "max_output_tokens": model.max_output_tokens,
        "has_tools": model.has_tools,
        "retires": None if model.retires is None else model.retires.isoformat(),
        "successor": model.successor,
        "price_class": offer.price_class,
        "usd_per_million": None if model.price is None else _rates_document(model.price),
    }


def _rates_document(price: Price) -> list[dict[str, Any]]:
    """One object a tier, the lowest first; `cached` and `cache_write` are never null."""
    return [
        {
            "above_tokens": tier.above_tokens,
            "input": tier.input,
            "output": tier.output,
            "cached": tier.input if tier.cached is None else tier.cached,
            "cache_write": tier.input if tier.cache_write is None else tier.cache_write,
        }
        for tier in price.tiers
    ]
