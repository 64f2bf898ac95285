"""Several runs in one chart: their metrics over each other, their live changes on one time line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st

from ftlab_mlflow.analytics.series import Series
from ftlab_mlflow.control.markers import Marker
from streamlit_app.components import charts, palette, plot
from streamlit_app.components.text import plotly

_ROW = 40
"""Pixels of a run on the time line."""


@dataclass(frozen=True)
class Drawn:
    """A run as charts draw it; its place among the runs chooses its colour.

    Attributes:
        label: A name that no other run here has.
        series: The metrics that are drawn, by key.
    """

    label: str
    place: charts.Place
    series: Mapping[str, Series]
    markers: Sequence[Marker]


def metric(runs: Sequence[Drawn], key: str, how: charts.View, unit: str) -> plot.Figure:
    """One metric of all runs that have it. The time line is its legend."""
    lines = [
        charts.Line(run.label, run.series[key], run.place, number)
        for number, run in enumerate(runs)
        if key in run.series
    ]
    return charts.figure(lines, how, unit=unit, legend=False)


def time_line(runs: Sequence[Drawn], how: charts.View) -> None:
    """A row for each run, in its colour: how far it came, where it was changed (hover: what, who, why)."""
    ends = [_end(run, how.axis) for run in runs]
    longest = max(ends) or 1.0
    traces = [trace for number, run in enumerate(runs) for trace in _row(number, run, ends[number], how.axis)]
    label = {"x": 0, "xref": "paper", "xanchor": "left", "yshift": 14, "showarrow": False}
    font = {"size": 12, "color": palette.ink()}
    layout = {
        "margin": {"l": 8, "r": 8, "t": 8, "b": 44},
        "showlegend": False,
        "hovermode": "closest",
        "uirevision": how.axis,
        "xaxis": {
            "title": {"text": charts.AXIS_TITLES[how.axis], "standoff": 8},
            "range": [-0.02 * longest, 1.02 * longest],
        },
        "yaxis": {"range": [len(runs) - 0.5, -0.8], "visible": False, "fixedrange": True},
        "annotations": [
            label | {"text": plotly(run.label, 60), "y": number, "font": font}
            for number, run in enumerate(runs)
        ],
    }
    chart, height = {"data": traces, "layout": layout}, _ROW * len(runs) + 70
    title = "Runs and their live changes"
    st.markdown(f"**{title}**")
    plot.show(chart, "time line", title, height, {"displayModeBar": False})


def _row(number: int, run: Drawn, end: float, axis: charts.Axis) -> Iterator[dict[str, Any]]:
    color = palette.color(number)
    yield {
        "type": "scatter",
        "x": [0.0, end],
        "y": [number, number],
        "mode": "lines",
        "line": {"color": color, "width": 3, "dash": palette.dash(number)},
        "hoverinfo": "skip",
    }
    yield {
        "type": "scatter",
        "x": charts.marked(run.markers, run.place, axis),
        "y": [number] * len(run.markers),
        "mode": "markers",
        "marker": {
            "symbol": "diamond",
            "size": 10,
            "color": color,
            "line": {"width": 1, "color": palette.ink()},
        },
        "text": [charts.hover(marker) for marker in run.markers],
        "hovertemplate": "%{text}<extra></extra>",
        "hoverlabel": {"align": "left"},
    }


def _end(run: Drawn, axis: charts.Axis) -> float:
    """How far the run came on the axis, as its metrics say."""
    places = [run.place.x(series, axis) for series in run.series.values()]
    places.append(charts.marked(run.markers, run.place, axis))
    known = np.concatenate(places)
    known = known[np.isfinite(known)]
    return float(known.max()) if len(known) else 0.0
