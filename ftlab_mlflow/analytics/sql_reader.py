"""Bulk reads in SQL, of the tables of MLflow's tracking database. Nothing is written, locked or created."""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from ftlab_mlflow.analytics.columns import RunHead
from ftlab_mlflow.analytics.mlflow_tables import (
    EXPERIMENTS,
    IS_FINITE,
    LATEST,
    METRICS,
    NAME_TAG,
    PARAMS,
    RUNS,
    TABLES,
    TAGS,
    start_of_run,
)
from ftlab_mlflow.analytics.reader import PARENT, REQUEST_TAGS, RunPage, RunRecord, series_of, told
from ftlab_mlflow.analytics.search_reader import is_begin_of_id, position_of, token_of
from ftlab_mlflow.analytics.series import Series, reduce
from ftlab_mlflow.analytics.sql_columns import SqlRuns, are_named, have_tag, heads
from ftlab_mlflow.control.mlflow_errors import unavailable
from ftlab_mlflow.control.mlflow_store import end_of, open_database, time_of
from ftlab_mlflow.control.store import NOT_ENDED, RunData
from ftlab_mlflow.errors import RunNotFound

_DIALECTS = ("sqlite", "postgresql", "mysql", "mssql")
_AT_ONCE = 250
"""Runs that one statement names; some databases take no more than 2,000 values."""

_SHOWN = (
    sa.select(RUNS, EXPERIMENTS.c.name.label("experiment"))
    .join(EXPERIMENTS, EXPERIMENTS.c.experiment_id == RUNS.c.experiment_id)
    .where(RUNS.c.lifecycle_stage == "active", EXPERIMENTS.c.lifecycle_stage == "active")
)
_POINTS = sa.select(*METRICS.c["run_uuid", "step", "value", "timestamp", "is_nan"])


class SqlReader:
    """A `RunReader` on a tracking database."""

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri
        engine = open_database(tracking_uri)
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA query_only = ON"))
        self._engine = engine.execution_options(postgresql_readonly=True)
        weakref.finalize(self, engine.dispose)

    @classmethod
    def of_known_tables(cls, tracking_uri: str) -> SqlReader | None:
        """A reader, if this is a database with MLflow's tables as it knows them."""
        from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES

        # Which experiments a workspace has, MLflow's own store knows to tell.
        if not tracking_uri.startswith(_DIALECTS) or MLFLOW_ENABLE_WORKSPACES.get():  # type: ignore[no-untyped-call]
            return None
        reader = cls(tracking_uri)
        with reader._connection() as connection:
            inspector = sa.inspect(connection)
            there = set(inspector.get_table_names())
            columns = {
                table.name: {column["name"] for column in inspector.get_columns(table.name)}
                for table in TABLES
                if table.name in there
            }
        is_known = all(columns.get(table.name, set()) >= set(table.c.keys()) for table in TABLES)
        return reader if is_known else None

    @contextmanager
    def _connection(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise unavailable(self.tracking_uri, error) from error

    def experiments(self) -> dict[str, str]:
        query = sa.select(EXPERIMENTS.c.experiment_id, EXPERIMENTS.c.name)
        with self._connection() as connection:
            rows = connection.execute(query.where(EXPERIMENTS.c.lifecycle_stage == "active"))
            return {str(experiment): name for experiment, name in rows}

    def page(
        self,
        token: str | None = None,
        *,
        limit: int = 200,
        experiments: Sequence[str] | None = None,
        active: bool = False,
        params: Sequence[str] | None = None,
    ) -> RunPage:
        query = _SHOWN.order_by(start_of_run.desc(), RUNS.c.run_uuid).limit(limit + 1)
        if experiments is not None:
            query = query.where(RUNS.c.experiment_id.in_([int(id) for id in experiments]))
        if active:
            query = query.where(RUNS.c.status.in_(NOT_ENDED))
        if last := position_of(token):
            started, run_id = -last[0], last[1]
            before = sa.and_(start_of_run == started, RUNS.c.run_uuid > run_id)
            query = query.where(sa.or_(start_of_run < started, before))
        with self._connection() as connection:
            rows = connection.execute(query).all()
            records = self._records(connection, rows[:limit], params, requests=False)
        if len(rows) <= limit:
            return RunPage(records, None)
        end = rows[limit - 1]
        return RunPage(records, token_of((-(end.start_time or 0), end.run_uuid)))

    def record(self, run_id: str) -> RunRecord:
        with self._connection() as connection:
            rows = connection.execute(_SHOWN.where(RUNS.c.run_uuid == run_id)).all()
            if not rows:
                raise RunNotFound(f"no run {run_id}, or it is deleted")
            return self._records(connection, rows, None, requests=True)[0]

    def _records(
        self,
        connection: sa.Connection,
        rows: Sequence[sa.Row[Any]],
        names: Sequence[str] | None,
        *,
        requests: bool,
    ) -> tuple[RunRecord, ...]:
        tags: dict[str, dict[str, str]] = defaultdict(dict)
        params: dict[str, dict[str, str]] = defaultdict(dict)
        metrics: dict[str, dict[str, float]] = defaultdict(dict)
        steps: dict[str, dict[str, int]] = defaultdict(dict)
        logged_at: dict[str, dict[str, int]] = defaultdict(dict)
        of_tags = [] if requests else [~TAGS.c.key.startswith(prefix) for prefix in REQUEST_TAGS]
        of_params = [] if names is None else [PARAMS.c.key.in_(names)]
        for begin in range(0, len(rows), _AT_ONCE):
            ids = [row.run_uuid for row in rows[begin : begin + _AT_ONCE]]
            for run, key, value in connection.execute(_texts(TAGS, ids, of_tags)):
                tags[run][key] = value or ""
            for run, key, value in connection.execute(_texts(PARAMS, ids, of_params)):
                params[run][key] = value
            latest = sa.select(*LATEST.c["run_uuid", "key", "value", "is_nan", "step", "timestamp"])
            for run, key, value, is_nan, step, at in connection.execute(
                latest.where(LATEST.c.run_uuid.in_(ids))
            ):
                metrics[run][key] = float("nan") if is_nan else told(value)
                steps[run][key], logged_at[run][key] = step, at
        return tuple(
            RunRecord(
                RunData(
                    run_id=(run := row.run_uuid),
                    name=row.name or tags[run].get(NAME_TAG, ""),
                    experiment_id=str(row.experiment_id),
                    status=row.status,
                    started=time_of(row.start_time),
                    ended=end_of(row.status, row.end_time),
                    tags=tags[run],
                    metrics=metrics[run],
                    steps=steps[run],
                    logged_at=logged_at[run],
                ),
                row.experiment,
                params[run],
            )
            for row in rows
        )

    def runs_of(self, experiments: Sequence[str]) -> SqlRuns:
        return SqlRuns(self._connection, experiments)

    def named(self, name: str) -> list[RunHead]:
        found = self._heads(are_named(name))
        if is_begin_of_id(name, found):
            found = self._heads(sa.or_(are_named(name), RUNS.c.run_uuid.startswith(name)))
        return found

    def children(self, run_id: str) -> list[RunHead]:
        return self._heads(have_tag(PARENT, run_id))

    def _heads(self, where: sa.ColumnElement[bool]) -> list[RunHead]:
        there = sa.select(EXPERIMENTS.c.experiment_id).where(EXPERIMENTS.c.lifecycle_stage == "active")
        is_active = sa.and_(RUNS.c.lifecycle_stage == "active", RUNS.c.experiment_id.in_(there))
        with self._connection() as connection:
            return list(heads(connection, sa.and_(is_active, where)))

    def whole(self, run_ids: Sequence[str], key: str) -> dict[str, Series]:
        rows: dict[str, list[tuple[int, float, int]]] = defaultdict(list)
        with self._connection() as connection:
            for begin in range(0, len(run_ids), _AT_ONCE):
                is_one = METRICS.c.run_uuid.in_(run_ids[begin : begin + _AT_ONCE])
                query = _POINTS.where(METRICS.c.key == key, is_one)
                for run_id, step, value, time, is_nan in connection.execute(query):
                    rows[run_id].append((step, math.nan if is_nan else value, time))
        return {run_id: series_of(points) for run_id, points in rows.items()}

    def series(
        self, run_ids: Sequence[str], key: str, *, points: int = 1000, after: int | None = None
    ) -> dict[str, Series]:
        found: dict[str, Series] = {}
        with self._connection() as connection:
            for begin in range(0, len(run_ids), _AT_ONCE):
                wanted = [METRICS.c.key == key, METRICS.c.run_uuid.in_(run_ids[begin : begin + _AT_ONCE])]
                if after is not None:
                    wanted.append(METRICS.c.step > after)
                found |= _series(connection, wanted, points)
        return found


def _texts(table: sa.TableClause, ids: Sequence[str], also: Sequence[Any]) -> sa.Select[Any]:
    return sa.select(table.c.run_uuid, table.c.key, table.c.value).where(table.c.run_uuid.in_(ids), *also)


def _series(connection: sa.Connection, wanted: list[Any], points: int) -> dict[str, Series]:
    """All values of each short series, and of a longer one those that keep its shape."""
    at = METRICS.c
    extent = sa.select(at.run_uuid, sa.func.count(), sa.func.min(at.step), sa.func.max(at.step))
    totals: dict[str, int] = {}
    long: list[str] = []
    whole: list[str] = []
    for run_id, total, first, last in connection.execute(extent.where(*wanted).group_by(at.run_uuid)):
        totals[run_id] = total
        # Values that are all at one step cannot be told apart by it: they are reduced here, by time.
        (long if total > points and first < last else whole).append(run_id)
    queries = [_POINTS.where(*wanted, at.run_uuid.in_(whole))] if whole else []
    if long:
        queries += _reduced([*wanted, at.run_uuid.in_(long)], max(1, points // 2))
    rows: dict[str, set[tuple[int, float, int, bool]]] = defaultdict(set)
    for query in queries:
        for run_id, *row in connection.execute(query):
            rows[run_id].add(tuple(row))
    found = {}
    for run_id, total in totals.items():
        logged = ((step, math.nan if is_nan else value, time) for step, value, time, is_nan in rows[run_id])
        series = series_of(logged, total)
        found[run_id] = reduce(series, points) if run_id in whole else series
    return found


def _reduced(wanted: list[Any], pieces: int) -> list[sa.Select[Any]]:
    """What gets the values to keep of long series.

    Of each of `pieces` ranges of steps of the same width the first of its smallest, of its largest and of
    each kind of values that are not finite, and the very first and last value.
    """
    at = METRICS.c
    first, last = sa.func.min(at.step), sa.func.max(at.step)
    width = ((last - first) // pieces + 1).label("width")
    runs = _once(
        sa.select(at.run_uuid, first.label("first"), last.label("last"), width)
        .where(*wanted)
        .group_by(at.run_uuid)
        .cte("runs_wanted")
    )
    begin = (runs.c.first + (at.step - runs.c.first) // runs.c.width * runs.c.width).label("begin")
    finite = sa.case((IS_FINITE, at.value))
    in_pieces = _once(
        sa.select(
            at.run_uuid,
            begin,
            (begin + runs.c.width).label("end"),
            sa.func.min(finite).label("low"),
            sa.func.max(finite).label("high"),
        )
        .join(runs, runs.c.run_uuid == at.run_uuid)
        .where(*wanted)
        .group_by(at.run_uuid, begin, runs.c.width)
        .cte("pieces")
    )
    piece = in_pieces.c
    within = sa.and_(piece.run_uuid == at.run_uuid, at.step >= piece.begin, at.step < piece.end)
    same = [at.run_uuid, piece.begin, at.value, at.is_nan]
    rank = sa.func.row_number().over(partition_by=same, order_by=[at.step, at.timestamp])
    extremes = (
        _POINTS.add_columns(rank.label("rank"))
        .join(in_pieces, within)
        .where(*wanted, sa.or_(at.value == piece.low, at.value == piece.high, sa.not_(IS_FINITE)))
        .cte("extremes")
    )
    order = [at.step, at.timestamp, at.value]
    from_front = sa.func.row_number().over(partition_by=at.run_uuid, order_by=order)
    from_back = sa.func.row_number().over(partition_by=at.run_uuid, order_by=[o.desc() for o in order])
    ends = (
        _POINTS.add_columns(from_front.label("rank"), from_back.label("rank_from_back"))
        .join(runs, sa.and_(runs.c.run_uuid == at.run_uuid, at.step.in_([runs.c.first, runs.c.last])))
        .where(*wanted)
        .cte("ends")
    )
    return [
        sa.select(*list(extremes.c)[:-1]).where(extremes.c.rank == 1),
        sa.select(*list(ends.c)[:-2]).where(sa.or_(ends.c.rank == 1, ends.c.rank_from_back == 1)),
    ]


def _once(part: sa.CTE) -> sa.CTE:
    """Without this, a PostgreSQL that has no statistics yet may compute it for each value."""
    return part.prefix_with("MATERIALIZED", dialect="postgresql")
