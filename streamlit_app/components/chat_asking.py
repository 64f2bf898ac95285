"""Questions under way: an answer goes on in the background, also while its page is reloaded or closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from ftlab_mlflow.app_store.chats import Chat
from ftlab_mlflow.chat.running import Running
from ftlab_mlflow.errors import ChatError
from streamlit_app import state
from streamlit_app.components import chat_about, chat_model
from streamlit_app.components.chat_trouble import trouble

CHAT = "chat"
"""The name of the chat's id in the address."""
_OPEN = "chat open"
_LAST = "last question"
_SCROLL, _FOCUS = "scroll to the question", "focus the field of questions"
_AGAIN_S = 3.0
"""Streamlit may give one question to two runs of the script: the same one so soon is the same one."""
_TITLE = 80
"""Characters of a chat's title, as its first question gives it."""
_TO_THE_END = """<script>(() => {
  const page = document.querySelector("[data-testid=stMain]");
  if (!page) return;
  const watch = new ResizeObserver(() => page.scrollTo({ top: page.scrollHeight }));
  for (const part of page.children) watch.observe(part);
  const leave = () => watch.disconnect();
  ["wheel", "touchmove", "pointerdown"].forEach(each => page.addEventListener(each, leave, { once: true }));
  setTimeout(leave, 60000);
})()</script>"""
_TO_THE_FIELD = """<script>(() => {
  const field = () => document.querySelector("[data-testid=stChatInputTextArea]");
  const isFree = () => document.activeElement === document.body && !field()?.disabled;
  const focus = () => { if (isFree()) field()?.focus(); };
  [50, 300, 800].forEach(delay => setTimeout(focus, delay));
})()</script>"""
_KEPT = 100
"""Answers that are over and still remembered, for pages that have not looked since."""


@dataclass(frozen=True)
class Asked:
    """A question, and its answer as far as it is.

    Attributes:
        position: Of the question among the messages of its chat.
    """

    question: str
    position: int
    running: Running


@dataclass
class _Answers:
    """By chat: ids are unique, and a page gets those of its person only from the store."""

    by_chat: dict[str, Asked] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


@st.cache_resource
def _answers() -> _Answers:
    return _Answers()


def asked(chat: Chat | None) -> Asked | None:
    """The last question of a chat that this process has answered, or answers now."""
    return None if chat is None else _answers().by_chat.get(chat.id)


def opened() -> Chat | None:
    """The chat in the address, or the one that was open on this page before; None is a new one.

    Raises:
        ChatNotFound: This person has no such chat.
    """
    chat_id = st.query_params.get(CHAT) or st.session_state.pop(_OPEN, None)
    if not chat_id:
        return None
    service = state.chats()
    chat = service.store.chats.get(service.user, chat_id)
    go_to(chat.id)
    return chat


def go_to(chat_id: str | None) -> None:
    """Shows another chat, or an empty page for a new one."""
    st.session_state[_OPEN] = chat_id
    if chat_id is None:
        st.query_params.pop(CHAT, None)
    elif st.query_params.get(CHAT) != chat_id:
        st.query_params[CHAT] = chat_id


def ask(chat: Chat | None, question: str, *, again: bool = False) -> None:
    """Begins an answer, in a new chat if there is none yet. Only one at a time in each chat.

    Args:
        again: Whether it is the last question once more.
    """
    before, at = st.session_state.get(_LAST, (None, 0.0))
    this = (chat and chat.id, chat and chat.length, question)
    if not question.strip() or (before == this and time.monotonic() - at < _AGAIN_S):
        return
    st.session_state[_LAST] = (this, time.monotonic())
    with trouble():
        service = state.chats()
        chats = service.store.chats
        if chat is None:
            now = chats.create(service.user, " ".join(question.split())[:_TITLE], chat_about.begun())
        else:
            now = chats.get(service.user, chat.id)
        go_to(now.id)
        st.session_state[_SCROLL] = True
        options: dict[str, Any] = {"model_id": chat_model.chosen(), "again": again}
        _begin(
            now, question, lambda: Running(lambda stop: service.ask(now.id, question, stop=stop, **options))
        )


def _begin(chat: Chat, question: str, start: Callable[[], Running]) -> None:
    answers = _answers()
    with answers.lock:
        now = answers.by_chat.get(chat.id)
        if now is not None and not now.running.progress.is_over:
            raise ChatError(
                f"this chat is answering another question, of another tab: ask again after it\n\n{question}"
            )
        over = [key for key, each in answers.by_chat.items() if each.running.progress.is_over]
        for key in over[:-_KEPT]:
            del answers.by_chat[key]
        answers.by_chat.pop(chat.id, None)
        answers.by_chat[chat.id] = Asked(question, chat.length, start())


def scroll() -> None:
    """Once after a question: keeps the end of the page in sight, until the person looks elsewhere; once after
    an answer: the next question can be typed at once. Called last on a page.
    """
    for wanted, script in ((_SCROLL, _TO_THE_END), (_FOCUS, _TO_THE_FIELD)):
        if st.session_state.pop(wanted, False):
            # The time makes it another element each time: the browser runs one only when it is new.
            st.html(f"{script}<!-- {time.time()} -->", unsafe_allow_javascript=True)


def answered() -> None:
    """An answer that this page has watched is over."""
    st.session_state[_FOCUS] = True


def stop(chat_id: str) -> None:
    """Ends the answer of a chat with what it has."""
    if found := _answers().by_chat.get(chat_id):
        found.running.stop()
