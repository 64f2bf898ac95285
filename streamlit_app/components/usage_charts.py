"""Bars of what answers took each day."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftlab_mlflow.app_store.usage import UsageRow
from streamlit_app.components import charts, palette
from streamlit_app.components.text import plotly

_MODELS = 6
"""Models with bars of their own; the others are one."""
_OTHERS = "others"


def cost(rows: Sequence[UsageRow], first: date, last: date) -> None:
    """US dollars by day and model. A day with answers of unknown cost has a mark that says how many.

    Args:
        rows: By day and model.
    """
    spent: dict[str, float] = {}
    for row in rows:
        spent[row.model or ""] = spent.get(row.model or "", 0.0) + row.cost_usd
    models = [model for model in sorted(spent, key=lambda each: -spent[each]) if spent[model]]
    names = models[:_MODELS] + ([_OTHERS] if len(models) > _MODELS else [])
    traces = []
    for number, name in enumerate(names):
        own = [
            row for row in rows if row.model == name or (name == _OTHERS and row.model in models[_MODELS:])
        ]
        values = _by_day([(row, row.cost_usd) for row in own], first, last)
        traces.append(_bars(plotly(name, 60), values, first, palette.color(number), "%{y:$.3~g}"))
    unknown = _by_day([(row, row.unknown_cost_answers) for row in rows], first, last)
    if unknown.any():
        traces.append(_unknown(unknown, first))
    charts.show({"data": traces, "layout": _layout("$.3~g")}, "usage cost", "US dollars a day, by model")


def tokens(rows: Sequence[UsageRow], first: date, last: date) -> None:
    """Tokens by day: of input that was read, of input from the cache, of output."""
    kinds = {
        "input": [(row, row.input_tokens - row.cached_tokens) for row in rows],
        "cached input": [(row, row.cached_tokens) for row in rows],
        "output": [(row, row.output_tokens) for row in rows],
    }
    traces = [
        _bars(name, _by_day(values, first, last), first, palette.color(number), "%{y:,}")
        for number, (name, values) in enumerate(kinds.items())
    ]
    charts.show({"data": traces, "layout": _layout(",")}, "usage tokens", "Tokens a day")


def _by_day(values: Sequence[tuple[UsageRow, float]], first: date, last: date) -> NDArray[np.float64]:
    found = np.zeros((last - first).days + 1)
    for row, value in values:
        if row.day is not None and first <= row.day <= last:
            found[(row.day - first).days] += value
    return found


def _days(count: int, first: date) -> list[str]:
    return [(first + timedelta(days=number)).isoformat() for number in range(count)]


def _bars(name: str, values: NDArray[np.float64], first: date, color: str, said: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": name,
        "x": _days(len(values), first),
        "y": values,
        "marker": {"color": color},
        "hovertemplate": "%{x|%d %b}: " + said + "<extra>" + name + "</extra>",
    }


def _unknown(counts: NDArray[np.float64], first: date) -> dict[str, Any]:
    days = _days(len(counts), first)
    places = np.flatnonzero(counts).tolist()
    return {
        "type": "scatter",
        "name": "answers of unknown cost",
        "x": [days[place] for place in places],
        "y": [0.05] * len(places),
        "yaxis": "y2",
        "mode": "markers",
        "marker": {"symbol": "x", "size": 8, "color": palette.ink()},
        "customdata": counts[places],
        "hovertemplate": "%{customdata:,} of unknown cost<extra></extra>",
    }


def _layout(digits: str) -> dict[str, Any]:
    return {
        "barmode": "stack",
        "bargap": 0.25,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 32},
        "showlegend": True,
        "legend": {
            "traceorder": "normal",
            "orientation": "h",
            "y": 1.02,
            "yanchor": "bottom",
            "x": 0,
            "font": {"size": 12},
        },
        "xaxis": {"type": "date"},
        "yaxis": {"tickformat": digits, "rangemode": "tozero"},
        "yaxis2": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
    }
