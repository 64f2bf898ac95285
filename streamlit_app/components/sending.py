"""Sends requests of this browser session, and remembers what became of those that were not written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import streamlit as st

from ftlab_mlflow.control.client import LiveRun, SentUpdate
from ftlab_mlflow.control.messages import Update
from ftlab_mlflow.control.view import RunView
from ftlab_mlflow.control.wire import Scalar
from ftlab_mlflow.errors import FTLabError, SendUnconfirmed, UpdateRejected
from streamlit_app import state

_POOL = ThreadPoolExecutor(8, "send a request")
_QUIET_S = 1.0
"""Seconds after which a person is told that it takes longer: up to the time limit of the store."""
_AGAIN_S = 3.0
"""Streamlit may give one click to two runs of the script: the same request so soon is the same click."""


@dataclass(frozen=True)
class Refused:
    """Why a request was not written, or may not have been.

    Attributes:
        code: The protocol's code of a rejection; empty where it never came to that.
        is_unsure: Whether it may have been written all the same.
    """

    text: str
    code: str = ""
    is_unsure: bool = False


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
    what = (dict(values), dict(expect), reason)
    return _once(view, what, lambda run: run.update(values, expect=expect, reason=reason))


def command(view: RunView, name: str, **args: Scalar) -> None:
    """Sends a command."""
    _once(view, (name, args), lambda run: run.command(name, **args))  # type: ignore[arg-type]


def _once(view: RunView, what: object, send: Callable[[LiveRun], SentUpdate]) -> bool:
    key = f"last {view.data.run_id}"
    before, at = st.session_state.get(key, (None, 0.0))
    if before == what and time.monotonic() - at < _AGAIN_S:
        return True
    try:
        sending = _POOL.submit(send, state.live_run(view.data.run_id))
        wait([sending], _QUIET_S)
        if not sending.done():
            st.toast("The tracking store is slow. Still sending …", icon=":material/hourglass_top:")
        sent(view).insert(0, sending.result().id)
    except SendUnconfirmed as error:
        sent(view).insert(0, error.request_id)
        refuse(view, Refused(str(error), is_unsure=True))
        return False
    except FTLabError as error:
        refuse(view, Refused(str(error), error.code if isinstance(error, UpdateRejected) else ""))
        return False
    st.session_state[key] = (what, time.monotonic())
    forget(view)
    return True


def refuse(view: RunView, what: Refused) -> None:
    """Remembers that nothing was written, or perhaps nothing, for the page to say so."""
    st.session_state[f"refused {view.data.run_id}"] = what


def forget(view: RunView) -> None:
    """The refusal has been read."""
    st.session_state.pop(f"refused {view.data.run_id}", None)


def again(view: RunView, update: Update) -> None:
    """Asks once more for what came back as stale, over the values that stand there now."""
    values, surface = update.set or {}, view.surface
    now = {name: surface.params[name].asked for name in values if surface and name in surface.params}
    change(view, values, now, update.reason)
