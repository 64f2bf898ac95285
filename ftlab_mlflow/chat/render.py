"""Answers of the analytics as Markdown for people, on the page and in a terminal. Foreign text stays text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ftlab_mlflow.chat import render_lists as lists
from ftlab_mlflow.chat import render_runs as runs
from ftlab_mlflow.chat.cells import LONG, block, plain
from ftlab_mlflow.chat.render_parts import Values
from ftlab_mlflow.control.wire import json_text

_LONGEST_ERROR = 4 * LONG

RENDERERS: Mapping[str, Callable[[Values, Values], str]] = {
    "list_experiments": lists.experiments,
    "describe_experiment": lists.experiment,
    "search_runs": lists.search,
    "rank_runs": lists.ranking,
    "aggregate": lists.groups,
    "param_effects": lists.effects,
    "cost_summary": lists.costs,
    "get_run": runs.run,
    "compare_runs": runs.comparison,
    "metric_history": runs.history,
    "plot_metrics": runs.plot,
    "diagnose_run": runs.diagnosis,
    "live_changes": runs.changes,
    "calculate": runs.calculation,
    "propose_update": runs.proposal,
}
"""By function of the analytics."""


def markdown(tool_name: str, arguments: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """What a function said, for people.

    Args:
        arguments: That it was called with, by name.
        result: As in `events.ToolRun`: an answer, or ``{"error": text}``.

    Returns:
        Markdown of paragraphs, lists, tables and code, without HTML, links and images. It reads well as it
        is, too, and no character of it acts on a terminal.
    """
    if "error" in result:
        return f"✗ {plain(result['error'], _LONGEST_ERROR)}"
    if tool_name not in RENDERERS:  # of a later version, in a chat that was kept
        return block(json_text(result))
    return RENDERERS[tool_name](arguments, result)
