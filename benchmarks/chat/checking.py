"""Whether an answer in words says what is true. Strict: what is not surely right is wrong.

What could make a wrong answer pass, and what is done about it:

- *It mentions everything, the right thing among it.* The first number that is right or a known misreading
  (the last value for the best one, that of a failed run) decides, and the right one must be one of the
  first five, a count one of the first three. The first run named decides; where a set is asked for, it must
  be that set and no more, but in sentences about what is left out.
- *A number in a name, a date, an id or the question looks right.* They do not count.
- *It is nearly right.* A number must be rounded rightly, to three digits at least (to two, where it is the
  difference of two); a count is exact.
- *It says "no overfitting".* A word behind a negation does not count.
- *It says that it cannot know, and guesses all the same.* An answer that abstains must say so in words of the
  list below, beside what is missing, name no run that was not asked about, and have no number that neither
  the question nor a tool has.

Right answers may fail: one that reasons aloud before it comes to the point, or speaks another language.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from reading import SECONDS, Number, Text, numbers_in

_FIRST, _FIRST_EXACT = 5, 3
_NEGATION = (
    r"(?:\bno\b|\bnot\b|n't\b|\bnone\b|\bnever\b|\bneither\b|\bwithout\b|\bnor\b|\bfree of\b|\bruled? out\b)"
)
_ASIDE = re.compile(
    r"\b(?:exclud|left out|leav\w+ out|omit|except|ignor|skipp|not count|do(?:es)? not (?:count|include)|"
    r"still running|failed|killed|never logged|not finite|NaN|infinit|deleted|did not)",
    re.IGNORECASE,
)
"""Sentences about runs that an answer is not about."""
CANNOT = re.compile(
    r"""
    \bcan(?:no|')t\b | \bcan\ not\b | \bcould(?:n't|\ not)\b | \bunable\ to\b | \bimpossible\b
    | \bno\ way\ to\b
    | \bnot\ (?:possible|known|available|recorded|logged|tracked|stored|kept|there|configured|exist|found
        |measured|said|given)\b
    | \bnever\ (?:been\ )?(?:logged|recorded|tracked|measured|stored)\b
    | \bunknown\b | \bunavailable\b | \bmissing\b | \btoo\ few\b | \bnot\ enough\b | \binsufficient\b
    | \bthere(?:\ i|')s\ no\b | \bthere\ (?:is|are|was|were)\ (?:no|not)\b | \bnone\ of\b | \bnobody\b
    | \bno\ (?:such|runs?|experiment|metrics?|price|record|data|information|value|reason|evidence)\b
    | \b(?:do|does|did|has|have|had|is|are|was|were)(?:n't|\ not)\ (?:\w+\ ){0,2}(?:exist|have|log|logged
        |record|recorded|contain|include|say|know|known|keep|kept|track|tracked|hold|tell|any|available|set
        |configured)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""The words by which an answer says that something cannot be known, is not there or was not recorded."""
_GUESS = re.compile(
    r"\b(?:probabl|likely|roughly|approximat|estimat|guess|assum|expect(?:ed)? to|should be|would be)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Said:
    """An answer to check.

    Attributes:
        question: What was asked. results: What the tools of the conversation returned.
    """

    answer: Text
    question: Text
    results: Sequence[Any] = ()

    def numbers(self) -> list[Number]:
        """The numbers of the answer that are not in the question."""
        asked = {number.value for number in self.question.numbers}
        return [number for number in self.answer.numbers if number.value not in asked]

    def names(self) -> list[tuple[int, str]]:
        """The names in the answer that are not in the question."""
        asked = {name for _, name in self.question.found}
        return [(at, name) for at, name in self.answer.found if name not in asked]


class Expectation(Protocol):
    """What an answer must say."""

    def problem(self, said: Said) -> str | None:
        """Why the answer is wrong; None where it is right."""
        ...


@dataclass(frozen=True)
class All:
    """Several at once."""

    parts: tuple[Expectation, ...]

    def problem(self, said: Said) -> str | None:
        return next((why for part in self.parts if (why := part.problem(said))), None)


@dataclass(frozen=True)
class Value:
    """A number.

    Attributes:
        exact: A count or a step: no rounding. digits: To how many it may be rounded.
        rel: How far off it may be beside. is_signed: False: "fell by 2" and "-2" are the same.
        unit: `h`, `min` or `s`, where `value` is a time: others are converted.
        traps: What misreadings give.
    """

    value: float
    exact: bool = False
    digits: int = 3
    rel: float = 1e-6
    is_signed: bool = True
    unit: str = ""
    traps: tuple[float, ...] = ()

    def problem(self, said: Said) -> str | None:
        asked = {number.value for number in said.question.numbers}
        numbers = [n for n in said.answer.numbers if n.value not in asked or self._is(n, self.value)]
        within = _FIRST_EXACT if self.exact else _FIRST
        for number in numbers[:within]:
            if self._is(number, self.value):
                return None
            if any(self._is(number, trap) for trap in self.traps):
                return f"{number.value:g} is a misreading, right is {self.value:g}"
        return f"{self.value:g} is not among its first {within} numbers"

    def _is(self, number: Number, value: float) -> bool:
        """Whether a number says a value."""
        if self.unit and number.unit in SECONDS:
            value *= SECONDS[self.unit] / SECONDS[number.unit]
        found = number.plain
        if not self.is_signed:
            found, value = abs(found), abs(value)
        if self.exact:
            return found == value
        if math.isclose(found, value, rel_tol=self.rel):
            return True
        size = math.floor(math.log10(abs(value) / number.factor)) + 1 if value else 1
        is_long = size + number.decimals >= self.digits
        return is_long and abs(found - value) <= 0.5000001 * number.factor * 10.0**-number.decimals


@dataclass(frozen=True)
class Names:
    """Runs, or whatever the names are of.

    Attributes:
        groups: In order; the order within a group does not matter. A set is one group.
        is_all: No other may be named.
        of: What counts as a name; None: the names of runs.
    """

    groups: tuple[frozenset[str], ...]
    is_all: bool = False
    of: frozenset[str] | None = None

    def problem(self, said: Said) -> str | None:
        answer = said.answer if self.of is None else Text(said.answer.text, self.of)
        question = said.question if self.of is None else Text(said.question.text, self.of)
        wanted = frozenset[str]().union(*self.groups)
        asides = [(at, at + len(part)) for at, part in answer.sentences if _ASIDE.search(part)]
        asked = {name for _, name in question.found}
        found = [
            name
            for at, name in answer.found
            if name in wanted or not (name in asked or any(low <= at < high for low, high in asides))
        ]
        order = list(dict.fromkeys(found))
        if missing := wanted - set(order):
            return f"does not name {', '.join(sorted(missing))}"
        if self.is_all and (more := set(order) - wanted):
            return f"names {', '.join(sorted(more))} as well"
        if self.is_all:
            return None
        for group in self.groups:
            first, order = order[: len(group)], order[len(group) :]
            if set(first) != group:
                return f"names {', '.join(first)} where {', '.join(sorted(group))} come"
        return None


@dataclass(frozen=True)
class Winner:
    """One of those that the question names.

    It is decided by the first clause that says of one that it is `more` or `less`; of two, the one before
    "than" is spoken of. Where there is none, by the first clause that names any, if it names one.

    Attributes:
        more: A pattern of what the winner is, such as "lower". less: Of what the others are.
    """

    name: str
    more: str
    less: str

    def problem(self, said: Said) -> str | None:
        rivals = {name for _, name in said.question.found}
        named: list[list[str]] = []
        for at, part in said.answer.sentences:
            found = [name for place, name in said.answer.found if at <= place < at + len(part)]
            here = list(dict.fromkeys(name for name in found if name in rivals))
            if not here:
                continue
            named.append(here)
            if len(here) > 1 and not re.search(r"\bthan\b", part):
                continue
            if re.search(self.more, part, re.IGNORECASE):
                return self._unless(here[0] == self.name, here[0])
            if re.search(self.less, part, re.IGNORECASE) and (here[0] == self.name or len(rivals) == 2):
                return self._unless(here[0] != self.name, f"not {here[0]}")
        if named and len(named[0]) == 1:
            return self._unless(named[0][0] == self.name, named[0][0])
        return f"no sentence decides for {self.name}"

    def _unless(self, is_right: bool, says: str) -> str | None:
        return None if is_right else f"says {says}, right is {self.name}"


@dataclass(frozen=True)
class Words:
    """One of some words, given as patterns; which of all comes first decides.

    Attributes:
        right, wrong: Patterns. Behind a negation none counts.
    """

    right: str
    wrong: str = r"(?!)"

    def problem(self, said: Said) -> str | None:
        pattern = re.compile(rf"(?P<right>{self.right})|(?P<wrong>{self.wrong})", re.IGNORECASE)
        for _, part in said.answer.sentences:
            for found in pattern.finditer(part):
                if re.search(rf"{_NEGATION}[^,.;]{{0,40}}$", part[: found.start()], re.IGNORECASE):
                    continue
                return None if found["right"] is not None else f"says {found[0]!r}"
        return f"does not say {self.right!r}"


@dataclass(frozen=True)
class Abstain:
    """The right answer is that it cannot be known.

    Attributes:
        missing: A pattern of what is missing, to be in the sentence that says so, or in the one beside it.
        never: A pattern of wrong answers that sound alike.
        may_name: Names that it may mention beside those of the question.
    """

    missing: str
    never: str = r"(?!)"
    may_name: frozenset[str] = field(default_factory=frozenset)

    def problem(self, said: Said) -> str | None:
        parts = [part for _, part in said.answer.sentences]
        if not any(
            CANNOT.search(part)
            and re.search(self.missing, " ".join(parts[max(0, at - 1) : at + 2]), re.IGNORECASE)
            for at, part in enumerate(parts)
        ):
            return f"does not say that {self.missing!r} cannot be known"
        if wrong := re.search(self.never, said.answer.clean, re.IGNORECASE):
            return f"says {wrong[0]!r}"
        if others := sorted({name for _, name in said.names()} - self.may_name):
            return f"answers with {', '.join(others)}"
        for number in said.numbers():
            if not is_supported(number, said.results):
                return f"{number.value:g} is in no result"
        for at, part in said.answer.sentences:
            has_number = any(at <= number.at < at + len(part) for number in said.numbers())
            if has_number and _GUESS.search(part):
                return f"guesses: {part.strip()[:80]}"
        return None


def is_supported(number: Number, results: Collection[Any]) -> bool:
    """Whether a result has a number, rounded perhaps."""
    low = 0.5000001 * number.factor * 10.0**-number.decimals
    found = (each for result in results for each in numbers_in(result))
    return any(abs(each - number.plain) <= max(1e-9 * abs(each), low) for each in found)


def abstains(answer: Text) -> bool:
    """Whether an answer says in its first two sentences that something cannot be known."""
    return any(CANNOT.search(part) for _, part in answer.sentences[:2])
