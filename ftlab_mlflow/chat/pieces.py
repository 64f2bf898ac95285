"""A text that comes in pieces, taken apart into words and numbers, the same however it was cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ftlab_mlflow.chat.quantities import ROUGH, may_belong
from ftlab_mlflow.chat.stated import CURRENCIES, FRACTIONS, LETTER, SPACE, WORD, Claim, read

_WINDOW = 96
"""Characters that are held back at most. What a number is, is seen within them."""
_LETTERS = re.compile(rf"[{LETTER}]*")
_DIGIT = re.compile(rf"[\d{FRACTIONS}]")
_IN_NUMBER = re.compile(rf"[\d{FRACTIONS}.,:+\-−–⁻⁺⁰¹²³⁴-⁹×·⋅*^{{}}%‰¢{CURRENCIES}/\\'’_`~{SPACE}]*")
_NAME = re.compile(rf"[{WORD}]+(?:[-.@][{WORD}]+|/[{LETTER}_][{WORD}]*)*[-.@/]?")
"""A word with digits, `gpt-4o` or `Qwen/Qwen2.5`; what may go on behind its last character is held back."""
_REST = re.compile(rf"[{WORD}]+")
_JOINED = re.compile(
    rf"(?<=[{LETTER}_])(?<!\b[vV])(?<!_[vV])\d+(?:\.\d+(?:[eE][+-]?\d+)?|[eE][+-]?\d+)[{LETTER}]*_*$"
)
"""A number at the end of a word, such as `lr1e-3`, that is none of a version, such as `v1.2`."""
_APART = re.compile(rf"\d+(?=[{SPACE}]\d{{3}}(?!\d))")
_NO_WORD = re.compile(rf"[^{WORD}{FRACTIONS}.\n]+")
_UNBROKEN = re.compile(r"[^\s<>\"'()\[\]`|]+")
_BEGIN = re.compile(r"[ \t>*+\-#_0-9.)`~]*")
_FENCE = re.compile(r"[ \t>]*(`{3,}|~{3,})")
_LIST_NUMBER = re.compile(
    r"[ \t>]*(?:[-*+][ \t]+)*(?:\#{1,6}[ \t]+)?(?:\*\*|__)?(\d{1,3})[.)](?=[ \t]+[^\s]|\*\*|__)"
)
_OPENING = f"*_`(\\{CURRENCIES}\t{SPACE}"
"""What may stand between a word and the number that it belongs to."""


def is_name(text: str) -> bool:
    """Whether a text is one word that a `Reader` takes for a name, such as `run-12`."""
    return not text[:1].isdecimal() and text[:1] != "_" and bool(_NAME.fullmatch(text))


@dataclass(frozen=True)
class Piece:
    """A part of a text. claim: What a number in it states. name: It is one word."""

    text: str
    claim: Claim | None = None
    is_word: bool = False


class _More(Exception):
    """What a piece is, cannot be told before more of the text is there."""


Quoted = Callable[[str, int, bool], int | None]
"""Given a text, a place in it, and whether it is whole: how many characters the name has that begins there, 0
if none does; None if that cannot be told yet."""


class Reader:
    """Takes a text apart. What it says of a place depends on what is around it, not on how the text came.

    Args:
        quoted: Names to be passed over as a whole, with the numbers in them.
        has: Whether something is known. `12 345` and `lr1e-3` are two things each if they are not.
    """

    def __init__(self, quoted: Quoted | None = None, has: Callable[[Claim], bool] | None = None) -> None:
        self._quoted = quoted
        self._has = has
        self._text = ""
        self._at = 0
        self._is_whole = False
        self._behind = ""
        self._word = ""
        self._fence = ""
        self._listed: set[int] = set()
        self._is_begin = True
        self._is_address = False
        self._is_cut = False
        self._cut_claim: Claim | None = None

    def feed(self, chunk: str) -> Iterator[Piece]:
        """The pieces that can be told now."""
        self._text = self._text[self._at :] + chunk
        self._at = 0
        while self._at < len(self._text):
            try:
                piece = self._next()
            except _More:
                return
            self._at += len(piece.text)
            self._behind = (self._behind + piece.text)[-3:]
            yield piece

    def end(self) -> Iterator[Piece]:
        """The rest of the pieces: no more text comes."""
        self._is_whole = True
        yield from self.feed("")
        if self._cut_claim:
            yield self._claimed()

    def _next(self) -> Piece:
        if self._is_address:
            if rest := _UNBROKEN.match(self._text, self._at):
                return Piece(rest[0])
            self._is_address = False
        if self._is_begin:
            beginning = self._line_begin()
            self._is_begin = False
            if beginning:
                return beginning
        here = self._text[self._at]
        if self._is_cut:
            if rest := _REST.match(self._text, self._at):
                return Piece(rest[0])
            self._is_cut = False
            if self._cut_claim:
                return self._claimed()
        if here == "_":
            return self._plain(here)
        if self._quoted is not None and _REST.match(here):
            length = self._quoted(self._text, self._at, self._is_whole)
            if length is None:
                raise _More
            if length:
                return self._worded(self._text[self._at : self._at + length])
        if _DIGIT.match(here) or (here == "." and self._behind[-1:] != "." and self._peek(1).isdecimal()):
            return self._number()
        if _REST.match(here):
            return self._name()
        found = _NO_WORD.match(self._text, self._at)
        return self._plain(found[0] if found else here)

    def _peek(self, distance: int) -> str:
        at = self._at + distance
        if at >= len(self._text) and not self._is_whole:
            raise _More
        return self._text[at : at + 1]

    def _run(self, pattern: re.Pattern[str]) -> str:
        """What a pattern of single characters or words takes; it is certain where it ends."""
        found = pattern.match(self._text, self._at, self._at + _WINDOW)
        taken = found[0] if found else ""
        if len(taken) < _WINDOW:
            self._peek(len(taken))
        return taken

    def _line_begin(self) -> Piece | None:
        """The mark of a fence or the number of a list or a heading, if a line begins with one.

        A list begins with 1, behind an empty line also with 0; any other number has to follow one of a list.
        """
        marks = self._run(_BEGIN)
        if fence := _FENCE.match(marks):
            mark = fence[1]
            if not self._fence:
                self._fence = mark
            elif mark.startswith(self._fence):
                self._fence = ""
            return Piece(fence[0])
        end = self._at + len(marks)
        found = None if self._fence else _LIST_NUMBER.match(marks + self._text[end : end + 1])
        if found is None:
            return None
        number, is_apart = int(found[1]), self._behind[-2:] in ("", "\n\n")
        if number != 1 and number - 1 not in self._listed and not (number == 0 and is_apart):
            return None
        self._listed.add(number)
        return Piece(found[0])

    def _number(self) -> Piece:
        start, limit = self._at, self._at + _WINDOW
        end = self._end_of_number(limit)
        if end < limit:
            self._peek(end - start)
        text = self._text[start : min(limit, end + 1)]
        found = read(text, self._behind, self._word)
        if (found is None or found[1] is None or self._is_new(found[1])) and (apart := _APART.match(text)):
            found = read(apart[0], self._behind, self._word)
        if found is None:
            return self._plain(".") if self._text[start] == "." else self._name()
        self._word = ""
        length, claim = found
        if length == _WINDOW:
            self._is_cut, self._cut_claim, claim = True, claim, None
        return Piece(self._text[start : start + length], claim)

    def _end_of_number(self, limit: int) -> int:
        """Behind all that may belong to the number here, and the word behind that."""
        end, word = self._at, ""
        while True:
            for pattern in (_IN_NUMBER, _LETTERS):
                found = pattern.match(self._text, end, limit)
                word = found[0] if found else ""
                end += len(word)
            if end >= min(limit, len(self._text)) or not may_belong(word):
                return end

    def _is_new(self, claim: Claim) -> bool:
        return self._has is not None and not self._has(claim)

    def _claimed(self) -> Piece:
        """The end of a number that is longer than what is held back."""
        claim, self._cut_claim = self._cut_claim, None
        return Piece("", claim)

    def _name(self) -> Piece:
        name = self._run(_NAME)
        self._is_cut = len(name) == _WINDOW
        if not self._is_cut:
            name = name.rstrip("-.@/")
            if (joined := _JOINED.search(name)) and self._is_new(Claim(name, (), ())):
                name = name[: joined.start()]
        if self._text.startswith(":", self._at + len(name)) and name.isalpha():
            after = "".join(self._peek(len(name) + place) for place in range(3))
            self._is_address = after == "://"
        return self._worded(name)

    def _worded(self, text: str) -> Piece:
        self._word = text
        return Piece(text, is_word=True)

    def _plain(self, text: str) -> Piece:
        if text == "\n":
            self._is_begin = True
        elif text != "." and (mark := text.rstrip(_OPENING)[-1:]):
            is_struck = (self._behind + text.rstrip(_OPENING)).endswith("~~")
            self._word = mark if mark in ROUGH and not is_struck else ""
        return Piece(text)
