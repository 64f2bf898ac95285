"""Changes of the page. What refreshes itself on the old page must not come after the new one is there.

A refresh that the browser asked for on the old page, and that the server takes up while it makes the new
one, comes afterwards and under the old page's name: Streamlit's front end (1.67) then throws the new page's
elements away and breaks at the next refresh. A refresh of a part that the server does not know is passed
over.
"""

from __future__ import annotations

from typing import NoReturn

import streamlit as st
from streamlit.navigation.page import StreamlitPage
from streamlit.runtime.scriptrunner import get_script_run_ctx

_SHOWN = "page shown"


def arrived(page: StreamlitPage) -> None:
    """This run of the script shows `page`: what refreshed itself on another one ends."""
    if st.session_state.get(_SHOWN) != page.url_path:
        _end_refreshes()
        st.session_state[_SHOWN] = page.url_path


def go_to(page: str, **query: str) -> NoReturn:
    """Ends this run of the script and shows `page`, with `query` in its address."""
    _end_refreshes()
    st.switch_page(page, query_params=query)


def _end_refreshes() -> None:
    if context := get_script_run_ctx():
        context.fragment_storage.clear()
