"""Where names of runs in an answer lead to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from ftlab_mlflow.chat.run_names import runs_in

Links = tuple[tuple[str, str], ...]
"""Texts and their addresses; hashable, for what is kept by them."""
_SHORT = range(8, 13)
"""Characters of a run's id, where a table shows only its begin."""


def links(results: Iterable[Mapping[str, Any]]) -> Links:
    """Addresses of the runs in these results of tools, by name, by id and by a begin that only one has."""
    runs = runs_in(results)
    ids = set(runs.values())
    begins = Counter(run_id[:length] for run_id in ids for length in _SHORT)
    short = {run_id[:n]: run_id for run_id in ids for n in _SHORT if begins[run_id[:n]] == 1}
    return tuple((text, f"run?id={quote(run_id)}") for text, run_id in (short | runs).items())
