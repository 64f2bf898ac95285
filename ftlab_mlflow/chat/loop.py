"""One answer: the model is asked, tools run, until it answers in words or a limit is reached."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

from ftlab_mlflow.analytics.tools import TOOLS, call_tool
from ftlab_mlflow.chat import background, prompt, render
from ftlab_mlflow.chat.asking import Asking, Spent
from ftlab_mlflow.chat.background import Left, Patience
from ftlab_mlflow.chat.events import (
    Answer,
    Answered,
    Event,
    Round,
    Stopped,
    Text,
    ToolEnded,
    ToolRun,
    ToolStarted,
)
from ftlab_mlflow.chat.model import Usage, tokens_of
from ftlab_mlflow.chat.provider import Message, ToolCall, ToolMessage, ToolResult, UserMessage
from ftlab_mlflow.chat.reply import Reply, reply
from ftlab_mlflow.errors import AnalyticsError, BudgetReached, ConfigError, ProviderError, StoreError

logger = logging.getLogger("ftlab_mlflow")

_DEEPEST = 20
_GRACE_S = 15.0
"""Seconds for a last answer, once the time is over."""
_SAID: dict[Stopped, str] = {
    "rounds": "Ended early: it reached the limit of requests to the model in one answer (FTLAB_CHAT_ROUNDS).",
    "tokens": "Ended early: it reached the limit of tokens (FTLAB_CHAT_TOKENS, or the maximum of a reply).",
    "time": "Ended early: it reached the limit of time (FTLAB_CHAT_SECONDS).",
    "dollars": "Ended early: it reached the limit of dollars in one answer (FTLAB_CHAT_USD).",
    "tokens per day": "Ended early: today's tokens are used up (FTLAB_CHAT_TOKENS_PER_DAY).",
    "dollars per day": "Ended early: today's dollars are spent ({usd_per_day_from}).",
    "user": "Stopped by you.",
    "cut": "The reply was cut here.",
}


def answer(asking: Asking) -> Iterator[Event]:
    """Answers a question. The last event is `Answered`.

    Raises:
        BudgetReached: What may be spent in a day was spent before.
        ProviderError: The model did not answer, and no tool has run yet.
    """
    yield from Answering(asking).run()


class Answering:
    """An answer in the making.

    Attributes:
        rounds: What has come so far.
    """

    def __init__(self, asking: Asking) -> None:
        self.asking = asking
        question = prompt.question(asking.question, asking.context)
        self.messages: list[Message] = [*asking.history, UserMessage(question)]
        self.began = time.monotonic()
        self.patience = Patience(asking.stop, self.began + (asking.limits.seconds or math.inf))
        self.rounds: list[Round] = []
        self.notes: list[str] = []
        self.unverified: list[float] = []
        self.stopped: Stopped | None = None
        self.first_text: float | None = None
        self.taken = Spent()
        self.is_refused = False
        self._now: Reply | None = None

    def run(self) -> Generator[Event, None, None]:
        """All of it. Raises: as `answer`."""
        if limit := _day_limit(self.asking, self.asking.spent):
            said = self._said(limit).removeprefix("Ended early: ")
            raise BudgetReached(f"{said} Slash commands such as /rank cost nothing.")
        try:
            try:
                yield from self._rounds()
            except Left as left:
                self.stopped = left.why
                if left.why == "time" and not self._text().strip() and self._runs():
                    yield from self._last_words()
        except ProviderError as error:
            if not self._text().strip() and not self._runs():
                raise
            self.stopped, self._now = "cut", None
            self.notes.append(f"{error}. What came before it is kept; ask again for the rest.")
        made = self.made()
        if rest := made.text.removeprefix(self._text()):
            yield Text(rest)
        yield Answered(made)

    def left(self) -> Answer | None:
        """What there is, for who does not wait for the end; None where nothing was asked yet."""
        self.stopped = "user"
        if self._now is not None:
            self._take(self._now)
        return self.made() if self.rounds else None

    def _rounds(self) -> Generator[Event, None, None]:
        while not self.stopped:
            said = yield from self._ask(may_call=True)
            if not said.message or not said.message.calls:
                if not said.text.strip() and said.finish != "refused":
                    self.messages.append(UserMessage(prompt.IN_WORDS, by_us=True))
                    yield from self._ask(may_call=False)
                return
            yield from self._run(said.message.calls)
            self.stopped = self._limit()
        yield from self._last_words()

    def _last_words(self) -> Generator[Event, None, None]:
        """Asks for the best answer from what there is."""
        if self.stopped == "time":
            self.patience = Patience(self.asking.stop, time.monotonic() + _GRACE_S)
        self.messages.append(UserMessage(prompt.BEST_NOW.format(limit=self.stopped), by_us=True))
        try:
            yield from self._ask(may_call=False)
        except Left as left:
            self.stopped = "user" if left.why == "user" else self.stopped

    def _ask(self, *, may_call: bool) -> Generator[Event, None, Reply]:
        """One reply of the model, and what it adds to the answer."""
        said = yield from reply(
            self.asking, self.messages, self.patience, may_call=may_call, begun=self._begun
        )
        self._take(said)
        if said.error:
            raise said.error
        return said

    def _begun(self, said: Reply) -> None:
        self._now = said

    def _take(self, said: Reply) -> None:
        self._now = None
        message = said.message
        asked = {call.id: call.arguments for call in message.calls} if message else {}
        seconds = (said.ended or time.monotonic()) - said.began
        self.rounds.append(Round(said.text, (), asked, said.usage, said.began - self.began, seconds))
        self.messages[:] = said.sent
        if message and (message.calls or message.text):
            self.messages.append(message)
        self.notes += [note for note in said.notes if note not in self.notes]
        self.unverified = said.unverified  # of the text that is the answer: the last one
        self.first_text = self.first_text or said.first_text
        self.taken += self._spent(said)
        if said.finish == "length" and not asked:
            self.stopped = self.stopped or "tokens"
        self.is_refused = said.finish == "refused"
        if self.is_refused:
            self.notes.append("The provider's filter ended the reply.")

    def _spent(self, said: Reply) -> Spent:
        """What a reply took; estimated where the server does not say."""
        price = self.asking.chosen.model.price
        usage = said.usage or Usage(said.input_estimate, tokens_of(said.text))
        return Spent(price.cost(usage) if price else 0.0, usage.input_tokens + usage.output_tokens)

    def _limit(self) -> Stopped | None:
        """The limit that is reached."""
        limits = self.asking.limits
        reached: dict[Stopped, bool] = {
            "rounds": limits.rounds is not None and len(self.rounds) >= limits.rounds,
            "tokens": limits.tokens is not None and self.taken.tokens >= limits.tokens,
            "dollars": limits.usd is not None and self.taken.usd >= limits.usd,
            "time": self.patience.left_s <= 0,
        }
        found = next((limit for limit, is_reached in reached.items() if is_reached), None)
        return found or _day_limit(self.asking, self.asking.spent + self.taken)

    # --- tools -----------------------------------------------------------------------------------------

    def _run(self, calls: tuple[ToolCall, ...]) -> Generator[Event, None, None]:
        """Runs the tools of a reply."""
        results = []
        try:
            for call in calls:
                yield ToolStarted(call.id, call.name, call.arguments)
                run = self._tool_run(call)
                self.rounds[-1] = replace(self.rounds[-1], runs=(*self.rounds[-1].runs, run))
                if run.ok:
                    self.asking.facts.add(run.result)
                results.append(result_of(run))
                yield ToolEnded(run)
        finally:  # every call has a result, also where nobody waited for it
            left = [
                ToolResult(call.id, "Not run: there was no time.", True) for call in calls[len(results) :]
            ]
            self.messages.append(ToolMessage((*results, *left)))

    def _tool_run(self, call: ToolCall) -> ToolRun:
        began = time.monotonic()
        arguments: dict[str, Any] = {}
        try:
            arguments = _arguments(call)
            uri = self.asking.tracking_uri
            result = background.call(lambda: call_tool(call.name, arguments, uri), self.patience)
            is_ok = True
        except (AnalyticsError, ConfigError, StoreError) as error:
            result, is_ok = {"error": str(error)}, False
        except Left:
            raise
        except Exception as error:
            logger.exception("the tool %s failed", call.name)
            result, is_ok = {"error": f"the tool failed: {type(error).__name__}: {error}"[:500]}, False
        seconds = time.monotonic() - began
        return ToolRun(call.id, call.name, arguments, is_ok, result, seconds, began - self.began)

    # --- the end ---------------------------------------------------------------------------------------

    def _text(self) -> str:
        """What the model has answered: the text of the last reply, if no tool ran after it."""
        last = self.rounds[-1] if self.rounds else None
        return last.text if last and not last.runs else ""

    def _said(self, stopped: Stopped) -> str:
        return _SAID[stopped].format(usd_per_day_from=self.asking.limits.usd_per_day_from)

    def _runs(self) -> list[ToolRun]:
        return [run for each in self.rounds for run in each.runs]

    def made(self) -> Answer:
        """The answer, of what there is."""
        text = self._text()
        if not text.strip():
            text += self._instead()
        if self.stopped:
            text = f"{text}\n\n*{self._said(self.stopped)}*"
        usages = [each.usage for each in self.rounds if each.usage]
        is_known = len(usages) == len(self.rounds)
        price = self.asking.chosen.model.price
        return Answer(
            text=text,
            model=self.asking.chosen.model.id,
            rounds=tuple(self.rounds),
            usage=sum(usages, Usage(0, 0)) if is_known else None,
            cost_usd=sum(map(price.cost, usages)) if price and is_known else None,
            unverified=tuple(self.unverified),
            stopped=self.stopped,
            notes=tuple(self.notes),
            first_token_s=None if self.first_text is None else self.first_text - self.began,
            seconds=time.monotonic() - self.began,
        )

    def _instead(self) -> str:
        """What stands where the model said nothing: what the tools returned."""
        runs = [run for run in self._runs() if run.ok]
        if runs:
            shown = "\n\n".join(render.markdown(run.name, run.arguments, run.result) for run in runs)
            return f"The model gave no answer in words. What the tools returned:\n\n{shown}"
        if self.stopped in ("user", "time"):
            return "There was no answer yet."
        if self.is_refused:
            return "The provider's filter refused an answer. Ask in other words, or choose another model."
        return "The model replied with nothing. Ask again, or choose another model."


def result_of(run: ToolRun) -> ToolResult:
    """A tool's result as the model is told it: as data."""
    source = run.name if run.name in TOOLS else "no tool"  # the model may call anything a tool
    return ToolResult(run.id, prompt.as_data(source, run.result), not run.ok)


def _arguments(call: ToolCall) -> dict[str, Any]:
    """What a model wrote as arguments. Raises: AnalyticsError: it is no JSON object."""
    try:
        given = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise AnalyticsError(f"the arguments are no JSON ({error}); send one whole JSON object") from error
    if not isinstance(given, dict):
        raise AnalyticsError("the arguments must be one JSON object, by name")
    if _is_deep(given):
        raise AnalyticsError(f"the arguments are nested more than {_DEEPEST} times; no tool takes that")
    return given


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            each
            for one in level
            if isinstance(one, dict | list)
            for each in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(level)


def _day_limit(asking: Asking, spent: Spent) -> Stopped | None:
    """The limit of a day that is reached."""
    limits, price = asking.limits, asking.chosen.model.price
    costs = price is not None and price.cost(Usage(1000, 1000)) > 0
    if costs and limits.usd_per_day is not None and spent.usd >= limits.usd_per_day:
        return "dollars per day"
    if limits.tokens_per_day is not None and spent.tokens >= limits.tokens_per_day:
        return "tokens per day"
    return None
