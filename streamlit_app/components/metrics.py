"""The charts of a run: every metric it logs, with a mark for every applied request and what came of it."""

from __future__ import annotations

import streamlit as st

from ftlab_mlflow.analytics.effects import Effect, effects
from ftlab_mlflow.analytics.metric_table import Chart, charts, describe
from ftlab_mlflow.analytics.run_feed import RunFeed
from ftlab_mlflow.control.markers import Marker, markers
from ftlab_mlflow.control.view import RunView
from streamlit_app.components import charts as drawing
from streamlit_app.components.text import plain

_FIRST = 8
"""Charts that are shown unless others are chosen."""


def show(feed: RunFeed, view: RunView) -> None:
    """Choices, charts, and the effect of each change."""
    found = charts(view.data.metrics)
    if not found:
        st.info("No metric has been logged yet.", icon=":material/show_chart:")
        return
    how = look(f"run {view.data.run_id}")
    titles = [chart.title for chart in found]
    chosen = st.multiselect(
        "Charts", titles, default=titles[:_FIRST], key=f"charts {view.data.run_id}", format_func=plain
    )
    marks = markers(view.entries)
    loss = feed.series("loss")
    found_effects = effects(loss, [mark.step for mark in marks]) if loss else []
    said = [(mark, effect.text) for mark, effect in zip(marks, found_effects, strict=False)]
    place = drawing.Place(
        epochs=feed.series("epoch") if how.axis == "epoch" else None,
        start=int(view.data.started.timestamp() * 1000) if view.data.started else 0,
    )
    with st.grid(min_column_width=380, key="charts"):
        for chart in found:
            if chart.title in chosen:
                with st.container():
                    _chart(feed, chart, how, place, said)
    _effects(marks, found_effects)


def look(key: str) -> drawing.View:
    """How to draw: the axis, smoothing and scale that a person chooses."""
    with st.container(horizontal=True, vertical_alignment="bottom", key=f"look {key}"):
        axis = st.segmented_control(
            "Axis", ["step", "time", "epoch"], default="step", required=True, key=f"axis {key}"
        )
        smoothing = st.slider("Smoothing", 0.0, 0.99, 0.0, 0.01, key=f"smoothing {key}", width=180)
        log_y = st.toggle("Log scale", key=f"log {key}")
    return drawing.View(axis=axis or "step", smoothing=smoothing, log_y=log_y)


def _chart(
    feed: RunFeed,
    chart: Chart,
    how: drawing.View,
    place: drawing.Place,
    marks: list[tuple[Marker, str]],
) -> None:
    lines = []
    for number, key in enumerate(chart.keys):
        series = feed.series(key)
        if series is not None:
            lines.append(drawing.Line(describe(key).title, series, place, number))
    st.markdown(f"**{plain(chart.title)}**")
    drawing.show(
        drawing.figure(lines, how, unit=chart.unit, markers=marks, place=place), key=f"chart {chart.title}"
    )


def _effects(marks: tuple[Marker, ...], found: list[Effect]) -> None:
    rows = [
        {
            "step": mark.step,
            "change": mark.text,
            "loss slope before": effect.before_text,
            "after": effect.after_text,
            "effect": effect.verdict,
        }
        for mark, effect in zip(marks, found, strict=False)
    ]
    if rows:
        st.markdown("**What the changes did to the training loss** (slope per 100 steps, 95 % interval)")
        st.dataframe(rows, hide_index=True)
