"""All runs: which of them needs a hand. The way to each, and to a comparison of several."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

import streamlit as st

from ftlab_mlflow.analytics.comparison import MAX_RUNS
from ftlab_mlflow.analytics.run_table import RunRow, RunTable, options
from ftlab_mlflow.control.messages import GOING_ON
from ftlab_mlflow.control.mlflow_errors import without_credentials
from ftlab_mlflow.errors import StoreUnavailable
from streamlit_app import state
from streamlit_app.components import banner, filters, page_change, run_grid
from streamlit_app.components.filters import Filters

# (Comments: Streamlit would show strings.) Rows of a page of the table: only their losses are read and sent.
_ROWS = 50
# How many times as rarely the page looks for new runs while no run goes on.
_SLOWER = 5


def show() -> None:
    """The page."""
    table = state.run_table()
    table.look()
    rows = table.rows()
    st.title("Runs", anchor=False)
    chosen = filters.show(options(rows)) if rows else None
    is_live = _is_live(table, rows)
    every = state.preferences().refresh_s * (1 if is_live else _SLOWER)

    @st.fragment(run_every=every, key="runs")
    def fragment() -> None:
        table.look()
        rows = table.rows()
        if _is_live(table, rows) != is_live or (rows and chosen is None):
            st.rerun()
        _part(table, rows, chosen)

    fragment()


def _is_live(table: RunTable, rows: Sequence[RunRow]) -> bool:
    """Whether the table changes by itself: a run goes on, or not everything could be read."""
    return not table.is_complete or table.problem is not None or any(row.state in GOING_ON for row in rows)


def _part(table: RunTable, rows: Sequence[RunRow], chosen: Filters | None) -> None:
    if isinstance(table.problem, StoreUnavailable):
        banner.away(table.problem, table.read_at)
    elif table.problem:
        st.error("The tracking store refuses.", icon=":material/error:")
        st.text(str(table.problem))
    if chosen is None:
        if table.is_complete:
            _empty()
        return
    fit = chosen.apply(rows)
    if opened := run_grid.opened():
        page_change.go_to("views/run.py", id=opened)
    _selection()
    if not fit:
        st.info("No run fits the filters.", icon=":material/filter_alt:")
        st.button("Clear the filters", key="clear filters", on_click=filters.clear)
        return
    pages = math.ceil(len(fit) / _ROWS)
    page = min(st.session_state.get("page", 1), pages)
    shown = fit[(page - 1) * _ROWS : page * _ROWS]
    losses = table.series_for([row.run_id for row in shown])
    run_grid.show(shown, losses, group=chosen.group, zone=state.zone())
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.caption(_count(table, rows, fit))
        if pages > 1:
            st.pagination(pages, key="page")


def _count(table: RunTable, rows: Sequence[RunRow], fit: Sequence[RunRow]) -> str:
    going_on = sum(row.state in GOING_ON for row in rows)
    runs = f"{len(rows):,} run" + ("" if len(rows) == 1 else "s")
    said = f"{len(fit):,} of {runs}" if len(fit) < len(rows) else runs
    return f"{said}, {going_on:,} going on" + ("" if table.is_complete else "; reading more")


def _selection() -> None:
    ids = run_grid.selected()
    with st.container(horizontal=True, vertical_alignment="center", key="selection"):
        if not ids:
            st.caption(f"Tick up to {MAX_RUNS} runs to compare them; a click on a name opens the run.")
            return
        st.text(
            f"{len(ids)} selected" + (f", at most {MAX_RUNS} are compared" if len(ids) > MAX_RUNS else "")
        )
        if len(ids) == 1 and st.button("Open", key="open", type="primary"):
            page_change.go_to("views/run.py", id=ids[0])
        if len(ids) > 1 and st.button("Compare", key="compare", type="primary", disabled=len(ids) > MAX_RUNS):
            page_change.go_to("views/compare.py", runs=",".join(ids))
        st.button("Clear", key="clear selection", on_click=run_grid.clear)


def _empty() -> None:
    st.info("This tracking store has no runs yet.", icon=":material/rocket_launch:")
    st.markdown("Start one. This trains a tiny model on the CPU for a minute; it shows up here by itself:")
    uri = shlex.quote(without_credentials(state.tracking_uri()))
    st.code(f"ftlab train sft --model demo --data demo --tracking_uri {uri}", language="sh", wrap_lines=True)


show()
