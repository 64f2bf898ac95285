"""Plotly figures of metrics: raw lines that smoothing never hides, NaN and infinity, marks of requests.

They are plain dictionaries: built with Plotly's own classes a chart takes ten times as long, and a page of
twelve is drawn anew every two seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ftlab_mlflow.analytics.series import Series, courses, nonfinite, on_epochs, seconds, smoothed
from ftlab_mlflow.control.markers import Marker, markers, turns
from ftlab_mlflow.control.view import RunView
from streamlit_app.components import palette, plot
from streamlit_app.components.plot import Figure
from streamlit_app.components.text import plotly

Axis = Literal["step", "time", "epoch"]
HEIGHT = 260
"""Pixels of a chart."""
_SYMBOLS = {"NaN": "x", "+∞": "triangle-up", "−∞": "triangle-down", "too large to draw": "star"}
_DRAWN = (1e-150, 1e150)
"""Plotly's axes break on the smallest and the largest floats, a logarithmic one on the first, too."""
AXIS_TITLES = {"step": "optimizer step", "time": "hours", "epoch": "epoch"}


@dataclass(frozen=True)
class View:
    """How charts are drawn.

    Attributes:
        smoothing: Weight of the past in the smoothed line, from 0 (none) to below 1.
        log_y: Logarithmic values; what is not above 0 has no place there.
    """

    axis: Axis = "step"
    smoothing: float = 0.0
    log_y: bool = False


@dataclass(frozen=True)
class Place:
    """Where the steps of one run lie on another axis.

    Attributes:
        epochs: The run's `epoch` metric. start: Unix time in ms of the run's start.
        turns: The run's rollbacks: what they took back is drawn apart.
    """

    epochs: Series | None = None
    start: int = 0
    turns: Sequence[tuple[int, int]] = ()

    @classmethod
    def of(cls, view: RunView, epochs: Series | None) -> Place:
        """The place of a run."""
        started = view.data.started
        start = int(started.timestamp() * 1000) if started else 0
        return cls(epochs, start, turns(markers(view.entries)))

    def x(self, series: Series, axis: Axis) -> NDArray[np.float64]:
        """The values of a series on the axis; NaN where it is not known."""
        if axis == "time":
            return seconds(series, self.start) / 3600
        if axis == "epoch":
            return on_epochs(series, self.epochs) if self.epochs else np.full(len(series.steps), np.nan)
        return series.steps.astype(np.float64)


@dataclass(frozen=True)
class Line:
    """One series of a chart. `number` chooses its colour."""

    label: str
    series: Series
    place: Place = field(default_factory=Place)
    number: int = 0


def figure(
    lines: Sequence[Line],
    view: View,
    *,
    unit: str = "",
    markers: Sequence[tuple[Marker, str]] = (),
    place: Place | None = None,
    legend: bool | None = None,
) -> Figure:
    """One chart.

    Args:
        unit: Of the values.
        markers: Applied requests with one more line to say of each (the effect), drawn with `place`.
        legend: None shows one where there are several lines.
    """
    traces = [trace for line in lines for trace in _traces(line, view)]
    layout = _layout(view, unit, legend=len(lines) > 1 if legend is None else legend)
    if markers and place is not None:
        x = marked([marker for marker, _ in markers], place, view.axis)
        traces.append(_marks(markers, x))
        layout["shapes"] = [upright(position) for position in np.unique(x[np.isfinite(x)]).tolist()]
    return {"data": traces, "layout": layout}


def show(chart: Figure, key: str, title: str) -> None:
    """Puts it on the page. The zoom survives a refresh; the title is read aloud."""
    config = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"]}
    plot.show(chart, key, title, HEIGHT, config)


def _layout(view: View, unit: str, *, legend: bool) -> dict[str, Any]:
    return {
        "margin": {"l": 8, "r": 8, "t": 8, "b": 44},
        "hovermode": "closest",
        "showlegend": legend,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
        "uirevision": view.axis,
        "xaxis": {"title": {"text": AXIS_TITLES[view.axis], "standoff": 8}},
        "yaxis": {
            "title": {"text": unit},
            "type": "log" if view.log_y else "linear",
            "exponentformat": "power",
        },
        # What has no value of its own stands at the edge: requests on top, NaN and infinity below.
        "yaxis2": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
    }


def _traces(line: Line, view: View) -> Iterator[dict[str, Any]]:
    label, color, dash = plotly(line.label, 60), palette.color(line.number), palette.dash(line.number)
    series, gone = courses(line.series, line.place.turns)
    for taken_back in gone:
        raw = _raw(taken_back, line.place.x(taken_back, view.axis), f"{label}, rolled back", log_y=view.log_y)
        yield raw | {"mode": "lines", "line": {"color": color, "width": 1, "dash": "dot"}, "opacity": 0.6}
    x = line.place.x(series, view.axis)
    is_smooth = view.smoothing > 0 and np.isfinite(series.values).sum() > 2
    few = len(series.steps) <= 30
    yield _raw(series, x, label, log_y=view.log_y) | {
        "legendgroup": label,
        "mode": "lines+markers" if few and not is_smooth else "lines",
        "line": {"color": color, "width": 1 if is_smooth else 1.8, "dash": dash},
        "marker": {"size": 5},
        "opacity": 0.35 if is_smooth else 1,
        "showlegend": not is_smooth,
    }
    if is_smooth:
        yield {
            "type": "scatter",
            "name": label,
            "legendgroup": label,
            "x": x,
            "y": _drawn(smoothed(series, view.smoothing), log_y=view.log_y),
            "mode": "lines",
            "line": {"color": color, "width": 2, "dash": dash},
            "hovertemplate": "%{y:.6g} smoothed<extra>" + label + "</extra>",
        }
    series, x = line.series, line.place.x(line.series, view.axis)
    large = np.flatnonzero(np.isfinite(series.values) & (np.abs(series.values) > _DRAWN[1]))
    odd = nonfinite(series) | ({"too large to draw": large} if large.size else {})
    for kind, chosen in odd.items():
        yield {
            "type": "scatter",
            "name": f"{kind} {label}",
            "x": x[chosen],
            "y": np.full(len(chosen), 0.03 + 0.03 * line.number),
            "yaxis": "y2",
            "mode": "markers",
            "marker": {"symbol": _SYMBOLS[kind], "size": 8, "color": color},
            "customdata": series.steps[chosen],
            "hovertemplate": kind + " at step %{customdata:,}<extra>" + label + "</extra>",
        }


def _drawn(values: NDArray[np.float64], *, log_y: bool) -> NDArray[np.float64]:
    """The values that have a place on an axis; NaN for the others."""
    sizes = np.abs(values)
    has_place = np.isfinite(values) & (sizes <= _DRAWN[1])
    if log_y:
        has_place &= sizes >= _DRAWN[0]
    return np.where(has_place, values, np.nan)


def _raw(series: Series, x: NDArray[np.float64], label: str, *, log_y: bool) -> dict[str, Any]:
    """The values as they were logged."""
    return {
        "type": "scatter",
        "name": label,
        "x": x,
        "y": _drawn(series.values, log_y=log_y),
        "customdata": series.steps,
        "showlegend": False,
        "connectgaps": False,
        "hovertemplate": "%{y:.6g} at step %{customdata:,}<extra>" + label + "</extra>",
    }


def _marks(markers: Sequence[tuple[Marker, str]], x: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": "requests",
        "x": x,
        "y": [max(0.1, 0.97 - 0.06 * marker.nth) for marker, _ in markers],
        "yaxis": "y2",
        "mode": "markers",
        "showlegend": False,
        "marker": {"symbol": "diamond", "size": 9, "color": palette.ink()},
        "text": [hover(marker, more) for marker, more in markers],
        "hovertemplate": "%{text}<extra></extra>",
        "hoverlabel": {"align": "left"},
    }


def upright(x: float) -> dict[str, Any]:
    """A line over the whole height of the chart."""
    line = {"color": palette.FAINT, "width": 1, "dash": "dot"}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "y domain", "line": line}


def marked(markers: Sequence[Marker], place: Place, axis: Axis) -> NDArray[np.float64]:
    """Where requests lie on the axis; NaN where that is not known."""
    at = Series(
        steps=np.array([marker.step for marker in markers], dtype=np.int64),
        values=np.zeros(len(markers)),
        times=np.array([marker.time.timestamp() * 1000 for marker in markers], dtype=np.int64),
        total=len(markers),
    )
    return place.x(at, axis)


def hover(marker: Marker, more: str = "") -> str:
    """What is said of a request: the change, when, who, why, and one more line."""
    said = [f"<b>{plotly(marker.text)}</b>", f"step {marker.step:,}"]
    if marker.by:
        said.append(f"by {plotly(marker.by, 60)}" + (f" ({plotly(marker.via, 30)})" if marker.via else ""))
    if marker.reason:
        said.append(plotly(marker.reason))
    if more:
        said.append(plotly(more))
    return "<br>".join(said)
