"""Arguments and options that several verbs have, and how their values are read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

import click

from ftlab_mlflow.control.wire import parse_time, utc_now

_F = TypeVar("_F", bound=Callable[..., Any])

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)")
_LONGEST_S = 366 * 86_400


def common(command: _F) -> _F:
    """The options of every verb."""
    command = click.option(
        "--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout."
    )(command)
    return click.option(
        "--tracking-uri", metavar="URI", help="Where the runs are.  [default: MLflow's own setting]"
    )(command)


run_argument = click.argument("run", default="latest", metavar="[RUN]")
"""A run that may be left out: then it is the newest live one."""


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """Seconds, as `30`, `0.5`, `10m`, `2h` or `1d`; more than 0."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(value)
        seconds = float(match[1]) * _UNITS[match[2]] if match else math.nan
        if not 0 < seconds <= _LONGEST_S:
            self.fail(f"{value!r} is no time above 0 such as 30, 10m or 2h", param, ctx)
        return seconds


class Moment(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """A point in time: a duration from now, or ISO 8601 with a time zone."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        if _DURATION.fullmatch(value):
            return utc_now() + timedelta(seconds=DURATION.convert(value, param, ctx))
        try:
            return parse_time(value)
        except ValueError as error:
            self.fail(f"{error}; or a time from now such as 10m", param, ctx)


class Assignment(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """`NAME=VALUE`, as a pair of texts."""

    name = "assignment"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not equals or not name.strip():
            self.fail(f"{value!r} is no NAME=VALUE such as learning_rate=5e-5", param, ctx)
        return name.strip(), text


DURATION, MOMENT, ASSIGNMENT = Duration(), Moment(), Assignment()
