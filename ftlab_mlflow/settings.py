"""The few settings of our own, as one frozen value: argument > environment > config file > default."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ftlab_mlflow.errors import ConfigError

_ENVIRONMENT = {
    "tracking_uri": "MLFLOW_TRACKING_URI",
    "poll_interval": "FTLAB_POLL_INTERVAL",
    "rank_sync_steps": "FTLAB_RANK_SYNC_STEPS",
}
_KINDS = {
    "tracking_uri": "a string",
    "poll_interval": "seconds above 0",
    "rank_sync_steps": "a whole number of steps from 1",
    "limits": "a (min, max) pair of numbers by parameter, such as {learning_rate: [0, 0.001]}",
}

Direction = Literal["lower", "higher", "none"]
Limits = dict[str, tuple[float | None, float | None]]


class Settings(BaseModel):
    """Where the runs are, and how a training listens.

    Attributes:
        tracking_uri: MLflow's tracking URI; None is MLflow's own default.
        poll_interval: Seconds between two looks at a run's tags.
        rank_sync_steps: On several ranks: steps between two agreements at most.
        limits: Narrower (min, max) by parameter; None leaves a bound as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tracking_uri: str | None = None
    poll_interval: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    rank_sync_steps: int = Field(default=10, ge=1)
    limits: Limits = Field(default_factory=dict)

    @classmethod
    def resolve(
        cls,
        arguments: Mapping[str, Any],
        file: Mapping[str, Any] | None = None,
        file_name: str = "config file",
    ) -> Settings:
        """Settings from all their sources. A value that is None or empty counts as not given.

        Args:
            arguments: What was given on the command line, by name.
            file: The `live:` section of a config file. file_name: What errors call that file.

        Raises:
            ConfigError: A name is unknown or a value is wrong; the text says where it was given.
        """
        environment = {name: os.environ.get(variable) for name, variable in _ENVIRONMENT.items()}
        sources = [
            (file or {}, f"{file_name}: live.{{}}"),
            (environment, "{}"),
            (arguments, "--{}"),
        ]
        values: dict[str, Any] = {}
        named: dict[str, str] = {}
        for source, label in sources:
            for name, value in source.items():
                if value is None or value == "":
                    continue
                shown = _ENVIRONMENT[name] if source is environment else label.format(name)
                if name not in cls.model_fields:
                    raise ConfigError(f"{shown} is no setting; there are {', '.join(cls.model_fields)}")
                if isinstance(value, bool):  # pydantic would take it for a number
                    raise ConfigError(f"{shown} must be {_KINDS[name]}, got {value}")
                values[name], named[name] = value, shown
        try:
            return cls(**values)
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            raise ConfigError(f"{named[name]} must be {_KINDS[name]}, got {values[name]!r}") from error


def database_url(argument: str | None = None) -> str:
    """The app's own database as a SQLAlchemy URL: argument > ``FTLAB_DATABASE_URL`` > a file of the user.

    It is not in `Settings`, which are options of a training. The file is ``app.db`` in `data_folder`.
    """
    if given := argument or os.environ.get("FTLAB_DATABASE_URL"):
        return given
    return f"sqlite:///{data_folder() / 'app.db'}"


def data_folder() -> Path:
    """Where files of the user are: ``ftlab`` in ``$XDG_DATA_HOME``, or in ``~/.local/share``."""
    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return home / "ftlab"


def answer_chars() -> int:
    """Characters of JSON that an answer of `ftlab_mlflow.analytics` may have: ``FTLAB_ANSWER_CHARS``.

    Raises:
        ConfigError: It is no whole number from 4000.
    """
    text = os.environ.get("FTLAB_ANSWER_CHARS") or "12000"
    if not text.isascii() or not text.isdigit() or int(text) < 4000:
        raise ConfigError(f"FTLAB_ANSWER_CHARS must be a whole number of characters from 4000, got {text!r}")
    return int(text)


def metric_directions() -> tuple[tuple[str, Direction], ...]:
    """Which way is better for metrics of the user's own: a name and ``lower``, ``higher`` or ``none`` each.

    ``FTLAB_METRICS`` holds them, such as ``toxicity=lower; judge/*=higher``; ``*`` stands for any text. The
    first that fits a metric counts, with and without ``eval_``, and before what is known of it.

    Raises:
        ConfigError: One is no such pair.
    """
    return _directions(os.environ.get("FTLAB_METRICS", ""))


@lru_cache
def _directions(text: str) -> tuple[tuple[str, Direction], ...]:
    found: list[tuple[str, Direction]] = []
    for part in filter(str.strip, text.split(";")):
        name, _, way = (each.strip() for each in part.rpartition("="))
        if not name or way not in get_args(Direction):
            raise ConfigError(f"FTLAB_METRICS must be NAME=lower|higher|none; …, got {part.strip()!r}")
        found.append((name, cast(Direction, way)))
    return tuple(found)


def gpu_prices() -> dict[str, float]:
    """What an hour of each accelerator costs, by name as in the tag ``ftlab.accelerators``.

    ``FTLAB_GPU_PRICES`` holds them, such as ``NVIDIA H100 80GB HBM3=2.5; NVIDIA A100=1.8``, in the currency
    that `currency` names.

    Raises:
        ConfigError: One is no price.
    """
    found = {}
    for part in os.environ.get("FTLAB_GPU_PRICES", "").split(";"):
        name, equals, text = part.rpartition("=")
        if not part.strip():
            continue
        try:
            price = float(text) if equals and name.strip() else math.nan
        except ValueError:
            price = math.nan
        if not (math.isfinite(price) and price >= 0):
            raise ConfigError(f"FTLAB_GPU_PRICES must be NAME=PRICE; NAME=PRICE, got {part.strip()!r}")
        found[name.strip()] = price
    return found


def currency() -> str:
    """The currency of all prices: ``FTLAB_CURRENCY``, by default USD."""
    return os.environ.get("FTLAB_CURRENCY") or "USD"


def tracing() -> bool:
    """Whether each answer of the chat is also an MLflow trace: ``FTLAB_TRACE``, 1 by default.

    Raises:
        ConfigError: It is neither 0 nor 1.
    """
    text = os.environ.get("FTLAB_TRACE") or "1"
    if text not in ("0", "1"):
        raise ConfigError(f"FTLAB_TRACE must be 0 or 1, got {text!r}")
    return text == "1"


def trace_experiment() -> str:
    """The experiment of these traces, by name: ``FTLAB_TRACE_EXPERIMENT``, by default ftlab-chat."""
    return os.environ.get("FTLAB_TRACE_EXPERIMENT") or "ftlab-chat"
