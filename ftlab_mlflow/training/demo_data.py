"""Instruction pairs made from the documentation topics that come with Python: data that needs no network."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pydoc_data.topics import topics
from typing import Any

_UNDERLINE = re.compile(r"([*=\-~^\"])\1{2,}")
_MIN_CHARS = 120
_MAX_CHARS = 320
"""About 90 tokens of the demo model's tokenizer: with its question a sample fits into 128."""
_TEST_SHARE = 20
"""One sample of so many is held out for evaluation."""


def demo_samples() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and test samples, conversational prompt and completion. The same at every call.

    The question names a section of Python's documentation, the answer is a piece of its text.
    """
    samples = [
        {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": answer}],
        }
        for topic in sorted(topics)
        for question, answer in _pairs(topic, topics[topic])
    ]
    random.Random(0).shuffle(samples)
    count = len(samples) // _TEST_SHARE
    return samples[count:], samples[:count]


def _pairs(topic: str, text: str) -> Iterator[tuple[str, str]]:
    for title, body in _sections(text):
        about = f"Explain {title} ({topic})" if title else f"Explain {topic}"
        for part, piece in enumerate(_pieces(body), 1):
            yield f"{about}, part {part}." if part > 1 else f"{about}.", piece


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Titles (underlined lines) with the text below them."""
    lines = text.splitlines()
    title, body = "", list[str]()
    for i, line in enumerate(lines):
        below = lines[i + 1] if i + 1 < len(lines) else ""
        if line.strip() and not line.startswith(" ") and _UNDERLINE.fullmatch(below):
            yield title, "\n".join(body)
            title, body = line.strip(), []
        elif not _UNDERLINE.fullmatch(line):
            body.append(line)
    yield title, "\n".join(body)


def _pieces(body: str) -> Iterator[str]:
    """Paragraphs, short ones joined and long ones cut at the end of a line."""
    piece = ""
    for paragraph in re.split(r"\n\s*\n", body):
        for line in paragraph.strip("\n").split("\n"):
            if piece and len(piece) + len(line) > _MAX_CHARS:
                yield piece.strip()
                piece = ""
            piece += line[:_MAX_CHARS] + "\n"
        if len(piece) >= _MIN_CHARS:
            yield piece.strip()
            piece = ""
    if piece.strip():
        yield piece.strip()
