"""The history of a run: every request and its answer, to filter and to take along."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import streamlit as st

from ftlab_mlflow.control.history import ANSWERS, answer_of, history_csv, history_json, matching, names_of
from ftlab_mlflow.control.ledger import Entry
from ftlab_mlflow.control.view import RunView, answer_text, outcome_text, request_text
from streamlit_app import state


def show(view: RunView) -> None:
    """A table of the requests that fit the filter, the newest first."""
    st.subheader("History", anchor=False)
    if not view.entries:
        st.caption("Nobody has asked for a change yet.")
        return
    run_id = view.data.run_id
    people = sorted({(entry.update and entry.update.by) or "" for entry in view.entries})
    names = sorted({name for entry in view.entries for name in names_of(entry)})
    given = [answer for answer in ANSWERS if any(answer_of(entry) == answer for entry in view.entries)]
    with st.grid(min_column_width=150, key="history filters"):
        by = st.multiselect(
            "By", people, format_func=lambda name: name or "nobody", key=f"history by {run_id}"
        )
        what = st.multiselect("About", names, key=f"history about {run_id}")
        answers = st.multiselect("Answer", given, key=f"history answer {run_id}")
        text = st.text_input("Text", key=f"history text {run_id}", live=True)
    entries = matching(view.entries, by=by, parameters=what, answers=answers, text=text)
    when = st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm:ss", timezone=state.zone())
    st.dataframe(
        _table(entries[::-1]),
        hide_index=True,
        column_config={"when": when},
        placeholder="–",
        key=f"history {run_id}",
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"{len(entries)} of {len(view.entries)} requests")
        name = f"history-{run_id[:8]}"
        csv = history_csv(entries).encode("utf-8-sig")
        st.download_button("CSV", csv, f"{name}.csv", "text/csv", on_click="ignore", key="csv")
        json = history_json(run_id, entries)
        st.download_button("JSON", json, f"{name}.json", "application/json", on_click="ignore", key="json")


def _table(entries: Sequence[Entry]) -> pa.Table:
    updates, text = [entry.update for entry in entries], pa.string()
    return pa.table(
        {
            "when": pa.array([update and update.at for update in updates], pa.timestamp("ms", "UTC")),
            "by": pa.array([update and update.by for update in updates], text),
            "request": pa.array([request_text(entry) for entry in entries], text),
            "answer": pa.array([answer_text(entry) for entry in entries], text),
            "step": pa.array([entry.ack and entry.ack.step for entry in entries], pa.int64()),
            "outcome": pa.array([outcome_text(entry.ack) for entry in entries], text),
            "why": pa.array([update and update.reason for update in updates], text),
        }
    )
