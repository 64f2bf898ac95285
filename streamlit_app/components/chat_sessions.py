"""A person's chats: a list to search and open them; a menu to rename, export or delete one."""

from __future__ import annotations

import re

import streamlit as st

from ftlab_mlflow.app_store.chats import Chat
from ftlab_mlflow.chat.export import export
from streamlit_app import state
from streamlit_app.components import chat_asking
from streamlit_app.components.chat_trouble import trouble
from streamlit_app.components.text import plain

_PAGE = 30
_SHOWN = "chats shown"
_SEARCH = "chats search"
_UNTITLED = "New chat"
_TITLE = 60
"""Characters of a title in the list."""


def show(opened: Chat | None) -> None:
    """The list, the last one used first. Called where it stands."""
    st.button(
        "New chat",
        icon=":material/edit_square:",
        key="new chat",
        width="stretch",
        disabled=opened is None,
        on_click=chat_asking.go_to,
        args=(None,),
    )
    search = st.text_input(
        "Search the chats",
        key=_SEARCH,
        placeholder="Search the chats",
        label_visibility="collapsed",
        live=True,
    )
    service = state.chats()
    count = st.session_state.get(_SHOWN, _PAGE)
    found = service.store.chats.list(service.user, search, limit=count + 1)
    with st.container(gap=None, key="chats"):
        for chat in found[:count]:
            st.button(
                plain(_title(chat)[:_TITLE]),
                key=f"open {chat.id}",
                type="secondary" if opened is not None and chat.id == opened.id else "tertiary",
                width="stretch",
                wrap=False,
                on_click=chat_asking.go_to,
                args=(chat.id,),
            )
        if len(found) > count:
            st.button(
                "More", key="more chats", type="tertiary", icon=":material/expand_more:", on_click=_more
            )
    if not found:
        st.caption("No chat speaks of it." if search else "No chats yet.")


def head(chat: Chat) -> None:
    """The title of the chat that is open, and what can be done with it."""
    with st.container(horizontal=True, vertical_alignment="center", wrap=False, key="chat head"):
        st.subheader(plain(_title(chat)), anchor=False)
        with st.popover("", icon=":material/more_horiz:", type="tertiary", key="chat menu", help="This chat"):
            _menu(chat)


def _menu(chat: Chat) -> None:
    title = f"title {chat.id} {chat.title}"
    st.text_input("Title", value=chat.title, key=title, max_chars=200)
    st.button("Rename", icon=":material/edit:", key="rename", on_click=_rename, args=(chat, title))
    st.download_button(
        "Export as Markdown",
        lambda: _exported(chat),
        f"{_file_name(chat)}.md",
        "text/markdown",
        icon=":material/download:",
        key="export",
        on_click="ignore",
    )
    asking = f"asking to delete {chat.id}"
    if not st.session_state.get(asking):
        st.button("Delete…", icon=":material/delete:", key="delete", on_click=_asks, args=(asking, True))
        return
    st.text("Delete it and all that was said in it? What it took stays on the page Usage.")
    with st.container(horizontal=True):
        st.button("Delete it", type="primary", key="delete yes", on_click=_delete, args=(chat,))
        st.button("Keep it", key="delete no", on_click=_asks, args=(asking, False))


def _title(chat: Chat) -> str:
    return chat.title or _UNTITLED


def _more() -> None:
    st.session_state[_SHOWN] = st.session_state.get(_SHOWN, _PAGE) + _PAGE


def _asks(name: str, value: bool) -> None:
    st.session_state[name] = value


def _rename(chat: Chat, field: str) -> None:
    with trouble():
        state.app_store().chats.rename(chat.user, chat.id, st.session_state[field])


def _delete(chat: Chat) -> None:
    with trouble():
        chat_asking.stop(chat.id)
        state.app_store().chats.delete(chat.user, chat.id)
        chat_asking.go_to(None)


def _exported(chat: Chat) -> str:
    return export(state.app_store().chats.get(chat.user, chat.id))


def _file_name(chat: Chat) -> str:
    return "-".join(re.findall(r"[A-Za-z0-9]+", chat.title.lower()))[:60] or "chat"
