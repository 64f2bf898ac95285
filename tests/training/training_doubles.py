"""Implementations of training's seams, for its tests: an outbox, a host, a store that fails when told."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ftlab_mlflow.control import tags as keys
from ftlab_mlflow.control.ledger import Entry, read_entry
from ftlab_mlflow.control.messages import Ack, State, Status
from ftlab_mlflow.control.store import MemoryRunStore, Point, RunData, RunStatus
from ftlab_mlflow.control.surface import Surface
from ftlab_mlflow.control.wire import utc_now
from ftlab_mlflow.errors import StoreError, StoreUnavailable
from ftlab_mlflow.training.answers import Outbox
from ftlab_mlflow.training.host import WentBack
from ftlab_mlflow.training.session import Session
from ftlab_mlflow.training.tunable import Tunable

COMMANDS = ("pause", "resume", "stop", "checkpoint", "evaluate", "cancel")
AT = "2026-11-21T19:00:00.000Z"
LIMIT_S = 20.0
"""Longest wait for a condition; a test that needs so long has failed."""


def wait_for(condition: Callable[[], Any], what: str, limit: float = LIMIT_S) -> Any:
    """The condition's first true value; AssertionError if there is none within `limit` seconds."""
    end = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {limit:g} s for {what}"
        time.sleep(0.002)
    return value


def request(**fields: Any) -> str:
    """A request as the text of its tag."""
    return json.dumps({"v": 1, "at": AT, **fields})


def entry(request_id: str, text: str | None = None, **fields: Any) -> Entry:
    """A request as the session gets it: read from its tag."""
    tag = request(**fields) if text is None else text
    return read_entry({keys.UPDATE_PREFIX + request_id: tag}, request_id)


class Desk:
    """An outbox that keeps everything, in order."""

    def __init__(self) -> None:
        self.posts: list[tuple[dict[str, str], tuple[Point, ...]]] = []

    def post(self, tags: Mapping[str, str], points: Iterable[Point] = ()) -> None:
        self.posts.append((dict(tags), tuple(points)))

    def answers(self) -> list[tuple[str, Ack]]:
        return [
            (key.removeprefix(keys.ACK_PREFIX), Ack.decode(value))
            for post, _ in self.posts
            for key, value in post.items()
            if key.startswith(keys.ACK_PREFIX)
        ]

    def ack(self, request_id: str) -> Ack:
        """The one answer to a request."""
        (found,) = [ack for answered, ack in self.answers() if answered == request_id]
        return found

    def answered(self) -> list[str]:
        return [request_id for request_id, _ in self.answers()]

    def surface(self) -> Surface:
        return Surface.decode([post[keys.SURFACE] for post, _ in self.posts if keys.SURFACE in post][-1])

    def states(self) -> list[State]:
        """Every state that the status had, without repetitions."""
        found: list[State] = []
        for post, _ in self.posts:
            if keys.STATUS in post:
                state = Status.decode(post[keys.STATUS]).state
                found += [state] if found[-1:] != [state] else []
        return found

    def points(self) -> list[tuple[str, float, int]]:
        return [(p.key, p.value, p.step) for _, points in self.posts for p in points]


@dataclass
class Trainee:
    """A training of five parameters, and the host of its session.

    Attributes:
        done: What the session made it do, in order. breaks: Names of what raises when it is used.
        kept: What `rollback` goes back to. gone: Why parameters cannot be changed now, by name.
    """

    rate: float = 0.1
    steps: int = 5
    flag: bool = False
    mode: str = "keep"
    late: float = 1.0
    done: list[str] = field(default_factory=list)
    breaks: set[str] = field(default_factory=set)
    entered: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event | None = None
    kept: tuple[int, Mapping[str, Any], Mapping[str, Any]] = (0, {}, {})
    gone: dict[str, str] = field(default_factory=dict)

    def _use(self, name: str) -> None:
        if name in self.breaks:
            raise RuntimeError(f"{name} is broken")
        self.done.append(name)

    def checkpoint(self) -> str:
        self._use("checkpoint")
        return "/somewhere/checkpoint-7"

    def evaluate(self) -> Mapping[str, float]:
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(LIMIT_S)
        self._use("evaluate")
        return {"eval_loss": 0.5, "eval_odd": float("nan")}

    def stop(self) -> None:
        self._use("stop")

    def rollback(self, checkpoint: str | None) -> WentBack:
        """Back to `kept`: (steps done, the session's state, the values) of a checkpoint."""
        self._use(f"rollback {checkpoint}")
        step, saved, values = self.kept
        for name, value in values.items():
            setattr(self, name, value)
        return WentBack("/somewhere/checkpoint-7", json.loads(json.dumps(saved)), step)

    def tunables(self) -> dict[str, Tunable]:
        """`late` is applied last; everything about a parameter in `breaks` happens half, then raises."""
        bounds: dict[str, dict[str, Any]] = {
            "rate": {"type": "float", "min": 0, "max": 1},
            "steps": {"type": "int", "min": 1},
            "flag": {"type": "bool"},
            "mode": {"type": "enum", "choices": ("keep", "hold")},
            "late": {"type": "float", "min": 0},
        }
        return {name: self._tunable(name, **b) for name, b in bounds.items()}

    def _tunable(self, name: str, **bounds: Any) -> Tunable:
        launched = getattr(self, name)

        def apply(value: Any) -> None:
            setattr(self, name, value)
            self._use(f"apply {name}")

        def read() -> Any:
            value = getattr(self, name)
            if f"read {name}" in self.breaks and value != launched:
                raise RuntimeError(f"read {name} is broken")
            return value

        def check(proposed: Mapping[str, Any]) -> str | None:
            rate, steps = proposed.get("rate", self.rate), proposed.get("steps", self.steps)
            return "rate and steps do not go together" if rate == 0.5 and steps == 13 else None

        return Tunable(
            name=name,
            help=f"The {name}.",
            read=read,
            apply=apply,
            capture=lambda: getattr(self, name),
            restore=lambda value: setattr(self, name, value),
            asked=launched,
            check=check,
            unavailable=lambda: self.gone.get(name),
            **bounds,
        )


def new_session(
    trainee: Trainee,
    outbox: Outbox,
    commands: tuple[str, ...] = COMMANDS,
    session_id: str = "s1",
    idle: Callable[[], None] | None = None,
) -> Session:
    """A session of a trainee that is at step `session.step`."""

    def describe(state: State) -> str:
        return Status(state, session.step, 100, 0.0, utc_now(), 10.0, session_id, "h", 1, "sft").encode()

    session = Session(
        id=session_id,
        tunables=trainee.tunables(),
        unsupported={"batch": "the data is a stream"},
        commands=commands,
        host=trainee,
        outbox=outbox,
        describe=describe,
        idle=idle,
    )
    return session


class FlakyStore:
    """A `RunStore` that works, fails, refuses or takes its time as it is told to.

    Attributes:
        away: Whether every call raises `StoreUnavailable`.
        refused: Keys that it refuses to write. loses_answers: Whether writes happen and then raise.
        get_s, write_s: Seconds that a call takes. writing: Set while a write takes so long.
        gets, failures: Number of looks that worked, of calls that did not.
        writes: Keys of every write that worked.
    """

    def __init__(self) -> None:
        self.inner = MemoryRunStore()
        self.away = False
        self.refused: set[str] = set()
        self.loses_answers = False
        self.get_s = self.write_s = 0.0
        self.gets = self.failures = 0
        self.get_times: list[float] = []
        self.got_times: list[float] = []
        self.failure_times: list[float] = []
        self.writes: list[dict[str, str]] = []
        self.writing = threading.Event()
        self._hurry = threading.Event()

    def hurry(self) -> None:
        """Ends every wait, also one in progress."""
        self._hurry.set()

    def _maybe_fail(self) -> None:
        if self.away:
            self.failures += 1
            self.failure_times.append(time.monotonic())
            raise StoreUnavailable("the tracking store memory failed: it is away")

    def get(self, run_id: str) -> RunData:
        self._maybe_fail()
        self.get_times.append(time.monotonic())
        self._hurry.wait(self.get_s)
        data = self.inner.get(run_id)
        self.got_times.append(time.monotonic())
        self.gets += 1
        return data

    def write(self, run_id: str, tags: Mapping[str, str], points: Sequence[Point] = ()) -> None:
        self._maybe_fail()
        assert len(tags) <= 100
        assert len(points) <= 800
        if self.write_s:
            self.writing.set()
        self._hurry.wait(self.write_s)
        if bad := self.refused & set(tags):
            raise StoreError(f"will not write {sorted(bad)}")
        self.inner.write(run_id, tags, points)
        self.writes.append(dict(tags))
        if self.loses_answers:
            self.failures += 1
            raise StoreUnavailable("the tracking store memory failed: the answer was lost")

    def set_status(self, run_id: str, status: RunStatus) -> None:
        self._maybe_fail()
        self.inner.set_status(run_id, status)

    def find(
        self, *, prefix: str = "", name: str | None = None, live: bool = False, limit: int = 20
    ) -> list[RunData]:
        self._maybe_fail()
        return self.inner.find(prefix=prefix, name=name, live=live, limit=limit)

    def metric_history(self, run_id: str, key: str) -> list[Point]:
        self._maybe_fail()
        return self.inner.metric_history(run_id, key)
