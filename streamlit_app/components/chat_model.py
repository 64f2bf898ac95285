"""Which model answers, how varied and how long; what it costs; which one to advise. Kept for each person."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

import streamlit as st

from ftlab_mlflow.app_store.chats import Chat
from ftlab_mlflow.chat import context, history, prompt
from ftlab_mlflow.chat.choice import DEFAULT_VARIABLE
from ftlab_mlflow.chat.model import Model, Price, estimate
from ftlab_mlflow.chat.money import dollars
from ftlab_mlflow.chat.offers import DEFAULT_MODEL, Group, Offer, this_day
from ftlab_mlflow.chat.provider import Request, UserMessage
from ftlab_mlflow.chat.recommendation import recommend
from ftlab_mlflow.chat.service import exchanges
from ftlab_mlflow.errors import ChatError
from streamlit_app import state
from streamlit_app.components.chat_trouble import trouble
from streamlit_app.components.text import plain

_MODEL, _TEMPERATURE, _TOKENS = "chat model", "chat temperature", "chat tokens"
_NEEDS = {"one look-up": "Which run is best?", "several steps": "Why is it best, and what should I do then?"}
"""Questions that stand for what `recommend` tells apart."""


def chosen() -> str:
    """The id of the model that is chosen now, also by a choice that the page has not yet been run with."""
    picked: str | None = st.session_state.get(_MODEL)
    wanted = state.preferences().chat_model or os.environ.get(DEFAULT_VARIABLE) or DEFAULT_MODEL
    return picked or wanted


def show(*, disabled: bool) -> str:
    """The selector, and what belongs to it in a menu. Returns the id of the model that is chosen."""
    groups = _groups()
    offered = {offer.model.id: offer for group in groups for offer in _in_order(group)}
    usual = _id_of(chosen(), offered)
    names = list(offered) if usual in offered else [usual, *offered]
    picked = st.selectbox(
        "Model",
        names,
        index=names.index(usual),
        format_func=lambda name: _label(name, offered.get(name)),
        key=_MODEL,
        label_visibility="collapsed",
        disabled=disabled,
        on_change=_keep,
    )
    with st.popover("", icon=":material/tune:", key="model menu", help="The model", disabled=disabled):
        _settings()
        _advice(groups)
    return picked or usual


def costs(chat: Chat | None, model_id: str) -> None:
    """What a model costs, or why it cannot answer."""
    groups = _groups()
    offer = next((each for group in groups for each in group.offers if each.model.id == model_id), None)
    endpoint = next((group for group in groups if model_id.startswith(f"{group.endpoint}/")), None)
    why_not = offer.why_not if offer else endpoint.why_not if endpoint else "no such model is known"
    if offer is None or why_not:
        st.caption(
            f":material/warning: {plain(model_id)} cannot answer: {plain(why_not or 'it is not served')}. "
            "Choose another one, or type a command such as /help."
        )
    else:
        st.caption(plain(" · ".join(_cost(chat, offer.model))))


def _groups() -> list[Group]:
    """Those of which a model can be used first."""
    return sorted(state.model_offers(), key=lambda group: group.why_not is not None)


def usable(groups: Sequence[Group]) -> bool:
    """Whether there is a model that can answer."""
    return any(offer.why_not is None for group in groups for offer in group.offers)


def _in_order(group: Group) -> list[Offer]:
    """Those that can be used first, those that retire after these."""
    return sorted(
        group.offers, key=lambda offer: (offer.why_not is not None, offer.model.retires is not None)
    )


def _id_of(wanted: str, offered: dict[str, Offer]) -> str:
    """The id that a name means; the name where none is known."""
    if wanted in offered:
        return wanted
    same = [id for id, offer in offered.items() if offer.model.name == wanted]
    return same[0] if same else wanted


def _label(name: str, offer: Offer | None) -> str:
    if offer is None:
        return f"{name} · unknown"
    model = offer.model
    room = [f"{_thousands(model.context_tokens)} context"] if model.context_tokens else []
    parts = [model.endpoint, model.name, offer.price_class or "price unknown", *room]
    return " · ".join([*parts, *(_why_short(offer) if offer.why_not else offer.marks)])


def _why_short(offer: Offer) -> list[str]:
    if offer.model.retires is not None and offer.model.retires <= this_day():
        return ["retired"]
    if offer.model.has_tools is False:
        return ["no tools"]
    return ["no key" if "needs a key" in (offer.why_not or "") else "unavailable"]


def _thousands(tokens: int) -> str:
    return f"{tokens / 1e6:.3g}M" if tokens >= 1_000_000 else f"{tokens / 1000:.0f}k"


def _keep() -> None:
    with trouble():
        state.choose(chat_model=st.session_state[_MODEL])


def _settings() -> None:
    chosen = state.preferences()
    st.number_input(
        "Temperature",
        0.0,
        2.0,
        value=chosen.chat_temperature,
        step=0.1,
        key=_TEMPERATURE,
        placeholder="the model's own",
        on_change=_set,
        help="How varied answers are. Some models take none; the answer says so then.",
    )
    st.number_input(
        "Tokens of a reply, at most",
        256,
        32768,
        value=chosen.chat_max_tokens,
        step=256,
        key=_TOKENS,
        on_change=_set,
    )


def _set() -> None:
    with trouble():
        state.choose(
            chat_temperature=st.session_state[_TEMPERATURE], chat_max_tokens=int(st.session_state[_TOKENS])
        )


def _advice(groups: Sequence[Group]) -> None:
    """Which model to take for which questions, and on what grounds."""
    try:
        found = {need: recommend(question, groups) for need, question in _NEEDS.items()}
    except ChatError as error:
        st.caption(plain(error))
        return
    for need, advice in found.items():
        if advice is not None:
            st.markdown(f"Advised for {need}: **{plain(advice.model.id)}**")
            st.caption(plain(advice.reason))
    for group in groups:
        if group.why_not:
            said = group.why_not.removeprefix(f"{group.endpoint} ")
            st.caption(f":material/block: {plain(group.endpoint)} {plain(said)}")


def _cost(chat: Chat | None, model: Model) -> list[str]:
    if model.price is None:
        return ["price unknown, so the cost of answers is not known"]
    about = estimate(model, _input_tokens(chat))
    return [*prices(model.price), f"next question about {dollars(about)}"]


def prices(price: Price) -> list[str]:
    """US dollars per million tokens, in words."""
    said = []
    for tier in sorted(price.tiers, key=lambda tier: tier.above_tokens):
        cached = "" if tier.cached is None else f", {_rate(tier.cached)} cached"
        above = f" above {_thousands(tier.above_tokens)} tokens" if tier.above_tokens else ""
        said.append(f"{_rate(tier.input)} in{cached}, {_rate(tier.output)} out{above}")
    return [*said[:-1], f"{said[-1]} per million tokens"]


def _rate(usd: float) -> str:
    digits = f"{usd:.4g}"
    return f"${digits}0" if digits[-2:-1] == "." else f"${digits}"


def _input_tokens(chat: Chat | None) -> int:
    """About how many tokens the next question sends."""
    if chat is None:
        return _tokens_before()
    kept, key = st.session_state.get("chat tokens before", ("", 0)), f"{chat.id} {chat.length}"
    if kept[0] != key:
        kept = (key, context.size(Request("", "", history.messages(exchanges(chat)))))
        st.session_state["chat tokens before"] = kept
    return _tokens_before() + int(kept[1])


@lru_cache
def _tokens_before() -> int:
    """Of the system prompt, the tools and a question of usual length."""
    question = UserMessage("Which of these runs has the lowest eval loss, and what was different in it?")
    return context.size(Request("", prompt.system(this_day()), [question], prompt.tool_specs()))
