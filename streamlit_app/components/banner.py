"""What is said at the top of a page: a store that is away, an error that ends the page."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import streamlit as st

from ftlab_mlflow.analytics.units import duration
from ftlab_mlflow.control.wire import utc_now
from ftlab_mlflow.errors import FTLabError, StoreUnavailable


def away(problem: StoreUnavailable, read_at: datetime | None) -> None:
    """The store does not answer: why, and how old what is shown is."""
    if read_at is None:
        age = "Nothing has been read yet."
    else:
        age = f"Shown is what was read {duration((utc_now() - read_at).total_seconds())} ago."
    with st.container(key="away"):
        st.warning(
            "The tracking store does not answer. The page goes on trying.", icon=":material/cloud_off:"
        )
        st.text(f"{age} {problem}")


def errors_of(page: Callable[[], None]) -> None:
    """Runs a page; what it cannot handle is said in words."""
    try:
        page()
    except StoreUnavailable as error:
        away(error, None)
        if st.button("Try again"):
            st.rerun()
    except FTLabError as error:
        st.error("This page cannot be shown.", icon=":material/error:")
        st.text(str(error))
