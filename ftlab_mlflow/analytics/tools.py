"""The one door to the analytics, for the command line and for language models: functions by name, JSON in
and out."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from ftlab_mlflow.analytics import scope
from ftlab_mlflow.analytics.answer import Answer
from ftlab_mlflow.analytics.arithmetic import calculate
from ftlab_mlflow.analytics.changes import live_changes
from ftlab_mlflow.analytics.chart import plot_metrics
from ftlab_mlflow.analytics.costs import cost_summary
from ftlab_mlflow.analytics.diagnosis import diagnose_run
from ftlab_mlflow.analytics.overview import describe_experiment, param_effects
from ftlab_mlflow.analytics.queries import aggregate, list_experiments, rank_runs, search_runs
from ftlab_mlflow.analytics.run_queries import (
    compare_runs,
    get_run,
    metric_history,
    propose_update,
)
from ftlab_mlflow.errors import AnalyticsError

_OURS = "tracking_uri"
"""The argument that the caller of a tool has no say in."""


@dataclass(frozen=True)
class Tool:
    """A function that answers a question.

    Attributes:
        description: What it does, its arguments and its answer, for a reader and a model alike.
        arguments: What it takes.
    """

    name: str
    description: str
    arguments: type[BaseModel]
    function: Callable[..., Answer]

    @property
    def schema(self) -> dict[str, Any]:
        """JSON Schema of the arguments."""
        return self.arguments.model_json_schema()


def _tool(function: Callable[..., Answer]) -> Tool:
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if name != _OURS
    }
    model = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)
    text = re.split(r"\n+Raises:", inspect.getdoc(function) or "")[0]
    kept = [line for line in text.splitlines() if not line.strip().startswith(f"{_OURS}:")]
    return Tool(function.__name__, "\n".join(kept), model, function)


TOOLS: Mapping[str, Tool] = {
    function.__name__: _tool(function)
    for function in (
        list_experiments,
        describe_experiment,
        search_runs,
        rank_runs,
        get_run,
        compare_runs,
        metric_history,
        aggregate,
        param_effects,
        diagnose_run,
        live_changes,
        cost_summary,
        plot_metrics,
        calculate,
        propose_update,
    )
}
"""All tools by name."""


def call_tool(name: str, arguments: Mapping[str, Any], tracking_uri: str | None = None) -> Answer:
    """Calls a tool.

    Args:
        arguments: By name, JSON values.
        tracking_uri: MLflow's tracking URI; None is MLflow's own setting.

    Returns:
        The answer: JSON values, about `settings.answer_chars` characters at most.

    Raises:
        AnalyticsError: No such tool, arguments that it does not take, or what cannot be answered.
        StoreError: As the tracking store does.
    """
    tool = TOOLS.get(name) if isinstance(name, str) else None
    if tool is None:
        raise AnalyticsError(f"no tool {scope.brief(str(name))}; {scope.nearest(str(name), TOOLS)}")
    if not isinstance(arguments, Mapping):
        raise AnalyticsError(f"{name}: its arguments are an object by name, got {str(arguments)[:60]!r}")
    try:
        json.dumps(dict(arguments), ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise AnalyticsError(f"{name}: its arguments are no JSON: {error}") from error
    try:
        given = tool.arguments.model_validate(dict(arguments))
    except ValidationError as error:
        problems = "; ".join(_problem(each) for each in error.errors())
        takes = ", ".join(tool.arguments.model_fields)
        raise AnalyticsError(f"{name}: {problems}. It takes {takes}") from error
    values = {field: getattr(given, field) for field in tool.arguments.model_fields}
    return tool.function(**values, tracking_uri=tracking_uri)


def _problem(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    given = "" if error["type"] == "missing" else f", got {str(error['input'])[:60]!r}"
    return f"{where}: {error['msg']}{given}"
