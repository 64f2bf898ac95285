"""An empty chat: what can be asked, with a model and without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from ftlab_mlflow.chat import slash
from ftlab_mlflow.chat.offers import Group
from ftlab_mlflow.chat.scope import Scope
from streamlit_app.components import chat_model, chat_text

_QUESTIONS = (
    "Which run has the lowest eval loss, and what was different in it?",
    "Is anything wrong with the newest run?",
    "What did the live changes do to the loss?",
)
_COMMANDS = ("/rank eval_loss", "/diagnose latest", "/changes latest")


def show(groups: Sequence[Group], ask: Callable[[str], None]) -> None:
    """Examples as buttons, and what there is without a model."""
    is_usable = chat_model.usable(groups)
    st.subheader("Ask your runs", anchor=False)
    if is_usable:
        st.text(
            "A model looks up what you ask with functions that only read. It can propose a live change; "
            "nothing is sent unless you click. Every number is checked against what the functions returned."
        )
    else:
        _without_model(groups)
    with st.container(horizontal=True, gap="small", key="examples"):
        for text in (*(_QUESTIONS if is_usable else ()), *_COMMANDS):
            st.button(text, key=f"example {text}", on_click=ask, args=(text,))
    with st.expander("Commands that need no model", icon=":material/terminal:", type="compact"):
        chat_text.show(slash.run("/help", Scope()).markdown, ())


def _without_model(groups: Sequence[Group]) -> None:
    st.info("No model can be used yet. Commands work all the same: try one below.", icon=":material/key:")
    with st.expander("How to get a model", icon=":material/smart_toy:"):
        st.markdown(
            "Start the dashboard with one of these set, or name a server of your own in `models.toml`; "
            "`ftlab models` lists what there is."
        )
        for group in groups:
            if group.why_not:
                st.text(f"{group.endpoint}: {group.why_not}")
