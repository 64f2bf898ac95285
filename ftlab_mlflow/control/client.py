"""`LiveRun`: what a person or a script holds to watch and change a training while it trains."""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Entry, Ledger
from ftlab_mlflow.control.messages import Ack, Status, Update
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.control.preview import Preview, preview
from ftlab_mlflow.control.store import Point, RunData, RunStore
from ftlab_mlflow.control.surface import Surface
from ftlab_mlflow.control.wire import Scalar, new_id, utc_now
from ftlab_mlflow.errors import (
    FTLabError,
    MessageError,
    NotLive,
    RunNotFound,
    SendUnconfirmed,
    StoreUnavailable,
    UpdateRejected,
    UpdateTimeout,
)

_POLL_S = 0.25
_M = TypeVar("_M")


@dataclass(frozen=True)
class SentUpdate:
    """A request that was written and may not be answered yet."""

    run: LiveRun
    id: str
    update: Update

    def ack(self) -> Ack | None:
        """The answer, or None while there is none.

        Raises:
            UpdateRejected: The answer is `rejected` or `cancelled`.
            MessageError: There is an answer that cannot be read, such as one of a newer protocol.
        """
        answer = self.run.tags().get(tags.ACK_PREFIX + self.id)
        if answer is None:
            return None
        ack = Ack.decode(answer)
        if ack.status != "applied":
            raise UpdateRejected(ack.code or ack.status, ack.errors, self.id)
        return ack

    def wait(self, timeout: float = 30.0) -> Ack:
        """Waits for the answer. A tracking store that is away for a moment is waited for as well.

        Args:
            timeout: Seconds.

        Raises:
            UpdateRejected: The answer is `rejected` or `cancelled`.
            UpdateTimeout: No answer came in time. The request is still pending.
        """
        end = time.monotonic() + timeout
        away: StoreUnavailable | None = None
        while True:
            try:
                if ack := self.ack():
                    return ack
                away = None
            except StoreUnavailable as error:
                away = error
            left = end - time.monotonic()
            if left <= 0:
                reason = f"{away}" if away else self.run.why_silent()
                raise UpdateTimeout(
                    f"no answer to {self.id} after {timeout:g} s: {reason}; it is still pending"
                ) from away
            time.sleep(min(_POLL_S, left))


class LiveRun:
    """One training run, to watch and to change while it trains.

    Args:
        run: A run id, a unique prefix of one, a run name (the newest run of that name), or ``"latest"``: the
            newest run that a live trainer has written to.
        tracking_uri: MLflow's tracking URI; None is MLflow's own setting.
        store: Another `RunStore` to use instead of MLflow.
        by: Who asks, written into every request; None is the user that runs this process.
        via: With what.

    Raises:
        RunNotFound: No run goes by that reference, or several do.
        StoreUnavailable: The tracking store does not answer.
    """

    def __init__(
        self,
        run: str = "latest",
        *,
        tracking_uri: str | None = None,
        store: RunStore | None = None,
        by: str | None = None,
        via: str = "python",
    ) -> None:
        self._store: RunStore = store if store is not None else MlflowRunStore(tracking_uri)
        self.run_id = resolve(self._store, run)
        self._by = by or user_name()
        self._via = via

    def __repr__(self) -> str:
        return f"LiveRun({self.run_id!r})"

    def data(self) -> RunData:
        """The run as the tracking store has it: name, status, tags and last metrics."""
        return self._store.get(self.run_id)

    def tags(self) -> dict[str, str]:
        """All tags of the run."""
        return self.data().tags

    def metric_history(self, key: str) -> list[Point]:
        """All logged values of a metric, by step; empty when there is none."""
        return self._store.metric_history(self.run_id, key)

    def surface(self) -> Surface:
        """What can be changed now.

        Raises:
            NotLive: No live trainer has ever written to the run.
        """
        return _decode(self.tags(), tags.SURFACE, Surface.decode, self.run_id)

    def status(self) -> Status:
        """State, progress and heartbeat; `Status.is_lost` tells a dead trainer.

        Raises:
            NotLive: No live trainer has ever written to the run.
        """
        return _decode(self.tags(), tags.STATUS, Status.decode, self.run_id)

    def history(self) -> tuple[Entry, ...]:
        """All requests with their answers, in order."""
        return Ledger.read(self.tags()).entries

    def preview(
        self,
        *,
        learning_rate: float | None = None,
        lr_schedule: str | None = None,
        at_step: int | None = None,
    ) -> Preview:
        """The learning rate over the rest of the run, as planned today and with a change. Sends nothing.

        The arguments are those of `ftlab_mlflow.control.preview.preview`.

        Raises:
            UpdateRejected: The surface does not allow the change.
            NotLive: No live trainer has ever written to the run.
        """
        return preview(self.surface(), learning_rate, lr_schedule, at_step)

    def why_read_only(self) -> str | None:
        """Why the tracking server would refuse this user's requests; None if it would not.

        One call, which writes nothing. Permissions seldom change: a page asks once, not at every refresh.
        """
        return self._store.why_read_only(self.run_id)

    def update(
        self,
        set: Mapping[str, Scalar] | None = None,
        /,
        *,
        reason: str | None = None,
        expect: Mapping[str, Scalar] | None = None,
        at_step: int | None = None,
        expires: datetime | None = None,
        **parameters: Scalar,
    ) -> SentUpdate:
        """Asks for new values of parameters, all at one step boundary or none.

        The request is checked against the surface before it is written.

        Args:
            set: New values by name, where a name is no Python word.
            reason: Why, for the history.
            expect: The value last asked for, by name; the request is rejected as stale where it differs.
            at_step: Not before so many optimizer steps are done.
            expires: Rejected if not applied by then (with a time zone).
            **parameters: New values by name.

        Raises:
            UpdateRejected: The surface does not allow it. Nothing was written.
            NotLive: The run does not listen.
            NotPermitted: This user may not write to the run. Nothing was written.
        """
        return self.send(
            Update(
                at=utc_now(),
                set={**(set or {}), **parameters},
                expect=expect or {},
                at_step=at_step,
                expires=expires,
                by=self._by,
                via=self._via,
                reason=reason,
            )
        )

    def command(
        self,
        name: str,
        *,
        reason: str | None = None,
        at_step: int | None = None,
        **args: Scalar,
    ) -> SentUpdate:
        """Sends a command by its name; raises as `update` does."""
        update = Update(
            at=utc_now(),
            command=name,
            args=args,
            at_step=at_step,
            by=self._by,
            via=self._via,
            reason=reason,
        )
        return self.send(update)

    def pause(self, *, reason: str | None = None) -> SentUpdate:
        """Holds the training at the next step boundary; everything else is still served."""
        return self.command("pause", reason=reason)

    def resume(self, *, reason: str | None = None) -> SentUpdate:
        """Lets a paused training go on."""
        return self.command("resume", reason=reason)

    def stop(self, *, save: bool = True, reason: str | None = None) -> SentUpdate:
        """Ends the training at the next step boundary, after a checkpoint if `save`."""
        return self.command("stop", save=save, reason=reason)

    def checkpoint(self, *, reason: str | None = None) -> SentUpdate:
        """Writes a checkpoint now; the answer's `result` has its path."""
        return self.command("checkpoint", reason=reason)

    def evaluate(self, *, reason: str | None = None) -> SentUpdate:
        """Evaluates now; the answer's `result` has the metrics."""
        return self.command("evaluate", reason=reason)

    def rollback(self, checkpoint: str | None = None, *, reason: str | None = None) -> SentUpdate:
        """Goes back to a checkpoint of this run; what was asked for since stays in force.

        Args:
            checkpoint: The name of its directory, such as ``checkpoint-500``; None is the last one.
        """
        args: dict[str, Any] = {} if checkpoint is None else {"checkpoint": checkpoint}
        return self.command("rollback", reason=reason, **args)

    def cancel(self, id: str, *, reason: str | None = None) -> SentUpdate:
        """Withdraws a request that is still pending."""
        return self.command("cancel", id=id, reason=reason)

    def send(self, update: Update) -> SentUpdate:
        """Checks a request against the surface and writes it.

        Raises:
            UpdateRejected: The surface does not allow it. Nothing was written.
            NotLive: The run does not listen.
            NotPermitted: This user may not write to the run. Nothing was written.
        """
        run_tags = self.tags()
        surface = _decode(run_tags, tags.SURFACE, Surface.decode, self.run_id)
        status = _decode(run_tags, tags.STATUS, Status.decode, self.run_id)
        if status.state == "finished" or (status.is_final and update.command is not None):
            raise NotLive(
                f"run {self.run_id} is {status.state}: it takes no more requests; "
                "start or resume a training to change it"
            )
        if update.expires is not None and update.expires.tzinfo is None:
            raise UpdateRejected("invalid", {"expires": "must have a time zone"})
        if problem := surface.problems(update):
            raise UpdateRejected(*problem)
        try:
            text = update.encode()
            Update.decode(text)
        except MessageError as error:
            raise UpdateRejected(error.code, error.errors) from error
        request_id = new_id()
        try:
            self._store.write(self.run_id, {tags.UPDATE_PREFIX + request_id: text})
        except StoreUnavailable as error:
            raise SendUnconfirmed(str(error), request_id) from error
        return SentUpdate(self, request_id, update)

    def why_silent(self) -> str:
        """Why the run may not have answered, from its status, for an error text."""
        try:
            status = self.status()
        except FTLabError as error:
            return str(error)
        age = (utc_now() - status.at).total_seconds()
        if status.is_final:
            return f"the run is {status.state}"
        if status.is_lost(utc_now()):
            return f"the run is lost, its last heartbeat was {age:.0f} s ago"
        return f"the run is {status.state} at step {status.step}, its last heartbeat was {age:.0f} s ago"


def resolve(store: RunStore, reference: str) -> str:
    """The run id that a reference means; `LiveRun` says which references there are.

    Raises:
        RunNotFound: No run goes by it, or several do.
    """
    if reference == "latest":
        if runs := store.find(live=True, limit=1):
            return runs[0].run_id
        raise RunNotFound("no live run yet: start one with `ftlab train sft` or attach(trainer)")
    if not reference:
        raise RunNotFound("an empty run reference; use a run id, a prefix of one, a run name or latest")
    is_hex = all(c in "0123456789abcdef" for c in reference)
    if is_hex and len(reference) == 32:
        return store.get(reference).run_id
    by_name = store.find(name=reference, limit=1)
    by_prefix = store.find(prefix=reference, limit=2) if is_hex else []
    if by_name:
        return by_name[0].run_id
    if len(by_prefix) == 1:
        return by_prefix[0].run_id
    if by_prefix:
        raise RunNotFound(f"several runs start with {reference}: give more characters of the id")
    raise RunNotFound(f"no run has the id, id prefix or name {reference}; `ftlab runs` lists them")


def _decode(run_tags: Mapping[str, str], key: str, decode: Callable[[str], _M], run_id: str) -> _M:
    if key not in run_tags:
        raise NotLive(
            f"run {run_id} has no {key}: its trainer does not listen, or has not begun; "
            "add LiveControl() or attach(trainer) to it"
        )
    return decode(run_tags[key])


def user_name() -> str:
    """The user that runs this process, as requests name it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user id, as in some containers
        return "unknown"
