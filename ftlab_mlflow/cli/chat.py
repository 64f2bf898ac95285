"""`chat`: ask what the runs say, once or in a conversation."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ftlab_mlflow.cli.failure import FAILED
from ftlab_mlflow.cli.options import common
from ftlab_mlflow.cli.output import emit, say
from ftlab_mlflow.errors import ChatError, ConfigError, MissingExtra

if TYPE_CHECKING:
    from ftlab_mlflow.app_store.chats import Chat
    from ftlab_mlflow.chat.events import Answer
    from ftlab_mlflow.chat.service import ChatService


@click.command()
@click.argument("question", required=False)
@click.option("--model", metavar="MODEL", help="Such as openai/gpt-4o-mini; `ftlab models` lists them.")
@click.option(
    "--run", "runs", multiple=True, metavar="RUN", help="What it is about; can be given more than once."
)
@click.option("--experiment", metavar="NAME", help="What it is about, instead of runs.")
@click.option("--goal", metavar="TEXT", help="What you are after, in your own words.")
@click.option("--chat", "chat_id", metavar="ID", help="Go on with this chat; `ftlab chats` lists them.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="How varied answers are.")
@click.option("--max-tokens", type=click.IntRange(256, 32768), metavar="N", help="Of one reply, at most.")
@common
@click.pass_context
def chat(
    ctx: click.Context,
    question: str | None,
    model: str | None,
    runs: tuple[str, ...],
    experiment: str | None,
    goal: str | None,
    chat_id: str | None,
    temperature: float | None,
    max_tokens: int | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Ask a language model what the runs say. Without QUESTION: a conversation.

    A line such as `/rank eval_loss` is answered without any model; `/help` lists these commands.
    """
    if runs and experiment:
        raise click.UsageError("give --run or --experiment, not both")
    if question is None and as_json:
        raise click.UsageError("--json prints the answer to one QUESTION: give it")
    options = {"model_id": model, "temperature": temperature, "max_tokens": max_tokens}
    with _opened(tracking_uri) as service:
        conversation = service.open(chat_id, runs, experiment, goal)
        if question is None:
            from ftlab_mlflow.cli.chat_prompt import converse

            converse(service, conversation, options)
            return
        answer = _answered(service, conversation, question, options, as_json=as_json)
    if answer.stopped == "cut":
        say(f"Error: {answer.notes[-1]}", err=True)
        ctx.exit(FAILED)


@contextmanager
def _opened(tracking_uri: str | None) -> Iterator[ChatService]:
    """The chats of whoever runs this. A wrong setting is an error like any other here: exit code 1."""
    from ftlab_mlflow.app_store import AppStore
    from ftlab_mlflow.chat.service import ChatService
    from ftlab_mlflow.chat.tracing import Tracer
    from ftlab_mlflow.cli.opening import effective_uri
    from ftlab_mlflow.control.client import user_name

    tracer = Tracer()
    try:
        yield ChatService(user_name(), effective_uri(tracking_uri), AppStore(), tracer=tracer)
    except MissingExtra:
        raise
    except ConfigError as error:
        raise ChatError(str(error)) from error
    finally:
        tracer.flush()


def _answered(
    service: ChatService, conversation: Chat, question: str, options: dict[str, Any], *, as_json: bool
) -> Answer:
    """One answer, printed."""
    from ftlab_mlflow.cli.chat_output import document, last, printed, proposals

    stop = threading.Event()
    events = service.ask(conversation.id, question, stop=stop, **options)
    if as_json:
        answer = last(events, stop)
        emit(document(answer))
        return answer
    answer = printed(events, stop)
    proposals(answer)
    return answer
