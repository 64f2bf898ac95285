"""What a person chooses: where the runs are, under which name to ask, how it looks, how the chat answers."""

from __future__ import annotations

import os
from typing import Any
from zoneinfo import available_timezones

import streamlit as st

from ftlab_mlflow.analytics.connection import experiments_at
from ftlab_mlflow.app_store import Preferences
from ftlab_mlflow.chat.choice import DEFAULT_VARIABLE
from ftlab_mlflow.chat.offers import DEFAULT_MODEL
from ftlab_mlflow.control.mlflow_errors import without_credentials
from ftlab_mlflow.errors import FTLabError
from streamlit_app import identity, state

_AXES = {"step": "Optimizer steps", "time": "Hours since the start", "epoch": "Epochs"}
_THEMES = {"system": "As the system", "light": "Light", "dark": "Dark"}
_MEMORY = {"GB": "GB (10⁹ bytes)", "GiB": "GiB (2³⁰ bytes)"}
_THEME_HELP = (
    "Streamlit keeps a theme in each browser. Light or dark is set there by loading a page once anew; "
    "a browser that keeps nothing stays as it is. A choice in Streamlit's own menu lasts until the next page."
)


def show() -> None:
    """The page: one form, checked and kept as a whole."""
    st.title("Settings", anchor=False)
    chosen = state.preferences()
    with st.form("settings", border=False, width=640):
        parts = (_runs, _live, _looks, _charts, _chat)
        values = {name: value for part in parts for name, value in part(chosen).items()}
        sent = st.form_submit_button("Save", type="primary", key="save")
    if sent:
        _save(chosen, values)
    identity.sign_out()


def _runs(chosen: Preferences) -> dict[str, Any]:
    st.subheader("Runs", anchor=False)
    user = identity.user()
    uri = st.text_input(
        "Tracking URI",
        value="" if user.signed_in else chosen.tracking_uri or "",
        key="tracking_uri",
        disabled=user.signed_in,
        placeholder=without_credentials(state.default_tracking_uri()),
        help="MLflow's, such as http://host:5000 or sqlite:////home/me/mlflow.db. Empty: what the dashboard "
        "was started with. Credentials belong into the environment of the dashboard; where people sign in, "
        "it alone says where the runs are.",
    )
    if user.signed_in:
        st.text_input(
            "Who I am",
            value=user.name,
            disabled=True,
            key="who",
            help="You are signed in; requests name you.",
        )
        return {"tracking_uri": chosen.tracking_uri, "by": chosen.by}
    by = st.text_input(
        "Who I am",
        value=chosen.by or "",
        key="by",
        placeholder=user.name,
        help="Requests are sent under this name. Empty: the user that runs the dashboard.",
    )
    return {"tracking_uri": uri, "by": by}


def _live(chosen: Preferences) -> dict[str, Any]:
    seconds = st.number_input(
        "Refresh every (seconds)",
        value=chosen.refresh_s,
        step=1.0,
        format="%g",
        key="refresh_s",
        help="Pages of runs that go on refresh themselves so often.",
    )
    return {"refresh_s": float(seconds)}


def _looks(chosen: Preferences) -> dict[str, Any]:
    st.subheader("Looks", anchor=False)
    theme = _choice("Theme", _THEMES, chosen.theme, "theme", _THEME_HELP)
    memory = _choice("Memory in", _MEMORY, chosen.memory_unit, "memory_unit")
    here = st.context.timezone
    zones = ["", "UTC", *sorted(available_timezones() - {"UTC", "localtime"})]
    zone = st.selectbox(
        "Times in",
        zones,
        index=zones.index(chosen.time_zone or "") if (chosen.time_zone or "") in zones else 0,
        format_func=lambda name: name or f"The browser's time zone{f' ({here})' if here else ''}",
        key="time_zone",
    )
    return {"theme": theme, "memory_unit": memory, "time_zone": zone}


def _charts(chosen: Preferences) -> dict[str, Any]:
    st.subheader("Charts, when a page is opened", anchor=False)
    axis = _choice("Over", _AXES, chosen.axis, "axis")
    smoothing = st.slider(
        "Smoothing", 0.0, 0.99, chosen.smoothing, 0.01, key="smoothing", help="The raw line is always shown."
    )
    log_scale = st.toggle("Logarithmic values", value=chosen.log_scale, key="log_scale")
    return {"axis": axis, "smoothing": smoothing, "log_scale": log_scale}


def _chat(chosen: Preferences) -> dict[str, Any]:
    st.subheader("Chat", anchor=False)
    model = st.text_input(
        "Model",
        value=chosen.chat_model or "",
        key="chat_model",
        placeholder=os.environ.get(DEFAULT_VARIABLE) or DEFAULT_MODEL,
        help="Such as openai/gpt-4o-mini; the page Chat and `ftlab models` list them. Empty: the default.",
    )
    temperature = st.number_input(
        "Temperature",
        value=chosen.chat_temperature,
        step=0.1,
        key="chat_temperature",
        placeholder="the model's own",
        help="From 0 to 2: how varied answers are.",
    )
    tokens = st.number_input(
        "Tokens of a reply, at most", value=chosen.chat_max_tokens, step=256, key="chat_max_tokens"
    )
    budget = st.number_input(
        "US dollars a day, at most",
        value=chosen.chat_usd_per_day,
        step=0.5,
        format="%g",
        key="chat_usd_per_day",
        placeholder="as the dashboard was started",
        help="My own limit, where it is lower than FTLAB_CHAT_USD_PER_DAY. Days are those of UTC; answers of "
        "unknown cost do not count.",
    )
    return {
        "chat_model": model,
        "chat_temperature": temperature,
        "chat_max_tokens": tokens,
        "chat_usd_per_day": budget,
    }


def _choice(label: str, names: dict[str, str], chosen: str, key: str, help: str | None = None) -> str | None:
    return st.segmented_control(
        label, list(names), format_func=names.__getitem__, default=chosen, required=True, key=key, help=help
    )


def _save(before: Preferences, values: dict[str, Any]) -> None:
    try:
        chosen = Preferences.checked(before.model_dump() | values)
        if chosen.tracking_uri and chosen.tracking_uri != before.tracking_uri:
            with st.spinner("Asking the tracking store …"):
                found = experiments_at(chosen.tracking_uri)
            st.text(f"The tracking store answers: {found} experiment{'' if found == 1 else 's'}.")
        state.save_preferences(chosen)
    except FTLabError as error:
        st.error("Nothing was saved.", icon=":material/error:")
        st.text(str(error))
        return
    st.success("Saved.", icon=":material/check:")


show()
