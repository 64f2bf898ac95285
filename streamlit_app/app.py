"""The dashboard: `ftlab dashboard` runs this file. It chooses the page; pages render and call the library."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from streamlit_app import garbage, identity, state
from streamlit_app.components import appearance, banner, page_change


def main() -> None:
    """One run of the script: for a person that is let in, one page."""
    st.set_page_config(page_title="ftlab", page_icon=str(Path(__file__).with_name("icon.svg")), layout="wide")
    # Not in a folder "pages": Streamlit would run what lies there by itself, before this and its gate.
    pages = [
        st.Page("views/runs.py", title="Runs", url_path="runs", icon=":material/table_rows:", default=True),
        st.Page("views/run.py", title="Run", url_path="run", icon=":material/tune:"),
        st.Page(
            "views/compare.py", title="Compare", url_path="compare", icon=":material/stacked_line_chart:"
        ),
        st.Page("views/chat.py", title="Chat", url_path="chat", icon=":material/forum:"),
        st.Page("views/usage.py", title="Usage", url_path="usage", icon=":material/payments:"),
        st.Page("views/settings.py", title="Settings", url_path="settings", icon=":material/settings:"),
    ]
    page = st.navigation(pages, position="top" if identity.is_let_in() else "hidden")
    page_change.arrived(page)
    appearance.use_space()
    identity.gate()
    if trouble := state.preferences_trouble():
        st.warning("Your settings cannot be read; the defaults are in use.", icon=":material/settings_alert:")
        st.text(trouble)
    banner.errors_of(page.run)
    banner.errors_of(lambda: appearance.apply(state.preferences().theme))
    garbage.leave_out_modules()


main()
