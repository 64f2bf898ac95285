"""One run: where it stands, what can be changed and how that went, its charts and its history."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from ftlab_mlflow.analytics.run_feed import RunFeed
from ftlab_mlflow.control.view import RunView
from ftlab_mlflow.errors import RunNotFound, StoreError, StoreUnavailable
from streamlit_app import state
from streamlit_app.components import banner, commands, controls, header, history, metrics, plot, requests

Part = Callable[[RunFeed, RunView], None]


def show() -> None:
    """The page; the run's id is in the address."""
    run_id = st.query_params.get("id", "")
    if not run_id:
        st.info("No run is chosen.", icon=":material/table_rows:")
        st.page_link("views/runs.py", label="Choose one of all runs", icon=":material/arrow_back:")
        return
    feed = state.run_feed(run_id)
    try:
        feed.refresh()
    except RunNotFound:
        st.error("There is no such run, or it was deleted.", icon=":material/search_off:")
        st.text(run_id)
        st.page_link("views/runs.py", label="All runs", icon=":material/arrow_back:")
        return
    except StoreUnavailable:
        if feed.record is None:
            raise
    is_over = feed.view().is_over
    with st.container(key="head"):
        _live(feed, is_over, _head)
    side, wide = st.columns([3, 8], gap="medium")
    with side:
        _live(feed, is_over, _steer)
    with wide:
        _live(feed, is_over, _watch)
    plot.load()


def _live(feed: RunFeed, is_over: bool, part: Part) -> None:
    """A part of the page that refreshes itself while the run goes on; what a person types in it stays.

    When the run is over only the head goes on looking, seldom, in case it is resumed.
    """
    every = None if is_over and part is not _head else state.refresh_s(is_over=is_over)

    @st.fragment(run_every=every, key=part.__name__)
    def fragment() -> None:
        try:
            feed.refresh()
        except StoreUnavailable as error:
            if part is _head:
                banner.away(error, feed.read_at)
        except StoreError as error:  # deleted meanwhile, or this person may not read it any more
            if part is _head:
                st.error("This run cannot be read any more.", icon=":material/search_off:")
                st.text(str(error))
            return
        view = feed.view()
        if view.is_over != is_over:
            st.rerun()  # no part refreshes itself from now on, or, after a resume, again
        part(feed, view)

    fragment()


def _head(feed: RunFeed, view: RunView) -> None:
    header.show(feed, view)


def _steer(feed: RunFeed, view: RunView) -> None:
    closed = controls.why_closed(view)
    commands.show(view, closed)
    controls.show(view, closed)
    requests.show(view, closed)


def _watch(feed: RunFeed, view: RunView) -> None:
    metrics.show(feed, view)
    history.show(view)


show()
