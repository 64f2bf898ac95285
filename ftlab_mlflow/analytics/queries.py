"""Questions about the runs of an experiment: which there are, which fit, which is best, what groups have.

Answers are lists in the shape of `analytics.answer.listed`. What holds for all of them is said in each
answer's ``policy``.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field

from ftlab_mlflow.analytics import conditions, scope
from ftlab_mlflow.analytics.answer import Answer, clipped, listed, shown
from ftlab_mlflow.analytics.columns import Agg, RunColumns, RunHead, Value, Wanted, mean_of
from ftlab_mlflow.analytics.conditions import Condition, FieldName
from ftlab_mlflow.analytics.moments import deviation, mean
from ftlab_mlflow.analytics.reader import RunsOf
from ftlab_mlflow.control.store import RunStatus

Limit = Annotated[int, Field(ge=1, le=100)]
Offset = Annotated[int, Field(ge=0)]
Skip = dict[str, Offset]
Statuses = Annotated[list[RunStatus], Field(min_length=1)]
GroupField = Annotated[str, Field(pattern=r"^((params|tags)\.(?s:.+)|status)$")]
_Found = tuple[RunHead, Mapping[str, Any]]
"""A run, and what it says in the fields that were asked about."""
_LAST = "the value of the highest step, as MLflow's `run.data.metrics`; not the best"
_AGGS = {"last": _LAST, "min": "the smallest finite value", "max": "the largest finite value"}


def list_experiments(*, limit: Limit = 50, offset: Offset = 0, tracking_uri: str | None = None) -> Answer:
    """All experiments that are not deleted: name, runs by status, and when the first and last one started.

    Args:
        limit: Rows to give at most. offset: Rows to pass over.
        tracking_uri: MLflow's tracking URI; None is MLflow's own setting.

    Returns:
        Rows of ``experiment_id, name, runs, by_status, first_start, last_start`` (Unix seconds), by name.

    Raises:
        StoreError: As the tracking store does.
    """
    store = scope.reader(tracking_uri)
    names = store.experiments()
    runs = store.runs_of(list(names))
    heads = runs.columns(Wanted()).heads if names else ()
    of: dict[str, list[RunHead]] = defaultdict(list)
    for head in heads:
        of[head.experiment_id].append(head)
    rows = [
        {
            "experiment_id": id,
            "name": name,
            "runs": len(of[id]),
            "by_status": dict(sorted(Counter(head.status for head in of[id]).items())),
            "first_start": _seconds(min((head.started for head in of[id] if head.started), default=None)),
            "last_start": _seconds(max((head.started for head in of[id] if head.started), default=None)),
        }
        for id, name in sorted(names.items(), key=lambda item: (item[1], item[0]))
    ]
    policy = {
        "runs": "of every status, nested ones too; deleted ones are left out",
        **(runs.policy if names else {}),
    }
    return listed(rows, arguments={"limit": limit}, offset=offset, limit=limit, policy=policy)


def search_runs(
    experiment: str,
    where: Annotated[Sequence[Condition], Field(max_length=20)] = (),
    order_by: FieldName | None = None,
    descending: bool = False,
    limit: Limit = 20,
    offset: Offset = 0,
    *,
    tracking_uri: str | None = None,
) -> Answer:
    """The runs of an experiment that meet all conditions.

    Args:
        experiment: Name or id.
        where: Conditions on ``params.x``, ``tags.x``, ``metrics.x`` (the last value), ``name``, ``run_id``,
            ``status``, ``start_time``, ``end_time`` (Unix seconds) and ``duration_s``, such as
            ``{"field": "params.learning_rate", "op": ">", "value": 1e-4}``.
        order_by: One of these fields; None is the newest first. Runs without it, with NaN, infinity, or with
            text where others have numbers come last.
        descending: The largest first.
        limit: Rows to give at most. offset: Rows to pass over.
        tracking_uri: MLflow's tracking URI; None is MLflow's own setting.

    Returns:
        Rows of ``run_id, name, status, start_time, end_time`` and every field that was asked about.

    Raises:
        AnalyticsError: No such experiment, no such metric, or a condition that makes no sense.
        StoreError: As the tracking store does.
    """
    runs = scope.runs_of(experiment, tracking_uri)
    fields = {condition.field for condition in where} | ({order_by} if order_by else set())
    columns = runs.columns(conditions.wanted(fields))
    for (metric, _), values_of in columns.metrics.items():
        if not values_of:
            scope.check_metric(metric, runs.keys().metrics)
    omitted: Counter[str] = Counter()
    fit: list[_Found] = []
    for head in columns.heads:
        values = {field: conditions.value_of(field, head, columns) for field in fields}
        met = [conditions.meets(each, values[each.field]) for each in where]
        if all(met):
            fit.append((head, values))
            continue
        unclear = [each.field for each, is_met in zip(where, met, strict=True) if is_met is None]
        if unclear and False not in met:
            omitted[f"{unclear[0]} cannot be compared"] += 1
        else:
            omitted["does not fit"] += 1
    if order_by is not None:
        fit = _ordered(fit, order_by, descending=descending)
    rows = [
        {
            "run_id": head.run_id,
            "name": head.label,
            "status": head.status,
            "start_time": _seconds(head.started),
            "end_time": _seconds(head.ended),
        }
        | {
            field: clipped(value) if isinstance(value, str) else shown(value)
            for field, value in values.items()
        }
        for head, values in fit
    ]
    arguments = {
        "experiment": experiment,
        "where": [condition.model_dump() for condition in where],
        "order_by": order_by,
        "descending": descending,
        "limit": limit,
    }
    policy = {
        "runs": "of every status, nested ones too; deleted ones are left out",
        **runs.policy,
        "comparison": "params are text in MLflow: numbers are compared as numbers; a run without a field "
        "meets `missing` alone; NaN and infinity meet no comparison",
        "metrics": _LAST,
        "ties": "the newest run first",
    }
    return listed(rows, arguments=arguments, offset=offset, limit=limit, omitted=omitted, policy=policy)


def rank_runs(
    experiment: str,
    metric: str,
    mode: Literal["auto", "min", "max"] = "auto",
    agg: Agg = "last",
    statuses: Statuses = ["FINISHED"],  # noqa: B006
    limit: Limit = 10,
    offset: Offset = 0,
    *,
    tracking_uri: str | None = None,
) -> Answer:
    """The runs of an experiment by a metric, the best first.

    Args:
        experiment: Name or id.
        metric: Its name, as logged.
        mode: Whether a small or a large value is best; ``auto`` is what is known of the metric.
        agg: Which value of each run counts: ``last``, finite ``min`` or ``max``, or ``mean_of_last_K``.
        statuses: Only runs of these statuses.
        limit: Rows to give at most. offset: Rows to pass over.
        tracking_uri: MLflow's tracking URI; None is MLflow's own setting.

    Returns:
        Rows of ``rank, run_id, name, status, value, step``. Equal values have the same rank (1, 1, 3), the
        newest run first.

    Raises:
        AnalyticsError: No such experiment; no run has logged the metric; its direction is not known.
        StoreError: As the tracking store does.
    """
    runs = scope.runs_of(experiment, tracking_uri)
    _, found, omitted = measured(runs, metric, agg, statuses)
    if mode == "auto":
        mode = "min" if scope.direction(metric) == "lower" else "max"
    sign = 1 if mode == "min" else -1
    found.sort(key=lambda pair: sign * pair[1].value)
    rows: list[dict[str, Any]] = []
    for place, (head, value) in enumerate(found):
        is_tie = bool(place) and found[place - 1][1].value == value.value
        rows.append(
            {
                "rank": rows[-1]["rank"] if is_tie else place + 1,
                "run_id": head.run_id,
                "name": head.label,
                "status": head.status,
                "value": value.value,
                "step": value.step,
            }
        )
    arguments = {
        "experiment": experiment,
        "metric": metric,
        "mode": mode,
        "agg": agg,
        "statuses": statuses,
        "limit": limit,
    }
    policy = {
        "best": f"the {'smallest' if mode == 'min' else 'largest'} value",
        **counting(agg, statuses),
        **runs.policy,
        "ties": "share a rank, the newest run first",
    }
    return listed(rows, arguments=arguments, offset=offset, limit=limit, omitted=omitted, policy=policy)


def aggregate(
    experiment: str,
    metric: str,
    group_by: Annotated[list[GroupField], Field(min_length=1, max_length=5)],
    agg: Agg = "last",
    statuses: Statuses = ["FINISHED"],  # noqa: B006
    limit: Limit = 50,
    offset: Offset = 0,
    *,
    tracking_uri: str | None = None,
) -> Answer:
    """A metric by groups of runs: how many, mean, sample standard deviation, extremes, the best run.

    Args:
        experiment: Name or id.
        metric: Its name, as logged.
        group_by: ``params.x``, ``tags.x`` or ``status``; numbers are grouped as numbers: ``1e-4`` and
            ``0.0001`` are one group.
        agg: Which value of each run counts: ``last``, finite ``min`` or ``max``, or ``mean_of_last_K``.
        statuses: Only runs of these statuses.
        limit: Rows to give at most. offset: Rows to pass over.
        tracking_uri: MLflow's tracking URI; None is MLflow's own setting.

    Returns:
        Rows of ``group, n, mean, std, min, max, best_run_id``, by group. ``std`` is null for one run,
        ``best_run_id`` where neither direction of the metric is better.

    Raises:
        AnalyticsError: No such experiment; no run has logged the metric.
        StoreError: As the tracking store does.
    """
    needed = conditions.wanted(set(group_by))
    runs = scope.runs_of(experiment, tracking_uri)
    columns, found, omitted = measured(runs, metric, agg, statuses, needed)
    groups: dict[tuple[Any, ...], list[tuple[RunHead, float]]] = defaultdict(list)
    for head, value in found:
        groups[group_of(group_by, head, columns)].append((head, value.value))
    better = scope.known_direction(metric)
    rows = []
    for group in sorted(groups, key=group_order):
        values = [value for _, value in groups[group]]
        best = None
        if better is not None:
            best = (min if better == "lower" else max)(groups[group], key=lambda pair: pair[1])[0].run_id
        rows.append(
            {
                "group": dict(zip(group_by, group, strict=True)),
                "n": len(values),
                "mean": mean(values),
                "std": None if (std := deviation(values)) is None else shown(std),
                "min": min(values),
                "max": max(values),
                "best_run_id": best,
            }
        )
    arguments = {
        "experiment": experiment,
        "metric": metric,
        "group_by": group_by,
        "agg": agg,
        "statuses": statuses,
        "limit": limit,
    }
    policy = {
        **counting(agg, statuses),
        **runs.policy,
        "groups": "numbers are compared as numbers; runs without a field are in the group null",
        "best_run_id": f"the {better} the better; of equal runs the newest" if better else "no direction",
    }
    return listed(rows, arguments=arguments, offset=offset, limit=limit, omitted=omitted, policy=policy)


def counting(agg: Agg, statuses: Sequence[str]) -> dict[str, Any]:
    """The policy of `measured`."""
    k = mean_of(agg)
    return {
        "value": f"the mean of the last {k} values, or of all, if they are fewer" if k else _AGGS[agg],
        "statuses": statuses,
        "not finite": "runs whose value is NaN or infinite are left out",
    }


def measured(
    runs: RunsOf, metric: str, agg: Agg, statuses: Sequence[str], also: Wanted | None = None
) -> tuple[RunColumns, list[tuple[RunHead, Value]], Counter[str]]:
    """The columns of a metric, the runs that count with their values, and how many do not, by reason.

    Args:
        also: More params and tags to read.

    Returns:
        The runs are the newest first.

    Raises:
        AnalyticsError: No run has logged the metric.
    """
    metrics = frozenset({(metric, agg), (metric, "last")})
    columns = runs.columns(replace(also or Wanted(), metrics=metrics))
    if not columns.metrics[metric, "last"]:
        scope.check_metric(metric, runs.keys().metrics)
    omitted: Counter[str] = Counter()
    logged, chosen = columns.metrics[metric, "last"], columns.metrics[metric, agg]
    found = []
    for head in columns.heads:
        value = chosen.get(head.run_id)
        if head.status not in statuses:
            omitted[f"status {head.status}"] += 1
        elif head.run_id not in logged:
            omitted["never logged the metric"] += 1
        elif value is None or not math.isfinite(value.value):
            omitted["value is NaN or infinite"] += 1
        else:
            found.append((head, value))
    return columns, found, omitted


def _ordered(rows: Sequence[_Found], field: str, *, descending: bool) -> list[_Found]:
    """By a field: numbers, then text, then what has no value there or none that is finite."""
    numbers: list[tuple[Decimal, _Found]] = []
    texts: list[tuple[str, _Found]] = []
    rest = []
    for row in rows:
        value = row[1][field]
        number = conditions.number_of(value)
        if number is not None:
            numbers.append((number, row))
        elif isinstance(value, str):
            texts.append((value, row))
        else:
            rest.append(row)
    numbers.sort(key=lambda pair: pair[0], reverse=descending)
    texts.sort(key=lambda pair: pair[0], reverse=descending)
    return [*(row for _, row in numbers), *(row for _, row in texts), *rest]


def group_of(fields: Sequence[str], head: RunHead, columns: RunColumns) -> tuple[Any, ...]:
    """The group of a run: what it says in these fields, numbers as numbers; None where it says nothing."""
    return tuple(_group(conditions.value_of(field, head, columns)) for field in fields)


def group_order(group: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sorts groups: numbers, then text, then nothing."""
    return tuple(_place(part) for part in group)


def _group(value: str | float | None) -> str | float | int | None:
    """A value as a group: numbers as numbers."""
    number = conditions.number_of(value)
    if number is None:
        return None if value is None else str(value)
    return int(number) if number == number.to_integral_value() else float(number)


def _place(value: Any) -> tuple[int, Any]:
    if value is None:
        return (2, "")
    return (1, value) if isinstance(value, str) else (0, value)


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000
