"""A change that a model has proposed, as a card with a button. Only a click sends it, and only once."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import streamlit as st

from ftlab_mlflow.app_store.chats import Chat
from ftlab_mlflow.chat.events import ToolRun
from ftlab_mlflow.chat.proposal import Proposal
from ftlab_mlflow.control.view import RunView, progress_of
from ftlab_mlflow.control.wire import shown_value
from ftlab_mlflow.errors import FTLabError, SendUnconfirmed
from streamlit_app import state
from streamlit_app.components import controls, preview, requests
from streamlit_app.components.text import plain

_SENT = "sent"
"""The name in a chat's data of the ids of requests that were sent, by the place of their proposal."""
_LOOK_S = 1.0
"""Seconds between two looks at a request that is under way."""
_SENDING = threading.Lock()
_CURVE = ("learning_rate", "lr_schedule")


def show(chat: Chat, place: str, run: ToolRun) -> None:
    """The card of what a tool returned; nothing if it proposed nothing. place: Of it in its chat, unique."""
    proposal = Proposal.of(run)
    if proposal is None:
        return
    with st.container(border=True, gap="xsmall", key=f"proposal {place}"):
        st.markdown(f"**Proposed for [{plain(proposal.name)}](run?id={proposal.run_id})**")
        for name, (old, new) in proposal.changes.items():
            st.text(f"{name}: {'–' if old is None else shown_value(old)} → {shown_value(new)}")
        if proposal.reason:
            st.text(f"Why: {proposal.reason}")
        if proposal.problems:
            st.error("It cannot be sent.", icon=":material/block:")
            st.text("\n".join(f"{name}: {text}" for name, text in proposal.problems.items()))
            return
        _live(chat, place, proposal)


def _live(chat: Chat, place: str, proposal: Proposal) -> None:
    """What may be done now, or what became of it, kept fresh until that is known."""
    feed = state.run_feed(proposal.run_id)

    def request_id() -> str | None:
        return _sent(chat).get(place)

    def every() -> float | None:
        if feed.record is None:
            return _LOOK_S
        view = feed.view()
        known = {entry.id: entry for entry in view.entries}
        sent = known.get(request_id() or "")
        if view.is_over or (sent is not None and sent.answered):
            return None
        return _LOOK_S if request_id() else state.refresh_s(is_over=False)

    try:
        feed.refresh()
    except FTLabError as error:  # away, or the run was deleted
        st.caption(f"The run cannot be read now: {plain(error)}")
        return
    now = every()

    @st.fragment(run_every=now, key=f"live {place}")
    def fragment() -> None:
        try:
            feed.refresh()
        except FTLabError as error:
            st.caption(f"The run cannot be read now: {plain(error)}")
            return
        if every() != now:
            st.rerun()
        if sent := request_id():
            _fate(feed.view(), sent)
        else:
            _offer(chat, place, proposal, feed.view())

    fragment()


def _offer(chat: Chat, place: str, proposal: Proposal, view: RunView) -> None:
    """The curve and the button."""
    closed = controls.why_closed(view)
    changed = _changed_since(proposal, view)
    has_curve = any(name in proposal.values for name in _CURVE)
    if has_curve and not closed and view.surface and "learning_rate" in view.surface.params:
        preview.show(view.surface, proposal.values, f"curve {place}")
    for text in [*([closed] if closed else []), *changed]:
        st.text(text)
    if refused := st.session_state.get(_refused(chat, place)):
        st.error("Nothing was sent.", icon=":material/block:")
        st.text(refused)
    st.button(
        f"Send to {plain(proposal.name)}",
        type="primary",
        icon=":material/send:",
        key=f"send {place}",
        disabled=closed is not None,
        on_click=_send,
        args=(chat, place, proposal),
    )


def _changed_since(proposal: Proposal, view: RunView) -> list[str]:
    """What somebody has changed since it was proposed: the request would be stale."""
    params = view.surface.params if view.surface else {}
    return [
        f"{name} was changed since, from {shown_value(old)} to {shown_value(params[name].asked)}: this would "
        "be refused as stale. Ask for a new proposal."
        for name, (old, _) in proposal.changes.items()
        if old is not None and name in params and params[name].asked != old
    ]


def _fate(view: RunView, request_id: str) -> None:
    entry = next((entry for entry in view.entries if entry.id == request_id), None)
    if entry is None:
        st.text("Sent; not yet among the run's tags.")
        return
    way = progress_of(entry, view)
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        requests.badge(way)
        st.text(way.text)


def _sent(chat: Chat) -> Mapping[str, str]:
    """Ids of the requests that were sent, by place; also of one that could not be noted in the chat."""
    noted: Mapping[str, str] = chat.data.get(_SENT, {})
    return {**st.session_state.get(f"{_SENT} {chat.id}", {}), **noted}


def _refused(chat: Chat, place: str) -> str:
    return f"refused {chat.id} {place}"


def _send(chat: Chat, place: str, proposal: Proposal) -> None:
    """Sends it, unless it was sent: by this click a moment ago, from another tab, or before a reload."""
    st.session_state.pop(_refused(chat, place), None)
    store = state.app_store().chats
    with _SENDING:
        try:
            now = store.get(chat.user, chat.id)
            if sent := _sent(now).get(place):
                st.session_state.setdefault(f"{_SENT} {chat.id}", {})[place] = sent  # by another tab
                return
            try:
                request_id = proposal.send(state.live_run(proposal.run_id, via="chat")).id
            except SendUnconfirmed as error:  # it may be there: sent again it could be there twice
                request_id = error.request_id
            noted = st.session_state.setdefault(f"{_SENT} {chat.id}", {})
            noted[place] = request_id
            store.update(chat.user, chat.id, {_SENT: {**now.data.get(_SENT, {}), place: request_id}})
        except FTLabError as error:
            st.session_state[_refused(chat, place)] = str(error)
