"""Bulk reads over the REST API of a tracking server: the calls with which the MLflow UI draws its charts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np

from ftlab_mlflow.analytics.reader import EXACT, series_of
from ftlab_mlflow.analytics.search_reader import Found, SearchReader, position_of_run
from ftlab_mlflow.analytics.series import Series, reduce
from ftlab_mlflow.control.mlflow_errors import translated
from ftlab_mlflow.control.mlflow_store import RestApi

SAMPLE = 2500
"""Values of a run that MLflow's server gives at most where it samples (its ``MAX_RESULTS_PER_RUN``)."""
WHOLE = EXACT
"""Series of up to about so many values are read whole where few runs are asked for, 0.5 s on two cores."""
_FEW_RUNS = 10
_RUNS_AT_ONCE = 50
"""The server takes 100, but all ids stand in a URL, and some servers take no more than 4 KB of it."""
_ALONE = 200
"""Runs up to which they are read one page after the other."""
_SPANS, _THREADS = 32, 4
"""Spans of time that many runs are read in, and how many at once: `mlflow server` starts 4 workers."""
_INT32 = 2**31 - 1
"""Bounds of steps are 32-bit numbers in this call."""
_EXPERIMENTS = 1000

Points = list[tuple[int, float, int]]


class RestReader(SearchReader):
    """A `RunReader` on a tracking server: one attempt and a short time limit a call."""

    def __init__(self, tracking_uri: str) -> None:
        super().__init__(tracking_uri)
        with translated(tracking_uri):
            self._api = RestApi(tracking_uri)

    def _all_experiments(self) -> dict[str, str]:
        found = self._api.pages("POST", "experiments/search", {"max_results": _EXPERIMENTS}, "experiments")
        return {experiment["experiment_id"]: experiment["name"] for experiment in found}

    def _search(self, experiments: Sequence[str], query: str, limit: int, order: str = "DESC") -> list[Found]:
        body = {
            "experiment_ids": list(experiments),
            "filter": query,
            "max_results": limit,
            "order_by": [f"attributes.start_time {order}"],
        }
        return [self._found(run) for run in self._api.call("POST", "runs/search", body).get("runs", [])]

    def _get(self, run_id: str) -> Found:
        return self._found(self._api.call("GET", "runs/get", {"run_id": run_id})["run"])

    @staticmethod
    def _found(run: dict[str, Any]) -> Found:
        params = {param["key"]: param.get("value", "") for param in run.get("data", {}).get("params", [])}
        return RestApi.data(run), params, run["info"]["lifecycle_stage"] == "active"

    def _all(self, experiments: Sequence[str]) -> Iterable[Found]:
        """All runs, newest first: of many, spans of their start times are read side by side."""
        newest = list(self._matching(experiments, [], limit=_ALONE))
        if len(newest) < _ALONE:
            return newest
        with translated(self.tracking_uri, "list runs"):
            oldest = self._search(experiments, "", 1, "ASC")
        last = position_of_run(newest[-1][0])
        ends = np.linspace(-position_of_run(oldest[0][0])[0] - 1, -last[0], _SPANS + 1).astype(np.int64)
        spans = list(zip(ends[-2::-1].tolist(), ends[:0:-1].tolist(), strict=True))

        def read(span: tuple[int, int]) -> list[Found]:
            low, high = (f"attributes.start_time {op} {ms}" for op, ms in zip((">", "<="), span, strict=True))
            found = self._matching(experiments, [low, high])
            return [run for run in found if position_of_run(run[0]) > last]

        with ThreadPoolExecutor(_THREADS) as threads:
            return [*newest, *chain.from_iterable(threads.map(read, spans))]

    def whole(self, run_ids: Sequence[str], key: str) -> dict[str, Series]:
        def read(some: Sequence[str]) -> dict[str, Series]:
            with translated(self.tracking_uri):
                return {
                    run_id: series_of(sample if len(sample) < SAMPLE else self._history(run_id, key, None))
                    for run_id, sample in self._sampled(some, key, SAMPLE, None).items()
                }

        begins = range(0, len(run_ids), _RUNS_AT_ONCE)
        with ThreadPoolExecutor(_THREADS) as threads:
            parts = threads.map(read, [run_ids[begin : begin + _RUNS_AT_ONCE] for begin in begins])
            return {run_id: series for part in parts for run_id, series in part.items()}

    def series(
        self, run_ids: Sequence[str], key: str, *, points: int = 1000, after: int | None = None
    ) -> dict[str, Series]:
        few = len(run_ids) <= _FEW_RUNS
        limit = SAMPLE if few else min(points, SAMPLE)
        found: dict[str, Series] = {}
        with translated(self.tracking_uri):
            for begin in range(0, len(run_ids), _RUNS_AT_ONCE):
                some = run_ids[begin : begin + _RUNS_AT_ONCE]
                for run_id, sample in self._sampled(some, key, limit, after).items():
                    is_whole = len(sample) < limit or not few
                    whole = series_of(sample) if is_whole else self._long(run_id, key, after, sample)
                    found[run_id] = reduce(whole, points)
        return found

    def _sampled(
        self, run_ids: Sequence[str], key: str, limit: int, after: int | None, to: int = _INT32
    ) -> dict[str, Points]:
        """Of each run all values, if they are no more than `limit`.

        Of more, the first of each of `limit` pieces of the same length, but of the last piece its last.
        """
        if after is not None and after >= to:
            return {run_id: points for run_id in run_ids if (points := self._history(run_id, key, after))}
        query = {"run_ids": list(run_ids), "metric_key": key, "max_results": limit}
        if after is not None:
            query |= {"start_step": after + 1, "end_step": to}
        found: dict[str, Points] = defaultdict(list)
        for metric in self._api.call("GET", "metrics/get-history-bulk-interval", query).get("metrics", []):
            found[metric["run_id"]].append(_point(metric))
        return found

    def _long(self, run_id: str, key: str, after: int | None, sample: Points) -> Series:
        """All values, if they are not too many for that; otherwise the sample."""
        begin, end = sample[0][0], sample[1][0]
        at_least = len(sample)
        if -_INT32 < begin < end <= _INT32:
            piece = self._sampled([run_id], key, SAMPLE, begin - 1, end - 1).get(run_id, [])
            at_least = max(at_least, SAMPLE * (len(piece) - 1) + 1)  # no piece is longer than the first
        if at_least > WHOLE or after is not None:  # a history is read from its beginning
            return series_of(sample, at_least)
        return series_of(self._history(run_id, key, after))

    def _history(self, run_id: str, key: str, after: int | None) -> Points:
        query = {"run_id": run_id, "metric_key": key, "max_results": WHOLE}
        every = map(_point, self._api.pages("GET", "metrics/get-history", query, "metrics"))
        return [point for point in every if after is None or point[0] > after]


def _point(metric: dict[str, Any]) -> tuple[int, float, int]:
    return int(metric.get("step", 0)), float(metric["value"]), int(metric["timestamp"])
