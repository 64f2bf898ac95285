"""What a chat is about: an experiment, several runs, and what the person is after in their own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from ftlab_mlflow.analytics.comparison import MAX_RUNS
from ftlab_mlflow.analytics.run_table import RunRow, ordered
from ftlab_mlflow.app_store.chats import Chat
from streamlit_app import state
from streamlit_app.components.chat_trouble import trouble
from streamlit_app.components.text import plain

_OFFERED = 500
"""Runs that can be picked; a question may name any."""
_FIELDS = ("experiment", "runs", "goal")
_DRAFT = "chat draft"
"""What the next chat is about, until its first question makes it."""


def show(chat: Chat | None) -> None:
    """The fields; what a change says is kept in the chat at once."""
    about = _kept(chat)
    rows = state.run_table().rows()
    picked: list[str] = list(about.get("runs", ()))
    experiment: str | None = about.get("experiment")
    key = f"about {chat.id if chat else 'new'}"
    with st.expander(_summary(about, rows), icon=":material/target:", expanded=chat is None, key=key):
        names = sorted({row.experiment for row in rows} | ({experiment} if experiment else set()))
        labels = _labels(rows, picked, experiment)
        first, second, third = st.columns([3, 6, 5])
        first.selectbox(
            "Experiment",
            names,
            index=names.index(experiment) if experiment else None,
            placeholder="any",
            **_field(chat, "experiment"),
        )
        second.multiselect(
            "Runs",
            list(labels),
            default=picked,
            format_func=labels.__getitem__,
            placeholder="any",
            max_selections=MAX_RUNS,
            help=f"Up to {MAX_RUNS}, of the newest {_OFFERED}. A question may name any other run.",
            **_field(chat, "runs"),
        )
        third.text_input(
            "What you are after",
            value=about.get("goal", ""),
            placeholder="the lowest eval loss in 12 GB",
            max_chars=500,
            **_field(chat, "goal"),
        )


def begun() -> dict[str, Any]:
    """What the new chat is about that begins now, as its fields say; the next one is about nothing yet."""
    typed = {name: st.session_state.get(_key(None, name)) for name in _FIELDS}
    kept: dict[str, Any] = st.session_state.pop(_DRAFT, {})
    return kept | {name: value for name, value in typed.items() if value is not None}


def _kept(chat: Chat | None) -> Mapping[str, Any]:
    if chat is not None:
        return chat.data
    draft: dict[str, Any] = st.session_state.setdefault(_DRAFT, {})
    return draft


def _field(chat: Chat | None, name: str) -> dict[str, Any]:
    """Key and callback of a field."""
    key = _key(chat, name)
    return {"key": key, "on_change": _changed, "args": (chat, name, key)}


def _key(chat: Chat | None, name: str) -> str:
    return f"about {name} {chat.id if chat else 'new'}"


def _changed(chat: Chat | None, name: str, key: str) -> None:
    value = st.session_state[key]
    if chat is None:
        st.session_state.setdefault(_DRAFT, {})[name] = value
        return
    with trouble():
        state.app_store().chats.update(chat.user, chat.id, {name: value})


def _labels(rows: Sequence[RunRow], picked: Sequence[str], experiment: str | None) -> dict[str, str]:
    """What each run is called, by id: the newest ones of the experiment, and those that are picked."""
    fit = [row for row in ordered(rows) if experiment is None or row.experiment == experiment][:_OFFERED]
    known = {row.run_id: row for row in rows}
    ids = dict.fromkeys([*picked, *(row.run_id for row in fit)])
    return {run_id: _label(known.get(run_id), run_id) for run_id in ids}


def _label(row: RunRow | None, run_id: str) -> str:
    return f"{row.name[:60] if row else 'unknown'} · {run_id[:8]}"


def _summary(about: Mapping[str, Any], rows: Sequence[RunRow]) -> str:
    """The head of the fields, which says what is in them."""
    names = {row.run_id: row.name for row in rows}
    said = [plain(about["experiment"])] if about.get("experiment") else []
    said += [plain(names.get(run_id, run_id[:8])[:40]) for run_id in about.get("runs", ())]
    if goal := about.get("goal"):
        said.append(f"“{plain(goal[:80])}”")
    return f"About {' · '.join(said)}" if said else "About all runs"
