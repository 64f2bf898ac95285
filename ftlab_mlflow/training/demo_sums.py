"""Sums, for the demo of methods that learn from preferences or rewards: an answer's worth can be checked."""

from __future__ import annotations

import random
import string
from collections.abc import Iterable
from pydoc_data.topics import topics
from typing import Any

_SIZE = 32
"""Both summands are below it."""
_TEST_SHARE = 20
"""One question of so many is held out for evaluation."""
_TEXT = topics["assignment"] + topics["compound"]
"""What a model that knows nothing of sums may say."""

Samples = list[dict[str, Any]]


def prompts() -> tuple[Samples, Samples]:
    """Questions, each with its ``answer``, a whole number, for `sum_reward`."""
    return _split({"prompt": _asked(a, b), "answer": a + b} for a, b in _questions())


def preferences() -> tuple[Samples, Samples]:
    """Questions with two answers; `sum_reward` gives more for the ``chosen`` one."""
    chance = random.Random(1)
    samples = []
    for a, b in _questions():
        candidates = _answers(a + b, chance)
        worse, better = sorted(chance.sample(candidates, 2), key=lambda text: _worth(text, a + b))
        samples.append({"prompt": _asked(a, b), "chosen": _said(better), "rejected": _said(worse)})
    return _split(samples)


def verdicts() -> tuple[Samples, Samples]:
    """Questions with one answer; its ``label`` says whether it is right. One half is."""
    chance = random.Random(2)
    samples = []
    for i, (a, b) in enumerate(_questions()):
        right, *others = _answers(a + b, chance)
        text = right if i % 2 else chance.choice(others)
        samples.append({"prompt": _asked(a, b), "completion": _said(text), "label": text == right})
    return _split(samples)


def sum_reward(completions: Iterable[Any], answer: Iterable[int], **_: Any) -> list[float]:
    """What each completion is worth as an answer to its sum, from 0 to 1.

    One half is the share of its characters that are digits; the other half, of one that is a number, is
    1 / (1 + its distance to the right one). So from most answers there is a better one nearby.
    """
    texts = (text if isinstance(text, str) else text[-1]["content"] for text in completions)
    return [_worth(text.strip(), number) for text, number in zip(texts, answer, strict=True)]


def _worth(text: str, number: int) -> float:
    digits = sum(character in string.digits for character in text)
    if digits == 0 or digits < len(text):
        return digits / max(1, len(text)) / 2
    # With nine digits it is far off already, and Python refuses to read thousands of them.
    return (1 + 1 / (1 + abs(int(text[:9]) - number))) / 2


def _answers(number: int, chance: random.Random) -> list[str]:
    """Answers that are all worth something else, the right one first."""
    start = chance.randrange(len(_TEXT) - 20)
    words = " ".join(_TEXT[start : start + chance.randint(4, 20)].split()) or "?"
    off = chance.choice([n for n in range(max(0, number - 9), number + 10) if n != number])
    return [str(number), str(off), f"{words} {off}", words]


def _questions() -> list[tuple[int, int]]:
    return [(a, b) for a in range(_SIZE) for b in range(_SIZE)]


def _asked(a: int, b: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is {a} + {b}?"}]


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _split(samples: Iterable[dict[str, Any]]) -> tuple[Samples, Samples]:
    shuffled = list(samples)
    random.Random(0).shuffle(shuffled)
    count = len(shuffled) // _TEST_SHARE
    return shuffled[count:], shuffled[:count]
