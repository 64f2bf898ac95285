"""What can be changed in a run, drawn from its surface alone: fields, what is edited, sending."""

from __future__ import annotations

import time
from typing import Any

import streamlit as st

from ftlab_mlflow.analytics import units
from ftlab_mlflow.control import view as views
from ftlab_mlflow.control.surface import Param
from ftlab_mlflow.control.view import RunView
from ftlab_mlflow.control.wire import Scalar, shown_value
from ftlab_mlflow.errors import FTLabError, StoreUnavailable
from streamlit_app import state
from streamlit_app.components import preview, sending
from streamlit_app.components.text import plain

_ASK_AGAIN_S = 60.0
"""Seconds after which the tracking server is asked anew whether this person may write."""


def why_closed(view: RunView) -> str | None:
    """Why nothing can be changed now; None where it can."""
    if reason := views.why_closed(view):
        return reason
    key = f"may write {view.data.run_id}"
    asked_at, answer = st.session_state.get(key, (0.0, None))
    if time.monotonic() - asked_at > _ASK_AGAIN_S or not asked_at:
        try:
            answer = state.live_run(view.data.run_id).why_read_only()
        except StoreUnavailable as error:
            return str(error)
        st.session_state[key] = (time.monotonic(), answer)
    reason_or_none: str | None = answer
    return reason_or_none


def show(view: RunView, closed: str | None) -> None:
    """The fields, and what was edited."""
    st.subheader("Change it live", anchor=False)
    if closed:
        st.info("Nothing can be changed now.", icon=":material/lock:")
        st.text(closed)
    if view.surface is None:
        return
    edited: dict[str, Scalar] = {}
    wrong: list[str] = []
    # Every part has its place whether it is empty or not: fields must not move while somebody types.
    summary = st.container()
    for name, param in view.surface.params.items():
        text = _field(view, name, param, disabled=closed is not None)
        below = st.container(key="preview" if name == "learning_rate" else None)
        if name == "learning_rate":
            beside_rate = below
        if not text:
            continue
        try:
            edited[name] = param.parse(text)
        except FTLabError as error:
            wrong.append(name)
            below.text(f"{name}: {error}")
    if not closed and "learning_rate" in view.surface.params:
        with beside_rate:
            preview.show(view.surface, edited)
    with summary:
        if not closed:
            _summary(view, edited, wrong)
        _refusal(view, edited)
    if view.surface.unsupported:
        with st.expander("Not offered in this run"):
            for name, why in view.surface.unsupported.items():
                st.text(f"{name}: {why}")


def _field(view: RunView, name: str, param: Param, *, disabled: bool) -> str:
    """One parameter; what was typed or chosen, if anything."""
    key = _key(view, name)
    seen = _seen(view)
    if key not in st.session_state or not st.session_state[key]:
        seen.pop(name, None)
    shown_asked = param.asked  # what the person sees while typing: `expect` of the request

    def edited() -> None:
        seen.setdefault(name, shown_asked)

    in_force, asked_for = shown_value(param.value), shown_value(param.asked)
    said = f"{in_force} in force" + (f", {asked_for} asked for" if asked_for != in_force else "")
    common: dict[str, Any] = {"key": key, "on_change": edited, "disabled": disabled, "help": _help(param)}
    if param.type in ("enum", "bool"):
        choices = list(param.choices) if param.type == "enum" else ["true", "false"]
        text = st.selectbox(plain(name), choices, index=None, placeholder=said, **common)
    else:
        text = st.text_input(plain(name), placeholder=said, live=True, **common)
    return (text or "").strip()


def _help(param: Param) -> str:
    bounds = {"from": param.min, "to": param.max}
    said = " ".join(f"{word} {units.number(bound)}" for word, bound in bounds.items() if bound is not None)
    return "  \n".join(part for part in (plain(param.help), f"{param.type} {said}".strip()) if part)


def _summary(view: RunView, edited: dict[str, Scalar], wrong: list[str]) -> None:
    if not edited or view.surface is None:
        return
    seen = _seen(view)
    expect = {name: seen[name] for name in edited if name in seen}
    refused = sending.refused(view)
    is_said = refused is not None and refused.code == "stale"  # below, where nothing is to move any more
    with st.container(border=True, key="summary"):
        lines = st.container()  # their number changes, and what stands below must not be built anew
        why = f"reason {view.data.run_id} {_edit(view)}"
        st.text_input("Why (optional)", key=why, placeholder="loss plateau")
        with lines:
            for name, value in edited.items():
                asked = view.surface.params[name].asked
                again = ", as it was asked for before" if value == asked else ""
                st.text(f"{name}: {shown_value(asked)} → {shown_value(value)}{again}")
                if name in seen and seen[name] != asked and not is_said:
                    st.text(f"While you typed, somebody changed it from {shown_value(seen[name])}.")
            if wrong:
                st.text(f"Nothing is sent while another value is wrong: {', '.join(wrong)}.")
        with st.container(horizontal=True):
            label = "Send 1 change" if len(edited) == 1 else f"Send {len(edited)} changes"
            args = (view, edited, expect, _typed(view))
            st.button(label, type="primary", key="send", disabled=bool(wrong), on_click=_send, args=args)
            st.button("Discard", key="discard", on_click=_clear, args=(view,))


def _send(
    view: RunView, edited: dict[str, Scalar], expect: dict[str, Scalar], typed: dict[str, str | None]
) -> None:
    """Sends what the summary showed: not what was typed between the last look and the click."""
    reason = st.session_state[f"reason {view.data.run_id} {_edit(view)}"].strip() or None
    if not any(_typed(view).values()):
        return  # the same click a second time: it was sent, and the fields are empty
    if _typed(view) != typed:
        text = "A value changed while you clicked. Look at the summary, and send it if it is right."
        sending.refuse(view, sending.Refused(text))
        return
    if sending.change(view, edited, expect, reason):
        _clear(view)


def _typed(view: RunView) -> dict[str, str | None]:
    """What stands in the fields, by parameter."""
    assert view.surface is not None
    return {name: st.session_state.get(_key(view, name)) or None for name in view.surface.params}


def _clear(view: RunView) -> None:
    """Empty fields: new ones, because a refresh that is under way still brings what stood in the old ones."""
    st.session_state[_edit_key(view)] = _edit(view) + 1
    _seen(view).clear()
    sending.forget(view)


def _edit(view: RunView) -> int:
    """How many times the fields were sent or discarded in this session."""
    count: int = st.session_state.get(_edit_key(view), 0)
    return count


def _edit_key(view: RunView) -> str:
    return f"edit of {view.data.run_id}"


def _refusal(view: RunView, edited: dict[str, Scalar]) -> None:
    refused = sending.refused(view)
    if refused is None:
        return
    said = "It is not known whether it was sent." if refused.is_unsure else "Nothing was sent."
    st.error(said, icon=":material/block:")
    st.text(refused.text)
    with st.container(horizontal=True):
        if refused.code == "stale" and edited and view.surface:
            args = (view, edited, {name: view.surface.params[name].asked for name in edited}, _typed(view))
            st.button("Send it all the same", key="again", on_click=_send, args=args)
        st.button("Close", key="forget", on_click=sending.forget, args=(view,))


def _key(view: RunView, name: str) -> str:
    return f"set {name} {view.data.run_id} {_edit(view)}"


def _seen(view: RunView) -> dict[str, Scalar]:
    """What stood there when the person began to edit a field, by parameter."""
    seen: dict[str, Scalar] = st.session_state.setdefault(f"seen {view.data.run_id}", {})
    return seen
