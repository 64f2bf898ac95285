"""What the runs say: reads over MLflow's run data and what is computed from them. Nothing here writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftlab_mlflow.analytics.tools import TOOLS, call_tool

__all__ = ["TOOLS", "call_tool"]


def __getattr__(name: str) -> Any:
    """Loads the tools (and with them NumPy and pandas) when they are asked for."""
    if name in __all__:
        from ftlab_mlflow.analytics import tools

        return getattr(tools, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
