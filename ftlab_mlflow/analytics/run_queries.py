"""Questions about single runs: their series, what tells them apart, what was changed while they trained."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ftlab_mlflow.analytics import scope
from ftlab_mlflow.analytics.answer import Answer, clipped, shortened, shown, size
from ftlab_mlflow.analytics.comparison import MAX_RUNS, differing_params
from ftlab_mlflow.analytics.queries import Offset, Skip
from ftlab_mlflow.analytics.reader import PARENT, RunReader, RunRecord
from ftlab_mlflow.analytics.run_rows import row_of
from ftlab_mlflow.analytics.series import Series, nonfinite, reduce
from ftlab_mlflow.control.messages import Update
from ftlab_mlflow.control.view import RunView
from ftlab_mlflow.control.wire import Scalar, utc_now
from ftlab_mlflow.errors import AnalyticsError
from ftlab_mlflow.settings import answer_chars

Metrics = Annotated[list[str], Field(min_length=1, max_length=10)]
Runs = Annotated[list[str], Field(min_length=1, max_length=MAX_RUNS)]


def get_run(run: str, skip: Skip | None = None, *, tracking_uri: str | None = None) -> Answer:
    """One run whole: state, parameters, last metrics, tags, its parent and children, its live changes.

    Args:
        run: Id, unique prefix of one, or name.
        skip: Names of each part to pass over, such as ``{"params": 40}``.
        tracking_uri: MLflow's tracking URI; None is MLflow's own setting.

    Returns:
        ``run_id, name, experiment, status`` (MLflow's), ``state`` (of its trainer: running, paused, lost, …),
        ``start_time, end_time`` (Unix seconds), ``step, max_steps, method, model``; ``params``; ``metrics``
        with ``last`` value and its ``step``, the most telling first; ``tags`` that people set; ``parent`` and
        ``children`` (nested runs); ``requests``: how many were ``applied``, ``rejected``, ``cancelled`` and
        are ``pending`` (`live_changes` has them). ``total`` counts the names of ``params``, ``metrics``,
        ``tags`` and ``children``. Where it would be too long, the last ones are left out and counted in
        ``omitted``; ``next`` gets them. Of texts of more than 500 characters the begin is shown.

    Raises:
        AnalyticsError: No such run; no such part.
        StoreError: As the tracking store does.
    """
    store = scope.reader(tracking_uri)
    record = scope.record(store, run)
    data, view = record.data, RunView.of(record.data)
    row = row_of(record, view)
    answer: Answer = {
        "run_id": data.run_id,
        "name": data.label,
        "experiment": record.experiment,
        "status": data.status,
        "state": view.state,
        "start_time": data.started and data.started.timestamp(),
        "end_time": data.ended and data.ended.timestamp(),
        "step": row.step,
        "max_steps": row.max_steps,
        "method": row.method,
        "model": row.model,
        "params": {name: clipped(text) for name, text in sorted(record.params.items())},
        "metrics": {
            metric: {"last": shown(data.metrics[metric]), "step": data.steps[metric]}
            for metric in scope.by_importance(data.metrics)
        },
        "tags": {name: clipped(text) for name, text in sorted(row.tags.items())},
        "parent": data.tags.get(PARENT),
        "children": {
            head.run_id: {"name": head.label, "status": head.status} for head in store.children(data.run_id)
        },
        "requests": dict(Counter(e.ack.status if e.ack else "pending" for e in view.entries)),
        "policy": {"metrics": "the value of the highest step, not the best; NaN and infinity as text"},
    }
    parts = ("params", "metrics", "tags", "children")
    return shortened(answer, parts, arguments={"run": run}, skip=skip)


def metric_history(
    run: str,
    metrics: Metrics,
    max_points: Annotated[int, Field(ge=10, le=1000)] = 200,
    from_step: int | None = None,
    to_step: int | None = None,
    offset: Offset | None = None,
    *,
    tracking_uri: str | None = None,
) -> Answer:
    """Series of a run, reduced without losing extremes, or point by point.

    Args:
        run: Id, unique prefix of one, or name.
        metrics: Names, as logged.
        max_points: Points of each series at most. Of more, each piece keeps its smallest and its largest.
        from_step, to_step: Only these optimizer steps, both included.
        offset: If given, all points, `max_points` at a time, and so many of each series are passed over.
        tracking_uri: MLflow's tracking URI; None is MLflow's own setting.

    Returns:
        ``series``: by metric ``points`` ([step, value], NaN and infinity as text), ``total`` values in the
        range, how many are ``nan`` and ``inf``, the ``first`` and ``last`` value, ``min`` and ``max`` of the
        finite ones as [step, value] (the first of equal ones). ``omitted`` counts the points that are not
        shown; ``next`` gets all points of a reduced series from its begin, or those that come after these.
        ``max_points``: What was kept, fewer than asked for where the answer would be too long.

    Raises:
        AnalyticsError: No such run; it has logged no such metric.
        StoreError: As the tracking store does.
    """
    store = scope.reader(tracking_uri)
    record = scope.record(store, run)
    arguments = {"run": run, "metrics": metrics, "from_step": from_step, "to_step": to_step}
    whole = {}
    for metric in dict.fromkeys(metrics):
        _known_metric(record, metric)
        found = store.whole([record.data.run_id], metric)[record.data.run_id]
        whole[metric] = _between(found, from_step, to_step)
    while True:
        series = {metric: _told(one, max_points, offset) for metric, one in whole.items()}
        left_out = sum(
            one["total"] - len(one["points"]) - min(offset or 0, one["total"]) for one in series.values()
        )
        begin = 0 if offset is None else offset + max_points
        answer: Answer = {
            "run_id": record.data.run_id,
            "name": record.data.label,
            "series": series,
            "max_points": max_points,
            "omitted": {"points between those that are shown": left_out} if left_out else {},
            "next": {**arguments, "max_points": max_points, "offset": begin} if left_out else None,
            "policy": {
                "order": "by step, then by time: after a rollback a step has two values",
                "not finite": "NaN and infinity are points as text, counted, and in no min or max",
            },
        }
        if max_points <= 2 or size(answer) <= answer_chars():
            return answer
        max_points = max(2, max_points * 3 // 4)


def _between(series: Series, from_step: int | None, to_step: int | None) -> Series:
    low, high = (
        bound if bound is not None else sign * math.inf for bound, sign in ((from_step, -1), (to_step, 1))
    )
    cut = series.taken((series.steps >= low) & (series.steps <= high))
    return replace(cut, total=len(cut.steps))


def _told(series: Series, points: int, offset: int | None) -> dict[str, Any]:
    kinds = {name: len(places) for name, places in nonfinite(series).items()}
    finite = np.flatnonzero(np.isfinite(series.values))
    values = series.values[finite]
    kept = reduce(series, points) if offset is None else series.taken(slice(offset, offset + points))
    extremes = [int(finite[at]) for at in (np.argmin(values), np.argmax(values))] if len(finite) else []
    low, high = (
        ([int(series.steps[place]), float(series.values[place])] for place in extremes)
        if extremes
        else (None, None)
    )
    ends = [shown(float(series.values[place])) for place in (0, -1)] if len(series.values) else [None, None]
    return {
        "points": [[int(s), shown(float(v))] for s, v in zip(kept.steps, kept.values, strict=True)],
        "total": series.total,
        "nan": kinds.get("NaN", 0),
        "inf": kinds.get("+∞", 0) + kinds.get("−∞", 0),
        "first": ends[0],
        "last": ends[1],
        "min": low,
        "max": high,
    }


def compare_runs(
    runs: Runs,
    metrics: Metrics | None = None,
    skip: Skip | None = None,
    *,
    tracking_uri: str | None = None,
) -> Answer:
    """What differs between runs: parameters, and how metrics ended.

    Args:
        runs: Ids, unique prefixes of ids, or names; up to ten.
        metrics: Names; None is every metric that is a loss, a reward, a margin or an accuracy.
        skip: Names of each part to pass over, such as ``{"params": 40}``.
        tracking_uri: MLflow's tracking URI; None is MLflow's own setting.

    Returns:
        ``runs``: name and status by run id. ``params``: values by run id, only of parameters that differ
        (numbers compared as numbers). ``metrics``: ``last``, ``min`` and ``max`` by run id, of runs that have
        logged it; ``min`` and ``max`` are of finite values. ``total`` counts the names of both. Where it
        would be too long, the last ones are left out and counted in ``omitted``; ``next`` gets them.

    Raises:
        AnalyticsError: No such run; none of them has logged a metric that was named; no such part.
        StoreError: As the tracking store does.
    """
    store = scope.reader(tracking_uri)
    records = scope.records(store, runs)
    ids = [record.data.run_id for record in records]
    logged: dict[str, int] = {}
    for record in records:
        for name in record.data.metrics:
            logged[name] = logged.get(name, 0) + 1
    for metric in metrics or ():
        scope.check_metric(metric, logged)
    chosen = list(dict.fromkeys(metrics)) if metrics else scope.telling(logged)
    answer: Answer = {
        "runs": {r.data.run_id: {"name": r.data.label, "status": r.data.status} for r in records},
        "params": {
            one.name: {id: text and clipped(text) for id, text in zip(ids, one.values, strict=True)}
            for one in differing_params(records)
        },
        "metrics": {metric: _outcomes(store, records, metric) for metric in chosen},
        "policy": {
            "last": "of the highest step; NaN and infinity as text; a run that never logged it is left out",
            "runs": "of every status",
            "params": "only those that differ; numbers as numbers",
        },
    }
    arguments = {"runs": list(runs), "metrics": metrics}
    return shortened(answer, ("params", "metrics"), arguments=arguments, skip=skip)


def _outcomes(store: RunReader, records: list[RunRecord], metric: str) -> dict[str, dict[str, Any]]:
    have = [record.data for record in records if metric in record.data.metrics]
    series = store.whole([data.run_id for data in have], metric)
    found = {}
    for data in have:
        values = series[data.run_id].values
        finite = values[np.isfinite(values)]
        found[data.run_id] = {
            "last": shown(data.metrics[metric]),
            "min": float(finite.min()) if len(finite) else None,
            "max": float(finite.max()) if len(finite) else None,
        }
    return found


def propose_update(
    run: str,
    values: Annotated[dict[str, Scalar], Field(min_length=1)],
    reason: str | None = None,
    *,
    tracking_uri: str | None = None,
) -> Answer:
    """Checks a live change against what the run offers, and gives it back as a proposal. It writes nothing.

    Args:
        run: Id, unique prefix of one, or name.
        values: New values by parameter.
        reason: Why, in a sentence.
        tracking_uri: MLflow's tracking URI; None is MLflow's own setting.

    Returns:
        ``run_id, name, changes`` (``from`` and ``to`` by parameter, ``from`` is the value last asked for),
        ``reason``, ``is_allowed`` and ``problems`` by parameter where it is not.

    Raises:
        AnalyticsError: No such run, or it cannot be changed now; the text says why.
        StoreError: As the tracking store does.
    """
    from ftlab_mlflow.control.view import why_closed

    store = scope.reader(tracking_uri)
    record = scope.record(store, run)
    view = RunView.of(record.data)
    if why := why_closed(view):
        raise AnalyticsError(f"run {record.data.label} cannot be changed: {why}")
    assert view.surface is not None
    params = view.surface.params
    found = view.surface.problems(Update(at=utc_now(), set=dict(values)))
    return {
        "run_id": record.data.run_id,
        "name": record.data.label,
        "changes": {
            name: {"from": params[name].asked if name in params else None, "to": value}
            for name, value in values.items()
        },
        "reason": reason,
        "is_allowed": found is None,
        "problems": {} if found is None else found[1],
        "policy": "a proposal: nothing was sent; a person sends it",
    }


def _known_metric(record: RunRecord, metric: str) -> None:
    logged: Mapping[str, float] = record.data.metrics
    if metric not in logged:
        label = record.data.label
        raise AnalyticsError(f"run {label} has logged no {metric!r}; {scope.nearest(metric, logged)}")
