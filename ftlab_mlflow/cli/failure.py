"""What goes wrong, said in one or two lines, with an exit code."""

from __future__ import annotations

import os
import traceback
from typing import Any

import click

from ftlab_mlflow.cli.output import emit
from ftlab_mlflow.control.wire import one_line
from ftlab_mlflow.errors import (
    ConfigError,
    FTLabError,
    MissingExtra,
    StoreUnavailable,
    UpdateRejected,
    UpdateTimeout,
)

FAILED, USAGE, TIMED_OUT = 1, 2, 3


def report(error: Exception, *, as_json: bool) -> int:
    """Prints an error on stderr, with `as_json` also as the one document on stdout; returns the exit code."""
    code = exit_code(error)
    lines = _lines(error)
    if os.environ.get("FTLAB_DEBUG") == "1" and not isinstance(error, click.exceptions.ClickException):
        traceback.print_exception(error)
    for line in lines:
        click.echo(one_line(line), err=True)
    if as_json:
        emit({"error": _document(error, lines, code)}, indent=None)
    return code


def exit_code(error: Exception) -> int:
    """The exit code that an error means."""
    if isinstance(error, UpdateTimeout):
        return TIMED_OUT
    is_usage = isinstance(error, click.UsageError | ConfigError) and not isinstance(error, MissingExtra)
    return USAGE if is_usage else FAILED


def _lines(error: Exception) -> list[str]:
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "ftlab"
        return [f"Error: {error.format_message()}", f"`{command} --help` says how to use it."]
    if isinstance(error, click.Abort):  # what click makes of Ctrl-C
        return ["Interrupted."]
    if isinstance(error, click.ClickException):
        return [f"Error: {error.format_message()}"]
    if isinstance(error, UpdateRejected):
        written = "" if error.id else " Nothing was written."
        return [f"Rejected: {error}.{written}"]
    if isinstance(error, StoreUnavailable):
        hint = "`ftlab doctor` checks it; --tracking-uri or MLFLOW_TRACKING_URI says which one to use."
        return [f"Error: {error}", hint]
    if isinstance(error, FTLabError):
        return [f"Error: {error}"]
    text = f"Error: unexpected {type(error).__name__}: {str(error)[:300]}"
    return [text, "This is a fault of ftlab or of its installation; FTLAB_DEBUG=1 shows where."]


def _document(error: Exception, lines: list[str], code: int) -> dict[str, Any]:
    message = error.format_message() if isinstance(error, click.ClickException) else str(error)
    document: dict[str, Any] = {
        "type": type(error).__name__,
        "message": message or lines[0],
        "exit_code": code,
    }
    if isinstance(error, UpdateRejected):
        document |= {"code": error.code, "errors": error.errors, "id": error.id}
    return document
