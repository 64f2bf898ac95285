"""What was said in a chat: questions, answers with the tools that ran, what they took, what went wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import streamlit as st

from ftlab_mlflow.analytics import units
from ftlab_mlflow.app_store.chats import Chat, ChatMessage
from ftlab_mlflow.chat.events import Answer, ToolRun
from ftlab_mlflow.chat.render import markdown
from ftlab_mlflow.chat.running import Called, Progress, Said
from streamlit_app.components import chat_chart, chat_proposal, chat_text
from streamlit_app.components.chat_cost import took
from streamlit_app.components.chat_links import Links, links
from streamlit_app.components.text import plain

_LOOK_AGAIN_S = 3.0
_ARGUMENTS = 80
"""Characters of the arguments in a tool's label."""
_NUMBERS = 12
"""Numbers that are named where more are not verified."""


@dataclass(frozen=True)
class Look:
    """How messages are shown.

    Attributes:
        retry: Asks a question once more.
        is_old: Whether the page has to be run anew, as after a click on Retry.
    """

    links: Links
    retry: Callable[[str], None]
    is_old: Callable[[], bool]


def question(text: str) -> None:
    """What the person asked."""
    with st.chat_message("user", avatar=":material/person:"):
        chat_text.typed(text)


def kept(chat: Chat, look: Look, until: int) -> None:
    """The first `until` messages of a chat, with a button below the last answer that asks once more."""
    asked = ""
    for message in chat.messages[:until]:
        if message.role == "user":
            asked = message.text
            question(asked)
            continue
        _alone(message.position, look, partial(_kept, chat, message, asked, look))


def coming(position: int, look: Look, every: float, now: Callable[[], Progress], *, is_command: bool) -> None:
    """An answer in the making, in the places that its parts will have in the end.

    Args:
        position: Of its message. every: Seconds between two looks. now: How far it is.
    """

    def show() -> None:
        progress = now()
        if progress.is_over:
            st.rerun()
        results = [part.run.result for part in progress.parts if isinstance(part, Called) and part.run]
        own = replace(look, links=(*look.links, *links(results)))
        for part in progress.parts:
            if isinstance(part, Said):
                chat_text.show(part.text, own.links)
            elif not is_command:
                _called(part, own, position)
        if progress.waiting:
            st.caption(plain(progress.waiting))
        elif not (progress.parts and isinstance(progress.parts[-1], Said)):
            st.caption("…")

    _alone(position, look, show, every)


def elsewhere(position: int, asked: str, look: Look, has_more: Callable[[], bool]) -> None:
    """A question that another program may be answering just now."""

    def show() -> None:
        if has_more():
            st.rerun()
        st.caption(
            "No answer yet: another program may be at it just now, or has ended. The page looks again."
        )
        _retry(asked, look, "retry")

    _alone(position, look, show, _LOOK_AGAIN_S)


def unanswered(position: int, text: str, asked: str, look: Look) -> None:
    """A question whose answer was never kept."""

    def show() -> None:
        failure(text)
        _retry(asked, look, "retry")

    _alone(position, look, show)


def _alone(position: int, look: Look, show: Callable[[], None], every: float | None = None) -> None:
    """An answer as a part of the page that is refreshed by itself.

    It is one from the first word on and for good: then the browser keeps what is there, and what somebody has
    opened in it stays open.
    """

    @st.fragment(run_every=every, key=f"answer {position}")
    def fragment() -> None:
        if look.is_old():
            st.rerun()
        with st.chat_message("assistant", avatar=":material/smart_toy:"):
            show()

    fragment()


def _kept(chat: Chat, message: ChatMessage, asked: str, look: Look) -> None:
    if error := message.data.get("error"):
        failure(error)
    else:
        _answer(chat, message, look)
    _below(message, asked if message.position == chat.length - 1 else None, look)


def failure(text: str) -> None:
    """Why there is no answer."""
    st.error("There is no answer.", icon=":material/error:")
    st.text(text)


def _answer(chat: Chat, message: ChatMessage, look: Look) -> None:
    answer = Answer.from_dict(message.data)
    is_command = not answer.model
    for number, each in enumerate(answer.rounds):
        is_final = number == len(answer.rounds) - 1 and not each.runs
        if each.text.strip() and not is_final:
            chat_text.show(each.text, look.links)
        for run in each.runs:
            if not is_command:
                _tool(run, look)
            _beside(chat, message, run)
    chat_text.show(answer.text, look.links)
    with st.container(gap=None):
        _footing(answer)


def _beside(chat: Chat, message: ChatMessage, run: ToolRun) -> None:
    """What a tool gives besides words."""
    place = f"{message.position} {run.id}"
    if run.name == "plot_metrics" and run.ok:
        chat_chart.show(run.result, f"chart {place}")
    chat_proposal.show(chat, place, run)


def _called(part: Called, look: Look, position: int) -> None:
    if part.run is None:
        with _status(_label(part.name, part.arguments), "running"):
            st.caption("It runs.")
        return
    _tool(part.run, look)
    if part.run.name == "plot_metrics" and part.run.ok:
        chat_chart.show(part.run.result, f"chart {position} {part.run.id}")


def _tool(run: ToolRun, look: Look) -> None:
    """A tool that ran: its name, arguments and time; its result when it is opened."""
    arguments = json.dumps(dict(run.arguments), ensure_ascii=False)
    label = f"{_label(run.name, arguments)} · {units.duration(run.seconds)}"
    with _status(label, "complete" if run.ok else "error"):
        st.code(json.dumps(dict(run.arguments), ensure_ascii=False, indent=2), language="json")
        chat_text.show(markdown(run.name, run.arguments, run.result), look.links)


def _status(label: str, state: Literal["running", "complete", "error"]) -> Any:
    return st.status(label, state=state, type="compact")


def _label(name: str, arguments: str) -> str:
    """A tool and what it was called with, on a line."""
    try:
        given = json.loads(arguments or "{}")
        words = ", ".join(f"{key}={_short(value)}" for key, value in given.items() if value is not None)
    except (ValueError, AttributeError):
        words = arguments
    cut = words if len(words) <= _ARGUMENTS else f"{words[: _ARGUMENTS - 1]}…"
    return f"**{plain(name)}** {plain(cut)}".strip()


def _short(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _footing(answer: Answer) -> None:
    for note in answer.notes:
        st.caption(f":material/info: {plain(note)}")
    if answer.unverified:
        numbers = ", ".join(f"{number:g}" for number in answer.unverified[:_NUMBERS])
        more = f" and {len(answer.unverified) - _NUMBERS} more" if len(answer.unverified) > _NUMBERS else ""
        st.caption(
            f":material/help: Unverified: {plain(numbers)}{more}. No tool in this chat returned such a "
            "number, so it may be wrong. It is marked in the text."
        )
    st.caption(plain(took(answer)))


def _below(message: ChatMessage, asked: str | None, look: Look) -> None:
    """What can be done with an answer. asked: Its question, where it can be asked once more."""
    place = message.position
    with st.container(horizontal=True, gap="small", key=f"below {place}"):
        if asked is not None:
            _retry(asked, look, f"retry {place}")
        if message.text:
            with st.popover("Copy", icon=":material/content_copy:", type="tertiary", key=f"copy {place}"):
                st.code(message.text, language="markdown", wrap_lines=True)


def _retry(asked: str, look: Look, key: str) -> None:
    how: dict[str, Any] = {"type": "tertiary", "on_click": look.retry, "args": (asked,)}
    st.button("Retry", icon=":material/refresh:", key=key, **how)
