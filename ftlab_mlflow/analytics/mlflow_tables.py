"""The tables of MLflow's tracking database, as far as they are read."""

from __future__ import annotations

import sqlalchemy as sa

from ftlab_mlflow.analytics.reader import LARGEST

# What is read, and no more: `SqlReader.of_known_tables` looks whether they are there.
EXPERIMENTS = sa.table(
    "experiments", sa.column("experiment_id", sa.Integer), sa.column("name"), sa.column("lifecycle_stage")
)
RUNS = sa.table(
    "runs",
    sa.column("run_uuid", sa.String),
    sa.column("name"),
    sa.column("status"),
    sa.column("start_time", sa.BigInteger),
    sa.column("end_time", sa.BigInteger),
    sa.column("lifecycle_stage"),
    sa.column("experiment_id", sa.Integer),
)
TAGS, PARAMS = (
    sa.table(name, sa.column("run_uuid", sa.String), sa.column("key", sa.String), sa.column("value"))
    for name in ("tags", "params")
)
LATEST, METRICS = (
    sa.table(
        name,
        sa.column("run_uuid", sa.String),
        sa.column("key", sa.String),
        sa.column("value", sa.Float),
        sa.column("timestamp", sa.BigInteger),
        sa.column("step", sa.BigInteger),
        sa.column("is_nan", sa.Boolean),
    )
    for name in ("latest_metrics", "metrics")
)
TABLES = (EXPERIMENTS, RUNS, TAGS, PARAMS, LATEST, METRICS)

NAME_TAG = "mlflow.runName"
start_of_run: sa.ColumnElement[int] = sa.func.coalesce(RUNS.c.start_time, 0)
IS_FINITE = sa.and_(METRICS.c.is_nan == sa.false(), METRICS.c.value.not_in([LARGEST, -LARGEST]))
