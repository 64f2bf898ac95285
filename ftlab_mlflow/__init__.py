"""Live control for fine-tuning runs that log to MLflow."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftlab_mlflow.control.client import LiveRun, SentUpdate
    from ftlab_mlflow.control.messages import Ack, Status, Update
    from ftlab_mlflow.control.mlflow_store import MlflowRunStore
    from ftlab_mlflow.control.store import MemoryRunStore, RunStore
    from ftlab_mlflow.control.surface import Param, Surface
    from ftlab_mlflow.errors import (
        ConfigError,
        FTLabError,
        MessageError,
        MissingExtra,
        NotAuthenticated,
        NotLive,
        NotPermitted,
        RunNotFound,
        SendUnconfirmed,
        StoreError,
        StoreUnavailable,
        UpdateRejected,
        UpdateTimeout,
    )
    from ftlab_mlflow.training.callback import LiveControl, attach
    from ftlab_mlflow.training.loop import LiveLoop
    from ftlab_mlflow.training.run_numbers import RunNumbers

__version__ = "0.1.0"

_HOMES = {
    "control.client": ("LiveRun", "SentUpdate"),
    "control.messages": ("Ack", "Status", "Update"),
    "control.mlflow_store": ("MlflowRunStore",),
    "control.store": ("MemoryRunStore", "RunStore"),
    "control.surface": ("Param", "Surface"),
    "errors": (
        "ConfigError",
        "FTLabError",
        "MessageError",
        "MissingExtra",
        "NotAuthenticated",
        "NotLive",
        "NotPermitted",
        "RunNotFound",
        "SendUnconfirmed",
        "StoreError",
        "StoreUnavailable",
        "UpdateRejected",
        "UpdateTimeout",
    ),
    "training.callback": ("LiveControl", "attach"),
    "training.loop": ("LiveLoop",),
    "training.run_numbers": ("RunNumbers",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Ack",
    "ConfigError",
    "FTLabError",
    "LiveControl",
    "LiveLoop",
    "LiveRun",
    "MemoryRunStore",
    "MessageError",
    "MissingExtra",
    "MlflowRunStore",
    "NotAuthenticated",
    "NotLive",
    "NotPermitted",
    "Param",
    "RunNotFound",
    "RunNumbers",
    "RunStore",
    "SendUnconfirmed",
    "SentUpdate",
    "Status",
    "StoreError",
    "StoreUnavailable",
    "Surface",
    "Update",
    "UpdateRejected",
    "UpdateTimeout",
    "attach",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
