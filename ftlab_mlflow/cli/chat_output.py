"""How answers of the chat are printed: text on stdout as it comes, the rest on stderr; or one document."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import click

from ftlab_mlflow.chat.events import Answer, Answered, Event, Text, ToolEnded, ToolStarted, Waiting
from ftlab_mlflow.chat.money import dollars
from ftlab_mlflow.chat.proposal import Proposal
from ftlab_mlflow.chat.render_runs import send_command
from ftlab_mlflow.cli.output import say


def document(answer: Answer) -> dict[str, Any]:
    """An answer as one object; its form is documented in `docs/guides/chat.md`."""
    usage = answer.usage
    return {
        "answer": answer.text,
        "model": answer.model or None,
        "tool_calls": [
            {"name": run.name, "arguments": _arguments(run.arguments, each.asked.get(run.id)), "ok": run.ok}
            for each in answer.rounds
            for run in each.runs
        ],
        "usage": {
            "input_tokens": usage.input_tokens if usage else None,
            "cached_tokens": usage.cached_tokens if usage else None,
            "output_tokens": usage.output_tokens if usage else None,
        },
        "cost_usd": answer.cost_usd,
        "unverified": list(answer.unverified),
        "stopped": answer.stopped,
    }


def _arguments(read: Any, written: str | None) -> Any:
    """Of a call: as an object, or the text that was none."""
    return read or ({} if not written or written.strip() == "{}" else written)


def printed(events: Generator[Event, None, None], stop: threading.Event) -> Answer:
    """Prints an answer as it comes. Ctrl-C ends it with what there is; a second one at once."""
    is_line_begin = True
    with closing(events), _stopped_by_signals(stop):
        for event in events:
            match event:
                case Text(text):
                    click.echo(safe(text), nl=False)
                    is_line_begin = text.endswith("\n")
                case ToolStarted(_, name, arguments):
                    if not is_line_begin:
                        click.echo()
                        is_line_begin = True
                    say(f"· {name} {arguments}", err=True)
                case ToolEnded(run):
                    failed = "" if run.ok else f": {run.result.get('error', 'failed')}"
                    say(f"  {run.seconds:.2f} s{failed}", err=True)
                case Waiting(seconds, why):
                    say(f"· {why}. The next try comes in {seconds:.0f} s.", err=True)
                case Answered(answer):
                    if not is_line_begin:
                        click.echo()
                    _footing(answer)
                    return answer
    raise AssertionError("an answer has an end")


def last(events: Generator[Event, None, None], stop: threading.Event) -> Answer:
    """An answer, when it is whole. Ctrl-C as in `printed`."""
    with closing(events), _stopped_by_signals(stop):
        *_, end = events
    assert isinstance(end, Answered)
    return end.answer


def proposals(answer: Answer) -> None:
    """The commands that send what was proposed."""
    for run in answer.runs:
        proposal = Proposal.of(run)
        if proposal and not proposal.problems and (command := send_command(run.result)):
            say(f"To send it: {command}", err=True)


def safe(text: str) -> str:
    """Text for a terminal: no control character acts on it."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


def _footing(answer: Answer) -> None:
    """What the answer took, and what to know about it."""
    for note in answer.notes:
        say(f"Note: {note}", err=True)
    if answer.unverified:
        numbers = ", ".join(f"{number:g}" for number in answer.unverified)
        say(f"Unverified, for no tool returned it: {numbers}", err=True)
    if not answer.model:
        return
    usage = answer.usage
    tokens = (
        f"{usage.input_tokens:,} + {usage.output_tokens:,} tokens" if usage else "an unknown number of tokens"
    )
    say(f"{answer.model}: {tokens}, {dollars(answer.cost_usd)}, {answer.seconds:.1f} s", err=True)


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set an event; the second time they do what they always did."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stopped(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, stopped)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
