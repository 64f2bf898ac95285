"""What there is to choose from: every model of every provider, what it costs, and why it cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal

from ftlab_mlflow.chat.catalog import catalog
from ftlab_mlflow.chat.model import Model, Price
from ftlab_mlflow.chat.plugins import ANSWER_S, ask
from ftlab_mlflow.chat.provider import Provider
from ftlab_mlflow.errors import ChatError

DEFAULT_MODEL = "gpt-4o-mini"
"""The packaged default, of openai."""

PriceClass = Literal["free", "$", "$$", "$$$", "$$$$"]
_CLASSES: tuple[tuple[float, PriceClass], ...] = ((2.0, "$"), (8.0, "$$"), (32.0, "$$$"))


@dataclass(frozen=True)
class Offer:
    """A model to choose.

    Attributes:
        why_not: Why it cannot be used now, and what to do; None: it can.
        price_class: See `price_class`; None: not known.
        marks: What to know before choosing it, such as `retires 2026-12-11, then gpt-5.6`.
    """

    model: Model
    why_not: str | None
    price_class: PriceClass | None
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """The models of one endpoint.

    Attributes:
        endpoint: What their ids begin with. provider: Who serves it, such as `local`.
        why_not: Why none of them can be used, or there are none; None: some can.
    """

    endpoint: str
    provider: str
    why_not: str | None
    offers: tuple[Offer, ...]


def offers(
    providers: Mapping[str, Provider], today: date | None = None, seconds: float = ANSWER_S
) -> list[Group]:
    """All models by endpoint, in the order of the providers.

    Servers of the user's own are asked, all at once. One that does not answer within `seconds` is a group
    without models that says so.
    """
    day = today or this_day()
    listed = ask(providers, seconds)
    return [
        Group(
            endpoint,
            provider.name,
            listed[endpoint].why_unavailable or (None if listed[endpoint].models else "serves no model"),
            tuple(
                Offer(
                    model,
                    why_not(model, day) or listed[endpoint].why_unavailable,
                    price_class(model.price),
                    marks(model, day),
                )
                for model in listed[endpoint].models
            ),
        )
        for endpoint, provider in providers.items()
    ]


def this_day() -> date:
    """Today, in UTC."""
    return datetime.now(UTC).date()


def why_not(model: Model, today: date) -> str | None:
    """Why a model cannot be used by this chat, whatever key there is; None: it can."""
    if model.retires is not None and model.retires <= today:
        instead = (
            f"its successor is {model.endpoint}/{model.successor}" if model.successor else "choose another"
        )
        return f"it retired on {model.retires}; {instead}"
    if model.has_tools is False:
        return "it cannot call functions, and this chat answers with them; choose another"
    return None


def marks(model: Model, today: date) -> tuple[str, ...]:
    """What to know before choosing a model that can be used."""
    found = []
    if model.retires is not None and model.retires > today:
        then = f", then {model.successor}" if model.successor else ""
        found.append(f"retires {model.retires}{then}")
    if model.has_tools is None:
        found.append("not known whether it can call functions")
    return tuple(found)


def price_class(price: Price | None) -> PriceClass | None:
    """How much a model costs beside the packaged default, by `Price.blended`.

    `$` is up to 2 times as much, `$$` up to 8, `$$$` up to 32, `$$$$` more; `free` is a price of 0. None: the
    price is not known, of it or of the default.
    """
    if price is None:
        return None
    if price.blended == 0:
        return "free"
    default = _default_price()
    if default is None:
        return None
    times = price.blended / default.blended
    return next((each for most, each in _CLASSES if times <= most), "$$$$")


def _default_price() -> Price | None:
    try:
        model = catalog("openai").get(DEFAULT_MODEL)
    except ChatError:  # then the providers say so where their models would be
        return None
    return None if model is None else model.price
