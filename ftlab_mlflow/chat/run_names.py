"""Which runs the results of tools speak of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_RUN_ID = re.compile("[0-9a-f]{32}")
_FOREIGN = frozenset(["params", "tags", "group", "values"])
"""Parts of a result with keys that people chose."""


def runs_in(results: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Ids of the runs in some results, by name and by the id itself.

    A name that several runs have is left out, as is one that is the id of another run.
    """
    names: dict[str, set[str]] = {}
    ids: set[str] = set()
    for run_id, name in _found(results):
        ids.add(run_id)
        if name:
            names.setdefault(name, set()).add(run_id)
    by_name = {name: of.pop() for name, of in names.items() if len(of) == 1}
    return by_name | {run_id: run_id for run_id in ids}


def _found(value: Any) -> Iterator[tuple[str, str | None]]:
    """Pairs of id and name, from `{"run_id": id, "name": name}` and `{id: {"name": name}}`."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            for key in ("run_id", "best_run_id", "parent"):
                if _is_id(value.get(key)):
                    yield value[key], _name(value) if key == "run_id" else None
            for key, each in value.items():
                if _is_id(key) and isinstance(each, Mapping):
                    yield key, _name(each)
                if key not in _FOREIGN:
                    left.append(each)
        elif isinstance(value, Iterable) and not isinstance(value, str):
            left += value


def _is_id(value: object) -> bool:
    return isinstance(value, str) and bool(_RUN_ID.fullmatch(value))


def _name(value: Mapping[str, Any]) -> str | None:
    name = value.get("name")
    return name if isinstance(name, str) else None
