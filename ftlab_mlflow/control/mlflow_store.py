"""`MlflowRunStore`: the tracking store that MLflow speaks to, over its Python client or its REST API.

For a tracking server the REST API is called directly, through MLflow's own transport (so its credentials,
TLS settings and header plugins apply): one attempt with a short time limit, where MLflow's client would
retry for minutes, and no protobuf in between. mlflow is imported when a store is made, not before.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ftlab_mlflow.control.mlflow_errors import check_refusal, translated, unavailable, without_credentials
from ftlab_mlflow.control.store import NOT_ENDED, Point, RunData, RunStatus
from ftlab_mlflow.control.tags import STATUS
from ftlab_mlflow.errors import ConfigError, MissingExtra, NotPermitted, StoreError

if TYPE_CHECKING:
    from sqlalchemy import Engine

TIMEOUT_S = 10
"""Seconds that one call to a tracking server may take."""

_DATABASE_SERVERS = ("postgresql", "mysql", "mssql")
_POSTGRES_DRIVERS = ("psycopg", "psycopg2")
_FEW_TAGS = 2
"""Up to so many tags are written one by one: a server's log-batch holds a database connection while it takes
another from the same pool, so that the heartbeats of a thousand runs would bring it to a stand."""
_PAGE = 1000
_HISTORY_PAGE = 25_000


class _Api(Protocol):
    def get(self, run_id: str) -> RunData: ...
    def write(self, run_id: str, tags: Mapping[str, str], points: Sequence[Point]) -> None: ...
    def try_write(self, run_id: str) -> None: ...
    def set_status(self, run_id: str, status: RunStatus) -> None: ...
    def experiment_ids(self) -> list[str]: ...
    def search(self, experiments: list[str], query: str, limit: int) -> list[RunData]: ...
    def metric_history(self, run_id: str, key: str) -> list[Point]: ...


class MlflowRunStore:
    """A `RunStore` on MLflow.

    Args:
        tracking_uri: Where the runs are; None is MLflow's own setting (``MLFLOW_TRACKING_URI``, …).

    Raises:
        StoreError: MLflow cannot open this tracking URI.
        MissingExtra, ConfigError: The database's driver is not installed.
    """

    def __init__(self, tracking_uri: str | None = None) -> None:
        import mlflow

        self.tracking_uri: str = tracking_uri or mlflow.get_tracking_uri()
        with translated(self.tracking_uri):
            is_server = self.tracking_uri.startswith(("http://", "https://"))
            self._api: _Api = RestApi(self.tracking_uri) if is_server else ClientApi(self.tracking_uri)

    @property
    def shown_uri(self) -> str:
        """The tracking URI without credentials."""
        return without_credentials(self.tracking_uri)

    def get(self, run_id: str) -> RunData:
        with translated(self.tracking_uri):
            return self._api.get(run_id)

    def write(self, run_id: str, tags: Mapping[str, str], points: Sequence[Point] = ()) -> None:
        with translated(self.tracking_uri, "change this run"):
            self._api.write(run_id, tags, points)

    def why_read_only(self, run_id: str) -> str | None:
        try:
            with translated(self.tracking_uri, "change this run"):
                self._api.try_write(run_id)
        except NotPermitted as refusal:
            return str(refusal)
        return None

    def set_status(self, run_id: str, status: RunStatus) -> None:
        with translated(self.tracking_uri, "change this run"):
            self._api.set_status(run_id, status)

    def find(
        self, *, prefix: str = "", name: str | None = None, live: bool = False, limit: int = 20
    ) -> list[RunData]:
        wanted = []
        if prefix:
            wanted.append(f"attributes.run_id LIKE {_quoted(prefix + '%')}")
        if name is not None:
            wanted.append(f"attributes.run_name = {_quoted(name)}")
        if live:
            wanted.append(f"tags.`{STATUS}` LIKE '%'")
        with translated(self.tracking_uri, "list runs"):
            experiments = self._api.experiment_ids()
            return self._api.search(experiments, " and ".join(wanted), limit) if experiments else []

    def metric_history(self, run_id: str, key: str) -> list[Point]:
        with translated(self.tracking_uri):
            points = self._api.metric_history(run_id, key)
        return sorted(points, key=lambda p: (p.step, p.timestamp))


def _quoted(text: str) -> str:
    if "'" in text and '"' in text:
        raise StoreError(f"MLflow cannot search for a name with both kinds of quotes: {text}")
    return f'"{text}"' if "'" in text else f"'{text}'"


def time_of(ms: int | str | None) -> datetime | None:
    """A time of MLflow's, in UTC."""
    return datetime.fromtimestamp(int(ms) / 1000, UTC) if ms else None


def open_database(uri: str) -> Engine:
    """An engine whose connections wait no longer than `TIMEOUT_S`, where its driver can be told so.

    Raises:
        MissingExtra, ConfigError: The database's driver is not installed.
    """
    from sqlalchemy import create_engine

    is_set = not uri.startswith(("postgresql", "mysql")) or "PGCONNECT_TIMEOUT" in os.environ  # libpq's own
    limit = {} if is_set else {"connect_timeout": TIMEOUT_S}
    try:
        return create_engine(uri, connect_args=limit, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        if error.name in _POSTGRES_DRIVERS:
            raise MissingExtra(error.name, "postgres") from error
        raise ConfigError(f"the database driver {error.name} is not installed: pip install it") from error


def _try_database(uri: str) -> None:
    """Raises StoreUnavailable at once, where MLflow tries again for 100 seconds, warning each time."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        engine = open_database(uri)
        engine.connect().close()
        engine.dispose()
    except SQLAlchemyError as error:
        raise unavailable(uri, error) from error


def end_of(status: str, ms: int | str | None) -> datetime | None:
    """When a run ended: MLflow keeps the old end of a run that runs again."""
    return None if status in NOT_ENDED else time_of(ms)


class ClientApi:
    """MLflow's Python client, for every tracking URI that is not a server's."""

    def __init__(self, uri: str) -> None:
        from filelock import FileLock
        from mlflow import MlflowClient
        from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

        if uri.startswith(_DATABASE_SERVERS):
            _try_database(uri)
        # MLflow makes the tables of a new database here; two processes that do so at once fail.
        user = getattr(os, "getuid", int)()  # who may not be able to open the lock of another
        name = f"ftlab-{sha256(f'{user} {uri}'.encode()).hexdigest()[:16]}.lock"
        try:
            with FileLock(Path(tempfile.gettempdir()) / name):
                self.client = MlflowClient(uri)
        except UnsupportedModelRegistryStoreURIException as error:  # MLflow looks there first
            known = "http, https, sqlite, postgresql, mysql, mssql, databricks, or a folder"
            raise StoreError(f"{uri} is no tracking URI that MLflow knows: {known}") from error

    def get(self, run_id: str) -> RunData:
        return self.data(self.client.get_run(run_id))

    def write(self, run_id: str, tags: Mapping[str, str], points: Sequence[Point]) -> None:
        from mlflow.entities import Metric, RunTag

        metrics = [Metric(p.key, p.value, p.timestamp, p.step) for p in points]
        run_tags = [RunTag(key, value) for key, value in tags.items()]
        self.client.log_batch(run_id, metrics=metrics, tags=run_tags, synchronous=True)

    def try_write(self, run_id: str) -> None:
        pass  # whoever reaches a database may write to it

    def set_status(self, run_id: str, status: RunStatus) -> None:
        if status in NOT_ENDED:
            self.client.update_run(run_id, status=status)
        else:
            self.client.set_terminated(run_id, status)

    def experiment_ids(self) -> list[str]:
        found, token = [], None
        while True:
            page = self.client.search_experiments(max_results=_PAGE, page_token=token)
            found += [experiment.experiment_id for experiment in page]
            token = page.token
            if not token:
                return found

    def search(self, experiments: list[str], query: str, limit: int) -> list[RunData]:
        order = ["attributes.start_time DESC"]
        runs = self.client.search_runs(experiments, query, max_results=limit, order_by=order)
        return [self.data(run) for run in runs]

    def metric_history(self, run_id: str, key: str) -> list[Point]:
        history = self.client.get_metric_history(run_id, key)
        return [Point(m.key, m.value, m.step, m.timestamp) for m in history]

    @staticmethod
    def data(run: Any) -> RunData:
        """MLflow's entity as ours."""
        info = run.info
        return RunData(
            run_id=info.run_id,
            name=info.run_name or "",
            experiment_id=info.experiment_id,
            status=info.status,
            started=time_of(info.start_time),
            ended=end_of(info.status, info.end_time),
            tags=dict(run.data.tags),
            metrics=dict(run.data.metrics),
            steps={metric.key: metric.step for metric in run.data.to_proto().metrics},
            logged_at={metric.key: metric.timestamp for metric in run.data.to_proto().metrics},
        )


class RestApi:
    """MLflow's REST API, version 2.0."""

    def __init__(self, uri: str) -> None:
        from mlflow.utils.credentials import get_default_host_creds

        self._creds = get_default_host_creds(uri.rstrip("/"))

    def call(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request, and its answer."""
        from mlflow.utils.rest_utils import http_request, verify_rest_response

        endpoint = f"/api/2.0/mlflow/{path}"
        sent = {"params": body} if method == "GET" else {"json": body}
        response = http_request(self._creds, endpoint, method, max_retries=0, timeout=TIMEOUT_S, **sent)
        check_refusal(response)
        answer: dict[str, Any] = json.loads(verify_rest_response(response, endpoint).text)
        return answer

    def get(self, run_id: str) -> RunData:
        return self.data(self.call("GET", "runs/get", {"run_id": run_id})["run"])

    def write(self, run_id: str, tags: Mapping[str, str], points: Sequence[Point]) -> None:
        if not points and len(tags) <= _FEW_TAGS:
            for key, value in tags.items():
                self.call("POST", "runs/set-tag", {"run_id": run_id, "key": key, "value": value})
            return
        body = {
            "run_id": run_id,
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
            "metrics": [point._asdict() for point in points],
        }
        self.call("POST", "runs/log-batch", body)

    def try_write(self, run_id: str) -> None:
        # A server asks who may do this before it looks at what is to be written: nothing.
        self.call("POST", "runs/log-batch", {"run_id": run_id})

    def set_status(self, run_id: str, status: RunStatus) -> None:
        body: dict[str, Any] = {"run_id": run_id, "status": status}
        if status not in NOT_ENDED:
            body["end_time"] = int(datetime.now(UTC).timestamp() * 1000)
        self.call("POST", "runs/update", body)

    def experiment_ids(self) -> list[str]:
        pages = self.pages("POST", "experiments/search", {"max_results": _PAGE}, "experiments")
        return [experiment["experiment_id"] for experiment in pages]

    def search(self, experiments: list[str], query: str, limit: int) -> list[RunData]:
        body = {
            "experiment_ids": experiments,
            "filter": query,
            "max_results": limit,
            "order_by": ["attributes.start_time DESC"],
        }
        return [self.data(run) for run in self.call("POST", "runs/search", body).get("runs", [])]

    def metric_history(self, run_id: str, key: str) -> list[Point]:
        body = {"run_id": run_id, "metric_key": key, "max_results": _HISTORY_PAGE}
        return [
            Point(m["key"], float(m["value"]), int(m.get("step", 0)), int(m["timestamp"]))
            for m in self.pages("GET", "metrics/get-history", body, "metrics")
        ]

    def pages(self, method: str, path: str, body: dict[str, Any], key: str) -> Iterator[Any]:
        """What all pages of an answer list under `key`."""
        while True:
            page = self.call(method, path, body)
            yield from page.get(key, [])
            if not page.get("next_page_token"):
                return
            body = body | {"page_token": page["next_page_token"]}

    @staticmethod
    def data(run: dict[str, Any]) -> RunData:
        """A run in an answer as ours."""
        info, data = run["info"], run.get("data", {})
        metrics = data.get("metrics", [])
        return RunData(
            run_id=info["run_id"],
            name=info.get("run_name", ""),
            experiment_id=info["experiment_id"],
            status=info["status"],
            started=time_of(info.get("start_time")),
            ended=end_of(info["status"], info.get("end_time")),
            tags={tag["key"]: tag.get("value", "") for tag in data.get("tags", [])},
            metrics={metric["key"]: float(metric["value"]) for metric in metrics},
            steps={metric["key"]: int(metric.get("step", 0)) for metric in metrics},
            logged_at={metric["key"]: int(metric["timestamp"]) for metric in metrics},
        )
