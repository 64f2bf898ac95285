"""Ask the runs: chats beside, what they are about above, the answer as it comes, and the model below."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import streamlit as st

from ftlab_mlflow.app_store.chats import Chat
from ftlab_mlflow.chat import slash
from ftlab_mlflow.chat.running import Progress
from ftlab_mlflow.control.wire import utc_now
from ftlab_mlflow.errors import ChatNotFound
from streamlit_app import garbage, state
from streamlit_app.components import (
    chat_about,
    chat_asking,
    chat_messages,
    chat_model,
    chat_sessions,
    chat_start,
    chat_text,
    chat_trouble,
    plot,
)
from streamlit_app.components.chat_asking import Asked
from streamlit_app.components.chat_links import links

# Seconds between two looks at an answer in the making.
_LOOK_S = 0.2
# How long another program may take for an answer.
_ELSEWHERE = timedelta(minutes=6)
_STYLE = """<style>
.stBottomBlockContainer, [data-testid=stBottomBlockContainer] { padding: 0.5rem 2rem 1rem; }
@media (max-width: 640px) { [data-testid=stBottomBlockContainer] { padding: 0.5rem 1rem 1rem; } }
.st-key-chats button, .st-key-chats button > div { justify-content: flex-start; width: 100%; }
</style>"""


def show() -> None:
    """The page; the chat's id is in the address."""
    st.html(_STYLE)
    chat_text.style()
    state.run_table().look()
    try:
        chat = chat_asking.opened()
    except ChatNotFound as error:
        chat = None
        chat_asking.go_to(None)
        st.warning("There is no such chat, or it was deleted.", icon=":material/search_off:")
        st.text(str(error))
    asked = chat_asking.asked(chat)
    is_busy = asked is not None and not asked.running.progress.is_over
    if chat is not None and asked is not None and not is_busy and chat.length < asked.position + 2:
        chat = chat_asking.opened()  # its answer was kept after it was read
    with st.sidebar:
        chat_sessions.show(chat)
    chat_trouble.show()
    if chat is not None:
        chat_sessions.head(chat)
    chat_about.show(chat)
    with st.bottom:
        with st.container(horizontal=True, gap="small", wrap=False, width=560, key="model row"):
            model_id = chat_model.show(disabled=is_busy)
            if is_busy and chat is not None:
                how: dict[str, Any] = {"on_click": chat_asking.stop, "args": (chat.id,)}
                st.button("Stop", icon=":material/stop:", key="stop", **how)
        chat_model.costs(chat, model_id)
        ask = partial(chat_asking.ask, chat)
        st.chat_input(
            "An answer is on its way" if is_busy else "Ask your runs, or type / for a command",
            key="question",
            disabled=is_busy,
            on_submit=_submitted,
            args=(ask,),
        )
    if chat is None:
        chat_start.show(state.model_offers(), ask)
    else:
        _conversation(chat, asked, partial(ask, again=True), is_busy=is_busy)
    plot.load()
    chat_asking.scroll()


def _conversation(chat: Chat, asked: Asked | None, retry: Callable[[str], None], *, is_busy: bool) -> None:
    def is_old() -> bool:
        return chat_asking.asked(chat) is not asked or chat_trouble.is_there()

    look = chat_messages.Look(links(each.data for each in chat.messages), retry, is_old)
    if asked is not None and is_busy:
        chat_messages.kept(chat, look, asked.position)
        chat_messages.question(asked.question)
        is_command = slash.is_command(asked.question)
        now = partial(_progress, asked)
        chat_messages.coming(asked.position + 1, look, _LOOK_S, now, is_command=is_command)
        return
    chat_messages.kept(chat, look, chat.length)
    last = chat.messages[-1] if chat.messages else None
    if last is not None and last.role == "user":
        error = asked.running.progress.error if asked and asked.position == last.position else None
        if error is None and utc_now() - last.created < _ELSEWHERE:
            chat_messages.elsewhere(chat.length, last.text, look, partial(_has_more, chat))
            return
        text = error or "The program that was to answer has ended."
        chat_messages.unanswered(chat.length, text, last.text, look)


def _has_more(chat: Chat) -> bool:
    """Whether an answer has come meanwhile, from another program, or has had its time."""
    is_over = utc_now() - chat.messages[-1].created >= _ELSEWHERE
    return is_over or state.chats().store.chats.get(chat.user, chat.id).length > chat.length


def _progress(asked: Asked) -> Progress:
    garbage.leave_out_modules()  # the first answer loads the library of its model
    progress = asked.running.progress
    if progress.is_over:
        chat_asking.answered()
    return progress


def _submitted(ask: Callable[[str], None]) -> None:
    ask(st.session_state["question"] or "")


show()
