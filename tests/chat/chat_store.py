"""A small tracking store to ask about, and what a test needs to ask."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from mlflow import MlflowClient

from ftlab_mlflow.app_store import AppStore
from ftlab_mlflow.chat.events import Answer, Answered, Event
from ftlab_mlflow.chat.service import ChatService
from ftlab_mlflow.chat.tracing import Tracer

EXPERIMENT = "tuning"
LOSSES = {"blue-whale": 0.5125, "red-fox": 0.4375, "grey-owl": 0.625}


def fill(uri: str, names: dict[str, str] | None = None, reason: str = "plain") -> dict[str, str]:
    """Three finished runs with a loss of three steps each; run ids by name.

    Args:
        names: Other names for runs of `LOSSES`.
        reason: A tag and a parameter of every run.
    """
    client = MlflowClient(uri)
    experiment = client.create_experiment(EXPERIMENT)
    ids = {}
    for number, (name, loss) in enumerate(LOSSES.items()):
        shown = (names or {}).get(name, name)
        run = client.create_run(experiment, run_name=shown, start_time=1_700_000_000_000 + number * 3_600_000)
        ids[name] = run.info.run_id
        client.log_param(ids[name], "learning_rate", f"{(number + 1)}e-4")
        client.log_param(ids[name], "note", reason[:400])
        client.set_tag(ids[name], "reason", reason)
        for step, factor in enumerate((2.0, 1.5, 1.0)):
            client.log_metric(ids[name], "eval_loss", loss * factor, step=step, timestamp=1_700_000_000_000)
        client.set_terminated(ids[name], end_time=1_700_000_060_000 + number * 3_600_000)
    return ids


def service(uri: str, folder: Path, tracer: Tracer | None = None, user: str = "ada") -> ChatService:
    """The chats of a person, in an app database of its own."""
    return ChatService(user, uri, AppStore(f"sqlite:///{folder}/app.db"), tracer=tracer)


def collect(events: Iterator[Event]) -> tuple[list[Event], Answer]:
    """All events of an answer, and the answer."""
    seen = list(events)
    assert isinstance(seen[-1], Answered)
    return seen, seen[-1].answer


def ask(chats: ChatService, question: str, **options: object) -> Answer:
    """The answer to a question in a chat of its own, or in ``chat_id``."""
    chat_id = options.pop("chat_id", None) or chats.open().id
    return collect(chats.ask(chat_id, question, **options))[1]  # type: ignore[arg-type]


def until(condition: threading.Event, what: str) -> None:
    """Waits for something, not for ever."""
    assert condition.wait(20), f"{what} did not happen"
