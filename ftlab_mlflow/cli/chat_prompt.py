"""The conversation of `ftlab chat` in a terminal: lines with history and completion, proposals to send."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

import click

from ftlab_mlflow.chat import slash
from ftlab_mlflow.chat.proposal import Proposal
from ftlab_mlflow.cli.chat_output import printed
from ftlab_mlflow.cli.output import say
from ftlab_mlflow.control.client import LiveRun
from ftlab_mlflow.control.view import outcome_text
from ftlab_mlflow.control.wire import shown_value
from ftlab_mlflow.errors import FTLabError
from ftlab_mlflow.settings import data_folder

if TYPE_CHECKING:
    from ftlab_mlflow.app_store.chats import Chat
    from ftlab_mlflow.chat.events import Answer
    from ftlab_mlflow.chat.service import ChatService

_LINES = 1000
"""Of the history."""


def converse(service: ChatService, conversation: Chat, options: dict[str, Any]) -> None:
    """Questions until Ctrl-D or `/quit`. What goes wrong with one is said, and the next one can be asked."""
    is_person = sys.stdin.isatty()
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # what is no text in this locale is asked all the same
    if is_person:
        say(f"Chat {conversation.id}. /help lists commands that need no model; Ctrl-D ends.", err=True)
    with _history() if is_person else nullcontext():
        while (line := _line(is_person)) is not None and line.strip() != "/quit":
            if not line.strip():
                continue
            stop = threading.Event()
            try:
                answer = printed(service.ask(conversation.id, line, stop=stop, **options), stop)
                if is_person:
                    _offer(service, answer)
            except FTLabError as error:
                say(f"Error: {error}", err=True)
    if not service.store.chats.get(service.user, conversation.id).length:
        service.store.chats.delete(service.user, conversation.id)  # nothing was asked in it


def _line(is_person: bool) -> str | None:
    try:
        return input("\nftlab> " if is_person else "")
    except EOFError:
        return None
    except KeyboardInterrupt:  # a line that is not wanted after all
        click.echo(err=True)
        return ""


def _offer(service: ChatService, answer: Answer) -> None:
    """Asks whether to send what was proposed; nothing is sent unasked."""
    for run in answer.runs:
        proposal = Proposal.of(run)
        if proposal is None or proposal.problems:
            continue
        changes = ", ".join(
            f"{name} {'—' if old is None else shown_value(old)} → {shown_value(new)}"
            for name, (old, new) in proposal.changes.items()
        )
        say(f"Proposed for {proposal.name}: {changes}. {proposal.reason or ''}", err=True)
        if click.confirm("Send it?", default=False, err=True):
            live = LiveRun(proposal.run_id, tracking_uri=service.tracking_uri, via="chat")
            sent = proposal.send(live)
            say(outcome_text(sent.wait(30)), err=True)


@contextmanager
def _history() -> Iterator[None]:
    """Lines of before, by the arrow keys; commands, by the tab key."""
    try:
        import readline
    except ImportError:  # Python was built without it: lines are read all the same
        yield
        return
    file = data_folder() / "chat_history"
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file.touch(mode=0o600)
    readline.read_history_file(file)
    readline.set_history_length(_LINES)
    readline.set_completer_delims("")
    readline.set_completer(_completion)
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        readline.write_history_file(file)


def _completion(begin: str, number: int) -> str | None:
    found = slash.complete(begin) if begin.startswith("/") else []
    return found[number] if number < len(found) else None
