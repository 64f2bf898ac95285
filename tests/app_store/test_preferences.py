"""What `Preferences` takes, and what it says of the rest."""

from __future__ import annotations

import logging
from typing import Any, get_args
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from ftlab_mlflow.app_store import Preferences
from ftlab_mlflow.errors import ConfigError


def test_the_defaults() -> None:
    defaults = Preferences()
    assert defaults.refresh_s == 2
    assert (defaults.tracking_uri, defaults.by, defaults.time_zone) == (None, None, None)
    assert (defaults.theme, defaults.axis, defaults.smoothing) == ("system", "step", 0)
    assert (defaults.chat_model, defaults.chat_temperature, defaults.chat_usd_per_day) == (None, None, None)
    assert defaults.chat_max_tokens == 4096


def test_they_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Preferences().refresh_s = 5  # type: ignore[misc]


def test_what_a_person_types_is_taken() -> None:
    typed = {"tracking_uri": " http://h:5000 ", "by": "", "refresh_s": 5, "time_zone": "Europe/Berlin"}
    taken = Preferences.checked(typed)
    assert taken == Preferences(
        tracking_uri="http://h:5000", by=None, refresh_s=5.0, time_zone="Europe/Berlin"
    )
    assert ZoneInfo(taken.time_zone or "").key == "Europe/Berlin"


def test_what_a_person_chooses_for_the_chat_is_taken() -> None:
    typed = {"chat_model": " ollama/qwen3:8b ", "chat_temperature": 0, "chat_max_tokens": 256}
    taken = Preferences.checked({**typed, "chat_usd_per_day": 0})
    assert (taken.chat_model, taken.chat_temperature, taken.chat_max_tokens) == ("ollama/qwen3:8b", 0.0, 256)
    assert taken.chat_usd_per_day == 0.0
    nothing = {"chat_model": "", "chat_temperature": None, "chat_usd_per_day": None}
    assert Preferences.checked(nothing) == Preferences()


@pytest.mark.parametrize("name", ["theme", "memory_unit", "axis"])
def test_every_choice_is_taken(name: str) -> None:
    for choice in get_args(Preferences.model_fields[name].annotation):
        assert getattr(Preferences.checked({name: choice}), name) == choice


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("refresh_s", 0, "seconds from 1 to 3600"),
        ("refresh_s", 3601, "seconds from 1 to 3600"),
        ("refresh_s", float("nan"), "seconds from 1 to 3600"),
        ("refresh_s", "2", "seconds from 1 to 3600"),
        ("refresh_s", True, "seconds from 1 to 3600"),
        ("smoothing", 1, "from 0 to below 1"),
        ("smoothing", -0.1, "from 0 to below 1"),
        ("theme", "pink", "system, light or dark"),
        ("time_zone", "Mars/Olympus", "a time zone such as Europe/Berlin"),
        ("time_zone", "../../etc/passwd", "a time zone such as Europe/Berlin"),
        ("time_zone", "Europe", "a time zone such as Europe/Berlin"),
        ("by", "x" * 201, "at most 200 characters"),
        ("chat_model", "x" * 256, "at most 255 characters"),
        ("chat_temperature", 2.1, "a number from 0 to 2"),
        ("chat_temperature", -0.1, "a number from 0 to 2"),
        ("chat_temperature", float("nan"), "a number from 0 to 2"),
        ("chat_max_tokens", 255, "tokens from 256 to 32768"),
        ("chat_max_tokens", 32769, "tokens from 256 to 32768"),
        ("chat_max_tokens", 4096.0, "tokens from 256 to 32768"),
        ("chat_max_tokens", True, "tokens from 256 to 32768"),
        ("chat_usd_per_day", -0.01, "US dollars from 0"),
        ("chat_usd_per_day", float("inf"), "US dollars from 0"),
        ("chat_usd_per_day", float("nan"), "US dollars from 0"),
        ("chat_usd_per_day", "5", "US dollars from 0"),
        ("colour", "red", "no preference; there are tracking_uri, by"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(name: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Preferences.checked({name: value, "axis": "epoch"})
    assert str(caught.value).startswith(name)
    assert says in str(caught.value)


def test_all_that_is_wrong_is_said_at_once_and_nothing_that_may_be_a_password() -> None:
    with pytest.raises(ConfigError) as caught:
        Preferences.checked({"tracking_uri": ["http://u:hush@h"], "axis": "hush"})
    assert "tracking_uri must be" in str(caught.value)
    assert "axis must be" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_every_preference_has_a_text_and_is_documented() -> None:
    for name in Preferences.model_fields:
        with pytest.raises(ConfigError, match=f"{name} must be "):
            Preferences.checked({name: object()})
        assert f"        {name}: " in (Preferences.__doc__ or "")


def test_stored_values_that_this_version_does_not_take_are_defaults(caplog: pytest.LogCaptureFixture) -> None:
    data = {"axis": "epoch", "theme": "contrast", "refresh_s": "hush", "panels": [1, 2]}
    with caplog.at_level(logging.WARNING, "ftlab_mlflow"):
        assert Preferences.stored(data) == Preferences(axis="epoch")
    assert "theme must be system, light or dark" in caplog.text
    assert "hush" not in caplog.text
    assert "panels" not in caplog.text
