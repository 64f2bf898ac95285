"""A long series made short in SQL, against pandas; and the store that the benchmark reads."""

from __future__ import annotations

import importlib.util
import math
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftlab_mlflow.analytics.sql_reader import SqlReader

INF, NAN = math.inf, math.nan
LARGEST = 1.7976931348623157e308

value = st.one_of(
    st.floats(-1e6, 1e6, width=32), st.sampled_from([0.0, 1.0, 1.0, NAN, INF, -INF, LARGEST / 2, -1e-300])
)
logged = st.lists(st.tuples(st.integers(-50, 400), value, st.integers(0, 50)), min_size=1, max_size=300)


@pytest.fixture(scope="module")
def one_metric(
    new_sqlite: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[SqlReader, str]:
    from mlflow import MlflowClient

    uri = new_sqlite(tmp_path_factory.mktemp("one"))
    return SqlReader(uri), MlflowClient(uri).create_run("0").info.run_id


@settings(max_examples=60)
@given(logged=logged, pieces=st.integers(1, 40))
def test_each_piece_keeps_its_extremes(
    one_metric: tuple[SqlReader, str], logged: list[tuple[int, float, int]], pieces: int
) -> None:
    reader, run_id = one_metric
    kept_as = {INF: LARGEST, -INF: -LARGEST}
    rows = {
        (step, 0.0 if math.isnan(x) else kept_as.get(x, x), time, math.isnan(x)) for step, x, time in logged
    }
    with closing(sqlite3.connect(reader.tracking_uri.removeprefix("sqlite:///"))) as database, database:
        database.execute("DELETE FROM metrics")
        database.executemany(
            "INSERT INTO metrics (key, run_uuid, step, value, timestamp, is_nan) VALUES ('m', ?, ?, ?, ?, ?)",
            [(run_id, *row) for row in rows],
        )
    series = reader.series([run_id], "m", points=2 * pieces)[run_id]
    all_points = pd.DataFrame(
        [(s, NAN if is_nan else {v: k for k, v in kept_as.items()}.get(x, x), t) for s, x, t, is_nan in rows],
        columns=["step", "value", "time"],
    ).sort_values(["step", "time"])
    found = pd.DataFrame({"step": series.steps, "value": series.values, "time": series.times})
    assert series.total == len(rows)
    assert len(found.merge(all_points)) >= len(found)  # nothing that was not logged
    if len(rows) <= 2 * pieces:
        assert len(found) == len(rows)
        return
    first, last = all_points.step.min(), all_points.step.max()
    if first == last:
        return  # reduced by time, by `analytics.series.reduce`
    assert len(found) <= 5 * pieces + 2
    assert (found.step.iloc[0], found.time.iloc[0]) == (first, all_points.time.iloc[0])
    assert (found.step.iloc[-1], found.time.iloc[-1]) == (last, all_points.time.iloc[-1])
    width = (last - first) // pieces + 1
    for _, piece in all_points.groupby((all_points.step - first) // width):
        kept = found[found.step.between(piece.step.min(), piece.step.max())].value
        finite = piece.value[np.isfinite(piece.value)]
        assert set(kept) >= {finite.min(), finite.max()} if len(finite) else True
        for is_kind in (np.isnan, np.isposinf, np.isneginf):
            assert is_kind(piece.value).any() == is_kind(kept).any()


# --- the store that the benchmark reads --------------------------------------------------------------


def test_the_benchmark_reads_a_store_that_mlflow_can_read(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    path = Path(__file__).parents[2] / "benchmarks" / "run_store.py"
    spec = importlib.util.spec_from_file_location("run_store", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    store = module.build(tmp_path / "mlflow.db", 12, long_metrics=2, long_points=300)
    client = MlflowClient(store.uri)
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert [run.info.run_id for run in found] == [store.long_run, *store.run_ids]
    assert {len(run.data.params) for run in found} == {0, 150}
    records = SqlReader(store.uri).page().records
    assert [record.data.run_id for record in records] == [run.info.run_id for run in found]
    assert [record.data.metrics for record in records] == [run.data.metrics for run in found]
    assert len(client.get_metric_history(store.long_run, "loss")) == 300
    assert 0 < sum(record.data.is_live for record in records) < len(records)
