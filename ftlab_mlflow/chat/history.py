"""What was said before, as a model is told it again."""

from __future__ import annotations

from collections.abc import Iterable

from ftlab_mlflow.chat.events import Answer
from ftlab_mlflow.chat.grounding import Facts
from ftlab_mlflow.chat.loop import result_of
from ftlab_mlflow.chat.provider import AssistantMessage, Message, ToolCall, ToolMessage, UserMessage


def messages(exchanges: Iterable[tuple[str, Answer]]) -> list[Message]:
    """The messages of a conversation.

    Args:
        exchanges: Questions and answers, in order.
    """
    made: list[Message] = []
    for question, answer in exchanges:
        made.append(UserMessage(question))
        for each in answer.rounds:
            if each.runs:
                calls = tuple(ToolCall(run.id, run.name, each.asked[run.id]) for run in each.runs)
                made.append(AssistantMessage(each.text, calls))
                made.append(ToolMessage(tuple(map(result_of, each.runs))))
        if answer.model:  # what a slash command shows is made of names: its results say it, as data
            made.append(AssistantMessage(answer.text))
    return made


def facts(exchanges: Iterable[tuple[str, Answer]]) -> Facts:
    """What tools returned in a conversation."""
    found = Facts()
    for _, answer in exchanges:
        for run in answer.runs:
            if run.ok:
                found.add(run.result)
    return found
