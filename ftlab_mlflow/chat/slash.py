"""Slash commands: the functions of the analytics asked without any model, at once and for nothing."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ftlab_mlflow.chat import cells
from ftlab_mlflow.chat.events import ToolRun
from ftlab_mlflow.chat.render import markdown
from ftlab_mlflow.chat.scope import Scope
from ftlab_mlflow.chat.slash_commands import COMMANDS, Call
from ftlab_mlflow.chat.slash_subject import LATEST, Subject
from ftlab_mlflow.chat.slash_words import Arguments, WrongWords
from ftlab_mlflow.control.wire import new_id
from ftlab_mlflow.errors import ChatError, FTLabError

_HELP = "help"
_COMMAND = re.compile(r"/[A-Za-z]")
_PAGE = 100
"""Rows that are asked for at once where one of them is looked for."""


@dataclass(frozen=True)
class SlashResult:
    """What a command gave.

    Attributes:
        markdown: For people; also where a function could not answer.
        runs: The functions that were called, in order.
    """

    markdown: str
    runs: tuple[ToolRun, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all of them answered."""
        return all(run.ok for run in self.runs)


def is_command(text: str) -> bool:
    """Whether a text is a command: it begins with a slash and a letter.

    A question that begins so takes a space or another slash before it: `question_in`.
    """
    return bool(_COMMAND.match(text))


def question_in(text: str) -> str:
    """A text that is no command as the question that it is: `//tmp/x is full` asks `/tmp/x is full`."""
    return text[1:] if text.startswith("//") else text.strip()


def run(text: str, scope: Scope, tracking_uri: str | None = None) -> SlashResult:
    """Runs a command.

    Args:
        scope: What the conversation is about; holds where the command does not say.
        tracking_uri: MLflow's tracking URI; None is MLflow's own setting.

    Raises:
        ChatError: There is no such command, or it is not used so; the text says how.
        AnalyticsError, StoreError, ConfigError: What the scope names is not there, or it cannot be read.
    """
    began = time.monotonic()
    name, rest = _parted(text)
    if name == _HELP:
        return SlashResult(_help(rest))
    command = COMMANDS.get(name)
    if command is None:
        raise ChatError(_unknown(name))
    subject = Subject(scope, tracking_uri)
    try:
        call = command.parse(rest, subject)
    except WrongWords as error:
        raise ChatError(f"{error}. Usage: {command.usage}, such as {command.example}") from error
    if call.param is not None:
        shown, runs = _one_effect(call, tracking_uri, began)
    else:
        done = _called(command.tool, call.arguments, tracking_uri, began)
        shown, runs = _shown(done), (done,)
    result = SlashResult(shown, runs)
    return replace(result, markdown=cells.joined(shown, *subject.notes)) if result.ok else result


def complete(prefix: str) -> list[str]:
    """What a begun command may go on as: commands, then their options. It reads no store."""
    head, space, last = prefix.rpartition(" ")
    if not space:
        return [f"/{name}" for name in (*COMMANDS, _HELP) if f"/{name}".startswith(prefix.casefold())]
    command = COMMANDS.get(_parted(head)[0]) if is_command(head) else None
    if command is None or not last:
        return []
    words = (LATEST, *(f"{option}=" for option in command.options))
    return [f"{head} {word}" for word in words if word.startswith(last)]


def _parted(text: str) -> tuple[str, str]:
    """The command's name and what stands behind it."""
    parts = text.strip().removeprefix("/").split(maxsplit=1)
    return parts[0].casefold() if parts else "", parts[1] if len(parts) > 1 else ""


def _unknown(name: str) -> str:
    from ftlab_mlflow.analytics.scope import brief, nearest

    return (
        f"no command {brief('/' + name)}; {nearest(name, (*COMMANDS, _HELP))}. /help lists them all. "
        "A question that begins with a slash takes a space or another slash before it"
    )


def _called(tool: str, arguments: Arguments, tracking_uri: str | None, began: float) -> ToolRun:
    from ftlab_mlflow.analytics.tools import call_tool

    started = time.monotonic()
    result: Mapping[str, Any]
    try:
        result, ok = call_tool(tool, arguments, tracking_uri), True
    except FTLabError as error:
        result, ok = {"error": str(error)}, False
    seconds = time.monotonic() - started
    return ToolRun(f"slash_{new_id()}", tool, arguments, ok, result, seconds, started - began)


def _shown(done: ToolRun) -> str:
    return markdown(done.name, done.arguments, done.result)


def _one_effect(call: Call, tracking_uri: str | None, began: float) -> tuple[str, tuple[ToolRun, ...]]:
    """The row of one parameter among those of `param_effects`, whatever page it is on."""
    runs: list[ToolRun] = []
    asked: Arguments | None = {"limit": _PAGE} | call.arguments
    while asked is not None:
        done = _called("param_effects", asked, tracking_uri, began)
        runs.append(done)
        rows = [row for row in done.result.get("rows", ()) if row["param"] == call.param]
        if rows:
            alone = {**done.result, "rows": rows, "total": 1, "next": None}
            return _shown(replace(done, result=alone)), tuple(runs)
        if not done.ok:
            return _shown(done), tuple(runs)
        asked = done.result["next"]
    numeric = [cells.plain(row["param"]) for run in runs for row in run.result["rows"]]
    others = f"there are {', '.join(numeric[:10])}" if numeric else "there is none"
    what = "a numeric param that varies among the runs that count"
    return f"The param {cells.plain(call.param)} is not {what}; {others}.", tuple(runs)


def _help(rest: str) -> str:
    """All commands, or one with its options."""
    name = rest.strip().removeprefix("/").casefold()
    if not name:
        rows = [(f"`{each.usage}`", each.help, f"`{each.example}`") for each in COMMANDS.values()]
        rows.append(
            (f"`/{_HELP} [COMMAND]`", "This table, or one command with its options", f"`/{_HELP} rank`")
        )
        return cells.joined(
            cells.table(("command", "what it does", "for example"), rows),
            f"`{LATEST}` is the newest run. Names with spaces stand in quotes. What a command does not say "
            "is what is selected for the conversation. No model is asked.",
        )
    command = COMMANDS.get(name)
    if command is None:
        raise ChatError(_unknown(name))
    options = ", ".join(f"`{option}=`" for option in command.options)
    return cells.joined(
        f"`{command.usage}`",
        f"{command.help}. For example `{command.example}`. It asks `{command.tool}`.",
        command.details,
        f"Options: {options}." if options else "",
    )
