"""Goes to another page from a part that refreshes itself."""

from __future__ import annotations

from typing import NoReturn

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx


def go_to(page: str, **query: str) -> NoReturn:
    """Ends this run of the script and shows `page`, with `query` in its address.

    What refreshes itself on the old page ends before: a refresh that the browser asked for meanwhile would
    come after the new page, under the old one's name, and Streamlit's front end (1.67) then throws the new
    page's elements away and breaks at the next refresh. One that belongs to nothing is passed over.
    """
    if context := get_script_run_ctx():
        context.fragment_storage.clear()
    st.switch_page(page, query_params=query)
