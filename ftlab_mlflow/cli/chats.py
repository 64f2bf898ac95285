"""`chats` and `usage`: what was asked before, and what it took."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ftlab_mlflow.chat.money import dollars
from ftlab_mlflow.cli.output import clock, emit, say, show, table

if TYPE_CHECKING:
    from ftlab_mlflow.app_store.chats import ChatStore
    from ftlab_mlflow.app_store.usage import By, UsageRow

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")


@click.group()
def chats() -> None:
    """List, rename, export and delete what was asked before."""


@chats.command("list")
@click.option("--search", metavar="TEXT", help="Only those that speak of it.")
@click.option("--limit", type=click.IntRange(1, 1000), default=30, show_default=True, help="At most so many.")
@_as_json
def list_(search: str | None, limit: int, as_json: bool) -> None:
    """List your chats, the newest first."""
    store, user = _store()
    found = store.list(user, search, limit=limit)
    if as_json:
        rows = [
            {"id": chat.id, "title": chat.title, "updated": chat.updated, "messages": chat.length}
            for chat in found
        ]
        emit({"chats": rows})
        return
    if not found:
        say("No chats." if search is None else "No chat speaks of it.")
        return
    show(
        table(
            ("id", "when", "messages>", "title"),
            [(chat.id, clock(chat.updated), chat.length, chat.title) for chat in found],
        )
    )


@chats.command()
@click.argument("chat")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A file.  [default: stdout]")
@_as_json
def export(chat: str, out: Path | None, as_json: bool) -> None:
    """Write CHAT (an id, or a unique begin of one) as Markdown, or as JSON with the results of all tools."""
    from ftlab_mlflow.chat.export import export as exported
    from ftlab_mlflow.control.wire import json_text

    store, user = _store()
    found = store.get(user, chat)
    text = json_text({"chat": asdict(found)}) + "\n" if as_json else exported(found)
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"cannot write {out}: {error.strerror}") from error


@chats.command()
@click.argument("chat")
@click.argument("title")
@_as_json
def rename(chat: str, title: str, as_json: bool) -> None:
    """Give CHAT another title."""
    store, user = _store()
    before, after = store.get(user, chat), store.rename(user, chat, title)
    if as_json:
        emit({"id": after.id, "title": after.title})
        return
    say(f"{before.title} → {after.title}")


@chats.command()
@click.argument("chat")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_as_json
def delete(chat: str, yes: bool, as_json: bool) -> None:
    """Delete CHAT for good. What it took stays in `ftlab usage`."""
    store, user = _store()
    found = store.get(user, chat)
    if not yes:
        say(f"{found.title or found.id}, {found.length} messages", err=True)
        click.confirm("Delete it?", abort=True, err=True)
    store.delete(user, found.id)
    if as_json:
        emit({"deleted": found.id})
        return
    say(f"Deleted {found.id}.")


@click.command()
@click.option(
    "--by",
    type=click.Choice(["day", "model", "user", "chat"]),
    default="day",
    show_default=True,
    help="One row for each.",
)
@click.option("--days", type=click.IntRange(1, 36_500), default=30, show_default=True, help="Back from now.")
@click.option("--everybody", is_flag=True, help="All people of this app database, not only you.")
@_as_json
def usage(by: By, days: int, everybody: bool, as_json: bool) -> None:
    """Show what answers of the chat took: tokens and US dollars, as far as they are known."""
    store, user = _store()
    since = datetime.now().astimezone() - timedelta(days=days)
    zone = since.tzinfo
    assert zone is not None
    rows = store.usage(None if everybody or by == "user" else user, since=since, by=by, zone=zone)
    if as_json:
        emit({"usage": [_document(row) for row in rows]})
        return
    if not rows:
        say("No answers yet.")
        return
    headings = (by, "answers>", "input tokens>", "cached>", "output tokens>", "cost>", "unknown cost>")
    show(table(headings, [_row(row, by) for row in rows]))


def _document(row: UsageRow) -> dict[str, object]:
    found = asdict(row)
    return found | {"day": row.day and row.day.isoformat(), "cost_usd": _cost(row)}


def _row(row: UsageRow, by: By) -> tuple[object, ...]:
    subject = {"day": row.day, "model": row.model, "user": row.user, "chat": row.title or row.chat_id}[by]
    cost = _cost(row)
    return (
        subject,
        row.answers,
        f"{row.input_tokens:,}",
        f"{row.cached_tokens:,}",
        f"{row.output_tokens:,}",
        "unknown" if cost is None else dollars(cost),
        row.unknown_cost_answers or "",
    )


def _cost(row: UsageRow) -> float | None:
    """What is known of the cost; None where nothing is."""
    return None if row.unknown_cost_answers == row.answers else row.cost_usd


def _store() -> tuple[ChatStore, str]:
    """The chats, and who asks."""
    from ftlab_mlflow.app_store import AppStore
    from ftlab_mlflow.control.client import user_name

    return AppStore().chats, user_name()
