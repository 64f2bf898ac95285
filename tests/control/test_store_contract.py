"""What every `RunStore` promises, for each: in memory; MLflow on SQLite, on PostgreSQL and over HTTP."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.control.store import MemoryRunStore, Point, RunStatus, RunStore
from ftlab_mlflow.errors import RunNotFound, StoreError, StoreUnavailable

UNKNOWN = "0" * 32
MLFLOW = ["sqlite", "http", "postgres"]


@dataclass
class Backend:
    """A store, and what makes and deletes runs in it the way a program with plain MLflow does."""

    store: RunStore
    create: Callable[[str], str]
    delete: Callable[[str], None] | None = None
    _names: Iterator[int] = field(default_factory=itertools.count)

    def run(self, name: str = "a run") -> str:
        """A new run. A later one is newer, as far as whole milliseconds tell."""
        time.sleep(0.002)
        return self.create(name)

    def unique(self, name: str) -> str:
        """A name that no other test uses: the tests share a database."""
        return f"{name} {next(self._names)}"


def _mlflow_backend(uri: str) -> Backend:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    return Backend(
        MlflowRunStore(uri), lambda name: client.create_run("0", run_name=name).info.run_id, client.delete_run
    )


@pytest.fixture(scope="module", params=["memory", *MLFLOW])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    if request.param == "memory":
        store = MemoryRunStore()
        return Backend(store, store.create_run)
    if request.param == "sqlite":
        new_sqlite: Callable[[Path], str] = request.getfixturevalue("new_sqlite")
        return _mlflow_backend(new_sqlite(tmp_path_factory.mktemp("contract")))
    if request.param == "http":
        return _mlflow_backend(request.getfixturevalue("mlflow_server").uri)
    return _mlflow_backend(request.getfixturevalue("postgres_uri"))


# --- runs and tags -----------------------------------------------------------------------------------


def test_a_new_run(backend: Backend) -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    run_id = backend.run("Grüße → 'x'")
    run = backend.store.get(run_id)
    assert (run.run_id, run.name, run.experiment_id) == (run_id, "Grüße → 'x'", "0")
    assert (run.status, run.ended, run.metrics) == ("RUNNING", None, {})
    assert run.started is not None
    assert before <= run.started <= datetime.now(UTC)
    assert not run.is_live


def test_what_is_written_is_read(backend: Backend) -> None:
    run_id = backend.run()
    written = {
        tags.STATUS: "{}",
        tags.UPDATE_PREFIX + "x": '{"reason":"a \\"b\\" \'c\' → 🙂\\n%_\\\\"}',
        tags.SET_PREFIX + "learning_rate": " 5e-5 ",
        "ftlab.lines": "one\ntwo\n",
    }
    backend.store.write(run_id, written)
    run = backend.store.get(run_id)
    assert {key: run.tags[key] for key in written} == written
    assert run.is_live


def test_tags_that_are_not_written_stay(backend: Backend) -> None:
    run_id = backend.run()
    backend.store.write(run_id, {"a": "1", "b": "1"})
    backend.store.write(run_id, {"b": "2", "c": "2"})
    kept = backend.store.get(run_id).tags
    assert (kept["a"], kept["b"], kept["c"]) == ("1", "2", "2")


def test_a_tag_holds_8000_characters_of_any_kind(backend: Backend) -> None:
    run_id = backend.run()
    backend.store.write(run_id, {"a": "ä" * 8000, "b": "🙂" * 8000})
    kept = backend.store.get(run_id).tags
    assert (kept["a"], kept["b"]) == ("ä" * 8000, "🙂" * 8000)


def test_who_is_not_asked_for_a_name_may_write_and_asking_writes_nothing(backend: Backend) -> None:
    run_id = backend.run()
    before = backend.store.get(run_id)
    assert backend.store.why_read_only(run_id) is None
    assert backend.store.get(run_id) == before


def test_what_is_read_is_a_copy(backend: Backend) -> None:
    run_id = backend.run()
    backend.store.get(run_id).tags["mine"] = "x"
    assert "mine" not in backend.store.get(run_id).tags


def test_the_largest_write_is_one_call(backend: Backend) -> None:
    run_id = backend.run()
    many = {f"ftlab.update.{i}": str(i) for i in range(100)}
    points = [Point("live/learning_rate", i / 8, i, 1_000 + i) for i in range(800)]
    backend.store.write(run_id, many, points)
    run = backend.store.get(run_id)
    assert many.items() <= run.tags.items()
    assert run.metrics == {"live/learning_rate": 799 / 8}
    assert backend.store.metric_history(run_id, "live/learning_rate") == points


def test_writing_nothing_is_allowed(backend: Backend) -> None:
    run_id = backend.run()
    before = backend.store.get(run_id)
    backend.store.write(run_id, {})
    assert backend.store.get(run_id) == before


def test_writing_the_same_again_changes_nothing(backend: Backend) -> None:
    run_id = backend.run()
    points = [Point("a", 1.0, 1, 5), Point("a", 2.0, 2, 6), Point("b", 0.5, 2, 6)]
    for _ in range(3):
        backend.store.write(run_id, {"x": "1", "y": "2"}, points)
    once = backend.store.get(run_id)
    backend.store.write(run_id, {"y": "2"}, points[1:])
    assert backend.store.get(run_id) == once
    assert backend.store.metric_history(run_id, "a") == points[:2]
    assert backend.store.metric_history(run_id, "b") == points[2:]


def test_calls_from_many_threads_all_arrive(backend: Backend) -> None:
    run_id = backend.run()
    failures: list[Exception] = []

    def write(worker: int) -> None:
        try:
            for i in range(10):
                backend.store.write(run_id, {f"{worker}.{i}": "x"}, [Point(f"m{worker}", i, i, i)])
                backend.store.get(run_id)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert {f"{w}.{i}" for w in range(4) for i in range(10)} <= backend.store.get(run_id).tags.keys()
    assert all(len(backend.store.metric_history(run_id, f"m{w}")) == 10 for w in range(4))


# --- metrics -----------------------------------------------------------------------------------------


def test_a_history_is_ordered_by_step_and_then_by_time(backend: Backend) -> None:
    run_id = backend.run()
    points = [
        Point("loss", 3.0, 10, 900), Point("loss", 1.0, 2, 500), Point("loss", 2.0, 2, 400),
        Point("loss", -1.5, 0, 950), Point("other", 7.0, 1, 1),
    ]  # fmt: skip
    for point in points:
        backend.store.write(run_id, {}, [point])
    expected = [points[3], points[2], points[1], points[0]]
    history = backend.store.metric_history(run_id, "loss")
    assert history == expected
    assert all(type(p.step) is int and type(p.value) is float for p in history)


def test_the_last_value_is_that_of_the_last_step(backend: Backend) -> None:
    run_id = backend.run()
    backend.store.write(run_id, {}, [Point("loss", 1.0, 10, 100), Point("loss", 9.0, 5, 200)])
    backend.store.write(run_id, {}, [Point("loss", 0.1, 1, 300)])
    assert backend.store.get(run_id).metrics == {"loss": 1.0}


def test_a_metric_that_was_never_logged_has_no_history(backend: Backend) -> None:
    assert backend.store.metric_history(backend.run(), "nothing") == []


# --- the run's own status ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_an_ending_status_sets_the_time_of_the_end(backend: Backend, status: RunStatus) -> None:
    run_id = backend.run()
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    backend.store.set_status(run_id, status)
    run = backend.store.get(run_id)
    assert run.status == status
    assert run.ended is not None
    assert before <= run.ended <= datetime.now(UTC)


def test_a_run_that_is_resumed_runs_and_has_not_ended(backend: Backend) -> None:
    run_id = backend.run()
    backend.store.set_status(run_id, "KILLED")
    backend.store.set_status(run_id, "RUNNING")
    run = backend.store.get(run_id)
    assert (run.status, run.ended) == ("RUNNING", None)


def test_a_status_leaves_name_and_tags(backend: Backend) -> None:
    run_id = backend.run("kept")
    backend.store.write(run_id, {"a": "1"})
    for status in get_args(RunStatus):
        backend.store.set_status(run_id, status)
        run = backend.store.get(run_id)
        assert (run.status, run.name, run.tags["a"]) == (status, "kept", "1")


# --- finding runs ------------------------------------------------------------------------------------


def test_found_by_name_newest_first_and_at_most_so_many(backend: Backend) -> None:
    name = backend.unique("same name")
    ids = [backend.run(name) for _ in range(4)]
    backend.run(name + "!")
    assert [run.run_id for run in backend.store.find(name=name)] == ids[::-1]
    assert [run.run_id for run in backend.store.find(name=name, limit=2)] == ids[:1:-1]
    newest = backend.run("whatever")
    assert [run.run_id for run in backend.store.find(limit=1)] == [newest]


def test_what_is_found_is_what_get_gives(backend: Backend) -> None:
    name = backend.unique("whole")
    run_id = backend.run(name)
    backend.store.write(run_id, {"a": "1"}, [Point("loss", 0.5, 3, 4)])
    assert backend.store.find(name=name) == [backend.store.get(run_id)]


@pytest.mark.parametrize(
    "name",
    ["alice's run", 'the "best" one', "100%_done\\", "a = 'b", "; DROP TABLE runs --", "ünï→🙂", "`x`"],
)
def test_a_name_is_matched_as_it_is(backend: Backend, name: str) -> None:
    name = backend.unique(name)
    run_id = backend.run(name)
    assert [run.run_id for run in backend.store.find(name=name)] == [run_id]
    assert backend.store.find(name=name[:-1] + "x") == []


@pytest.mark.parametrize("backend", MLFLOW, indirect=True)
def test_a_name_that_mlflow_cannot_search_is_refused_at_once(backend: Backend) -> None:
    with pytest.raises(StoreError, match="both kinds of quotes") as caught:
        backend.store.find(name="""it's "x\"""")
    assert not isinstance(caught.value, StoreUnavailable)


def test_found_by_the_start_of_the_id(backend: Backend) -> None:
    run_id = backend.run()
    for length in (32, 20):
        assert [run.run_id for run in backend.store.find(prefix=run_id[:length])] == [run_id]
    other = "f" if run_id[0] != "f" else "e"
    assert backend.store.find(prefix=other + run_id[1:]) == []
    assert backend.store.find(prefix=run_id[1:]) == []


def test_found_by_being_live(backend: Backend) -> None:
    name = backend.unique("live")
    ids = [backend.run(name) for _ in range(3)]
    assert backend.store.find(name=name, live=True) == []
    backend.store.write(ids[0], {tags.STATUS: "{}"})
    backend.store.write(ids[1], {"ftlab.status.x": "{}"})
    backend.store.write(ids[2], {tags.STATUS: "one\ntwo"})
    assert [run.run_id for run in backend.store.find(name=name, live=True)] == [ids[2], ids[0]]
    assert [run.run_id for run in backend.store.find(live=True, limit=1)] == [ids[2]]
    assert [run.run_id for run in backend.store.find(name=name, live=True, prefix=ids[0])] == [ids[0]]


@pytest.mark.parametrize("backend", MLFLOW, indirect=True)
def test_found_in_every_experiment(backend: Backend) -> None:
    from mlflow import MlflowClient

    assert isinstance(backend.store, MlflowRunStore)
    client = MlflowClient(backend.store.tracking_uri)
    name = backend.unique("elsewhere")
    experiment = client.create_experiment(name)
    run_id = client.create_run(experiment, run_name=name).info.run_id
    (found,) = backend.store.find(name=name)
    assert (found.run_id, found.experiment_id) == (run_id, experiment)


@pytest.mark.parametrize("backend", MLFLOW, indirect=True)
def test_a_deleted_run_is_not_found_and_takes_no_tags(backend: Backend) -> None:
    name = backend.unique("deleted")
    run_id = backend.run(name)
    backend.store.write(run_id, {tags.STATUS: "{}"})
    assert backend.delete is not None
    backend.delete(run_id)
    assert backend.store.find(name=name) == []
    assert backend.store.find(prefix=run_id) == []
    # It can be restored, so what is to be written is worth another try.
    with pytest.raises(StoreUnavailable, match="Current state is deleted"):
        backend.store.write(run_id, {"a": "1"})


# --- errors ------------------------------------------------------------------------------------------


def test_an_unknown_run_is_not_found(backend: Backend) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: backend.store.get(UNKNOWN),
        lambda: backend.store.write(UNKNOWN, {"a": "1"}),
        lambda: backend.store.write(UNKNOWN, {}, [Point("a", 1.0, 1, 1)]),
        lambda: backend.store.set_status(UNKNOWN, "FINISHED"),
    ]
    for call in calls:
        with pytest.raises(RunNotFound):
            call()
    assert backend.store.find(prefix=UNKNOWN) == []
    assert backend.store.metric_history(UNKNOWN, "loss") == []


@pytest.mark.parametrize("backend", MLFLOW, indirect=True)
def test_what_mlflow_will_never_take_is_no_reason_to_try_again(backend: Backend) -> None:
    run_id = backend.run()
    with pytest.raises(StoreError) as caught:
        backend.store.write(run_id, {"k" * 300: "x"})
    assert not isinstance(caught.value, StoreUnavailable)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on: it is bound, so nobody else takes it meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg"])
def test_a_store_that_is_away_says_so_soon_and_without_its_password(scheme: str, closed_port: int) -> None:
    start = time.monotonic()
    with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{closed_port}") as caught:
        MlflowRunStore(f"{scheme}://alice:s3cret@127.0.0.1:{closed_port}/x").get(UNKNOWN)
    assert time.monotonic() - start < 5
    assert "alice" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_every_call_to_a_server_that_is_away_says_so(closed_port: int) -> None:
    store = MlflowRunStore(f"http://127.0.0.1:{closed_port}")
    calls: list[Callable[[], Any]] = [
        lambda: store.get(UNKNOWN),
        lambda: store.write(UNKNOWN, {"a": "1"}),
        lambda: store.set_status(UNKNOWN, "FINISHED"),
        lambda: store.find(live=True),
        lambda: store.metric_history(UNKNOWN, "loss"),
    ]
    start = time.monotonic()
    for call in calls:
        with pytest.raises(StoreUnavailable):
            call()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://alice:p@ss@host:5000", "http://host:5000"),
        ("https://token@host/path", "https://host/path"),
        ("http://host:5000", "http://host:5000"),
        ("http://host:5000/?user=alice&password=s3cret&x=1", "http://host:5000/?user=alice&password=…&x=1"),
    ],
)
def test_a_uri_is_shown_without_credentials(uri: str, shown: str) -> None:
    assert MlflowRunStore(uri).shown_uri == shown


def test_a_uri_that_mlflow_cannot_open_is_refused() -> None:
    with pytest.raises(StoreError, match="foo"):
        MlflowRunStore("foo://bar")


def test_a_server_that_is_no_mlflow_is_unavailable(tmp_path: Path) -> None:
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(StoreError):
            MlflowRunStore(f"http://127.0.0.1:{server.server_port}").get(UNKNOWN)
        server.shutdown()


def test_mlflow_itself_says_where_the_runs_are(tracking_uri: str) -> None:
    store = MlflowRunStore()
    assert store.tracking_uri == store.shown_uri == tracking_uri
