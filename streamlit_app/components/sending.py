"""Sends requests of this browser session, and remembers what became of those that were not written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import streamlit as st

from ftlab_mlflow.control.messages import Update
from ftlab_mlflow.control.view import RunView
from ftlab_mlflow.control.wire import Scalar
from ftlab_mlflow.errors import FTLabError, UpdateRejected
from streamlit_app import state


@dataclass(frozen=True)
class Refused:
    """Why a request was not written.

    Attributes:
        code: The protocol's code of a rejection; empty where it never came to that.
    """

    text: str
    code: str = ""


def sent(view: RunView) -> list[str]:
    """Ids of the requests that this session has sent to the run, the newest first."""
    ids: list[str] = st.session_state.setdefault(f"sent {view.data.run_id}", [])
    return ids


def refused(view: RunView) -> Refused | None:
    """Why the last request was not written; None if it was."""
    found: Refused | None = st.session_state.get(f"refused {view.data.run_id}")
    return found


def change(
    view: RunView, values: Mapping[str, Scalar], expect: Mapping[str, Scalar], reason: str | None
) -> bool:
    """Asks for new values, all at one step; returns whether the request was written."""
    try:
        request = state.live_run(view.data.run_id).update(values, expect=expect, reason=reason)
    except FTLabError as error:
        code = error.code if isinstance(error, UpdateRejected) else ""
        refuse(view, Refused(str(error), code))
        return False
    sent(view).insert(0, request.id)
    forget(view)
    return True


def command(view: RunView, name: str, **args: Scalar) -> None:
    """Sends a command."""
    try:
        request = state.live_run(view.data.run_id).command(name, **args)  # type: ignore[arg-type]
    except FTLabError as error:
        code = error.code if isinstance(error, UpdateRejected) else ""
        refuse(view, Refused(f"{name}: {error}", code))
        return
    sent(view).insert(0, request.id)
    forget(view)


def refuse(view: RunView, what: Refused) -> None:
    """Remembers that nothing was written, for the page to say so."""
    st.session_state[f"refused {view.data.run_id}"] = what


def forget(view: RunView) -> None:
    """The refusal has been read."""
    st.session_state.pop(f"refused {view.data.run_id}", None)


def again(view: RunView, update: Update) -> None:
    """Asks once more for what came back as stale, over the values that stand there now."""
    values, surface = update.set or {}, view.surface
    now = {name: surface.params[name].asked for name in values if surface and name in surface.params}
    change(view, values, now, update.reason)
