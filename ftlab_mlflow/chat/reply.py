"""One reply of a model: sent, streamed, its numbers checked; tried again or shortened where that helps."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ftlab_mlflow.analytics.units import duration
from ftlab_mlflow.chat import background, context, prompt
from ftlab_mlflow.chat.asking import Asking
from ftlab_mlflow.chat.background import Left, Patience
from ftlab_mlflow.chat.events import Event, Text, Waiting
from ftlab_mlflow.chat.grounding import Marker
from ftlab_mlflow.chat.model import Usage
from ftlab_mlflow.chat.provider import AssistantMessage, Message, Request, TextDelta
from ftlab_mlflow.control.wire import new_id
from ftlab_mlflow.errors import ContextOverflow, ProviderError, ProviderUnavailable, RateLimited, StreamCut

_TRIES = 4
_LONGEST_WAIT_S = 60.0
"""A server that asks for a longer wait is not waited for: the person is told."""


@dataclass
class Reply:
    """A reply, whole or as much of it as came.

    Attributes:
        text: With what is not verified marked. message: None where it did not come to its end.
        sent: The messages that it answers, shortened where that was needed.
        input_estimate: About how many tokens these have.
        usage: None where it is not known: the server did not say, or an earlier try was cut.
        began, first_text: Moments of `time.monotonic`; first_text None where no text came.
        error: What ended it early.
    """

    sent: Sequence[Message]
    began: float
    input_estimate: int
    text: str = ""
    message: AssistantMessage | None = None
    usage: Usage | None = None
    finish: Literal["end", "calls", "length", "refused"] = "end"
    notes: list[str] = field(default_factory=list)
    unverified: list[float] = field(default_factory=list)
    first_text: float | None = None
    ended: float = 0.0
    error: ProviderError | Left | None = None


def reply(
    asking: Asking,
    messages: Sequence[Message],
    patience: Patience,
    *,
    may_call: bool,
    begun: Callable[[Reply], None],
) -> Generator[Event, None, Reply]:
    """Asks the model until it has replied.

    Args:
        begun: Is given each try when it begins; it fills while it goes on.

    Raises:
        ProviderError: It did not, and no text had come.
        Left: Between two tries it was not waited for any longer.
    """
    request = _request(asking, messages, may_call=may_call)
    notes: list[str] = []
    shorter = context.shorter(request.messages)
    room = asking.chosen.model.context_tokens
    while room and context.size(request) + request.max_tokens > room:
        smaller = next(shorter, None)
        if smaller is None:
            break  # an estimate: the server has the last word
        request = _shortened(request, smaller, notes)
    tries, was_cut = 0, False
    while True:
        made = Reply(request.messages, time.monotonic(), context.size(request))
        begun(made)
        yield from _streamed(asking, request, patience, made)
        made.notes[:0] = notes
        made.usage = None if was_cut else made.usage
        error = made.error
        if error is None or made.text or isinstance(error, Left):
            return made
        was_cut = was_cut or isinstance(error, StreamCut)
        if isinstance(error, ContextOverflow) and (smaller := next(shorter, None)):
            request = _shortened(request, smaller, notes)
            continue
        tries += 1
        if not isinstance(error, RateLimited | ProviderUnavailable | StreamCut) or tries == _TRIES:
            raise error
        asked_for = None if isinstance(error, StreamCut) else error.retry_after_s
        seconds = 2.0 ** (tries - 1) if asked_for is None else asked_for
        if seconds > min(_LONGEST_WAIT_S, patience.left_s):
            if asked_for is None or isinstance(error, StreamCut):
                raise error
            raise type(error)(f"{error}; it asks to wait {duration(asked_for)}", asked_for) from error
        yield Waiting(seconds, str(error))
        patience.sleep(seconds)


def _request(asking: Asking, messages: Sequence[Message], *, may_call: bool) -> Request:
    model = asking.chosen.model
    return Request(
        model=model.name,
        system=prompt.system(asking.today),
        messages=list(messages),
        tools=prompt.tool_specs(),
        may_call=may_call,
        temperature=asking.temperature,
        max_tokens=min(asking.max_tokens, model.max_output_tokens or asking.max_tokens),
    )


def _shortened(request: Request, smaller: tuple[list[Message], str], notes: list[str]) -> Request:
    messages, note = smaller
    if note not in notes:
        notes.append(note)
    return replace(request, messages=messages)


def _streamed(
    asking: Asking, request: Request, patience: Patience, made: Reply
) -> Generator[Event, None, None]:
    """One request, its reply put into `made`, also its error."""
    marker = Marker(asking.facts)
    try:
        # Leaving the context here breaks the connection that the thread reads from.
        with asking.chosen.provider.stream(request) as stream:
            for piece in background.each(lambda: stream, patience):
                if isinstance(piece, TextDelta):
                    made.first_text = made.first_text or time.monotonic()
                    yield from _said(marker.feed(piece.text), made)
                else:
                    made.message = _with_new_ids(piece.message, request.messages)
                    made.usage, made.finish = piece.usage, piece.finish
                    made.notes += [piece.note] if piece.note else []
        if made.message is None:
            made.error = StreamCut(f"the reply of {asking.chosen.model.id} ended before its end")
    except (Left, ProviderError) as error:
        made.error = error
    yield from _said(marker.end(), made)
    made.unverified = marker.unverified
    made.ended = time.monotonic()


def _said(text: str, made: Reply) -> Generator[Event, None, None]:
    if text:
        made.text += text
        yield Text(text)


def _with_new_ids(message: AssistantMessage, before: Sequence[Message]) -> AssistantMessage:
    """With ids of calls that no earlier message has: some servers count them from 0 in each reply."""
    taken = {call.id for each in before if isinstance(each, AssistantMessage) for call in each.calls}
    if not any(call.id in taken for call in message.calls):
        return message
    calls = tuple(replace(call, id=new_id()) if call.id in taken else call for call in message.calls)
    return replace(message, calls=calls, native=None)
