"""A chart of an answer, drawn as those of the other pages are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import streamlit as st
from pydantic import ValidationError

from ftlab_mlflow.analytics.chart import Chart, Line
from ftlab_mlflow.analytics.metric_table import describe
from ftlab_mlflow.analytics.series import Series
from ftlab_mlflow.analytics.units import plotted
from streamlit_app import state
from streamlit_app.components import charts, palette, plot
from streamlit_app.components.text import plain, plotly

_MS_AN_HOUR = 3_600_000


def show(result: Mapping[str, Any], key: str) -> None:
    """The chart in a result of `plot_metrics`. key: Of the chart on its page."""
    try:
        chart = Chart(**result["chart"])
    except (ValidationError, KeyError, TypeError):  # of another version
        st.caption("This version cannot draw the chart of this answer.")
        return
    st.markdown(f"**{plain(chart.title)}**")
    charts.show(_figure(chart), key, chart.title)


def _figure(chart: Chart) -> plot.Figure:
    metrics = {line.metric for line in chart.lines}
    is_binary = state.preferences().memory_unit == "GiB"
    factor, unit = plotted(describe(metrics.pop()).unit, binary=is_binary) if len(metrics) == 1 else (1.0, "")
    lines = [
        charts.Line(line.label, _series(line, chart.x, factor), number=number)
        for number, line in enumerate(chart.lines)
    ]
    axis: charts.Axis = "step" if chart.x == "step" else "time"
    drawn = charts.figure(lines, charts.View(axis=axis, log_y=chart.log_y), unit=unit, legend=True)
    for trace in drawn["data"]:
        if chart.x == "hours":  # the chart does not say at which steps its values are
            trace["hovertemplate"] = trace["hovertemplate"].replace(" at step %{customdata:,}", "")
    if chart.marks:
        drawn["data"].append(_marks(chart))
        drawn["layout"]["shapes"] = [charts.upright(x) for x in sorted({mark.x for mark in chart.marks})]
    return drawn


def _series(line: Line, axis: str, factor: float) -> Series:
    """The line with its places as steps, or as times of a run that began at 0."""
    x = np.array([place for place, _ in line.points], dtype=np.float64)
    values = np.array([float(value) for _, value in line.points], dtype=np.float64) * factor
    steps = x if axis == "step" else np.arange(len(x))
    times = x * _MS_AN_HOUR if axis == "hours" else np.zeros(len(x))
    return Series(steps.astype(np.int64), values, times.astype(np.int64), line.total)


def _marks(chart: Chart) -> dict[str, Any]:
    """The applied changes, as diamonds at the top of their uprights."""
    names = {line.run_id: line.label for line in chart.lines}
    texts = [
        f"<b>{plotly(mark.text)}</b><br>{plotly(names.get(mark.run_id, ''), 60)}" for mark in chart.marks
    ]
    return {
        "type": "scatter",
        "name": "changes",
        "x": [mark.x for mark in chart.marks],
        "y": [0.97] * len(chart.marks),
        "yaxis": "y2",
        "mode": "markers",
        "showlegend": False,
        "marker": {"symbol": "diamond", "size": 9, "color": palette.ink()},
        "text": texts,
        "hovertemplate": "%{text}<extra></extra>",
        "hoverlabel": {"align": "left"},
    }
