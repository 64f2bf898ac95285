"""Which model answers: what was asked for, or chosen, or set, or the default; checked before any request."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal

from ftlab_mlflow.chat.catalog import left_out
from ftlab_mlflow.chat.endpoints import models_file
from ftlab_mlflow.chat.model import Model
from ftlab_mlflow.chat.offers import DEFAULT_MODEL, offers, this_day, why_not
from ftlab_mlflow.chat.plugins import CATALOGED, Listed, Unloaded, ask
from ftlab_mlflow.chat.provider import Provider
from ftlab_mlflow.control.wire import shown
from ftlab_mlflow.errors import ChatError, ModelNotUsable

DEFAULT_VARIABLE = "ANALYTICS_DEFAULT_MODEL"
Source = Literal["request", "preference", "environment", "default"]
_SAID_OF: Mapping[Source, str] = {
    "request": "",
    "preference": "the model that you chose before: ",
    "environment": f"the model in {DEFAULT_VARIABLE}: ",
    "default": "the default model: ",
}


@dataclass(frozen=True)
class Chosen:
    """A model that can be used, and who serves it. source: Who named it."""

    model: Model
    provider: Provider
    source: Source = "request"


def resolve(
    model_id: str | None,
    preference: str | None,
    providers: Mapping[str, Provider],
    today: date | None = None,
) -> Chosen:
    """The model to be used: `model_id` > `preference` > ``ANALYTICS_DEFAULT_MODEL`` > `DEFAULT_MODEL`.

    What is None or blank counts as not given. Servers of the user's own are asked what they serve, but none
    that the id does not need.

    Args:
        model_id: `<endpoint>/<name>`, or a name alone, which is looked up in the catalogs of openai,
            anthropic and xai, then with all others.
        preference: The same, as the person saved it.
        providers: As `load_providers` gives them.
        today: By default today, in UTC; a model whose `retires` is not after it has retired.

    Raises:
        ModelNotUsable: It is unknown, has retired, cannot call functions, is not served over chat
            completions, or has no key. The text says which, who named it, and what to do.
    """
    wanted, source = _wanted(model_id, preference)
    try:
        model, endpoint, why_unavailable = _find(wanted, providers)
        why = why_not(model, today or this_day()) or why_unavailable
        if why:
            raise ModelNotUsable(f"{model.id} cannot be used: {why}")
    except ModelNotUsable as error:
        if source == "request":
            raise
        instead = _usable(providers, today)
        raise ModelNotUsable(f"{_SAID_OF[source]}{error}. {instead}") from error
    return Chosen(model, providers[endpoint], source)


def _wanted(model_id: str | None, preference: str | None) -> tuple[str, Source]:
    named: list[tuple[str | None, Source]] = [
        (model_id, "request"),
        (preference, "preference"),
        (os.environ.get(DEFAULT_VARIABLE), "environment"),
    ]
    given = ((text.strip(), source) for text, source in named if text and text.strip())
    return next(given, (DEFAULT_MODEL, "default"))


def _usable(providers: Mapping[str, Provider], today: date | None) -> str:
    groups = offers(providers, today)
    names = [group.endpoint for group in groups if any(offer.why_not is None for offer in group.offers)]
    if names:
        return f"There are models that can be used now of {', '.join(names)}: `ftlab models` lists them"
    said = "; ".join(f"{group.endpoint}: {group.why_not}" for group in groups if group.why_not)
    return f"No other can be used now ({said})"


# --- looking an id up --------------------------------------------------------------------------------


_Found = tuple[Model, str, str | None]
"""A model, the endpoint that serves it, and why that is unavailable."""


def _find(wanted: str, providers: Mapping[str, Provider]) -> _Found:
    endpoint, slash, name = wanted.partition("/")
    if slash and endpoint in providers:
        return _of_endpoint(endpoint, name, providers[endpoint])
    catalogs = {each: providers[each] for each in CATALOGED if each in providers}
    servers = {each: provider for each, provider in providers.items() if each not in catalogs}
    listed: dict[str, Listed] = {}
    for some in (catalogs, servers):  # a name that is in a catalog is asked of no server
        listed |= ask(some)
        for each in some:
            for model in listed[each].models:
                if model.name == wanted:
                    return model, each, listed[each].why_unavailable
    for each in catalogs:
        if why := _left_out(each).get(wanted):
            raise ModelNotUsable(f"{each}/{wanted} cannot be used: {why}")
    broken = [provider.why for provider in providers.values() if isinstance(provider, Unloaded)]
    raise ModelNotUsable("; ".join([_unknown(wanted, listed, is_prefixed=bool(slash)), *broken]))


def _of_endpoint(endpoint: str, name: str, provider: Provider) -> _Found:
    found = ask({endpoint: provider})[endpoint]
    for model in found.models:
        if model.name == name:
            return model, endpoint, found.why_unavailable
    why = _left_out(endpoint).get(name) if endpoint in CATALOGED else None
    if why or (why := None if found.models else found.why_unavailable):
        raise ModelNotUsable(f"{endpoint}/{name} cannot be used: {why}")
    raise ModelNotUsable(_unknown(f"{endpoint}/{name}", {endpoint: found}, is_prefixed=False))


def _left_out(endpoint: str) -> Mapping[str, str]:
    try:
        return left_out(endpoint)
    except ChatError:  # the provider's own models failed with the same
        return {}


def _unknown(wanted: str, listed: Mapping[str, Listed], *, is_prefixed: bool) -> str:
    ids = _names(model for found in listed.values() for model in found.models)
    lowered = difflib.get_close_matches(wanted.lower(), ids, n=3)
    near = list(dict.fromkeys(ids[each] for each in lowered))
    parts = [f"no model {shown(wanted)} is known"]
    if near:
        parts.append(f"did you mean {' or '.join(near)}?")
    if is_prefixed:
        parts.append(f"there is no endpoint {shown(wanted.partition('/')[0])}, but {', '.join(listed)}")
    silent = [each for each, found in listed.items() if not found.models]
    if silent:
        parts.append(f"{', '.join(silent)} could not be asked")
    parts.append(f"ftlab models lists all, and says why; a newer one needs an endpoint in {models_file()}")
    return "; ".join(parts)


def _names(models: Iterable[Model]) -> dict[str, str]:
    """What models can be called, in lower case, and their ids."""
    found: dict[str, str] = {}
    for model in models:
        if model.retires is None:
            found |= {model.id.lower(): model.id, model.name.lower(): model.id}
    return found
