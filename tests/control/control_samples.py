"""Valid messages for the tests of control: ready-made ones and hypothesis strategies."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

from hypothesis import strategies as st

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.client import LiveRun
from ftlab_mlflow.control.messages import Ack, AckStatus, Code, State, Status, Update
from ftlab_mlflow.control.store import MemoryRunStore
from ftlab_mlflow.control.surface import Param, Surface
from ftlab_mlflow.control.wire import utc_now
from ftlab_mlflow.errors import MessageError

AT = datetime(2026, 11, 21, 19, 0, 0, 123_000, tzinfo=UTC)
AT_TEXT = "2026-11-21T19:00:00.123Z"

SURFACE = Surface(
    params={
        "learning_rate": Param("float", 8.7e-05, 1e-4, 0, 1, help="Of the next step."),
        "weight_decay": Param("float", 0.0, 0.0, 0),
        "logging_steps": Param("int", 8, 8, 1, 64),
        "use_cache": Param("bool", True, True),
        "lr_schedule": Param("enum", "keep", "keep", choices=("keep", "hold")),
    },
    commands=("pause", "resume", "stop", "checkpoint", "rollback", "cancel"),
)


def seconds(count: float) -> datetime:
    """A time so long after `AT`."""
    return AT + timedelta(seconds=count)


def running(**changes: Any) -> Status:
    """The status of a trainer whose heartbeat was just now."""
    fields: dict[str, Any] = {
        "state": "running", "step": 130, "max_steps": 1000, "epoch": 0.41, "at": utc_now(), "every_s": 10,
        "session": "s1", "host": "node7", "pid": 4242, "method": "sft",
    }  # fmt: skip
    return Status(**(fields | changes))


def live_tags(**status: Any) -> dict[str, str]:
    """The tags by which a run is live."""
    return {tags.SURFACE: SURFACE.encode(), tags.STATUS: running(**status).encode()}


def live_run(**status: Any) -> tuple[LiveRun, MemoryRunStore]:
    """A live run in memory, and its store."""
    store = MemoryRunStore()
    run_id = store.create_run("a run", live_tags(**status))
    return LiveRun(run_id, store=store, by="alice"), store


def answer(store: Any, run_id: str, request_id: str, **fields: Any) -> None:
    """Writes an ack as a trainer does."""
    ack = Ack(**({"status": "applied", "step": 130, "at": utc_now(), "session": "s1"} | fields))
    store.write(run_id, {tags.ACK_PREFIX + request_id: ack.encode()})


def value_or_error(decode: Callable[[str], Any], text: str) -> Any:
    """What a total decoder makes of a text: a value or a `MessageError`; any other error goes on."""
    try:
        return decode(text)
    except MessageError as error:
        return error


# Texts stay short, so that no message comes near the length limit by chance.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
numbers = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.booleans() | numbers | texts
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
)
times = st.datetimes(timezones=st.just(UTC)).map(
    lambda at: at.replace(microsecond=at.microsecond // 1000 * 1000)
)
optional_text = st.none() | texts


def mappings(of: st.SearchStrategy[Any], min_size: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(names, of, min_size=min_size, max_size=4)


_common: dict[str, Any] = {
    "at": times, "expect": mappings(scalars), "at_step": st.none() | st.integers(0, 10**12),
    "expires": st.none() | times, "by": optional_text, "via": optional_text, "reason": optional_text,
}  # fmt: skip
updates = st.builds(Update, set=mappings(values, 1), **_common) | st.builds(
    Update, command=texts, args=mappings(values), **_common
)
acks = st.builds(
    Ack,
    status=st.sampled_from(get_args(AckStatus)),
    step=st.integers(0, 10**12),
    at=times,
    session=texts,
    changes=mappings(st.tuples(scalars, scalars)),
    code=st.none() | st.sampled_from(get_args(Code)),
    errors=mappings(texts),
    result=mappings(st.none() | scalars),
)
statuses = st.builds(
    Status,
    state=st.sampled_from(get_args(State)),
    step=st.integers(0, 10**12),
    max_steps=st.integers(0, 10**12),
    epoch=st.floats(0, 1e6),
    at=times,
    every_s=st.floats(0.01, 1e6),
    session=texts,
    host=texts,
    pid=st.integers(0, 2**31),
    method=texts,
    error=optional_text,
)
_bounds = st.none() | numbers
params = st.builds(
    Param,
    type=st.sampled_from(["float", "int", "bool"]),
    value=scalars,
    asked=scalars,
    min=_bounds,
    max=_bounds,
    help=texts,
) | st.builds(
    Param,
    type=st.just("enum"),
    value=texts,
    asked=texts,
    choices=st.lists(texts, min_size=1, max_size=4).map(tuple),
)
surfaces = st.builds(
    Surface,
    params=mappings(params),
    commands=st.lists(texts, max_size=5).map(tuple),
    unsupported=mappings(texts),
)
