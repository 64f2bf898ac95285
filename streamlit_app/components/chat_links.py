"""Where names of runs in an answer lead to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

Links = tuple[tuple[str, str], ...]
"""Texts and their addresses; hashable, for what is kept by them."""
_ID = re.compile("[0-9a-f]{32}")


def links(results: Iterable[Any]) -> Links:
    """Addresses of the runs in these results of tools, by name and by id; of a name of several runs, none."""
    names = dict(pair for result in results for pair in _named(result))
    count = Counter(names.values())
    by_name = {name: _address(run_id) for run_id, name in names.items() if count[name] == 1}
    return tuple((by_name | {run_id: _address(run_id) for run_id in names}).items())


def _named(value: Any) -> Iterator[tuple[str, str]]:
    """Ids and names of runs, in the forms in which results have them."""
    if isinstance(value, Mapping):
        run_id, name = value.get("run_id"), value.get("name", value.get("label"))
        if isinstance(run_id, str) and isinstance(name, str):
            yield run_id, name
        for key, each in value.items():
            if isinstance(each, Mapping) and isinstance(each.get("name"), str) and _ID.fullmatch(key):
                yield key, each["name"]
            yield from _named(each)
    elif isinstance(value, list):
        for each in value:
            yield from _named(each)


def _address(run_id: str) -> str:
    return f"run?id={quote(run_id)}"
