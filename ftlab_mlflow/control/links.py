"""Where a run is seen in MLflow's own UI: its address on a tracking server, or the command that opens one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from urllib.parse import quote, urlsplit

from ftlab_mlflow.control.mlflow_errors import without_credentials
from ftlab_mlflow.control.store import RunData

_LOCAL = re.compile(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://|file:|(?!databricks$)[^:]+$")
"""What `mlflow ui` opens by itself: databases and folders."""


def run_url(tracking_uri: str, run: RunData) -> str | None:
    """The page of a run, or None if the tracking store is no server.

    It is an http or https address, without credentials, and may be rendered as a link.
    """
    experiment = experiment_url(tracking_uri, run.experiment_id)
    return experiment and f"{experiment}/runs/{quote(run.run_id, safe='')}"


def experiment_url(tracking_uri: str, experiment_id: str) -> str | None:
    """The page of an experiment, as `run_url`."""
    try:
        parts = urlsplit(tracking_uri.strip())
        host, port = parts.hostname, parts.port
    except ValueError:  # a host or port that is none
        return None
    if parts.scheme not in ("http", "https") or not host:
        return None
    host = f"[{host}]" if ":" in host else quote(host)
    server = f"{parts.scheme}://{host}" + ("" if port is None else f":{port}")
    path = quote(parts.path.rstrip("/"), safe="/%")
    return f"{server}{path}/#/experiments/{quote(experiment_id, safe='')}"


def ui_hint(tracking_uri: str) -> str | None:
    """The command that opens MLflow's UI on a tracking store that is no server, for a POSIX shell.

    User and password are not in it: where there are some, the command says where to put them. None if it is
    a server, or a store that `mlflow ui` cannot open.
    """
    if not _LOCAL.match(tracking_uri):
        return None
    uri = without_credentials(tracking_uri)
    if "@" in tracking_uri and "@" not in uri:
        uri = uri.replace("://", "://USER:PASSWORD@", 1)
    file = uri.removeprefix("sqlite:///")
    if uri.startswith("sqlite:///") and not file.startswith("/"):  # the command may be run in any folder
        uri = f"sqlite:///{Path(file).absolute()}"
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
