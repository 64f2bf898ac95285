"""Columns of many runs in SQL: one short statement a column, over the runs of some experiments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sqlalchemy as sa

from ftlab_mlflow.analytics.columns import Agg, Keys, RunColumns, RunHead, Value, Wanted
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
from ftlab_mlflow.analytics.reader import told
from ftlab_mlflow.control.store import NOT_ENDED, label_of


def columns(connection: sa.Connection, experiments: Sequence[str], wanted: Wanted) -> RunColumns:
    """`RunReader.columns`."""
    texts = {
        table: {key: dict(_texts(connection, table, experiments, key)) for key in keys}
        for table, keys in ((PARAMS, wanted.params), (TAGS, wanted.tags))
    }
    return RunColumns(
        heads=tuple(_heads(connection, experiments)),
        metrics={(key, agg): dict(_values(connection, experiments, key, agg)) for key, agg in wanted.metrics},
        params=texts[PARAMS],
        tags=texts[TAGS],
    )


def keys(connection: sa.Connection, experiments: Sequence[str]) -> Keys:
    """`RunReader.keys`."""

    def by_key(table: sa.TableClause, wanted: sa.ColumnElement[int]) -> dict[str, int]:
        query = sa.select(table.c.key, wanted.label("found")).where(table.c.run_uuid.in_(_runs(experiments)))
        return {row.key: row.found for row in connection.execute(query.group_by(table.c.key))}

    return Keys(
        metrics=by_key(LATEST, sa.func.count()),
        params=by_key(PARAMS, sa.func.count()),
        tags=by_key(TAGS, sa.func.count()),
        distinct=by_key(PARAMS, sa.func.count(sa.distinct(PARAMS.c.value))),
    )


def _runs(experiments: Sequence[str]) -> sa.Select[tuple[str]]:
    return sa.select(RUNS.c.run_uuid).where(*_are_in(experiments))


def _are_in(experiments: Sequence[str]) -> tuple[sa.ColumnElement[bool], ...]:
    is_one = RUNS.c.experiment_id.in_([int(experiment) for experiment in experiments])
    return RUNS.c.lifecycle_stage == "active", is_one


def _heads(connection: sa.Connection, experiments: Sequence[str]) -> Iterator[RunHead]:
    query = sa.select(RUNS).where(*_are_in(experiments)).order_by(start_of_run.desc(), RUNS.c.run_uuid)
    rows = connection.execute(query).all()
    names: dict[str, str] = {}
    if not all(row.name for row in rows):  # an older MLflow kept names as tags alone
        names = dict(_texts(connection, TAGS, experiments, NAME_TAG))
    for row in rows:
        name = row.name or names.get(row.run_uuid, "")
        label = label_of(row.run_uuid, name)
        ended = None if row.status in NOT_ENDED else row.end_time
        yield RunHead(row.run_uuid, label, str(row.experiment_id), row.status, row.start_time, ended)


def _texts(
    connection: sa.Connection, table: sa.TableClause, experiments: Sequence[str], key: str
) -> Iterator[tuple[str, str]]:
    query = sa.select(table.c.run_uuid, table.c.value).where(table.c.key == key)
    for run_id, value in connection.execute(query.where(table.c.run_uuid.in_(_runs(experiments)))):
        yield run_id, value or ""


def _values(
    connection: sa.Connection, experiments: Sequence[str], key: str, agg: Agg
) -> Iterator[tuple[str, Value]]:
    if agg == "last":
        latest = sa.select(*LATEST.c["run_uuid", "value", "is_nan", "step"]).where(LATEST.c.key == key)
        for run_id, value, is_nan, step in connection.execute(
            latest.where(LATEST.c.run_uuid.in_(_runs(experiments)))
        ):
            yield run_id, Value(float("nan") if is_nan else told(value), step)
        return
    extreme = sa.func.min if agg == "min" else sa.func.max
    wanted = (METRICS.c.key == key, METRICS.c.run_uuid.in_(_runs(experiments)), IS_FINITE)
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
