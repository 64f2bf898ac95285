"""Which model comes after one that retires. The catalog does not say: it is derived from names and prices.

A name is read as a family, a version and the words of its line: `claude-sonnet-4-5-20250929` is of family
`claude`, line `sonnet`, version 4.5. Dates, and `latest`, `preview` and the like, say nothing about the line.
The successor can call functions, is no preview, is not announced to retire, and is

1. the same name without its date, where later versions have it, too (`gpt-4o-2024-05-13` → `gpt-4o`), else
2. the newest of the same family and line (`claude-sonnet-4-5` → `claude-sonnet-5-5`), else
3. the newest of the same family that is affordable (`gpt-3.5-turbo` → `gpt-6-luna`), else
4. the newest of the same line of another family that is affordable (`o4-mini` → `gpt-5.4-mini`).

Affordable is what costs at most half as much again, by `Price.blended`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from ftlab_mlflow.chat.model import Model

_DATE = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{8}|\d{4})(?=-|$)")
_CONTEXT = re.compile(r"\d+k")
_PART = re.compile(r"([a-z]*)(\d+(?:\.\d+)?)([a-z]*)")
_AFFORDABLE = 1.5
_UNFINISHED = frozenset({"preview", "beta", "experimental"})
_NO_LINE = _UNFINISHED | {"latest"}


@dataclass(frozen=True)
class _Named:
    """A model with its name read."""

    model: Model

    @property
    def is_dated(self) -> bool:
        return _DATE.search(self.model.name) is not None

    @cached_property
    def undated(self) -> str:
        name = _DATE.sub("", self.model.name)
        return "-".join(part for part in name.split("-") if part != "latest")

    @cached_property
    def _parts(self) -> list[str]:
        return [part for part in self.undated.split("-") if not _CONTEXT.fullmatch(part)]

    @cached_property
    def _words(self) -> list[str]:
        found: list[str] = []
        for part in self._parts:
            match = _PART.fullmatch(part)
            found += [match[1], match[3]] if match else [part]
        return [word for word in found if word]

    @property
    def family(self) -> str:
        return self._words[0] if self._words else ""

    @property
    def line(self) -> frozenset[str]:
        return frozenset(self._words[1:]) - _NO_LINE

    @cached_property
    def version(self) -> tuple[float, ...]:
        """4-1 is (4, 1). 4.20 is one number: with xAI it came before 4.3."""
        matches = (_PART.fullmatch(part) for part in self._parts)
        return tuple(float(match[2]) for match in matches if match)

    @property
    def is_finished(self) -> bool:
        return not _UNFINISHED & set(self._words)

    @property
    def cost(self) -> float | None:
        return None if self.model.price is None else self.model.price.blended

    def is_affordable_after(self, other: _Named) -> bool:
        return other.cost is None or (self.cost is not None and self.cost <= _AFFORDABLE * other.cost)


def successors(models: Mapping[str, Model]) -> dict[str, Model]:
    """A provider's models by name, each that retires with its successor, or None where nothing fits."""
    named = [_Named(model) for model in models.values()]
    dated: dict[str, list[_Named]] = {}
    for each in named:
        if each.is_dated:
            dated.setdefault(each.undated, []).append(each)
    candidates = [
        each
        for each in named
        if _stays(each, dated) and (each.undated == each.model.name or each.undated not in models)
    ]
    return {
        each.model.name: each.model
        if each.model.retires is None
        else replace(each.model, successor=_successor(each, candidates))
        for each in named
    }


def _stays(named: _Named, dated: Mapping[str, list[_Named]]) -> bool:
    """Whether it can be advised. A name without a date stands for its dated versions, and goes with them."""
    versions = dated.get(named.model.name) or [named]
    is_staying = named.model.retires is None and any(each.model.retires is None for each in versions)
    return is_staying and named.is_finished and named.model.has_tools is True


def _successor(old: _Named, candidates: Iterable[_Named]) -> str | None:
    others = [each for each in candidates if each.model.name != old.model.name]
    newer = [each for each in others if each.family == old.family and each.version > old.version]
    foreign = [each for each in others if each.family != old.family]
    groups = (
        [each for each in others if each.model.name == old.undated],
        [each for each in newer if each.line == old.line],
        [each for each in newer if each.is_affordable_after(old)],
        [each for each in foreign if each.line == old.line and each.is_affordable_after(old)],
    )
    for group in groups:
        if group:
            newest = max(each.version for each in group)
            names = (each.model.name for each in group if each.version == newest)
            return min(names, key=lambda name: (len(name), name))
    return None
