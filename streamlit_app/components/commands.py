"""The buttons of a run: the commands that its surface offers."""

from __future__ import annotations

from typing import Any

import streamlit as st

from ftlab_mlflow.control.view import RunView
from streamlit_app.components import sending

_ICONS = {
    "pause": ":material/pause:",
    "resume": ":material/play_arrow:",
    "evaluate": ":material/fact_check:",
    "checkpoint": ":material/save:",
    "rollback": ":material/history:",
    "stop": ":material/stop:",
}
_ASKS_FIRST = ("rollback", "stop")
_SAVE, _CHECKPOINT = "stop saves", "rollback to"


def show(view: RunView, closed: str | None) -> None:
    """One button a command; those that cannot be taken back ask first."""
    if view.surface is None:
        return
    offered = [name for name in _ICONS if name in view.surface.commands]
    asking = f"asking {view.data.run_id}"
    # All of them, always: a button in the place of another one makes Streamlit's front end build those beside
    # it anew, and a click that falls between is lost.
    with st.grid(min_column_width=120, gap="small", key="commands"):
        for name in offered:
            label = name.capitalize() + ("…" if name in _ASKS_FIRST else "")
            may = closed is None and _fits(name, view)
            # By a callback: it is called even where a refresh interrupts the run of the script.
            how: dict[str, Any] = {"on_click": _clicked, "args": (view, name, asking), "width": "stretch"}
            st.button(label, icon=_ICONS[name], disabled=not may, key=f"command {name}", **how)
    asked = st.session_state.get(asking)
    if asked in offered and closed is None:
        _ask(view, asked, asking)


def _fits(name: str, view: RunView) -> bool:
    is_paused = view.state == "paused"
    return {"pause": not is_paused, "resume": is_paused}.get(name, True)


def _clicked(view: RunView, name: str, asking: str) -> None:
    if name in _ASKS_FIRST:
        st.session_state[asking] = name
    else:
        sending.command(view, name)


def _ask(view: RunView, name: str, asking: str) -> None:
    with st.container(border=True, key="asking"):
        if name == "stop":
            st.text("Stop this training at the next step? It ends the run.")
            st.checkbox("Write a checkpoint first", value=True, key=_SAVE)
        else:
            st.text("Go back to a checkpoint of this run? Steps since then are trained again; changes stay.")
            where = "Its folder, such as checkpoint-500"
            st.text_input("Checkpoint", placeholder="the last one", help=where, key=_CHECKPOINT)
        with st.container(horizontal=True):
            label = f"{name.capitalize()} now"
            st.button(label, type="primary", key="asked yes", on_click=_answered, args=(view, name, asking))
            st.button("Keep training", key="asked no", on_click=_answered, args=(view, None, asking))


def _answered(view: RunView, name: str | None, asking: str) -> None:
    """The question is answered; `name` is the command to send, if any."""
    st.session_state.pop(asking, None)
    if name == "stop":
        sending.command(view, name, save=st.session_state[_SAVE])
    elif name == "rollback":
        checkpoint = st.session_state[_CHECKPOINT].strip()
        sending.command(view, name, **({"checkpoint": checkpoint} if checkpoint else {}))
