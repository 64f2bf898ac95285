"""A chat as a Markdown document that loads nothing when somebody opens it."""

from __future__ import annotations

import json

from ftlab_mlflow.app_store.chats import Chat
from ftlab_mlflow.chat.events import Answer
from ftlab_mlflow.chat.markdown import neutral
from ftlab_mlflow.chat.money import dollars
from ftlab_mlflow.control.wire import format_time, one_line


def export(chat: Chat) -> str:
    """The whole of a chat, with the tools that ran and what answers took."""
    parts = [f"# {neutral(one_line(chat.title)) or 'Chat'}", f"Begun {format_time(chat.created)}"]
    for name in ("experiment", "runs", "goal"):
        if value := chat.data.get(name):
            parts.append(f"{name.capitalize()}: {_quoted(value)}")
    for message in chat.messages:
        parts.append(f"## {'Question' if message.role == 'user' else 'Answer'}")
        if error := message.data.get("error"):
            parts.append(neutral(f"No answer: {error}"))
            continue
        if message.role == "assistant":
            parts += _footing(Answer.from_dict(message.data))
        parts.append(neutral(message.text))
    return "\n\n".join(parts) + "\n"


def _footing(answer: Answer) -> list[str]:
    """What stands above an answer: the tools it rests on, the model, tokens and cost."""
    tools = [
        f"- {_quoted(run.name)} {_quoted(run.arguments)}{'' if run.ok else ' (failed)'}"
        for run in answer.runs
    ]
    took = [f"{answer.seconds:.1f} s"]
    if answer.model:
        took.insert(0, f"Model {_quoted(answer.model)}")
        usage = answer.usage
        took.append(f"{usage.input_tokens:,} + {usage.output_tokens:,} tokens" if usage else "tokens unknown")
        took.append(dollars(answer.cost_usd))
    return ["\n".join(tools)] * bool(tools) + [", ".join(took), *(neutral(note) for note in answer.notes)]


def _quoted(value: object) -> str:
    """A value as code, in which nothing is a mark."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    line = one_line(text).replace("`", "ˋ")
    return f"`{line}`" if line.strip() else ""
