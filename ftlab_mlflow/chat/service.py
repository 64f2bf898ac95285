"""Chats that are kept: a question goes in, its answer comes out, and all of it is remembered and counted."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ftlab_mlflow.analytics import scope as analytics_scope
from ftlab_mlflow.app_store import AppStore
from ftlab_mlflow.app_store.chats import Chat, ChatMessage
from ftlab_mlflow.chat import choice, history, slash
from ftlab_mlflow.chat.asking import Asking, Spent
from ftlab_mlflow.chat.events import Answer, Answered, Event, Round, Text, ToolEnded, ToolStarted
from ftlab_mlflow.chat.limits import Limits
from ftlab_mlflow.chat.loop import Answering
from ftlab_mlflow.chat.model import Usage
from ftlab_mlflow.chat.plugins import load_providers
from ftlab_mlflow.chat.provider import Provider, Surroundings
from ftlab_mlflow.chat.scope import Scope
from ftlab_mlflow.chat.tracing import Tracer
from ftlab_mlflow.errors import AppStoreError, AppStoreUnavailable, ChatError, ChatNotFound, FTLabError

logger = logging.getLogger("ftlab_mlflow")

_TITLE = 80
"""Characters of a chat's title, as its first question gives it."""
_QUESTION = "question_id"
"""In an answer's data: the message that it answers; two may be asked at once."""


@dataclass(frozen=True)
class _Options:
    """How one question is asked; see `ChatService.ask`."""

    model_id: str | None
    temperature: float | None
    max_tokens: int | None
    again: bool
    stop: threading.Event


class ChatService:
    """Asks questions in the chats of one person.

    Args:
        user: Whose chats, preferences and budget.
        tracking_uri: Where the runs are; None is MLflow's own setting.
        store: The app database.
        providers: By name; None: all that are installed.
        tracer: None: answers are not traced.
    """

    def __init__(
        self,
        user: str,
        tracking_uri: str | None,
        store: AppStore,
        providers: Mapping[str, Provider] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.user = user
        self.tracking_uri = tracking_uri
        self.store = store
        self.providers = load_providers(Surroundings(tracking_uri)) if providers is None else providers
        self._tracer = tracer

    def open(
        self,
        chat_id: str | None = None,
        runs: Sequence[str] = (),
        experiment: str | None = None,
        goal: str | None = None,
    ) -> Chat:
        """A chat to ask in: a new one, or one of before, about something else where that is said.

        Args:
            chat_id: Or a unique begin of it; None: a new one.
            runs: Ids, unique prefixes of ids, or names.
            experiment: By name or id.
            goal: What the person is after, in own words; None leaves it as it was.

        Raises:
            AnalyticsError: No such run or experiment.
            ChatNotFound: No such chat of this person.
        """
        data: dict[str, Any] = {}
        if runs or experiment:
            reader = analytics_scope.reader(self.tracking_uri)
            if experiment:
                analytics_scope.experiment_id(reader, experiment)
            records = analytics_scope.records(reader, runs)
            data = {"runs": [record.data.run_id for record in records], "experiment": experiment}
        if goal is not None:
            data["goal"] = goal
        if chat_id is None:
            return self.store.chats.create(self.user, data=data)
        return self.store.chats.update(self.user, chat_id, data)

    def ask(
        self,
        chat_id: str,
        question: str,
        *,
        model_id: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        again: bool = False,
        stop: threading.Event | None = None,
    ) -> Generator[Event, None, None]:
        """Answers a question, or runs a slash command. The last event is `Answered`.

        The question is kept before anything else happens; its answer, or what went wrong, at the end.

        Args:
            model_id: None: the person's choice, else the default.
            temperature, max_tokens: None: as the person prefers.
            again: The last question once more: what came of it is not told to the model.
            stop: Ends the answer with what there is.

        Raises:
            ModelNotUsable, BudgetReached, ProviderError: Of `ChatError`.
            StoreError, AnalyticsError: What the chat is about cannot be read.
            AppStoreError: What is said cannot be kept.
        """
        if not question.strip().strip("/"):
            raise ChatError("the question is empty; /help lists the commands")
        chat = self.store.chats.get(self.user, chat_id)
        kept = self.store.chats.add_message(chat, "user", question)
        if not chat.title:
            self.store.chats.rename(self.user, chat.id, " ".join(question.split())[:_TITLE])
        try:
            if slash.is_command(question):
                yield from self._command(chat, question, kept.id)
            else:
                options = _Options(model_id, temperature, max_tokens, again, stop or threading.Event())
                yield from self._answer(chat, slash.question_in(question), kept.id, options)
        except FTLabError as error:
            self.store.chats.add_message(chat, "assistant", "", {"error": str(error), _QUESTION: kept.id})
            raise

    # --- a slash command -------------------------------------------------------------------------------

    def _command(self, chat: Chat, question: str, question_id: str) -> Iterator[Event]:
        began = time.monotonic()
        found = slash.run(question, scope_of(chat), self.tracking_uri)
        if not found.ok:
            raise ChatError(next(run.result["error"] for run in found.runs if not run.ok))
        for run in found.runs:
            yield ToolStarted(run.id, run.name, "")
            yield ToolEnded(run)
        asked = {run.id: json.dumps(run.arguments) for run in found.runs}
        seconds = time.monotonic() - began
        rounds = (Round("", found.runs, asked, Usage(0, 0), 0.0, seconds),)
        made = Answer(found.markdown, "", rounds, Usage(0, 0), 0.0, seconds=seconds)
        self._keep(chat, made, question_id)
        yield Text(made.text)
        yield Answered(made)

    # --- a question to a model -------------------------------------------------------------------------

    def _answer(self, chat: Chat, question: str, question_id: str, options: _Options) -> Iterator[Event]:
        preferences = self.store.preferences(self.user)
        chosen = choice.resolve(options.model_id, preferences.chat_model, self.providers)
        before = exchanges(chat)
        if options.again and chat.messages and _is_answer(chat.messages[-1]):
            before.pop()
        limits = Limits.from_environment()
        if preferences.chat_usd_per_day is not None:
            own = preferences.chat_usd_per_day
            if limits.usd_per_day is None or own < limits.usd_per_day:
                limits = replace(limits, usd_per_day=own, usd_per_day_from="your limit on the page Settings")
        began = datetime.now(UTC)
        asking = Asking(
            question=question,
            chosen=chosen,
            tracking_uri=self.tracking_uri,
            history=history.messages(before),
            facts=history.facts(before),
            context=self._context(chat),
            limits=limits,
            spent=self._spent(began),
            temperature=preferences.chat_temperature if options.temperature is None else options.temperature,
            max_tokens=options.max_tokens or preferences.chat_max_tokens,
            stop=options.stop,
        )
        answering, is_kept = Answering(asking), False
        try:
            for event in answering.run():
                if isinstance(event, Answered):
                    is_kept = True
                    yield Answered(self._finished(chat, answering, event.answer, began, question_id))
                else:
                    yield event
        except (GeneratorExit, KeyboardInterrupt):  # nobody waits: what came is kept, and what it took
            if not is_kept and (left := answering.left()):
                self._finished(chat, answering, left, began, question_id)
            raise

    def _context(self, chat: Chat) -> dict[str, Any]:
        """What a question is about, as the model is told it."""
        scope = scope_of(chat)
        reader = analytics_scope.reader(self.tracking_uri)
        if scope.experiment is not None:
            analytics_scope.experiment_id(reader, scope.experiment)
        runs = [
            {"run_id": record.data.run_id, "name": record.data.label, "status": record.data.status}
            for record in analytics_scope.records(reader, scope.runs)
        ]
        return {"experiment": scope.experiment, "chosen_runs": runs, "goal": chat.data.get("goal")}

    def _spent(self, now: datetime) -> Spent:
        today = self.store.chats.spent_today(self.user, now)
        return Spent(today.cost_usd, today.tokens)

    def _finished(
        self, chat: Chat, answering: Answering, made: Answer, began: datetime, question_id: str
    ) -> Answer:
        """Keeps an answer, what it took, and its trace. What cannot be kept is said in its notes."""
        model = answering.asking.chosen.model
        try:
            # Usage first: what was spent is counted also if the chat was deleted meanwhile.
            _patiently(lambda: self._count(chat, answering, made, began))
            _patiently(lambda: self._keep(chat, made, question_id))
        except (AppStoreError, ChatNotFound) as error:
            logger.error("an answer could not be kept: %s", error)
            made = replace(made, notes=(*made.notes, f"This answer could not be kept: {error}"))
        if self._tracer:
            self._tracer.trace(
                answering.asking.question,
                made,
                began=began,
                tracking_uri=self.tracking_uri,
                user=self.user,
                chat_id=chat.id,
                model=model,
            )
        return made

    def _count(self, chat: Chat, answering: Answering, made: Answer, began: datetime) -> None:
        model, taken, usage = answering.asking.chosen.model, answering.taken, made.usage
        self.store.chats.record_usage(
            self.user,
            chat.id,
            at=began,
            provider=model.provider,
            model=model.id,
            input_tokens=usage.input_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            cache_write_tokens=usage.cache_write_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
            cost_usd=made.cost_usd,
            counted_usd=taken.usd,
            counted_tokens=taken.tokens,
            requests=len(made.rounds),
            seconds=made.seconds,
            first_token_s=made.first_token_s,
        )

    def _keep(self, chat: Chat, made: Answer, question_id: str) -> None:
        data = made.to_dict() | {_QUESTION: question_id}
        self.store.chats.add_message(chat, "assistant", made.text, data)


def _patiently(write: Callable[[], None]) -> None:
    """Writes to the app database, also where it is busy for a while: each try waits for it by itself."""
    for is_last in (False, False, True):
        try:
            return write()
        except AppStoreUnavailable:
            if is_last:
                raise
    return None


def scope_of(chat: Chat) -> Scope:
    """What a chat is about."""
    return Scope(tuple(chat.data.get("runs", ())), chat.data.get("experiment"))


def exchanges(chat: Chat) -> list[tuple[str, Answer]]:
    """The questions of a chat that were answered, with their answers, in the order of these."""
    questions = {message.id: message.text for message in chat.messages if message.role == "user"}
    return [
        (questions[message.data[_QUESTION]], Answer.from_dict(message.data))
        for message in chat.messages
        if _is_answer(message) and message.data.get(_QUESTION) in questions
    ]


def _is_answer(message: ChatMessage) -> bool:
    return message.role == "assistant" and "error" not in message.data
