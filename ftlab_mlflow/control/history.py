"""A run's history to look through and to take away: which requests match, and all of them as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from ftlab_mlflow.control.ledger import Entry
from ftlab_mlflow.control.view import answer_text, entry_document, outcome_text, reasoned_text, update_text
from ftlab_mlflow.control.wire import is_finite, json_text, one_line
from ftlab_mlflow.errors import describe

Answer = Literal["pending", "applied", "rejected", "cancelled", "unreadable"]
ANSWERS: tuple[Answer, ...] = get_args(Answer)

COLUMNS = (
    "id", "at_utc", "by", "via", "reason", "request", "command", "parameter", "expected", "asked", "at_step",
    "expires_utc", "answer", "code", "step", "answered_at_utc", "session", "old", "new", "errors", "result",
)  # fmt: skip
"""The columns of the CSV form. `step` is the number of optimizer steps done when the request was answered."""

_ACTIVE = "=+-@＝＋－＠"
"""A cell that begins with one of these is a formula to some spreadsheet, whatever type the column has
(https://owasp.org/www-community/attacks/CSV_Injection)."""


def answer_of(entry: Entry) -> Answer:
    """What became of a request, in one of `ANSWERS`."""
    if not entry.answered:
        return "pending"
    return "unreadable" if entry.ack is None else entry.ack.status


def names_of(entry: Entry) -> tuple[str, ...]:
    """What a request is about: its command, or its parameters with those that changed along with them."""
    update = entry.update
    command = [update.command] if update and update.command else []
    return tuple(dict.fromkeys([*command, *_parameters(entry)]))


def _parameters(entry: Entry) -> list[str]:
    update, ack = entry.update, entry.ack
    asked = [*(update.set or {}), *update.expect] if update else []
    return list(dict.fromkeys([*asked, *(ack.changes if ack else {})]))


def matching(
    entries: Iterable[Entry],
    *,
    by: Collection[str] = (),
    parameters: Collection[str] = (),
    answers: Collection[str] = (),
    text: str = "",
) -> list[Entry]:
    """The requests that match all that is given; what is empty matches every request.

    Args:
        by: Whose; `""` is nobody's.
        parameters: About one of these parameters or commands.
        answers: Of `ANSWERS`.
        text: Words, all of which occur in what the history says of the request, in either case.
    """
    words = text.casefold().split()
    return [
        entry
        for entry in entries
        if (not by or ((entry.update and entry.update.by) or "") in by)
        and (not parameters or not set(parameters).isdisjoint(names_of(entry)))
        and (not answers or answer_of(entry) in answers)
        and all(word in _words(entry) for word in words)
    ]


def _words(entry: Entry) -> str:
    update = entry.update
    said = [update.by or "", update.via or ""] if update else []
    said += [entry.id, reasoned_text(entry), answer_text(entry), outcome_text(entry.ack)]
    return "\n".join(said).casefold()


def history_json(run_id: str, entries: Iterable[Entry]) -> str:
    """Requests with their answers as one JSON document; `docs/cli.md` says what is in it."""
    return json_text({"run_id": run_id, "requests": [entry_document(entry) for entry in entries]})


def history_csv(entries: Iterable[Entry]) -> str:
    """Requests with their answers as CSV (RFC 4180) for a spreadsheet.

    A row is one parameter of one request, so that old and new values are columns of numbers; what belongs to
    the whole request is repeated, and a command is one row. Times are UTC, in the form that spreadsheets read
    as times. A text that a spreadsheet would take for a formula, or that begins with an apostrophe, has an
    apostrophe put before it. Characters that are not printable are spaces, except line breaks. A file for
    Excel is to be encoded as ``utf-8-sig``.
    """
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for entry in entries:
        for row in _rows(entry):
            writer.writerow([_cell(row.get(column)) for column in COLUMNS])
    return file.getvalue()


def _rows(entry: Entry) -> Iterable[dict[str, Any]]:
    update, ack = entry.update, entry.ack
    row: dict[str, Any] = {"id": entry.id, "answer": answer_of(entry)}
    if entry.error:
        row["errors"] = describe(entry.error.errors)
    if update:
        row |= {
            "at_utc": update.at, "by": update.by, "via": update.via, "reason": update.reason,
            "request": update_text(update), "command": update.command, "at_step": update.at_step,
            "expires_utc": update.expires,
        }  # fmt: skip
    if ack:
        row |= {
            "code": ack.code, "step": ack.step, "answered_at_utc": ack.at, "session": ack.session,
            "errors": describe(ack.errors) or row.get("errors"), "result": ack.result or None,
        }  # fmt: skip
    asked, expected = (update.set or {}, update.expect) if update else ({}, {})
    for name in _parameters(entry) or [""]:
        old, new = ack.changes.get(name, (None, None)) if ack else (None, None)
        yield row | {
            "parameter": name, "expected": expected.get(name), "asked": asked.get(name),
            "old": old, "new": new,
        }  # fmt: skip


def _cell(value: Any) -> str:
    """A value as a spreadsheet reads it: numbers as numbers, texts as nothing but text."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "milliseconds")
    if is_finite(value):
        return repr(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=dict)
    text = "\n".join(one_line(line) for line in text.split("\n"))
    return f"'{text}" if text.lstrip().startswith((*_ACTIVE, "'")) else text
