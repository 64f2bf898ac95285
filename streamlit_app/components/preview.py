"""The learning rate over the rest of the run, before a change of it is sent: as planned, kept or held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import streamlit as st

from ftlab_mlflow.control.preview import Curve, preview
from ftlab_mlflow.control.surface import Surface
from ftlab_mlflow.control.wire import Scalar, shown_value
from ftlab_mlflow.errors import UpdateRejected
from streamlit_app.components import palette, plot
from streamlit_app.components.text import plotly

_HEIGHT = 170


def show(surface: Surface, edited: Mapping[str, Scalar], key: str = "preview chart") -> None:
    """One small chart: today's plan, and what the edited rate makes of it with either schedule.

    Args:
        surface: Of a run with a learning rate.
        edited: New values by parameter.
        key: Of the chart on its page.
    """
    curves: dict[str, Curve] = {}
    reason = ""
    value, mode = edited.get("learning_rate"), edited.get("lr_schedule")
    wanted: dict[str, tuple[Scalar | None, Scalar | None]] = {"as planned": (None, None)}
    if value is not None or mode is not None:
        label = "unchanged" if value is None else shown_value(value)
        param = surface.params.get("lr_schedule")
        modes = [mode] if mode else param.choices if param else [None]
        wanted |= {f"{label}, {each or 'keep'}": (value, each) for each in modes}
    for label, (rate, schedule) in wanted.items():
        try:
            seen = preview(surface, rate, schedule)  # type: ignore[arg-type]
        except UpdateRejected as error:
            st.text(str(error))
            return
        curve = seen.changed if label != "as planned" else seen.today
        if curve is None:
            reason = seen.reason
        else:
            curves[label] = curve
    if curves:
        _chart(curves, key)
    if reason:
        st.caption("The rest of the run cannot be foreseen in full:")
        st.text(reason)


def _chart(curves: Mapping[str, Curve], key: str) -> None:
    layout = {
        "margin": {"l": 8, "r": 8, "t": 4, "b": 40},
        "showlegend": len(curves) > 1,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "xaxis": {"title": {"text": "optimizer step", "standoff": 6}},
        "yaxis": {"rangemode": "tozero", "exponentformat": "power"},
    }
    traces = [
        _trace(number, label, curve, len(curves)) for number, (label, curve) in enumerate(curves.items())
    ]
    title = "Learning rate over the rest of the run"
    st.caption(title)
    chart = {"data": traces, "layout": layout}
    plot.show(chart, key, title, _HEIGHT, {"displayModeBar": False})


def _trace(number: int, label: str, curve: Curve, count: int) -> dict[str, Any]:
    is_behind = number == 0 and count > 1
    color = palette.FAINT if is_behind else palette.color(max(0, number - 1))
    name = plotly(label, 60)
    return {
        "type": "scatter",
        "name": name,
        "x": np.asarray(curve.steps),
        "y": np.asarray(curve.rates),
        "mode": "lines",
        "line": {"color": color, "width": 2, "dash": "dot" if is_behind else "solid"},
        "hovertemplate": "%{y:.4g} at step %{x:,}<extra>" + name + "</extra>",
    }
