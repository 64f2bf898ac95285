"""The way of the latest requests: sent, seen, applied at a step, or refused and why."""

from __future__ import annotations

from typing import Literal

import streamlit as st

from ftlab_mlflow.control.ledger import Entry
from ftlab_mlflow.control.view import RequestProgress, RunView, progress_of, reasoned_text
from streamlit_app.components import sending

_SHOWN = 5
_ICONS = {
    "applied": ":material/check_circle:",
    "rejected": ":material/block:",
    "cancelled": ":material/undo:",
}
_COLORS: dict[str, Literal["green", "red"]] = {"applied": "green", "rejected": "red"}


def show(view: RunView, closed: str | None) -> None:
    """This session's latest requests, and those of anybody that are still open."""
    mine = sending.sent(view)[:_SHOWN]
    known = {entry.id: entry for entry in view.entries}
    ids = [*mine, *(entry.id for entry in view.pending if entry.id not in mine)]
    if not ids:
        return
    st.subheader("Requests", anchor=False)
    for request_id in ids:
        with st.container(border=True, key=f"request {request_id}"):
            if entry := known.get(request_id):
                _entry(view, entry, disabled=closed is not None)
            else:
                st.text("Not yet among the run's tags.")


def badge(way: RequestProgress) -> None:
    """How far a request is, in a word."""
    icon = _ICONS.get(way.stage, ":material/schedule:")
    st.badge(way.stage, icon=icon, color=_COLORS.get(way.stage, "gray"))


def _entry(view: RunView, entry: Entry, *, disabled: bool) -> None:
    way = progress_of(entry, view)
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        badge(way)
        st.text(reasoned_text(entry))
    st.text(way.text)
    if way.stale and entry.update:
        st.button(
            "Send it all the same",
            key=f"again {entry.id}",
            disabled=disabled,
            on_click=sending.again,
            args=(view, entry.update),
        )
    is_withdrawal = entry.update is not None and entry.update.command == "cancel"
    if not (entry.answered or is_withdrawal) and view.surface and "cancel" in view.surface.commands:
        withdraw = {"id": entry.id}
        st.button(
            "Withdraw",
            key=f"cancel {entry.id}",
            disabled=disabled,
            on_click=sending.command,
            args=(view, "cancel"),
            kwargs=withdraw,
        )
