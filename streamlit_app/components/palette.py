"""Colours of series and states, for the light and the dark theme.

Series: the colours of Okabe and Ito (Color Universal Design, 2008), which are told apart with every common
colour vision, without yellow (too faint on white); from the eighth series on the line is dashed as well.
"""

from __future__ import annotations

import streamlit as st

_SERIES = {
    "light": ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    "dark": ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#0072b2"),  # bright ones first
}
# As in .streamlit/config.toml: text, background, lines of tables.
_INK = {"light": "#1c232d", "dark": "#e3e8ee"}
_BACKGROUND = {"light": "#ffffff", "dark": "#12161c"}
_LINE = {"light": "#e3e7ec", "dark": "#2a323d"}
FAINT = "#8a94a3"
"""What stands behind: marks of requests, numbers at axes."""
_STATE_COLORS = {
    "running": "green",
    "paused": "orange",
    "lost": "red",
    "failed": "red",
    "unreadable": "red",
    "finished": "blue",
    "stopping": "orange",
}


def _theme() -> str:
    return "dark" if st.context.theme.type == "dark" else "light"


def ink() -> str:
    """The colour of text."""
    return _INK[_theme()]


def background() -> str:
    """The colour of a page."""
    return _BACKGROUND[_theme()]


def line() -> str:
    """The colour of lines that divide."""
    return _LINE[_theme()]


def color(number: int) -> str:
    """The colour of a series by its number, from 0."""
    colors = (*_SERIES[_theme()], ink())
    return colors[number % len(colors)]


def dash(number: int) -> str:
    """Plotly's line style of a series by its number, from 0."""
    return ("solid", "dash", "dot")[number // (len(_SERIES["light"]) + 1) % 3]


def state_color(state: str) -> str:
    """Streamlit's colour of a run's state; every state is also said in words."""
    return _STATE_COLORS.get(state, "gray")
