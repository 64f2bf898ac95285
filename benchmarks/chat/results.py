"""What came of the questions: a file with one line each, which an interrupted run goes on with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One question of a conversation with its answer.

    Attributes:
        problem: Why the answer is wrong; None: it is right.
        abstains: It says that something cannot be known.
        unverified: Numbers that no tool returned, as the chat marked them.
        calls: Tools that were called; failed: how many of the calls were errors.
        cost_usd, input_tokens …: None where they are not known.
        stopped: The limit that ended it.
    """

    question: str
    answer: str
    problem: str | None
    abstains: bool
    unverified: tuple[float, ...]
    calls: tuple[str, ...]
    failed: int
    input_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None
    first_token_s: float | None
    seconds: float
    stopped: str | None = None


@dataclass(frozen=True)
class Result:
    """A fact asked for in one way.

    Attributes:
        error: Why there is no answer; it is asked again when the run goes on.
    """

    fact: str
    category: str
    need: str
    phrasing: int
    asked: tuple[Asked, ...] = field(default=())
    error: str | None = None

    @property
    def key(self) -> tuple[str, int]:
        return self.fact, self.phrasing

    @property
    def is_right(self) -> bool:
        """All of its answers are."""
        return self.error is None and all(each.problem is None for each in self.asked)

    @property
    def abstains(self) -> bool:
        """Its last answer says that it cannot be known, and is no right answer to what can be known."""
        if not self.asked or (self.category != "unanswerable" and self.is_right):
            return False
        return self.asked[-1].abstains or (self.category == "unanswerable" and self.is_right)

    @property
    def cost_usd(self) -> float:
        """As far as it is known."""
        return sum(each.cost_usd or 0.0 for each in self.asked)


class Log:
    """A file of results, of one model and one set of questions.

    Args:
        head: What they are of; a file that is of something else is refused.

    Raises:
        ValueError: It is.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path = path
        self.results: dict[tuple[str, int], Result] = {}
        lines = list(_lines(path))
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(dict(head))
        elif lines[0] != dict(head):
            raise ValueError(
                f"{path} has results of {lines[0]}, not of {dict(head)}; name another file by --out"
            )
        for line in lines[1:]:
            asked = tuple(
                Asked(**{**each, "unverified": tuple(each["unverified"]), "calls": tuple(each["calls"])})
                for each in line["asked"]
            )
            self._take(Result(**{**line, "asked": asked}))

    @property
    def spent_usd(self) -> float:
        """By all that is in the file, answers of questions that were asked again included."""
        return self._spent

    _spent = 0.0

    def _take(self, result: Result) -> None:
        self._spent += result.cost_usd
        self.results[result.key] = result

    def add(self, result: Result) -> None:
        """Keeps a result, on the disk when this returns."""
        self._append(asdict(result))
        self._take(result)

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file. One that was cut in the middle is taken off, for the next to be added."""
    if not path.exists():
        return
    text = path.read_text("utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, "utf-8")
    for line in whole.splitlines():
        yield json.loads(line)
