"""What the runs say: reads over MLflow's run data and what is computed from them. Nothing here writes.

Every question is a plain function, and `call_tool` asks it by name, JSON in and out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftlab_mlflow.analytics.arithmetic import calculate
    from ftlab_mlflow.analytics.changes import live_changes
    from ftlab_mlflow.analytics.chart import plot_metrics
    from ftlab_mlflow.analytics.costs import cost_summary
    from ftlab_mlflow.analytics.diagnosis import diagnose_run
    from ftlab_mlflow.analytics.overview import describe_experiment, param_effects
    from ftlab_mlflow.analytics.queries import aggregate, list_experiments, rank_runs, search_runs
    from ftlab_mlflow.analytics.run_queries import compare_runs, get_run, metric_history, propose_update
    from ftlab_mlflow.analytics.tools import TOOLS, call_tool

__all__ = [
    "TOOLS",
    "aggregate",
    "calculate",
    "call_tool",
    "compare_runs",
    "cost_summary",
    "describe_experiment",
    "diagnose_run",
    "get_run",
    "list_experiments",
    "live_changes",
    "metric_history",
    "param_effects",
    "plot_metrics",
    "propose_update",
    "rank_runs",
    "search_runs",
]


def __getattr__(name: str) -> Any:
    """Loads the tools (and with them NumPy and pandas) when they are asked for."""
    if name in __all__:
        from ftlab_mlflow.analytics import tools

        return getattr(tools, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
