"""Runs by MLflow's own search, which gives runs whole: for what speaks no SQL and no REST, and under REST."""

from __future__ import annotations

import math
import re
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ftlab_mlflow.analytics.columns import Agg, Keys, RunColumns, RunHead, Value, Wanted, mean_of
from ftlab_mlflow.analytics.moments import mean
from ftlab_mlflow.analytics.reader import PARENT, REQUEST_TAGS, RunPage, RunRecord, series_of, told
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
_MANY, _KEEP_S = 500, 120
"""From so many runs on, those that have ended are kept for so many seconds: they take seconds to read."""
_FEWEST_DIGITS = 4
"""Of an id's begin, where runs have it as their name."""
_LATE_S = 600
"""Clocks of trainers may be so much behind."""


class _Asked(NamedTuple):
    """One value of a run, and what the run had logged then."""

    run_id: str
    key: str
    agg: Agg
    logged: str


@dataclass(frozen=True)
class _Kept:
    """All runs of some experiments. read_at: When those that had ended were read, on the monotonic clock."""

    read_at: float
    runs: list[Found]


class SearchReader(ABC):
    """A `RunReader` on top of MLflow's search."""

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri
        self._names: dict[str, str] = {}
        self._values: dict[_Asked, Value | None] = {}
        self._values_since = -math.inf
        self._kept: dict[tuple[str, ...], _Kept] = {}

    @abstractmethod
    def _all_experiments(self) -> dict[str, str]: ...
    @abstractmethod
    def _search(self, experiments: Sequence[str], query: str, limit: int) -> list[Found]: ...
    @abstractmethod
    def _get(self, run_id: str) -> Found: ...
    @abstractmethod
    def whole(self, run_ids: Sequence[str], key: str) -> dict[str, Series]: ...
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
        conditions = [_HAS_NOT_ENDED] if active else []
        found = list(self._matching(wanted, conditions, position_of(token), limit + 1))
        records = tuple(_record(run, names, params) for run in found[:limit])
        return RunPage(
            records, token_of(position_of_run(found[limit - 1][0])) if len(found) > limit else None
        )

    def _matching(
        self,
        experiments: Sequence[str],
        conditions: Sequence[str],
        last: Position | None = None,
        limit: int | None = None,
    ) -> Iterator[Found]:
        """Runs that meet all conditions, newest first.

        Args:
            last: Only those after this one. limit: So many are wanted; a few more may come.
        """
        count, size, are_more = 0, 0, bool(experiments)
        while are_more and (limit is None or count < limit):
            left = _AT_ONCE if limit is None else limit - count
            size = max(size, min(_AT_ONCE, left + 1))  # the last one comes again
            here = [*conditions, f"attributes.start_time <= {-last[0]}"] if last else conditions
            with translated(self.tracking_uri, "list runs"):
                some = self._search(experiments, " and ".join(here), size)
            new = [run for run in some if not last or position_of_run(run[0]) > last]
            yield from new
            count += len(new)
            are_more = len(some) == size
            if new:
                last, size = position_of_run(new[-1][0]), 0
            else:
                size *= 2  # so many started in one millisecond

    def runs_of(self, experiments: Sequence[str]) -> SearchedRuns:
        return SearchedRuns(self, experiments)

    def named(self, name: str) -> list[RunHead]:
        names = self.experiments()
        if "'" in name:  # MLflow's filters cannot say it
            return [head for head in self.runs_of(list(names)).columns(Wanted()).heads if head.label == name]
        found = self._heads(list(names), f"attributes.run_name = '{name}'")
        if is_begin_of_id(name, found):
            by_id = self._heads(list(names), f"attributes.run_id LIKE '{name}%'")
            found = list({head.run_id: head for head in (*found, *by_id)}.values())
        return found

    def children(self, run_id: str) -> list[RunHead]:
        return self._heads(list(self.experiments()), f"tags.`{PARENT}` = '{run_id}'")

    def _heads(self, experiments: Sequence[str], query: str) -> list[RunHead]:
        return [_head(_told(data)) for data, _, _ in self._matching(experiments, [query])]

    def every(self, experiments: Sequence[str]) -> tuple[list[Found], float]:
        """All runs of these experiments, the newest first, and how many seconds ago the ended ones were read.

        Of many runs those that had ended are kept for a while: then only the others are read, and those that
        have ended since. What is done to an ended run meanwhile is not seen.
        """
        kept = self._kept.get(tuple(experiments))
        now = time.monotonic()
        if kept is None or now - kept.read_at > _KEEP_S:
            kept = _Kept(now, list(self._all(experiments)))
        else:
            kept = replace(kept, runs=self._updated(experiments, kept.runs))
        if len(kept.runs) >= _MANY:
            self._kept[tuple(experiments)] = kept
        else:
            self._kept.pop(tuple(experiments), None)
        return kept.runs, now - kept.read_at

    def _updated(self, experiments: Sequence[str], runs: Sequence[Found]) -> list[Found]:
        ends = [data.ended for data, _, _ in runs if data.ended]
        since = round((max(ends).timestamp() - _LATE_S) * 1000) if ends else 0
        fresh = {
            run[0].run_id: run
            for query in (_HAS_NOT_ENDED, f"attributes.end_time >= {since}")
            for run in self._matching(experiments, [query])
        }
        for data, params, _ in runs:
            if data.run_id not in fresh and data.ended is None:
                with suppress(RunNotFound), translated(self.tracking_uri):
                    fresh[data.run_id] = self._get(data.run_id)  # ended by a clock that is wrong, or deleted
            elif data.run_id not in fresh:
                fresh[data.run_id] = data, params, True
        return sorted((run for run in fresh.values() if run[2]), key=lambda run: position_of_run(run[0]))

    def _all(self, experiments: Sequence[str]) -> Iterable[Found]:
        return self._matching(experiments, [])

    def values(self, records: Sequence[RunRecord], key: str, agg: Agg) -> dict[str, Value]:
        """A column of `RunsOf.columns`. What takes histories of many ended runs is kept for a while, too."""
        have = {record.data.run_id: record.data for record in records if key in record.data.metrics}
        if agg == "last":
            return {data.run_id: Value(data.metrics[key], data.steps[key]) for data in have.values()}
        asked = {run_id: _Asked(run_id, key, agg, _logged(data, key)) for run_id, data in have.items()}
        if len(records) < _MANY or time.monotonic() - self._values_since > _KEEP_S:
            self._values.clear()
            self._values_since = time.monotonic()
        unknown = [run_id for run_id in have if asked[run_id] not in self._values]
        found = {run_id: _value(series, agg) for run_id, series in self.whole(unknown, key).items()}
        self._values |= {asked[id]: value for id, value in found.items() if have[id].ended is not None}
        every = {
            run_id: found[run_id] if run_id in found else self._values.get(asked[run_id]) for run_id in have
        }
        return {run_id: value for run_id, value in every.items() if value is not None}

    def record(self, run_id: str) -> RunRecord:
        with translated(self.tracking_uri):
            data, params, exists = self._get(run_id)
        if data.experiment_id not in self._names:
            self.experiments()
        name = self._names.get(data.experiment_id)
        if name is None or not exists:
            raise RunNotFound(f"run {run_id} is deleted")
        return RunRecord(_told(data), name, params)


class SearchedRuns:
    """`RunsOf`, read once."""

    def __init__(self, reader: SearchReader, experiments: Sequence[str]) -> None:
        self._reader = reader
        self._experiments = experiments

    @cached_property
    def _read(self) -> tuple[list[Found], float]:
        return self._reader.every(self._experiments)

    @property
    def _found(self) -> list[Found]:
        return self._read[0]

    @property
    def policy(self) -> dict[str, str]:
        age = self._read[1]
        if not age:
            return {}
        return {"ended runs": f"as they were read {age:.0f} s ago: deletions and edits since are not seen"}

    @cached_property
    def _records(self) -> list[RunRecord]:
        names = self._reader.experiments()
        return [_record(run, names) for run in self._found if run[0].experiment_id in names]

    def requests(self) -> dict[str, dict[str, str]]:
        found = {
            data.run_id: {key: text for key, text in data.tags.items() if key.startswith(REQUEST_TAGS)}
            for data, _, _ in self._found
        }
        return {run_id: some for run_id, some in found.items() if some}

    def columns(self, wanted: Wanted) -> RunColumns:
        records = self._records
        return RunColumns(
            heads=tuple(_head(record.data) for record in records),
            metrics={(key, agg): self._reader.values(records, key, agg) for key, agg in wanted.metrics},
            params={
                key: {r.data.run_id: r.params[key] for r in records if key in r.params}
                for key in wanted.params
            },
            tags={
                key: {r.data.run_id: r.data.tags[key] for r in records if key in r.data.tags}
                for key in wanted.tags
            },
        )

    def keys(self) -> Keys:
        texts: dict[str, set[str]] = defaultdict(set)
        for record in self._records:
            for key, value in record.params.items():
                texts[key].add(value)
        return Keys(
            Counter(key for record in self._records for key in record.data.metrics),
            Counter(key for record in self._records for key in record.params),
            Counter(key for record in self._records for key in record.data.tags),
            {key: len(values) for key, values in texts.items()},
        )


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

    def whole(self, run_ids: Sequence[str], key: str) -> dict[str, Series]:
        found = {}
        for run_id in run_ids:
            with translated(self.tracking_uri):
                history = self._client.get_metric_history(run_id, key)
            if history:
                found[run_id] = series_of((m.step, m.value, m.timestamp) for m in history)
        return found

    def series(
        self, run_ids: Sequence[str], key: str, *, points: int = 1000, after: int | None = None
    ) -> dict[str, Series]:
        found = self.whole(run_ids, key)
        if after is not None:
            later = {run_id: series.taken(series.steps > after) for run_id, series in found.items()}
            found = {
                id: replace(each, total=len(each.steps)) for id, each in later.items() if len(each.steps)
            }
        return {run_id: reduce(series, points) for run_id, series in found.items()}


def is_begin_of_id(name: str, named: Sequence[RunHead]) -> bool:
    """Whether runs may be meant by the begin of their ids; short names of runs (1, 2, …) are names alone."""
    return re.fullmatch("[0-9a-f]+", name) is not None and (not named or len(name) >= _FEWEST_DIGITS)


def token_of(position: Position) -> str:
    """What gets the runs after this one."""
    return f"{-position[0]}:{position[1]}"


def position_of(token: str | None) -> Position | None:
    """The run that a page ended with."""
    if token is None:
        return None
    started, run_id = token.split(":")
    return -int(started), run_id


def position_of_run(data: RunData) -> Position:
    """Where a run stands."""
    return -round(data.started.timestamp() * 1000) if data.started else 0, data.run_id


def _record(run: Found, names: Mapping[str, str], params: Sequence[str] | None = None) -> RunRecord:
    data, every, _ = run
    return RunRecord(_without_requests(data), names[data.experiment_id], _chosen(every, params))


def _logged(data: RunData, key: str) -> str:
    """Changes when the run logs the metric, ends or goes on."""
    return f"{data.ended} {data.metrics[key]} {data.steps[key]} {data.logged_at[key]}"


def _value(series: Series, agg: Agg) -> Value | None:
    """The value of a whole series that was asked for; None where none is finite."""
    if count := mean_of(agg):
        return Value(mean(series.values[-count:].tolist()), int(series.steps[-1]))
    places = np.flatnonzero(np.isfinite(series.values))
    if not len(places):
        return None
    best = places[(np.argmin if agg == "min" else np.argmax)(series.values[places])]
    return Value(float(series.values[best]), int(series.steps[best]))


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
