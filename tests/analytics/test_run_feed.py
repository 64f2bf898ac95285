"""What a page keeps of a run, against all values that were written; a real MLflow on SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from ftlab_mlflow.analytics.reader import RunRecord
from ftlab_mlflow.analytics.run_feed import NEWS, RunFeed
from ftlab_mlflow.analytics.series import Series
from ftlab_mlflow.analytics.sql_reader import SqlReader
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.messages import Ack, Status, Update
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.control.store import Point
from ftlab_mlflow.errors import RunNotFound, StoreUnavailable

NOW = datetime(2026, 11, 21, 19, 0, tzinfo=UTC)


class NotedReader(SqlReader):
    """Notes what is read: "record", or the step after which a series is."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.reads: list[object] = []

    def record(self, run_id: str) -> RunRecord:
        self.reads.append("record")
        return super().record(run_id)

    def series(
        self, run_ids: Sequence[str], key: str, *, points: int = 1000, after: int | None = None
    ) -> dict[str, Series]:
        self.reads.append(after)
        return super().series(run_ids, key, points=points, after=after)


class Trainer:
    """Writes to a run as a trainer does, 1 s a step, and knows all that it wrote of the loss."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self.run_id: str = MlflowClient(uri).create_run("0").info.run_id
        self.store = MlflowRunStore(uri)
        self.written: list[tuple[int, int, float]] = []
        self.time = int(NOW.timestamp() * 1000)
        self.session = "first"

    def log(self, steps: Sequence[int], *, beat: bool = True, late: int = 0) -> None:
        points = []
        for step in steps:
            self.time += 1000
            points.append(Point("loss", float(np.sin(step) + self.time % 7), step, self.time - late))
        self.written += [(point.step, point.timestamp, point.value) for point in points]
        self.store.write(self.run_id, self.status(steps[-1]) if beat else {}, points)

    def status(self, step: int) -> dict[str, str]:
        status = Status("running", step, 10_000, 0.1, NOW, 10, self.session, "node", 1, "sft")
        return {tags.STATUS: status.encode()}

    def roll_back(self, to: int) -> None:
        update = Update(at=NOW, command="rollback")
        ack = Ack("applied", to, NOW + timedelta(seconds=1), self.session)
        answer = {tags.UPDATE_PREFIX + "r": update.encode(), tags.ACK_PREFIX + "r": ack.encode()}
        self.store.write(self.run_id, answer | self.status(to))


@pytest.fixture
def uri(new_sqlite: Callable[[Path], str], tmp_path: Path) -> str:
    return new_sqlite(tmp_path)


@pytest.fixture
def reader(uri: str) -> NotedReader:
    return NotedReader(uri)


@pytest.fixture
def trainer(uri: str) -> Trainer:
    return Trainer(uri)


@pytest.fixture
def feed(reader: NotedReader, trainer: Trainer) -> RunFeed:
    return RunFeed(reader, trainer.run_id, fresh_s=0)


def shown(feed: RunFeed, points: int = 1000) -> list[tuple[int, int, float]]:
    series = feed.series("loss", points)
    assert series is not None
    return list(zip(series.steps.tolist(), series.times.tolist(), series.values.tolist(), strict=True))


def test_news_are_put_behind_what_is_known(feed: RunFeed, trainer: Trainer, reader: NotedReader) -> None:
    trainer.log(range(50))
    assert shown(feed) == sorted(trainer.written)
    for begin in range(50, 200, 10):
        trainer.log(range(begin, begin + 10))
        feed.refresh()
        assert shown(feed) == sorted(trainer.written)
    afters = [read for read in reader.reads if isinstance(read, int)]
    assert len(afters) == 15
    assert reader.reads.count(None) == 1
    # Ten steps are ten seconds: no more than what may still come late is read again.
    assert all(after >= begin - 12 for after, begin in zip(afters, range(50, 200, 10), strict=True))


def test_the_trainer_may_be_ahead_of_its_heartbeat(feed: RunFeed, trainer: Trainer) -> None:
    trainer.log(range(20))
    for begin in range(20, 60, 4):
        trainer.log(range(begin, begin + 4), beat=begin % 20 == 0)
        feed.refresh()
        assert shown(feed) == sorted(trainer.written)


def test_what_comes_late_or_again_at_the_same_step_is_seen(feed: RunFeed, trainer: Trainer) -> None:
    trainer.log([1, 2, 3, 6, 7])
    shown(feed)
    trainer.log([4, 5], beat=False, late=3500)  # delivered after newer ones
    trainer.log([7], beat=False)
    feed.refresh()
    assert shown(feed) == sorted(trainer.written)


def test_a_run_without_a_trainer_that_logs_without_steps(feed: RunFeed, trainer: Trainer) -> None:
    for _ in range(4):
        trainer.log([0] * 30, beat=False)
        feed.refresh()
        assert shown(feed) == sorted(trainer.written)


@pytest.mark.parametrize("how", ["rollback", "restart"])
def test_steps_that_come_again_are_seen(feed: RunFeed, trainer: Trainer, how: str) -> None:
    trainer.log(range(100))
    shown(feed)
    trainer.log(range(100, 120))
    feed.refresh()
    shown(feed)
    trainer.time += 60_000
    if how == "rollback":
        trainer.roll_back(50)
    else:
        trainer.session = "second"
        trainer.store.write(trainer.run_id, trainer.status(50))
    feed.refresh()
    assert shown(feed) == sorted(trainer.written)
    for begin in range(51, 171, 10):
        trainer.log(range(begin, begin + 10))
        feed.refresh()
        assert shown(feed) == sorted(trainer.written)
    series = feed.series("loss")
    assert series is not None
    assert series.total == len(trainer.written)


def test_a_rollback_between_two_looks_far_apart(feed: RunFeed, trainer: Trainer) -> None:
    trainer.log(range(100))
    shown(feed)
    trainer.roll_back(30)
    trainer.log(range(31, 200))
    feed.refresh()
    assert shown(feed) == sorted(trainer.written)


def test_a_growing_series_stays_reduced_and_keeps_its_extremes(feed: RunFeed, trainer: Trainer) -> None:
    trainer.log(range(500))
    feed.refresh()
    for begin in range(500, 2000, 50):
        trainer.log(range(begin, begin + 50))
        feed.refresh()
        series = feed.series("loss", 60)
        assert series is not None
        assert len(series.values) <= 60
        assert series.total == len(trainer.written)
        values = [value for _, _, value in trainer.written]
        assert (series.values.min(), series.values.max()) == (min(values), max(values))
        assert (series.steps[0], series.steps[-1]) == (0, begin + 49)
    assert set(shown(feed, 60)) <= set(trainer.written)
    assert shown(feed, 5000) == sorted(trainer.written)


def test_more_news_than_are_put_behind(feed: RunFeed, trainer: Trainer) -> None:
    trainer.log(range(100))
    shown(feed)
    for begin in range(100, 100 + NEWS + 500, 800):
        trainer.log(range(begin, begin + 800))
    feed.refresh()
    shown(feed, 100)
    trainer.log(range(trainer.written[-1][0] + 1, trainer.written[-1][0] + 10))
    feed.refresh()
    series = feed.series("loss", 100)
    assert series is not None
    assert series.total == len(trainer.written)


def test_what_has_not_moved_is_not_read_again(feed: RunFeed, trainer: Trainer, reader: NotedReader) -> None:
    trainer.log(range(50))
    trainer.store.write(trainer.run_id, {}, [Point("eval_loss", 1.0, 25, 5)])
    feed.refresh()
    assert feed.series("loss")
    assert feed.series("eval_loss")
    assert feed.series("none") is None
    reader.reads.clear()
    feed.refresh()
    assert feed.series("loss")
    assert feed.series("eval_loss")
    assert feed.series("none") is None
    assert reader.reads == ["record"]


def test_a_run_that_has_ended_is_not_read_again(feed: RunFeed, trainer: Trainer, reader: NotedReader) -> None:
    trainer.log(range(50))
    shown(feed)
    trainer.log(range(50, 60), beat=False)
    trainer.store.set_status(trainer.run_id, "FINISHED")
    feed.refresh()
    assert shown(feed) == sorted(trainer.written)
    reader.reads.clear()
    for _ in range(3):
        feed.refresh()
        assert shown(feed) == sorted(trainer.written)
    assert reader.reads == []


def test_many_viewers_read_once(reader: NotedReader, trainer: Trainer) -> None:
    trainer.log(range(50))
    feed = RunFeed(reader, trainer.run_id, fresh_s=60)

    def view(_: int) -> list[tuple[int, int, float]]:
        feed.refresh()
        return shown(feed)

    with ThreadPoolExecutor(8) as pool:
        views = list(pool.map(view, range(32)))
    assert all(view == sorted(trainer.written) for view in views)
    assert reader.reads == ["record", None]


def test_a_store_that_goes_away_and_comes_back(feed: RunFeed, trainer: Trainer, uri: str) -> None:
    trainer.log(range(50))
    assert (feed.record, feed.read_at) == (None, None)
    feed.refresh()
    before = shown(feed)
    read_at = feed.read_at
    assert read_at is not None
    assert abs((datetime.now(UTC) - read_at).total_seconds()) < 60
    rename(uri, "runs", "runs_away")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="no such table"):
            feed.refresh()
    assert feed.trouble is not None
    assert feed.read_at == read_at
    assert feed.record is not None
    assert feed.record.data.run_id == trainer.run_id
    assert shown(feed) == before
    assert feed.view().now == read_at, "what is not read meanwhile does not make a run lost"
    rename(uri, "runs_away", "runs")
    trainer.log(range(50, 60))
    feed.refresh()
    assert feed.trouble is None
    assert feed.view().now == feed.read_at > read_at
    assert shown(feed) == sorted(trainer.written)


def test_metrics_that_cannot_be_read_leave_what_is_known(
    feed: RunFeed, trainer: Trainer, reader: NotedReader, uri: str
) -> None:
    trainer.log(range(50))
    before = shown(feed)
    trainer.log(range(50, 60))
    feed.refresh()
    rename(uri, "metrics", "metrics_away")
    assert shown(feed) == before
    assert feed.trouble is not None
    feed.refresh()
    with pytest.raises(StoreUnavailable):
        RunFeed(reader, trainer.run_id).series("loss")
    rename(uri, "metrics_away", "metrics")
    feed.refresh()
    assert shown(feed) == sorted(trainer.written)


def rename(uri: str, table: str, to: str) -> None:
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        database.execute(f"ALTER TABLE {table} RENAME TO {to}")


def test_a_run_that_is_not_there(reader: NotedReader) -> None:
    with pytest.raises(RunNotFound):
        RunFeed(reader, "0" * 32).series("loss")
