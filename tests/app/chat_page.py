"""The page of the chat without a browser: asking, waiting for answers, and what is on it."""

from __future__ import annotations

import time
from typing import Any

import streamlit as st
from app_pages import LIMIT_S, opened, texts
from streamlit.testing.v1 import AppTest

from ftlab_mlflow.app_store import AppStore
from ftlab_mlflow.app_store.chats import Chat
from ftlab_mlflow.control.client import user_name


class ChatPage:
    """The page, as somebody has it open."""

    def __init__(self, **query: str) -> None:
        self.app: AppTest = opened("chat", **query)

    def say(self, text: str) -> ChatPage:
        """Types something, as far as the next look at the page."""
        (field,) = self.app.chat_input
        field.set_value(text).run()
        assert not self.app.exception, self.app.exception
        return self

    def ask(self, text: str) -> ChatPage:
        """The same, and waits until it was answered, or why not was said."""
        return self.say(text).until_answered()

    def until_answered(self) -> ChatPage:
        end = time.monotonic() + LIMIT_S
        while self.is_busy:
            assert time.monotonic() < end, self.said
            self.look()
        return self

    def look(self) -> ChatPage:
        """Its next refresh."""
        time.sleep(0.02)
        self.app.run()
        assert not self.app.exception, self.app.exception
        return self

    def click(self, key: str) -> ChatPage:
        self.button(key).click().run()
        assert not self.app.exception, self.app.exception
        return self

    def button(self, key: str) -> Any:
        """The button whose key begins so."""
        (found,) = self.buttons(key)
        return found

    def buttons(self, key: str) -> list[Any]:
        return [button for button in self.app.button if (button.key or "").startswith(key)]

    @property
    def is_busy(self) -> bool:
        (field,) = self.app.chat_input
        return bool(field.proto.disabled)

    @property
    def said(self) -> str:
        """All that is on it as a person reads it, with the HTML of answers."""
        found = [texts(self.app), self.html, *(each.label for each in self.app.get("status"))]
        return "\n".join(found).replace("\\", "").replace("\u2060", "")

    @property
    def html(self) -> str:
        return "\n".join(each.value for each in self.app.get("html") if each.value.startswith("<div"))

    @property
    def chat_id(self) -> str:
        """Of the chat that is open, from the address."""
        return address(self.app)

    def kept(self) -> Chat:
        """The chat that is open, read past the page."""
        return kept(self.chat_id)


def address(app: AppTest) -> str:
    """The chat's id in the address."""
    value = app.query_params["chat"]  # AppTest gives a list where the page wrote it
    return str(value if isinstance(value, str) else value[0])


def kept(chat_id: str, user: str | None = None) -> Chat:
    """A chat in the app database."""
    store = AppStore()
    try:
        return store.chats.get(user or user_name(), chat_id)
    finally:
        store.close()


def as_a_new_process() -> None:
    """Nothing is left of the one before."""
    st.cache_resource.clear()
