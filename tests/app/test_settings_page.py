"""The page of settings: what is checked, what is kept, and for whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import streamlit as st
from app_pages import APP, LIMIT_S, Runs, opened, texts
from streamlit.testing.v1 import AppTest

from ftlab_mlflow.app_store import AppStore, Preferences
from ftlab_mlflow.control.client import user_name


def saved(app: AppTest) -> AppTest:
    """Presses the button Save."""
    (button,) = [button for button in app.button if button.label == "Save"]
    button.click().run()
    assert not app.exception
    return app


def kept(user: str | None = None) -> Preferences:
    """What the app database has, read past the page."""
    store = AppStore()
    try:
        return store.preferences(user or user_name())
    finally:
        store.close()


def test_everything_is_kept_over_a_reload_and_a_restart(dashboard: str) -> None:
    app = opened("settings")
    app.text_input(key="by").set_value("  ann ")
    app.number_input(key="refresh_s").set_value(5)
    app.segmented_control(key="theme").set_value("dark")
    app.segmented_control(key="memory_unit").set_value("GiB")
    app.selectbox(key="time_zone").set_value("UTC")
    app.segmented_control(key="axis").set_value("time")
    app.slider(key="smoothing").set_value(0.5)
    app.toggle(key="log_scale").set_value(True)
    assert "Saved" in texts(saved(app))

    expected = Preferences(
        by="ann",
        refresh_s=5,
        theme="dark",
        memory_unit="GiB",
        time_zone="UTC",
        axis="time",
        smoothing=0.5,
        log_scale=True,
    )
    assert kept() == expected
    st.cache_resource.clear()  # as a new process
    again = opened("settings")
    assert again.text_input(key="by").value == "ann"
    assert again.number_input(key="refresh_s").value == 5
    assert again.segmented_control(key="theme").value == "dark"
    assert again.selectbox(key="time_zone").value == "UTC"
    assert again.slider(key="smoothing").value == 0.5


@pytest.mark.parametrize("seconds", [0.0, 4000.0])
def test_a_wrong_value_is_named_and_nothing_is_saved(dashboard: str, seconds: float) -> None:
    app = opened("settings")
    app.text_input(key="by").set_value("ann")
    app.number_input(key="refresh_s").set_value(seconds)
    said = texts(saved(app))
    assert "Nothing was saved" in said
    assert "refresh_s must be seconds from 1 to 3600" in said
    assert kept() == Preferences()


def test_a_tracking_uri_is_tried_before_it_is_saved(
    runs: Runs, dashboard: str, new_sqlite: Callable[[Path], str], tmp_path: Path
) -> None:
    runs.plain("of the first")
    (tmp_path / "other").mkdir()
    other = new_sqlite(tmp_path / "other")
    Runs(other).plain("of the second")

    app = opened("settings")
    app.text_input(key="tracking_uri").set_value(f"sqlite:///{tmp_path}/typo.db")
    said = texts(saved(app))
    assert "Nothing was saved" in said
    assert f"there is no {tmp_path}/typo.db" in said
    assert kept().tracking_uri is None

    app.text_input(key="tracking_uri").set_value(other)
    said = texts(saved(app))
    assert "answers: 1 experiment." in said
    assert kept().tracking_uri == other
    assert list(opened().dataframe[0].value["name"]) == ["of the second"]


def test_the_default_is_shown_without_its_password(dashboard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:9")
    app = AppTest.from_file(APP, default_timeout=LIMIT_S)
    app.run()
    app.switch_page("views/settings.py").run()
    assert app.text_input(key="tracking_uri").placeholder == "http://127.0.0.1:9"


def test_who_has_signed_in_is_who_asks(dashboard: str) -> None:
    app = AppTest.from_file(APP, default_timeout=LIMIT_S)
    app.secrets["auth"] = {"client_id": "x"}
    app.user = {"email": "ann@example.org", "is_logged_in": True}
    app.run()
    app.switch_page("views/settings.py").run()
    who = app.text_input(key="who")
    assert (who.value, who.disabled) == ("ann@example.org", True)
    app.number_input(key="refresh_s").set_value(7)
    saved(app)
    assert kept("ann@example.org").refresh_s == 7
    assert kept() == Preferences()


@pytest.mark.parametrize(("theme", "wanted"), [("dark", '"Dark"'), ("system", '"System"')])
def test_the_theme_is_handed_to_the_browser(dashboard: str, theme: str, wanted: str) -> None:
    store = AppStore()
    store.save(user_name(), Preferences(theme=theme))
    store.close()
    script = "".join(element.value for element in opened().get("html"))
    assert f"const wanted = {wanted}" in script
