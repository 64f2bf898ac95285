"""Plotly in the browser, drawn anew in its place: a refresh does not flicker, and a zoom outlives it.

Streamlit's own element gets another id for other data, so the browser throws it away and builds a new one
(`docs/decisions/0009-charts-of-our-own.md`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import plotly
import streamlit as st
from plotly.io import to_json

from streamlit_app.components import palette

Figure = dict[str, Any]
"""A figure as Plotly's JSON has it, with arrays."""
NAME = "ftlab_plot"
_SCRIPT = Path(__file__).with_name("plot.js")


def load() -> None:
    """Sends Plotly itself to the browser, which keeps it. Called last on a page: charts wait for it there."""
    _library()(key="plotly")


def show(figure: Figure, key: str, title: str, height: int, config: Mapping[str, Any]) -> None:
    """Puts a chart on the page.

    Args:
        title: Is read aloud. height: In pixels. config: Plotly's configuration.
    """
    layout = figure["layout"] | {"height": height, "template": {"layout": _looks()}}
    drawn = to_json({"data": figure["data"], "layout": layout}, validate=False)
    data = {"figure": drawn, "config": dict(config), "title": title, "height": height}
    _chart()(key=key, data=data, height=height)


@cache
def _library() -> Any:
    source = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    script = source.read_text(encoding="utf-8") + "\nexport default () => {};"
    return st.components.v2.component("ftlab_plotly", js=script, isolate_styles=False)


@cache
def _chart() -> Any:
    script = _SCRIPT.read_text(encoding="utf-8")
    return st.components.v2.component(NAME, js=script, isolate_styles=False)


def _looks() -> dict[str, Any]:
    """Plotly's template in the theme's colours."""
    ink, faint, line = palette.ink(), palette.FAINT, palette.line()
    axis = {
        "automargin": True,
        "tickfont": {"color": faint},
        "ticklabelstandoff": 4,
        "title": {"font": {"color": faint, "size": 12}},
    }
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": '"Source Sans", sans-serif', "size": 12, "color": ink},
        "xaxis": axis | {"showgrid": False, "zeroline": False},
        "yaxis": axis | {"gridcolor": line, "zeroline": False},
        "hoverlabel": {"bgcolor": palette.background(), "bordercolor": line, "font": {"color": ink}},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": faint, "activecolor": ink},
    }
