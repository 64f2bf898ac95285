"""The filters of the table of runs. They stand in the address: a link to it shows the same runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from ftlab_mlflow.analytics.run_table import GroupBy, Options, RunRow, filtered, grouped, ordered

_GROUPS: dict[str, GroupBy | None] = {"none": None, "model": "model", "experiment": "experiment"}
_ORDERS = {
    "going on first": ("urgency", True),
    "newest": ("started", True),
    "name": ("name", False),
    "progress": ("progress", True),
    "time left": ("eta_s", False),
    "eval loss": ("last_eval_loss", False),
    "best eval loss": ("best_eval_loss", False),
}
_KEYS = ("text", "experiment", "state", "method", "tag")
_BOUND: dict[str, Any] = {"bind": "query-params", "persist_state": "session"}


@dataclass(frozen=True)
class Filters:
    """What a person wants to see, and in which order."""

    experiments: Sequence[str]
    states: Sequence[str]
    methods: Sequence[str]
    text: str
    tag: str
    group: GroupBy | None
    order: str

    def apply(self, rows: Sequence[RunRow]) -> list[RunRow]:
        """The rows that fit, group by group. The best of a group is so among all its runs, shown or not."""
        column, descending = _ORDERS[self.order]
        newest_first = ordered(rows)
        groups = grouped(ordered(newest_first, column, descending=descending), self.group)
        return filtered(
            (row for group in groups.values() for row in group),
            experiments=self.experiments,
            states=self.states,
            methods=self.methods,
            text=self.text,
            tag=self.tag,
        )


def show(offered: Options) -> Filters:
    """The fields. What the address names is offered also where no run has it."""
    with st.container(horizontal=True, vertical_alignment="bottom", key="filters"):
        text = st.text_input(
            "Text", key="text", placeholder="name, model, id", width=170, live=True, **_BOUND
        )
        experiments = _several("Experiment", "experiment", offered.experiments)
        states = _several("State", "state", offered.states)
        methods = _several("Method", "method", offered.methods)
        tag = st.selectbox(
            "Tag",
            _with_address("tag", offered.tags),
            index=None,
            key="tag",
            placeholder="key or key=value",
            accept_new_options=True,
            width=150,
            **_BOUND,
        )
        group = st.selectbox("Group by", list(_GROUPS), key="group", width=122, **_BOUND)
        order = st.selectbox("Order", list(_ORDERS), key="order", width=138, **_BOUND)
    return Filters(experiments, states, methods, text, tag or "", _GROUPS[group], order)


def clear() -> None:
    """Takes all filters away."""
    for key in _KEYS:
        st.session_state[key] = {"text": "", "tag": None}.get(key, [])


def _several(label: str, key: str, offered: Sequence[str]) -> list[str]:
    return st.multiselect(label, _with_address(key, offered), key=key, placeholder="all", width=148, **_BOUND)


def _with_address(key: str, offered: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*offered, *st.query_params.get_all(key)]))
