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
