"""Every reader against pandas on the raw tables of the database beneath it."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from ftlab_mlflow.analytics import rest_reader
from ftlab_mlflow.analytics.reader import RunReader, open_reader
from ftlab_mlflow.analytics.rest_reader import RestReader
from ftlab_mlflow.analytics.search_reader import ClientReader
from ftlab_mlflow.analytics.series import Series
from ftlab_mlflow.analytics.sql_reader import SqlReader
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.control.store import Point
from ftlab_mlflow.errors import RunNotFound, StoreUnavailable

INF, NAN = math.inf, math.nan
LARGEST = 1.7976931348623157e308
ODD = "eval/odd name"
ODD_POINTS = [
    (-3, 1.0, 10), (0, NAN, 20), (0, -2.0, 30), (0, 5.0, 25),
    (4, INF, 40), (4, -INF, 41), (9, 0.0, 50), (9, NAN, 60),
]  # fmt: skip
LONG = 12_500
"""Values: more than a server samples at most, and more than are read whole from one."""
MIDDLE = 4000
TIED = 12
"""Runs that started in the same millisecond."""


@dataclass(frozen=True)
class Filled:
    """A tracking store with runs of all kinds. `database` is what the oracle reads."""

    reader: RunReader
    database: str
    long_run: str
    odd_run: str
    deleted_run: str
    of_deleted_experiment: str

    def table(self, name: str) -> pd.DataFrame:
        return raw(self.database, f"SELECT * FROM {name}")

    def shown_runs(self) -> pd.DataFrame:
        runs = self.table("runs").merge(self.table("experiments"), on="experiment_id", suffixes=("", "_of"))
        runs = runs[(runs.lifecycle_stage == "active") & (runs.lifecycle_stage_of == "active")]
        return runs.sort_values(["start_time", "run_uuid"], ascending=[False, True])

    def points(self, run_id: str, key: str) -> pd.DataFrame:
        metrics = raw(self.database, f"SELECT * FROM metrics WHERE run_uuid = '{run_id}' AND key = '{key}'")
        values = metrics.value.mask(metrics.is_nan.astype(bool))
        metrics = metrics.assign(value=values.replace({LARGEST: INF, -LARGEST: -INF}))
        return metrics.sort_values(["step", "timestamp"])


def raw(uri: str, query: str) -> pd.DataFrame:
    engine = sa.create_engine(uri)
    with engine.connect() as connection:
        found = pd.read_sql_query(sa.text(query), connection)
    engine.dispose()
    return found


def fill(uri: str) -> dict[str, str]:
    """Writes with MLflow's own client; only the long metrics go past it."""
    from mlflow import MlflowClient

    client, store = MlflowClient(uri), MlflowRunStore(uri)
    other, gone = client.create_experiment("other's"), client.create_experiment("gone")
    ids = {}
    for number in range(34):
        experiment = ("0", other)[number % 2]
        started = 1_700_000_000_000 + (0 if number < TIED else number)
        run_id = client.create_run(experiment, started, run_name=f"run {number}").info.run_id
        tags = dict.fromkeys(
            ("ftlab.status", "ftlab.update.a", "ftlab.ack.a", "ftlab.updates", "note"), "<b>"
        )
        store.write(
            run_id, tags if number % 3 else {}, [Point("loss", 1.0 / number if number else NAN, 1, 5)]
        )
        client.log_param(run_id, "learning_rate", f"{number}e-5")
        client.log_param(run_id, "name with space", "x")
        if number % 4:
            store.set_status(run_id, ("FINISHED", "FAILED", "KILLED")[number % 3])  # type: ignore[arg-type]
        ids[str(number)] = run_id
    store.write(ids["1"], {}, [Point(ODD, value, step, time) for step, value, time in ODD_POINTS])
    store.write(ids["2"], {}, [Point(ODD, 7.0, 7, 7), Point("same step", 1.0, 0, 3), Point("up", INF, 1, 1)])
    ids["deleted"] = client.create_run("0").info.run_id
    client.delete_run(ids["deleted"])
    ids["gone"] = client.create_run(gone).info.run_id
    client.delete_experiment(gone)
    random = np.random.default_rng(0)
    fill_points(uri, ids["0"], "long", random.normal(0, 1, LONG))
    fill_points(uri, ids["0"], "middle", random.normal(0, 1, MIDDLE))
    fill_points(uri, ids["3"], "middle", random.normal(0, 1, 30))
    fill_points(uri, ids["0"], "one step", random.normal(0, 1, MIDDLE), step_width=0)
    return ids


def fill_points(uri: str, run_id: str, key: str, values: Any, step_width: int = 3) -> None:
    engine = sa.create_engine(uri)
    steps = np.arange(len(values)) * step_width
    columns = {"key": key, "value": values, "timestamp": np.arange(len(values)) + 1000, "step": steps}
    frame = pd.DataFrame(columns | {"is_nan": False, "run_uuid": run_id})
    with engine.begin() as connection:
        frame.to_sql("metrics", connection, if_exists="append", index=False)
    engine.dispose()


def copy(source: str, target: str) -> None:
    """All that `fill` wrote, to another database of MLflow."""
    engine = sa.create_engine(target)
    for table in ("experiments", "runs", "tags", "params", "metrics", "latest_metrics"):
        rows = raw(source, f"SELECT * FROM {table}")
        if table == "experiments":
            rows = rows[rows.experiment_id != 0]
        if "is_nan" in rows:
            rows = rows.astype({"is_nan": bool})
        with engine.begin() as connection:
            rows.to_sql(table, connection, if_exists="append", index=False)
    engine.dispose()


@pytest.fixture(scope="module")
def written(
    new_sqlite: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, str]]:
    uri = new_sqlite(tmp_path_factory.mktemp("filled"))
    return uri, fill(uri)


@pytest.fixture(scope="module", params=["sqlite", "client", "postgres", "http"])
def filled(request: pytest.FixtureRequest, written: tuple[str, dict[str, str]]) -> Filled:
    uri, ids = written
    database = uri
    if request.param == "postgres":
        uri = database = request.getfixturevalue("postgres_uri")
        MlflowRunStore(uri)
        copy(written[0], uri)
    elif request.param == "http":
        server = request.getfixturevalue("new_mlflow_server")()
        uri, database = server.uri, server.backend_uri
        copy(written[0], database)
    reader = ClientReader(uri) if request.param == "client" else open_reader(uri)
    return Filled(reader, database, ids["0"], ids["1"], ids["deleted"], ids["gone"])


def assert_same(series: Series, points: pd.DataFrame) -> None:
    """All values, also where several are logged at one step and time."""
    found = pd.DataFrame({"step": series.steps, "timestamp": series.times, "value": series.values})
    order = ["step", "timestamp", "value"]
    expected = points[order].sort_values(order, ignore_index=True)
    pd.testing.assert_frame_equal(found.sort_values(order, ignore_index=True), expected, check_dtype=False)
    assert found[["step", "timestamp"]].apply(tuple, axis=1).is_monotonic_increasing


# --- which reader ------------------------------------------------------------------------------------


def test_the_reader_fits_the_store(filled: Filled, request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.params["filled"]
    kinds = {"sqlite": SqlReader, "client": ClientReader, "postgres": SqlReader, "http": RestReader}
    assert type(filled.reader) is kinds[kind]


def test_a_database_with_other_columns_is_left_to_mlflow(
    new_sqlite: Callable[[Path], str], tmp_path: Path
) -> None:
    uri = new_sqlite(tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("ALTER TABLE latest_metrics RENAME COLUMN is_nan TO not_a_number")
    assert type(open_reader(uri)) is ClientReader


def test_workspaces_are_left_to_mlflow(
    new_sqlite: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = new_sqlite(tmp_path)
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    assert SqlReader.of_known_tables(uri) is None


# --- pages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1000, 34, 5])
def test_all_runs_page_by_page(filled: Filled, limit: int) -> None:
    records, token = [], None
    while True:
        page = filled.reader.page(token, limit=limit)
        assert len(page.records) <= limit
        records += page.records
        token = page.next
        if token is None:
            break
    expected = filled.shown_runs()
    assert [record.data.run_id for record in records] == expected.run_uuid.tolist()
    assert [record.data.name for record in records] == expected.name.tolist()
    assert [record.experiment for record in records] == expected.name_of.tolist()
    assert [record.data.experiment_id for record in records] == expected.experiment_id.astype(str).tolist()
    assert [record.data.status for record in records] == expected.status.tolist()
    started = [datetime.fromtimestamp(ms / 1000, UTC) for ms in expected.start_time]
    assert [record.data.started for record in records] == started
    is_over = expected.status != "RUNNING"
    assert [record.data.ended is not None for record in records] == is_over.tolist()


def test_a_page_has_tags_params_and_last_metrics(filled: Filled) -> None:
    records = filled.reader.page(limit=1000).records
    tags, params, latest = (filled.table(name) for name in ("tags", "params", "latest_metrics"))
    tags = tags[~tags.key.str.startswith("ftlab.update.") & ~tags.key.str.startswith("ftlab.ack.")]
    latest.value = latest.value.mask(latest.is_nan.astype(bool)).replace({LARGEST: INF, -LARGEST: -INF})
    for record in records:
        own = (table[table.run_uuid == record.data.run_id] for table in (tags, params, latest))
        its_tags, its_params, its_latest = ({row.key: row.value for row in part.itertuples()} for part in own)
        assert record.data.tags == its_tags
        assert record.params == its_params
        assert record.data.metrics == pytest.approx(its_latest, nan_ok=True, abs=0, rel=0)
    assert any("ftlab.updates" in record.data.tags for record in records)
    assert any(record.data.metrics.get("up") == INF for record in records)


def test_only_some_runs_and_params(filled: Filled) -> None:
    expected = filled.shown_runs()
    active = filled.reader.page(limit=1000, active=True).records
    assert [r.data.run_id for r in active] == expected[expected.status == "RUNNING"].run_uuid.tolist()
    (other,) = [id for id, name in filled.reader.experiments().items() if name == "other's"]
    of_other = filled.reader.page(limit=1000, experiments=[other], params=["learning_rate", "none"]).records
    assert [r.data.run_id for r in of_other] == expected[expected.name_of == "other's"].run_uuid.tolist()
    assert {tuple(record.params) for record in of_other} == {("learning_rate",)}
    assert filled.reader.page(experiments=[]).records == ()


def test_a_run_that_starts_between_two_pages_moves_no_other(filled: Filled) -> None:
    from mlflow import MlflowClient

    before = filled.shown_runs().run_uuid.tolist()
    first = filled.reader.page(limit=7)
    MlflowClient(filled.database).create_run("0")
    second = filled.reader.page(first.next, limit=7)
    assert [r.data.run_id for r in (*first.records, *second.records)] == before[:14]


def test_deleted_runs_and_experiments_are_not_shown(filled: Filled) -> None:
    assert "gone" in set(filled.table("experiments").name)
    experiments = filled.table("experiments")
    active = experiments[experiments.lifecycle_stage == "active"]
    assert filled.reader.experiments() == dict(
        zip(active.experiment_id.astype(str), active.name, strict=True)
    )
    for run_id in (filled.deleted_run, filled.of_deleted_experiment, "0" * 32):
        with pytest.raises(RunNotFound):
            filled.reader.record(run_id)


def test_a_record_is_whole(filled: Filled) -> None:
    record = filled.reader.record(filled.odd_run)
    tags = filled.table("tags")
    tags = tags[tags.run_uuid == filled.odd_run]
    assert record.data.tags == dict(zip(tags.key, tags.value, strict=True))
    assert "ftlab.update.a" in record.data.tags
    assert record.params == {"learning_rate": "1e-5", "name with space": "x"}
    assert record.experiment == "other's"
    assert math.isnan(record.data.metrics[ODD])
    assert record.data.ended is not None


# --- series ------------------------------------------------------------------------------------------


def test_values_are_as_they_were_logged(filled: Filled) -> None:
    series = filled.reader.series([filled.odd_run], ODD)[filled.odd_run]
    assert_same(series, filled.points(filled.odd_run, ODD))
    assert series.total == len(ODD_POINTS)
    assert np.isposinf(series.values).sum() == np.isneginf(series.values).sum() == 1
    assert np.isnan(series.values).sum() == 2
    assert (series.steps.dtype, series.values.dtype, series.times.dtype) == (np.int64, np.float64, np.int64)


def test_only_the_steps_after_one(filled: Filled) -> None:
    points = filled.points(filled.odd_run, ODD)
    for after in (-4, -3, 0, 4, 9):
        found = filled.reader.series([filled.odd_run], ODD, after=after)
        later = points[points.step > after]
        assert set(found) == ({filled.odd_run} if len(later) else set())
        if len(later):
            assert_same(found[filled.odd_run], later)
            assert found[filled.odd_run].total == len(later)


@pytest.mark.parametrize("count", [3, 34])
def test_several_runs_at_once(filled: Filled, count: int) -> None:
    run_ids = filled.shown_runs().run_uuid.tolist()[-count:]
    found = filled.reader.series(run_ids, "loss", points=20)
    assert len(found) == count
    for run_id, series in found.items():
        assert_same(series, filled.points(run_id, "loss"))
    wanted = [filled.odd_run, filled.long_run]
    assert set(filled.reader.series(wanted, ODD)) == {filled.odd_run}
    assert filled.reader.series(wanted, "none") == filled.reader.series([], ODD) == {}


@pytest.mark.parametrize("after", [None, 600])
def test_a_long_series_keeps_its_shape(filled: Filled, after: int | None) -> None:
    """Up to the length that a server's history is read in whole."""
    points = filled.points(filled.long_run, "middle")
    points = points if after is None else points[points.step > after]
    assert MIDDLE < rest_reader.WHOLE
    series = filled.reader.series([filled.long_run], "middle", points=200, after=after)[filled.long_run]
    assert len(series.values) <= 204
    assert (series.steps[0], series.steps[-1]) == (points.step.min(), points.step.max())
    if after is None or not isinstance(filled.reader, RestReader):
        assert series.total == len(points)
        assert (series.values.min(), series.values.max()) == (points.value.min(), points.value.max())
    assert len(series.values) < series.total <= len(points)
    assert is_part(series, points)


def test_what_is_too_long_for_a_server_is_an_even_choice(filled: Filled) -> None:
    points = filled.points(filled.long_run, "long")
    series = filled.reader.series([filled.long_run], "long", points=300)[filled.long_run]
    assert len(series.values) <= 304
    assert is_part(series, points)
    assert (series.steps[0], series.steps[-1]) == (points.step.min(), points.step.max())
    piece = points.step.max() / 140
    assert np.diff(series.steps).max() < 2 * piece
    if isinstance(filled.reader, RestReader):
        assert 0.75 * LONG < series.total <= LONG
    else:
        assert series.total == LONG


def test_values_that_are_all_at_one_step(filled: Filled) -> None:
    """As of a run that logs without a step: reduced by time."""
    points = filled.points(filled.long_run, "one step")
    series = filled.reader.series([filled.long_run], "one step", points=200)[filled.long_run]
    assert is_part(series, points)
    assert len(series.values) <= 200
    assert series.total == MIDDLE
    assert (series.values.min(), series.values.max()) == (points.value.min(), points.value.max())
    assert np.diff(series.times).max() < MIDDLE / 20


def is_part(series: Series, points: pd.DataFrame) -> bool:
    found = set(zip(series.steps.tolist(), series.times.tolist(), series.values.tolist(), strict=True))
    return found <= set(points[["step", "timestamp", "value"]].itertuples(index=False, name=None))


# --- threads and failures ----------------------------------------------------------------------------


def test_any_thread_may_read(filled: Filled) -> None:
    def read(_: int) -> tuple[list[str], list[float]]:
        page = filled.reader.page(limit=10)
        series = filled.reader.series([filled.long_run], "middle", points=100)[filled.long_run]
        return [record.data.run_id for record in page.records], series.values.tolist()

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(read, range(8)))
    assert all(result == results[0] for result in results)


def test_a_store_that_is_away_says_so(new_sqlite: Callable[[Path], str], tmp_path: Path) -> None:
    reader = open_reader(new_sqlite(tmp_path))
    (tmp_path / "mlflow.db").write_text("this is no database any more")
    for read in (reader.experiments, reader.page, lambda: reader.record("0" * 32)):
        with pytest.raises(StoreUnavailable, match="not a database"):
            read()


def test_a_server_that_does_not_answer_says_so() -> None:
    reader = RestReader("http://127.0.0.1:9")
    for read in (reader.experiments, reader.page, lambda: reader.series(["0" * 32], "loss")):
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:9"):
            read()
