"""Columns of many runs in SQL: one short statement a column, over the runs of some experiments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy as sa

from ftlab_mlflow.analytics.columns import Agg, Keys, RunColumns, RunHead, Value, Wanted, mean_of
from ftlab_mlflow.analytics.mlflow_tables import (
    IS_FINITE,
    LATEST,
    METRICS,
    NAME_TAG,
    PARAMS,
    RUNS,
    TAGS,
    start_of_run,
)
from ftlab_mlflow.analytics.moments import mean
from ftlab_mlflow.analytics.reader import REQUEST_TAGS, told
from ftlab_mlflow.control.store import NOT_ENDED, label_of

Where = sa.ColumnElement[bool]
"""Which runs, as a condition on the table of runs."""


class SqlRuns:
    """`RunsOf`, by statements of its own at every call.

    Args:
        connect: Opens a connection.
    """

    def __init__(
        self, connect: Callable[[], AbstractContextManager[sa.Connection]], experiments: Sequence[str]
    ) -> None:
        self._connect = connect
        self._where = sa.and_(
            RUNS.c.lifecycle_stage == "active", RUNS.c.experiment_id.in_([int(each) for each in experiments])
        )

    @property
    def policy(self) -> dict[str, str]:
        return {}

    def columns(self, wanted: Wanted) -> RunColumns:
        with self._connect() as connection:
            texts = {
                table: {key: dict(_texts(connection, table, self._where, key)) for key in keys}
                for table, keys in ((PARAMS, wanted.params), (TAGS, wanted.tags))
            }
            return RunColumns(
                heads=tuple(heads(connection, self._where)),
                metrics={
                    (key, agg): dict(_values(connection, self._where, key, agg))
                    for key, agg in wanted.metrics
                },
                params=texts[PARAMS],
                tags=texts[TAGS],
            )

    def requests(self) -> dict[str, dict[str, str]]:
        is_request = sa.or_(*(TAGS.c.key.startswith(prefix) for prefix in REQUEST_TAGS))
        query = sa.select(TAGS.c.run_uuid, TAGS.c.key, TAGS.c.value)
        found: dict[str, dict[str, str]] = defaultdict(dict)
        with self._connect() as connection:
            for run_id, key, value in connection.execute(query.where(is_request, _are_of(TAGS, self._where))):
                found[run_id][key] = value or ""
        return dict(found)

    def keys(self) -> Keys:
        with self._connect() as connection:

            def by_key(table: sa.TableClause, wanted: sa.ColumnElement[int]) -> dict[str, int]:
                query = sa.select(table.c.key, wanted.label("found")).where(_are_of(table, self._where))
                return {row.key: row.found for row in connection.execute(query.group_by(table.c.key))}

            return Keys(
                metrics=by_key(LATEST, sa.func.count()),
                params=by_key(PARAMS, sa.func.count()),
                tags={
                    key: count
                    for key, count in by_key(TAGS, sa.func.count()).items()
                    if not key.startswith(REQUEST_TAGS)
                },
                distinct=by_key(PARAMS, sa.func.count(sa.distinct(PARAMS.c.value))),
            )


def heads(connection: sa.Connection, where: Where) -> Iterator[RunHead]:
    """These runs, the newest first."""
    query = sa.select(RUNS).where(where).order_by(start_of_run.desc(), RUNS.c.run_uuid)
    rows = connection.execute(query).all()
    names: dict[str, str] = {}
    if not all(row.name for row in rows):  # an older MLflow kept names as tags alone
        names = dict(_texts(connection, TAGS, where, NAME_TAG))
    for row in rows:
        name = row.name or names.get(row.run_uuid, "")
        label = label_of(row.run_uuid, name)
        ended = None if row.status in NOT_ENDED else row.end_time
        yield RunHead(row.run_uuid, label, str(row.experiment_id), row.status, row.start_time, ended)


def are_named(name: str) -> Where:
    """Whether a run has this name."""
    without = sa.func.coalesce(RUNS.c.name, "") == ""
    return sa.or_(RUNS.c.name == name, sa.and_(without, have_tag(NAME_TAG, name)))


def have_tag(key: str, value: str) -> Where:
    """Whether a run has this tag with this value."""
    tagged = sa.select(TAGS.c.run_uuid).where(TAGS.c.key == key, TAGS.c.value == value)
    return RUNS.c.run_uuid.in_(tagged)


def _are_of(table: sa.TableClause, where: Where) -> Where:
    return table.c.run_uuid.in_(sa.select(RUNS.c.run_uuid).where(where))


def _texts(
    connection: sa.Connection, table: sa.TableClause, where: Where, key: str
) -> Iterator[tuple[str, str]]:
    query = sa.select(table.c.run_uuid, table.c.value).where(table.c.key == key, _are_of(table, where))
    for run_id, value in connection.execute(query):
        yield run_id, value or ""


def _values(connection: sa.Connection, where: Where, key: str, agg: Agg) -> Iterator[tuple[str, Value]]:
    if agg == "last":
        latest = sa.select(*LATEST.c["run_uuid", "value", "is_nan", "step"]).where(LATEST.c.key == key)
        for run_id, value, is_nan, step in connection.execute(latest.where(_are_of(LATEST, where))):
            yield run_id, Value(float("nan") if is_nan else told(value), step)
    elif count := mean_of(agg):
        yield from _means(connection, where, key, count)
    else:
        yield from _extremes(connection, where, key, sa.func.min if agg == "min" else sa.func.max)


def _means(connection: sa.Connection, where: Where, key: str, count: int) -> Iterator[tuple[str, Value]]:
    at = METRICS.c
    place = sa.func.row_number().over(
        partition_by=at.run_uuid, order_by=[at.step.desc(), at.timestamp.desc(), at.value.desc()]
    )
    every = (
        sa.select(at.run_uuid, at.value, at.is_nan, at.step, place.label("place"))
        .where(at.key == key, _are_of(METRICS, where))
        .subquery()
    )
    values: dict[str, list[float]] = defaultdict(list)
    steps: dict[str, int] = {}
    for run_id, value, is_nan, step in connection.execute(
        sa.select(*every.c["run_uuid", "value", "is_nan", "step"]).where(every.c.place <= count)
    ):
        values[run_id].append(float("nan") if is_nan else told(value))
        steps[run_id] = max(step, steps.get(run_id, step))
    for run_id in values:
        yield run_id, Value(mean(values[run_id]), steps[run_id])


def _extremes(
    connection: sa.Connection, where: Where, key: str, extreme: Callable[..., Any]
) -> Iterator[tuple[str, Value]]:
    wanted = (METRICS.c.key == key, _are_of(METRICS, where), IS_FINITE)
    best = (
        sa.select(METRICS.c.run_uuid, extreme(METRICS.c.value).label("value"))
        .where(*wanted)
        .group_by(METRICS.c.run_uuid)
        .subquery()
    )
    first = (
        sa.select(METRICS.c.run_uuid, best.c.value, sa.func.min(METRICS.c.step))
        .join(best, sa.and_(best.c.run_uuid == METRICS.c.run_uuid, best.c.value == METRICS.c.value))
        .where(*wanted)
        .group_by(METRICS.c.run_uuid, best.c.value)
    )
    for run_id, value, step in connection.execute(first):
        yield run_id, Value(value, step)
