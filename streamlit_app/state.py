"""What outlives a run of the script: shared by all browser sessions, or kept for one of them."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from ftlab_mlflow.analytics.reader import RunReader, open_reader
from ftlab_mlflow.analytics.run_feed import ENDED_FRESH_S, RunFeed
from ftlab_mlflow.analytics.run_table import RunTable
from ftlab_mlflow.app_store import AppStore, Preferences
from ftlab_mlflow.chat.offers import Group, offers
from ftlab_mlflow.chat.plugins import load_providers
from ftlab_mlflow.chat.provider import Provider, Surroundings
from ftlab_mlflow.chat.service import ChatService
from ftlab_mlflow.chat.tracing import Tracer
from ftlab_mlflow.control.client import LiveRun
from ftlab_mlflow.errors import AppStoreError, ConfigError
from streamlit_app import identity

logger = logging.getLogger("ftlab_mlflow")
_TROUBLE = "preferences trouble"
_ASK_AGAIN_S = 30.0
"""Seconds until an app database that did not answer is asked again: each time may take a while."""
_OFFERS_S = 60.0
"""Seconds until servers of models are asked again what they serve."""


@st.cache_resource
def app_store() -> AppStore:
    """The app's own database."""
    return AppStore()


def preferences() -> Preferences:
    """What this person has chosen; the defaults while the app's database does not answer."""
    user = identity.user().name
    key = f"preferences of {user}"
    if key not in st.session_state:
        asked, _ = st.session_state.get(_TROUBLE, (-math.inf, ""))
        if time.monotonic() - asked < _ASK_AGAIN_S:
            return Preferences()
        try:
            st.session_state[key] = app_store().preferences(user)
        except (AppStoreError, ConfigError) as error:
            logger.warning("preferences of %s cannot be read: %s", user, error)
            st.session_state[_TROUBLE] = (time.monotonic(), str(error))
            return Preferences()
        st.session_state.pop(_TROUBLE, None)
    chosen: Preferences = st.session_state[key]
    return chosen


def preferences_trouble() -> str | None:
    """Why preferences cannot be read; None where they can."""
    preferences()
    _, text = st.session_state.get(_TROUBLE, (0.0, None))
    trouble: str | None = text
    return trouble


def save_preferences(chosen: Preferences) -> None:
    """Keeps them for the next visit, and uses them from now on."""
    user = identity.user().name
    app_store().save(user, chosen)
    st.session_state[f"preferences of {user}"] = chosen


def choose(**values: Any) -> None:
    """Keeps some preferences; the others stay as they are kept, also by another tab meanwhile."""
    now = app_store().preferences(identity.user().name)
    save_preferences(Preferences.checked(now.model_dump() | values))


def tracking_uri() -> str:
    """Where the runs are: this person's choice, or what the dashboard was started with.

    Somebody who signs in has no choice: the dashboard's own credentials for MLflow would go where they say.
    """
    chosen = None if identity.user().signed_in else preferences().tracking_uri
    return chosen or default_tracking_uri()


def default_tracking_uri() -> str:
    """What the dashboard was started with, or MLflow's default."""
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        return given
    import mlflow

    return str(mlflow.get_tracking_uri())


def refresh_s(*, is_over: bool) -> float:
    """Seconds between two looks at a run; at one that is over seldom, for it may be resumed."""
    return ENDED_FRESH_S if is_over else preferences().refresh_s


def by() -> str:
    """Who asks, as requests name this person."""
    user = identity.user()
    return user.name if user.signed_in else preferences().by or user.name


def reader() -> RunReader:
    """Bulk reads of the tracking store."""
    return _reader(tracking_uri())


def run_table() -> RunTable:
    """All runs of the tracking store."""
    return _run_table(tracking_uri())


def run_feed(run_id: str) -> RunFeed:
    """One run of the tracking store, kept fresh."""
    return _run_feed(tracking_uri(), run_id)


def live_run(run_id: str, via: str = "dashboard") -> LiveRun:
    """The run to send requests to. via: With what a person does, as requests say it."""
    return LiveRun(run_id, tracking_uri=tracking_uri(), by=by(), via=via)


def model_offers() -> Sequence[Group]:
    """The models that there are to choose from; servers are asked again after a while."""
    return _offers(tracking_uri())


@st.cache_resource(max_entries=8, show_spinner=False, ttl=_OFFERS_S)
def _offers(uri: str) -> Sequence[Group]:
    return offers(_providers(uri))


def chats() -> ChatService:
    """This person's chats, about the runs of the tracking store."""
    return _chats(identity.user().name, tracking_uri())


@st.cache_resource(max_entries=64, show_spinner=False)
def _chats(user: str, uri: str) -> ChatService:
    return ChatService(user, uri, app_store(), _providers(uri), _tracer())


@st.cache_resource(show_spinner=False)
def _tracer() -> Tracer:
    return Tracer()


@st.cache_resource(max_entries=8, show_spinner=False)
def _providers(uri: str) -> Mapping[str, Provider]:
    return load_providers(Surroundings(uri))


@st.cache_resource(max_entries=8, show_spinner=False)
def _reader(uri: str) -> RunReader:
    return open_reader(uri)


@st.cache_resource(max_entries=8, show_spinner=False)
def _run_table(uri: str) -> RunTable:
    return RunTable(_reader(uri))


@st.cache_resource(max_entries=64, show_spinner=False)
def _run_feed(uri: str, run_id: str) -> RunFeed:
    return RunFeed(_reader(uri), run_id)


def zone() -> str:
    """The time zone in which times are shown."""
    return preferences().time_zone or st.context.timezone or "UTC"
