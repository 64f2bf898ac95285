"""What goes wrong in a callback, where nothing can be shown: it is said on the page that comes next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from ftlab_mlflow.errors import FTLabError

_TROUBLE = "chat trouble"


@contextmanager
def trouble() -> Iterator[None]:
    """What goes wrong in a callback is said on the page that it leads to."""
    try:
        yield
    except FTLabError as error:
        st.session_state[_TROUBLE] = str(error)


def is_there() -> bool:
    """Whether there is something to say."""
    return _TROUBLE in st.session_state


def show() -> None:
    """Says it."""
    if text := st.session_state.pop(_TROUBLE, None):
        st.error("That could not be done.", icon=":material/error:")
        st.text(text)
