"""The charts of a run: every metric it logs, with a mark for every applied request and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from ftlab_mlflow.analytics.effects import Effect, of_changes
from ftlab_mlflow.analytics.metric_table import Chart, Group, charts, describe
from ftlab_mlflow.analytics.reader import EXACT
from ftlab_mlflow.analytics.run_feed import RunFeed
from ftlab_mlflow.analytics.series import Series
from ftlab_mlflow.analytics.units import plotted
from ftlab_mlflow.control.markers import Marker, markers
from ftlab_mlflow.control.view import RunView
from ftlab_mlflow.errors import StoreUnavailable
from streamlit_app import state
from streamlit_app.components import charts as drawing
from streamlit_app.components.text import plain

Reads = Mapping[str, Future[Series | None]]
_LATER = (Group.LIVE, Group.OTHER, Group.SYSTEM, Group.PROGRESS)
_FIRST = 12
"""So many charts are shown unless others are chosen, none of these groups."""


def show(feed: RunFeed, view: RunView) -> None:
    """Choices, charts, and the effect of each change."""
    found = charts(view.data.metrics)
    if not found:
        st.info("No metric has been logged yet.", icon=":material/show_chart:")
        return
    how = look(f"run {view.data.run_id}")
    titles = [chart.title for chart in found]
    first = [chart.title for chart in found if chart.group not in _LATER][:_FIRST]
    usual = first or titles[:_FIRST]
    chosen = _chosen(f"charts {view.data.run_id}", titles, usual)
    drawn = [chart for chart in found if chart.title in chosen]
    keys = [*(["epoch"] if how.axis == "epoch" else []), *(k for chart in drawn for k in chart.keys)]
    marks = markers(view.entries)
    exact = feed.read_ahead(["loss"], EXACT) if marks else {}  # first: what it reads is enough for the chart
    reads = feed.read_ahead(dict.fromkeys(keys))
    above = st.container()
    with st.grid(min_column_width=300, key="charts"):
        spaces = [_space(chart) for chart in drawn]
    loss = _series(exact, "loss") if exact else None
    effects = of_changes(loss, marks) if loss else []
    texts = {mark.id: effect.text for mark, effect in effects}
    said = [(mark, texts.get(mark.id, "")) for mark in marks]
    epochs = _series(reads, "epoch") if how.axis == "epoch" else None
    if how.axis == "epoch" and epochs is None:
        above.caption("This run logs no epochs: its charts are by step.")
        how = replace(how, axis="step")
    place = drawing.Place.of(view, epochs)
    for chart, space in zip(drawn, spaces, strict=True):
        _chart(space, reads, chart, how, place, said)
    _effects(effects)


@dataclass(frozen=True)
class _Choice:
    """What the field of charts held. usual: What it offered by itself. nth: How often that has changed."""

    usual: list[str]
    now: list[str]
    nth: int = 0


def _chosen(name: str, titles: list[str], usual: list[str]) -> list[str]:
    """Titles of the charts to show: the usual ones, until a person chooses; of new metrics, also then.

    When the usual ones change the field is a new one: a value that the script gives to an old one is lost
    where the next refresh comes before it was sent to the browser.
    """
    before: _Choice = st.session_state.get(name, _Choice(usual, usual))
    start, nth = before.now, before.nth
    if before.usual != usual:
        new = [title for title in usual if title not in [*before.usual, *before.now]]
        start, nth = usual if before.now == before.usual else [*before.now, *new], nth + 1
    known = [title for title in start if title in titles]
    now = st.multiselect("Charts", titles, default=known, key=f"{name} {nth}")
    st.session_state[name] = _Choice(usual, now, nth)
    return now


def known(reads: Reads) -> dict[str, Series]:
    """The metrics that could be read."""
    return {key: series for key in reads if (series := _series(reads, key))}


def _series(reads: Reads, key: str) -> Series | None:
    """A metric; None where it was never read and the store is away, as the head of the page says."""
    try:
        return reads[key].result()
    except StoreUnavailable:
        return None


def look(key: str) -> drawing.View:
    """How to draw: the axis, smoothing and scale that a person chooses."""
    usual = state.preferences()
    axes: list[drawing.Axis] = ["step", "time", "epoch"]
    with st.container(horizontal=True, vertical_alignment="bottom", key=f"look {key}"):
        axis = st.segmented_control("Axis", axes, default=usual.axis, required=True, key=f"axis {key}")
        smoothing = st.slider(
            "Smoothing", 0.0, 0.99, min(0.99, usual.smoothing), 0.01, key=f"smoothing {key}", width=180
        )
        log_y = st.toggle("Log scale", usual.log_scale, key=f"log {key}", help="Where it makes sense")
    return drawing.View(axis=axis, smoothing=smoothing, log_y=log_y)


def _space(chart: Chart) -> DeltaGenerator:
    """Where a chart will be, below its title: its first reading may take seconds."""
    space = st.container()
    space.markdown(f"**{plain(chart.title)}**")
    return space


def _chart(
    space: DeltaGenerator,
    reads: Reads,
    chart: Chart,
    how: drawing.View,
    place: drawing.Place,
    marks: list[tuple[Marker, str]],
) -> None:
    factor, unit = plotted(chart.unit, binary=state.preferences().memory_unit == "GiB")
    lines = []
    for number, key in enumerate(chart.keys):
        series = _series(reads, key)
        if series is not None:
            scaled = replace(series, values=series.values * factor)
            lines.append(drawing.Line(describe(key).title, scaled, place, number))
    how = replace(how, log_y=how.log_y and chart.log, axis=how.axis if chart.has_steps else "time")
    if not lines:
        space.caption("Not read yet: the tracking store does not answer.")
        return
    figure = drawing.figure(lines, how, unit=unit, markers=marks, place=place)
    with space:
        drawing.show(figure, f"chart {chart.title}", chart.title)


def _effects(found: list[tuple[Marker, Effect]]) -> None:
    rows = [
        {
            "step": mark.step,
            "change": mark.text,
            "loss slope before": effect.before_text,
            "after": effect.after_text,
            "effect": effect.verdict,
        }
        for mark, effect in found
    ]
    if rows:
        st.markdown("**What the changes did to the training loss** (slope per 100 steps, 95 % interval)")
        st.dataframe(rows, hide_index=True, key="effects")
        st.caption("It describes and does not explain: a loss that bends by itself falls slower later on.")
