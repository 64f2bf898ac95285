"""The table of runs. Its selection is of runs, not of places: it stays with them when new ones come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import pyarrow as pa
import streamlit as st

from ftlab_mlflow.analytics.run_table import GroupBy, RunRow
from ftlab_mlflow.control.messages import State
from streamlit_app.components import palette

_NTH = "how often selected runs have moved"
_CLICK = "open a run"
_SELECTED = "selected runs"
_SHOWN = "runs in the table"
_STATES = (*get_args(State), "lost", "unreadable")
_READ_ONLY = "read-only"
_FIRST = ("name", "state", "progress", "eta", "losses", "eval loss", "best eval loss", "best", "rate")
_LIVE = ("progress", "eta", "heartbeat")
"""Columns that only runs of a trainer of ours have."""
_THEN = ("heartbeat", "method", "model", "experiment", "started")


def selected() -> list[str]:
    """Ids of the runs that this person has selected, also those that are not shown now."""
    ids: list[str] = st.session_state.setdefault(_SELECTED, [])
    return ids


def clear() -> None:
    """Selects nothing."""
    st.session_state[_SELECTED] = []


def show(
    rows: Sequence[RunRow], losses: Mapping[str, Sequence[float]], *, group: GroupBy | None, zone: str
) -> None:
    """The table of these runs, the name of each is a button.

    Args:
        losses: To draw, by run id.
        group: What the rows are grouped by: that column stands first. zone: Time zone of the times.
    """
    shown = [row.run_id for row in rows]
    places = [place for place, run_id in enumerate(shown) if run_id in selected()]
    # Streamlit knows selected places, not runs: where selected runs have moved, it is given another table. (A
    # value that the script gives to the old one is lost where a refresh comes before it was sent.)
    if key() in st.session_state and _places() != places:
        st.session_state[_NTH] = st.session_state.get(_NTH, 0) + 1
    st.session_state[_SHOWN] = shown
    st.dataframe(
        _table(rows, losses),
        key=key(),
        on_select=_select,
        selection_mode="multi-row",
        selection_default={"selection": {"rows": places}},
        hide_index=True,
        height="content",
        column_config=_columns(zone, state_width=96 if all(row.is_live for row in rows) else 156),
        column_order=_order(group, are_live=any(row.is_live for row in rows)),
        placeholder="–",
        alt="Runs",
    )


def key() -> str:
    """Streamlit's key of the table."""
    return f"table of runs {st.session_state.get(_NTH, 0)}"


def _places() -> list[int]:
    """The places that are selected in the browser."""
    return list(st.session_state[key()]["selection"]["rows"])


def opened() -> str | None:
    """The run whose button was clicked just now."""
    click = st.session_state.get(_CLICK)
    shown: list[str] = st.session_state.get(_SHOWN, [])
    return shown[click["row"]] if click and click["row"] < len(shown) else None


def _select() -> None:
    shown: list[str] = st.session_state[_SHOWN]
    now = [shown[place] for place in _places() if place < len(shown)]
    kept = [run_id for run_id in selected() if run_id not in shown or run_id in now]
    st.session_state[_SELECTED] = [*kept, *(run_id for run_id in now if run_id not in kept)]


def _table(rows: Sequence[RunRow], losses: Mapping[str, Sequence[float]]) -> pa.Table:
    # Not by way of pandas, which would make nothing of NaN.
    def column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind, from_pandas=False)

    chips, numbers, text = pa.list_(pa.string()), pa.float64(), pa.string()
    return pa.table(
        {
            "name": column([_label(row.name) for row in rows], text),
            "state": column([[row.state] if row.is_live else [row.state, _READ_ONLY] for row in rows], chips),
            "progress": column([row.progress for row in rows], numbers),
            "eta": column([_seconds(row.eta_s) for row in rows], pa.duration("s")),
            "losses": column([losses.get(row.run_id, ()) for row in rows], pa.list_(numbers)),
            "eval loss": column([row.last_eval_loss for row in rows], numbers),
            "best eval loss": column([row.best_eval_loss for row in rows], numbers),
            "best": column([["best"] if row.is_best else [] for row in rows], chips),
            "rate": column([row.learning_rate for row in rows], numbers),
            "heartbeat": column([_seconds(row.heartbeat_age_s) for row in rows], pa.duration("s")),
            "method": column([row.method for row in rows], text),
            "model": column([row.model for row in rows], text),
            "experiment": column([row.experiment for row in rows], text),
            "started": column([row.started for row in rows], pa.timestamp("ms", "UTC")),
        }
    )


def _label(name: str) -> str:
    """A run's name for a button, on which Streamlit would draw `:material/…:` as an icon."""
    return name.replace(":", ":\u2060")


def _seconds(value: float | None) -> int | None:
    return None if value is None else max(0, round(value))


def _order(group: GroupBy | None, *, are_live: bool) -> list[str]:
    columns = [name for name in (*_FIRST, *_THEN) if are_live or name not in _LIVE]
    if group is not None:
        columns.remove(group)
        columns.insert(0, group)
    return columns


def _columns(zone: str, state_width: int) -> dict[str, Any]:
    config = st.column_config
    colors = [palette.state_color(state) for state in _STATES]
    return {
        "name": config.ButtonColumn(
            "Name",
            key=_CLICK,
            type="tertiary",
            alignment="left",
            width=176,
            pinned=True,
            help="Opens the run",
        ),
        "state": config.MultiselectColumn(
            "State", options=[*_STATES, _READ_ONLY], color=[*colors, "gray"], width=state_width
        ),
        "progress": config.ProgressColumn("Progress", format="percent", width=102),
        "eta": config.NumberColumn(
            "Time left", format="compact", width=84, help="h:min:s, as the trainer estimates"
        ),
        "losses": config.LineChartColumn("Training loss", width=120),
        "eval loss": config.NumberColumn("Eval loss", format="%.4f", width=88, help="The last one"),
        "best eval loss": config.NumberColumn("Best eval loss", format="%.4f", width=110),
        "best": config.MultiselectColumn(
            "", options=["best"], color="primary", width=58, help="The best of its group and method"
        ),
        "rate": config.NumberColumn("Learning rate", format="%.2e", width=106, help="In force now"),
        "heartbeat": config.NumberColumn(
            "Heartbeat", format="compact", width=88, help="h:min:s since the trainer's last sign"
        ),
        "method": config.TextColumn("Method", width=72),
        "model": config.TextColumn("Model", width=170),
        "experiment": config.TextColumn("Experiment", width=120),
        "started": config.DatetimeColumn(
            f"Started ({zone})", format="YYYY-MM-DD HH:mm", timezone=zone, width=150
        ),
    }
