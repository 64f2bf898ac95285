"""`Preferences`: how one person wants the dashboard."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ftlab_mlflow.errors import ConfigError

logger = logging.getLogger("ftlab_mlflow")

_KINDS = {
    "tracking_uri": "a tracking URI of MLflow, or nothing",
    "by": "a name of at most 200 characters, or nothing",
    "refresh_s": "seconds from 1 to 3600",
    "theme": "system, light or dark",
    "memory_unit": "GB or GiB",
    "time_zone": "a time zone such as Europe/Berlin, or nothing",
    "axis": "step, time or epoch",
    "smoothing": "a number from 0 to below 1",
    "log_scale": "true or false",
    "chat_model": "a model such as openai/gpt-4o-mini, of at most 255 characters, or nothing",
    "chat_temperature": "a number from 0 to 2, or nothing",
    "chat_max_tokens": "a whole number of tokens from 256 to 32768",
    "chat_usd_per_day": "US dollars from 0, or nothing",
}


class Preferences(BaseModel):
    """What a person has chosen; unchosen, the defaults.

    Attributes:
        tracking_uri: Where the runs are; None is what the dashboard was started with.
        by: Who asks, written into requests; None is the user that runs the dashboard. The e-mail of
            somebody signed in goes before it.
        refresh_s: Seconds between two refreshes of a live page.
        theme: `system` follows the browser.
        memory_unit: GB is 10⁹ bytes, GiB 2³⁰.
        time_zone: IANA name in which times are shown; None is the browser's.
        axis: What charts are drawn over.
        smoothing: Weight of the past in a smoothed line; 0 is none.
        log_scale: Whether charts have a logarithmic value axis.
        chat_model: The model that answers in the chat; None is the default of the installation.
        chat_temperature: How varied its answers are; None is the model's own.
        chat_max_tokens: Tokens of one reply of the model, at most.
        chat_usd_per_day: What the person's answers of a day may cost; None is without a limit of their own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, str_strip_whitespace=True)

    tracking_uri: str | None = None
    by: str | None = Field(default=None, max_length=200)
    refresh_s: float = Field(default=2.0, ge=1, le=3600)
    theme: Literal["system", "light", "dark"] = "system"
    memory_unit: Literal["GB", "GiB"] = "GB"
    time_zone: str | None = None
    axis: Literal["step", "time", "epoch"] = "step"
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    log_scale: bool = False
    chat_model: str | None = Field(default=None, max_length=255)
    chat_temperature: float | None = Field(default=None, ge=0, le=2)
    chat_max_tokens: int = Field(default=4096, ge=256, le=32768)
    chat_usd_per_day: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @field_validator("tracking_uri", "by", "time_zone", "chat_model")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return value or None

    @field_validator("time_zone")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ZoneInfo(value)
            except OSError as error:  # the name of a folder
                raise ValueError(str(error)) from error
            except KeyError as error:  # ZoneInfoNotFoundError
                raise ValueError(f"no time zone {error}") from error
        return value

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Preferences:
        """Preferences from what a person typed; what is not named keeps its default.

        Raises:
            ConfigError: Names are unknown or values wrong; the text names each and what is allowed.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError("; ".join(_said(name) for name in _wrong(error))) from error

    @classmethod
    def stored(cls, values: Mapping[str, Any]) -> Preferences:
        """Preferences from a database that another version of the program may have written.

        Unknown names are left out. A value that this version does not take is its default, with a warning in
        the log: nobody is kept out of the dashboard by a preference.
        """
        known = {name: value for name, value in values.items() if name in cls.model_fields}
        try:
            return cls.model_validate(known)
        except ValidationError as error:
            wrong = _wrong(error)
            logger.warning("stored preferences are not used: %s", "; ".join(_said(name) for name in wrong))
            return cls.model_validate({name: value for name, value in known.items() if name not in wrong})


def _wrong(error: ValidationError) -> list[str]:
    return list(dict.fromkeys(str(problem["loc"][0]) for problem in error.errors()))


def _said(name: str) -> str:
    # Not what was given: it may hold a password.
    if name not in _KINDS:
        return f"{name} is no preference; there are {', '.join(_KINDS)}"
    return f"{name} must be {_KINDS[name]}"
