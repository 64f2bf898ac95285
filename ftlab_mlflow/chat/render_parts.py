"""What the renderings of several answers share: what counted, what was left out, how to get the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ftlab_mlflow.analytics.metric_table import describe
from ftlab_mlflow.chat.cells import code, plain
from ftlab_mlflow.chat.slash_words import line

Values = Mapping[str, Any]
"""Arguments or an answer of a function, JSON values by name."""

_AGGS = {
    "last": "the last value (of the highest step, not the best)",
    "min": "the smallest value of each run",
    "max": "the largest value of each run",
}
_STALE = "ended runs"
"""The policy that says that runs are not as they are now."""


def about(experiment: object) -> str:
    """The experiment of a title."""
    return f"experiment {plain(experiment)}"


def rest(tool: str, answer: Values) -> str:
    """How much of it is shown, what was left out and why, and the command that gets the rest."""
    said = []
    if "rows" in answer and len(answer["rows"]) != answer["total"]:
        said.append(f"{len(answer['rows'])} of {answer['total']:,} are shown.")
    if answer.get("omitted"):
        parts = (f"{plain(reason)} ({count:,})" for reason, count in answer["omitted"].items())
        said.append(f"Left out: {', '.join(parts)}.")
    if answer.get("next"):
        typed = line(tool, answer["next"])
        command = code(typed) if typed else None
        said.append(f"More: {command}" if command else "There is more.")
    if _STALE in (policy := answer.get("policy") or {}):
        said.append(f"Ended runs are {plain(policy[_STALE])}.")
    return " ".join(said)


def counted(arguments: Values) -> str:
    """Which value of which runs counts."""
    agg = arguments.get("agg", "last")
    what = _AGGS.get(agg) or f"the mean of the last {plain(agg.rpartition('_')[2])} values"
    statuses = arguments.get("statuses", ["FINISHED"])
    return f"What counts is {what}, of runs that are {' or '.join(map(plain, statuses))}."


def direction(metric: str) -> str:
    """Which way of a metric is better, if that is known."""
    better = describe(metric).better
    return f"{better} is better" if better else "no direction is better, or it is not known"


def sentences(*parts: str) -> str:
    """Sentences one after the other; empty ones are left out."""
    return " ".join(part for part in parts if part)


def pairs(values: Iterable[tuple[str, object]]) -> str:
    """Names and values in a line: `method sft, model x`; what there is not is left out."""
    return ", ".join(f"{name} {value}" for name, value in values if value not in (None, "", "–"))
