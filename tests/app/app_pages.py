"""The dashboard without a browser, and runs for it in a real MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from mlflow import MlflowClient
from mlflow.entities import Metric
from streamlit.testing.v1 import AppTest

import streamlit_app
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.messages import Ack, Status, Update
from ftlab_mlflow.control.store import now_ms
from ftlab_mlflow.control.wire import new_id, utc_now
from streamlit_app.components import plot

APP = Path(streamlit_app.__file__).with_name("app.py")
LIMIT_S = 60
_ENDS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def opened(page: str = "runs", **query: str) -> AppTest:
    """A page of the dashboard, as somebody opens it by its address."""
    app = AppTest.from_file(APP, default_timeout=LIMIT_S)
    if page != "runs":  # the first one
        app.run()  # which tells the app's pages
        app.switch_page(f"views/{page}.py")
    app.query_params = dict(query)
    app.run()
    assert not app.exception
    return app


def texts(app: AppTest) -> str:
    """All that the page says in words."""
    kinds = (app.markdown, app.caption, app.text, app.info, app.warning, app.error, app.success, app.code)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def figures(app: AppTest) -> dict[str, dict[str, Any]]:
    """The charts of the page as they are sent to the browser, by key. All that they say, Plotly knows."""
    found = {}
    for element in app.get("bidi_component"):
        if element.proto.component_name == plot.NAME:
            figure = json.loads(json.loads(element.proto.json)["figure"])
            go.Figure(figure)
            found[element.proto.id.split("-", 2)[2]] = figure
    return found


class Runs:
    """Writes runs through MLflow's own client."""

    def __init__(self, uri: str) -> None:
        self.client = MlflowClient(uri)

    def plain(
        self,
        name: str,
        *,
        status: str = "FINISHED",
        run_tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        experiment: str = "0",
        metrics: Mapping[str, Sequence[float]] | None = None,
    ) -> str:
        """A run of another program. `metrics`: values at steps 1, 2, …"""
        at = now_ms()
        run = self.client.create_run(experiment, at, dict(run_tags or {}), name)
        run_id: str = run.info.run_id
        points = [
            Metric(key, value, at, step)
            for key, values in (metrics or {}).items()
            for step, value in enumerate(values, 1)
        ]
        self.client.log_batch(run_id, metrics=points)
        for key, text in (params or {}).items():
            self.client.log_param(run_id, key, text)
        if status != "RUNNING":
            self.client.set_terminated(run_id, status)
        return run_id

    def live(
        self,
        name: str,
        *,
        state: Any = "finished",
        step: int = 100,
        method: str = "sft",
        at: datetime | None = None,
        run_tags: Mapping[str, str] | None = None,
        **others: Any,
    ) -> str:
        """A run of a trainer that listens, or did."""
        status = Status(state, step, 100, 0.5, at or utc_now(), 3600.0, "s1", "node7", 42, method)
        mlflow_status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}.get(
            state, "RUNNING"
        )
        written = {tags.STATUS: status.encode()} | dict(run_tags or {})
        return self.plain(name, status=mlflow_status, run_tags=written, **others)

    def request(self, run_id: str, step: int, parameter: str, old: float, new: float, *, by: str) -> None:
        """A request that was applied at a step."""
        request_id, at = new_id(), utc_now()
        update = Update(at=at, set={parameter: new}, by=by, via="cli", reason="plateau")
        ack = Ack("applied", step, at, "s1", changes={parameter: (old, new)})
        self.client.set_tag(run_id, tags.UPDATE_PREFIX + request_id, update.encode())
        self.client.set_tag(run_id, tags.ACK_PREFIX + request_id, ack.encode())
