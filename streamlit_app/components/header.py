"""The head of a run's page: what it is, how far it is, how fast, where."""

from __future__ import annotations

import streamlit as st

from ftlab_mlflow.analytics import units
from ftlab_mlflow.analytics.run_feed import RunFeed
from ftlab_mlflow.control.links import run_url, ui_hint
from ftlab_mlflow.control.view import RunView
from streamlit_app import state
from streamlit_app.components import palette
from streamlit_app.components.text import plain


def show(feed: RunFeed, view: RunView) -> None:
    """Name, state, progress and the numbers that say whether it goes well."""
    record = feed.record
    assert record is not None
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(plain(view.data.label), anchor=False, width="content")
        st.badge(view.state, color=palette.state_color(view.state))  # type: ignore[arg-type]
        _link(view)
    if view.progress is not None:
        st.progress(view.progress)
    with st.grid(min_column_width=128, key="numbers"):
        for label, value in _numbers(feed, view):
            st.metric(label, value)
    if view.status and view.status.error:
        st.error("The training failed.", icon=":material/error:")
        st.text(view.status.error)


def _link(view: RunView) -> None:
    uri = state.tracking_uri()
    if url := run_url(uri, view.data):
        st.link_button("MLflow UI", url, icon=":material/open_in_new:", type="tertiary")
    elif hint := ui_hint(uri):
        with st.popover("MLflow UI", type="tertiary"):
            st.text("This tracking store has no address. To look at it in MLflow:")
            st.code(hint, language="sh")


def _numbers(feed: RunFeed, view: RunView) -> list[tuple[str, str]]:
    status, logged = view.status, view.data.metrics
    assert feed.record is not None
    numbers = [("experiment", plain(feed.record.experiment))]
    if status:
        steps = f"{status.step:,} / {status.max_steps:,}" if status.max_steps else f"{status.step:,}"
        numbers += [
            ("step", steps),
            ("epoch", units.number(status.epoch)),
            ("method", plain(status.method or units.NOTHING)),
        ]
    else:
        numbers += [("step", units.count(logged.get("step"))), ("epoch", units.number(logged.get("epoch")))]
    numbers += [
        ("loss", units.number(view.loss)),
        ("best eval loss", units.number(logged.get("best_eval_loss"))),
        ("learning rate", units.number(view.learning_rate)),
        ("samples/s", units.number(logged.get("samples_per_second"))),
        ("tokens/s", units.number(logged.get("tokens_per_second"))),
    ]
    if not view.is_over:
        numbers.append(("time left", units.duration(view.eta_s)))
    if status:
        numbers += [
            ("host", plain(status.host or units.NOTHING)),
            ("heartbeat", f"{units.duration(max(0, round(view.heartbeat_age_s or 0)))} ago"),
        ]
    return [(label, value) for label, value in numbers if value != units.NOTHING]
