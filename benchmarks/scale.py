"""What many live runs cost one `mlflow server`: 10, 100 and 1,000 listeners without a training.

The listeners are real (`training.listener.Listener` with a receiver that only notes the time), each with a
run of its own, spread over a few processes; the server has its default settings and PostgreSQL behind it.
While they poll, requests are written to runs chosen at random and the time until each is seen is measured.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import os
import random
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from report import publish, quantile, table
from servers import MLFLOW_WORKERS, cpu_seconds, mlflow_server, postgres

from ftlab_mlflow import MlflowRunStore, StoreError
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Entry, Ledger
from ftlab_mlflow.control.messages import Status, Update
from ftlab_mlflow.control.store import Point, RunData
from ftlab_mlflow.control.surface import Param, Surface
from ftlab_mlflow.control.wire import new_id, utc_now
from ftlab_mlflow.training.listener import HEARTBEAT_S, Listener

POLL_INTERVAL = 1.0
PROCESSES = 4
SETTLE_S = 20.0
"""Seconds that listeners run before they are measured: they start in turn, and find their interval."""
WINDOW_S = 35.0
LAST_LOOK_S = 12.0
"""Seconds given after the window to see what was written in it."""
PROBES_PER_S = 5.0
NAMES = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm")
SURFACE = Surface({name: Param("float", 0.1, 0.1, 0.0, 1.0, help="what it is") for name in NAMES}, ("stop",))


class Call(NamedTuple):
    """One call to the server: what, when it ended, how long it took, whether it was answered."""

    kind: str
    ended: float
    took: float
    ok: bool


@dataclass
class Notes:
    """What one process noted."""

    calls: list[Call] = field(default_factory=list)
    seen: dict[str, float] = field(default_factory=dict)


class NotedStore(MlflowRunStore):
    """Notes every call."""

    def __init__(self, uri: str, calls: list[Call]) -> None:
        super().__init__(uri)
        self._calls = calls

    def _noted(self, kind: str, call: Callable[[], Any]) -> Any:
        began, ok = time.time(), False
        try:
            result = call()
            ok = True
            return result
        finally:
            now = time.time()
            self._calls.append(Call(kind, now, now - began, ok))

    def get(self, run_id: str) -> RunData:
        run: RunData = self._noted("read", lambda: super(NotedStore, self).get(run_id))
        return run

    def write(self, run_id: str, tags: Mapping[str, str], points: Sequence[Point] = ()) -> None:
        self._noted("write", lambda: super(NotedStore, self).write(run_id, tags, points))


class Watcher:
    """The receiver: notes when each request is seen."""

    def __init__(self, seen: dict[str, float]) -> None:
        self._seen = seen

    def deliver(self, entries: Iterable[Entry], *, sent_before: bool) -> None:
        now = time.time()
        self._seen.update((entry.id, now) for entry in entries)

    def deliver_history(self, ledger: Ledger) -> None:
        """The first read failed; nothing was sent by then."""

    def refresh_surface(self) -> None:
        """The surface of no training does not move."""

    def look_at_expiry(self, now: datetime) -> None:
        """Nothing expires."""

    def confirmed(self, keys: Iterable[str]) -> None:
        """Nothing waits for it."""

    def answer_rest(self) -> None:
        """Nothing is answered here."""


def heartbeat() -> str:
    """A status of the usual length."""
    host, pid = socket.gethostname(), os.getpid()
    status = Status("running", 100, 1000, 0.1, utc_now(), HEARTBEAT_S, new_id(), host, pid, "sft", None)
    return status.encode()


def listen(uri: str, run_ids: Sequence[str], parent: Connection) -> None:
    """One process of listeners, started in turn over half of the settling time; ends when told."""
    logging.getLogger("ftlab_mlflow").setLevel(logging.CRITICAL)
    give_each_thread_its_connection()
    notes = Notes()

    def begin(listener: Listener) -> None:
        listener.start(Watcher(notes.seen), {}, listener.read_first())

    listeners = []
    for number, run_id in enumerate(run_ids):
        wait = (number + random.random()) / len(run_ids) * SETTLE_S / 2
        listener = Listener(NotedStore(uri, notes.calls), run_id, heartbeat, POLL_INTERVAL)
        listeners.append(listener)
        starter = threading.Timer(wait, begin, [listener])
        starter.daemon = True
        starter.start()
    parent.send("up")
    parent.recv()
    parent.send(notes)
    os._exit(0)  # a thousand ends, each with its last words, are not what is measured


def give_each_thread_its_connection() -> None:
    """As a thousand training processes have a thousand connections, where one process would share a few."""
    from mlflow.utils import request_utils

    own = threading.local()
    make = request_utils._cached_get_request_session.__wrapped__

    def session_of_thread(*arguments: Any) -> Any:
        if not hasattr(own, "session"):
            own.session = make(*arguments[:5], os.getpid(), *arguments[5:])
        return own.session

    request_utils._get_request_session = session_of_thread


def create_runs(uri: str, count: int) -> list[str]:
    """Runs as a trainer leaves them: with a surface, a status, and a little more."""
    from mlflow import MlflowClient

    client, store = MlflowClient(uri), MlflowRunStore(uri)

    def create(number: int) -> str:
        run_id: str = client.create_run("0", run_name=f"run-{number}").info.run_id
        points = [Point(key, 1.0, 100, 0) for key in ("loss", "grad_norm", "learning_rate", "epoch")]
        store.write(run_id, {tags.SURFACE: SURFACE.encode(), tags.STATUS: heartbeat()}, points)
        return run_id

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(create, range(count)))


class Level(NamedTuple):
    """What one number of listeners came to. Times in seconds, CPU in cores."""

    listeners: int
    reads_per_s: float
    writes_per_s: float
    failed: int
    answer: float
    server_cpu: float
    postgres_cpu: float
    listeners_cpu: float
    to_sight: list[float]


def measure(uri: str, run_ids: Sequence[str], server: int, database: int, window: float) -> Level:
    """Runs one listener a run and measures for `window` seconds."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for part in range(min(PROCESSES, len(run_ids))):
        here, there = context.Pipe()
        process = context.Process(target=listen, args=(uri, run_ids[part::PROCESSES], there), daemon=True)
        process.start()
        pipes.append(here)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()  # it is up
    time.sleep(SETTLE_S)

    def cpu() -> list[float]:
        listeners = sum(cpu_seconds(process.pid) for process in processes if process.pid)
        return [cpu_seconds(server), cpu_seconds(database), listeners]

    before, began = cpu(), time.time()
    written, calls = ask(uri, run_ids, window)
    after, ended = cpu(), time.time()
    time.sleep(LAST_LOOK_S)
    notes = Notes(calls)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send("end")
        part = pipe.recv()
        notes.calls.extend(part.calls)
        notes.seen.update(part.seen)
        process.join()
    inside = [call for call in notes.calls if began <= call.ended < ended]
    reads = [call for call in inside if call.ok and call.kind == "read"]
    writes = [call for call in inside if call.ok and call.kind == "write"]
    took = ended - began
    server_cpu, postgres_cpu, listeners_cpu = ((b - a) / took for a, b in zip(before, after, strict=True))
    return Level(
        listeners=len(run_ids),
        reads_per_s=len(reads) / took,
        writes_per_s=len(writes) / took,
        failed=len(inside) - len(reads) - len(writes),
        answer=statistics.median([call.took for call in reads] or [math.inf]),
        server_cpu=server_cpu,
        postgres_cpu=postgres_cpu,
        listeners_cpu=listeners_cpu,
        to_sight=[notes.seen.get(request_id, math.inf) - moment for request_id, moment in written.items()],
    )


def ask(uri: str, run_ids: Sequence[str], seconds: float) -> tuple[dict[str, float], list[Call]]:
    """Writes requests to runs chosen at random; gives when each was written, by id, and the calls."""
    calls: list[Call] = []
    store = NotedStore(uri, calls)
    written: dict[str, float] = {}

    def write() -> None:
        request_id = new_id()
        update = Update(at=utc_now(), set={"learning_rate": random.random()}, by="benchmark")
        try:
            store.write(random.choice(run_ids), {tags.UPDATE_PREFIX + request_id: update.encode()})
        except StoreError:
            return  # noted as a failed call
        written[request_id] = time.time()

    end = time.monotonic() + seconds
    pool = ThreadPoolExecutor(8)
    while (left := end - time.monotonic()) > 0:
        pool.submit(write)
        time.sleep(min(left, random.uniform(0.5, 1.5) / PROBES_PER_S))
    pool.shutdown(cancel_futures=True)  # an overloaded server has left some waiting
    return written, calls


def row_of(level: Level) -> list[str]:
    """The table's row for one number of listeners."""
    served = level.reads_per_s + level.writes_per_s
    interval = level.listeners / level.reads_per_s if level.reads_per_s else math.inf
    unseen = sum(math.isinf(value) for value in level.to_sight)
    to_sight = level.to_sight or [math.inf]
    return [
        f"{level.listeners:,}",
        f"{served:.0f} ({level.reads_per_s:.0f} + {level.writes_per_s:.0f})",
        str(level.failed),
        f"{interval:.1f} s",
        f"{1000 * level.answer:.0f} ms",
        f"{level.server_cpu:.2f}",
        f"{level.postgres_cpu:.2f}",
        f"{level.listeners_cpu:.2f}",
        _seconds(statistics.median(to_sight)),
        _seconds(quantile(to_sight, 0.99)),
        f"{len(level.to_sight)} ({unseen} unseen)",
    ]


def _seconds(value: float) -> str:
    """A request that nobody saw took longer than it was waited for."""
    return f"over {LAST_LOOK_S:.0f} s" if math.isinf(value) else f"{value:.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="without 1,000; README untouched")
    options = parser.parse_args()
    window = 10 if options.quick else WINDOW_S
    counts = (10, 100) if options.quick else (10, 100, 1000)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        backend, database = stack.enter_context(postgres(folder))
        uri, server = stack.enter_context(mlflow_server(folder, backend))
        run_ids = create_runs(uri, max(counts))
        rows = []
        for count in counts:
            rows.append(row_of(measure(uri, run_ids[:count], server, database, window)))
            print(f"{count} listeners: {', '.join(rows[-1][1:])}", flush=True)
    head = [
        "listeners", "served/s (reads + writes)", "failed", "poll interval", "answer: median", "server CPU",
        "PostgreSQL CPU", "listeners' CPU", "to sight: median", "p99", "requests written",
    ]  # fmt: skip
    text = table(head, rows)
    note = f"`mlflow server` with its {MLFLOW_WORKERS} workers; CPU in cores, of those of the machine."
    publish("scale", f"{text}\n\n{note}", quick=options.quick)


if __name__ == "__main__":
    main()
