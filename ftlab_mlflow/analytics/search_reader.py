"""Runs by MLflow's own search, which gives runs whole: for what speaks no SQL and no REST, and under REST."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ftlab_mlflow.analytics.columns import Agg, Keys, RunColumns, RunHead, Value, Wanted
from ftlab_mlflow.analytics.reader import REQUEST_TAGS, RunPage, RunRecord, series_of, told
from ftlab_mlflow.analytics.series import Series, reduce
from ftlab_mlflow.control.mlflow_errors import translated
from ftlab_mlflow.control.mlflow_store import ClientApi
from ftlab_mlflow.control.store import RunData
from ftlab_mlflow.errors import RunNotFound

_AT_ONCE = 100
"""Runs that one search gives at most: MLflow reads all params and tags of each, seconds for a thousand."""
_HAS_NOT_ENDED = " and ".join(f"attributes.status != '{end}'" for end in ("FINISHED", "FAILED", "KILLED"))

Found = tuple[RunData, Mapping[str, str], bool]
"""A run, its params, and whether it is not deleted."""
Position = tuple[int, str]
"""Where a run stands among all, newest first: minus its start in ms, and its id."""


class SearchReader(ABC):
    """A `RunReader` on top of MLflow's search."""

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri
        self._names: dict[str, str] = {}

    @abstractmethod
    def _all_experiments(self) -> dict[str, str]: ...
    @abstractmethod
    def _search(self, experiments: Sequence[str], query: str, limit: int) -> list[Found]: ...
    @abstractmethod
    def _get(self, run_id: str) -> Found: ...
    @abstractmethod
    def series(
        self, run_ids: Sequence[str], key: str, *, points: int = 1000, after: int | None = None
    ) -> dict[str, Series]: ...

    def experiments(self) -> dict[str, str]:
        with translated(self.tracking_uri, "list runs"):
            self._names = self._all_experiments()
        return dict(self._names)

    def page(
        self,
        token: str | None = None,
        *,
        limit: int = 200,
        experiments: Sequence[str] | None = None,
        active: bool = False,
        params: Sequence[str] | None = None,
    ) -> RunPage:
        names = self.experiments()
        wanted = [id for id in names if experiments is None or id in experiments]
        found: list[Found] = []
        last, size, are_more = position_of(token), 0, bool(wanted)
        while are_more and len(found) <= limit:  # one more than asked for says that there are more
            size = max(size, min(_AT_ONCE, limit - len(found) + 2))  # the last one comes again
            conditions = [_HAS_NOT_ENDED] if active else []
            if last:
                conditions.append(f"attributes.start_time <= {-last[0]}")
            with translated(self.tracking_uri, "list runs"):
                some = self._search(wanted, " and ".join(conditions), size)
            new = [run for run in some if not last or _position(run[0]) > last]
            found += new
            are_more = len(some) == size
            if new:
                last, size = _position(new[-1][0]), 0
            else:
                size *= 2  # so many started in one millisecond
        records = tuple(
            RunRecord(_without_requests(data), names[data.experiment_id], _chosen(all_params, params))
            for data, all_params, _ in found[:limit]
        )
        return RunPage(records, token_of(_position(found[limit - 1][0])) if len(found) > limit else None)

    def columns(self, experiments: Sequence[str], wanted: Wanted) -> RunColumns:
        records = list(self._all(experiments))
        return RunColumns(
            heads=tuple(_head(record.data) for record in records),
            metrics={(key, agg): self._values(records, key, agg) for key, agg in wanted.metrics},
            params={
                key: {r.data.run_id: r.params[key] for r in records if key in r.params}
                for key in wanted.params
            },
            tags={
                key: {r.data.run_id: r.data.tags[key] for r in records if key in r.data.tags}
                for key in wanted.tags
            },
        )

    def keys(self, experiments: Sequence[str]) -> Keys:
        records = list(self._all(experiments))
        texts: dict[str, set[str]] = defaultdict(set)
        for record in records:
            for key, value in record.params.items():
                texts[key].add(value)
        return Keys(
            Counter(key for record in records for key in record.data.metrics),
            Counter(key for record in records for key in record.params),
            Counter(key for record in records for key in record.data.tags),
            {key: len(values) for key, values in texts.items()},
        )

    def _all(self, experiments: Sequence[str]) -> Iterator[RunRecord]:
        token = None
        while True:
            page = self.page(token, limit=_AT_ONCE, experiments=experiments)
            yield from page.records
            token = page.next
            if token is None:
                return

    def _values(self, records: Sequence[RunRecord], key: str, agg: Agg) -> dict[str, Value]:
        have = [record.data for record in records if key in record.data.metrics]
        if agg == "last":
            return {data.run_id: Value(data.metrics[key], data.steps[key]) for data in have}
        found = {}
        for run_id, series in self.series([data.run_id for data in have], key).items():
            places = np.flatnonzero(np.isfinite(series.values))
            if len(places):
                best = places[(np.argmin if agg == "min" else np.argmax)(series.values[places])]
                found[run_id] = Value(float(series.values[best]), int(series.steps[best]))
        return found

    def record(self, run_id: str) -> RunRecord:
        with translated(self.tracking_uri):
            data, params, exists = self._get(run_id)
        if data.experiment_id not in self._names:
            self.experiments()
        name = self._names.get(data.experiment_id)
        if name is None or not exists:
            raise RunNotFound(f"run {run_id} is deleted")
        return RunRecord(_told(data), name, params)


class ClientReader(SearchReader):
    """Over MLflow's Python client: slow, and right for every tracking store that it knows."""

    def __init__(self, tracking_uri: str) -> None:
        super().__init__(tracking_uri)
        with translated(tracking_uri):
            self._client = ClientApi(tracking_uri).client

    def _all_experiments(self) -> dict[str, str]:
        names: dict[str, str] = {}
        token = None
        while True:
            page = self._client.search_experiments(page_token=token)
            names |= {experiment.experiment_id: experiment.name for experiment in page}
            token = page.token
            if not token:
                return names

    def _search(self, experiments: Sequence[str], query: str, limit: int) -> list[Found]:
        order = ["attributes.start_time DESC"]
        return [
            self._found(run)
            for run in self._client.search_runs(list(experiments), query, max_results=limit, order_by=order)
        ]

    def _get(self, run_id: str) -> Found:
        return self._found(self._client.get_run(run_id))

    @staticmethod
    def _found(run: Any) -> Found:
        return ClientApi.data(run), dict(run.data.params), run.info.lifecycle_stage == "active"

    def series(
        self, run_ids: Sequence[str], key: str, *, points: int = 1000, after: int | None = None
    ) -> dict[str, Series]:
        found = {}
        for run_id in run_ids:
            with translated(self.tracking_uri):
                history = self._client.get_metric_history(run_id, key)
            logged = [(m.step, m.value, m.timestamp) for m in history if after is None or m.step > after]
            if logged:
                found[run_id] = reduce(series_of(logged), points)
        return found


def token_of(position: Position) -> str:
    """What gets the runs after this one."""
    return f"{-position[0]}:{position[1]}"


def position_of(token: str | None) -> Position | None:
    """The run that a page ended with."""
    if token is None:
        return None
    started, run_id = token.split(":")
    return -int(started), run_id


def _position(data: RunData) -> Position:
    return -round(data.started.timestamp() * 1000) if data.started else 0, data.run_id


def _head(data: RunData) -> RunHead:
    started, ended = (round(at.timestamp() * 1000) if at else None for at in (data.started, data.ended))
    return RunHead(data.run_id, data.label, data.experiment_id, data.status, started, ended)


def _told(data: RunData) -> RunData:
    return replace(data, metrics={key: told(value) for key, value in data.metrics.items()})


def _without_requests(data: RunData) -> RunData:
    kept = {key: value for key, value in data.tags.items() if not key.startswith(REQUEST_TAGS)}
    return replace(_told(data), tags=kept)


def _chosen(params: Mapping[str, str], names: Sequence[str] | None) -> Mapping[str, str]:
    return params if names is None else {name: params[name] for name in names if name in params}
