"""One training under live control: session, listener, MLflow run and signals, wired together.

No framework in it: a host (`loop.LiveLoop`) says where it is, when a step is done, and how it ended.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.messages import State, Status
from ftlab_mlflow.control.store import RunStore
from ftlab_mlflow.control.tags import STATUS
from ftlab_mlflow.control.wire import is_finite, new_id, utc_now
from ftlab_mlflow.errors import ConfigError, MessageError, RanksDiverged, RanksLost
from ftlab_mlflow.training.host import Host
from ftlab_mlflow.training.leader import EveryHost, Leader, on_every_rank
from ftlab_mlflow.training.listener import Listener
from ftlab_mlflow.training.mlflow_run import RUN_STATUS, TrainingRun
from ftlab_mlflow.training.ranks import Agreement, Hand, Ranks
from ftlab_mlflow.training.session import NOTHING_GIVEN, Given, Session
from ftlab_mlflow.training.signals import StopSignals
from ftlab_mlflow.training.tunable import Tunable

logger = logging.getLogger("ftlab_mlflow")


class Progress(NamedTuple):
    """Optimizer steps done and to do in all, passes over the data done."""

    step: int
    max_steps: int
    epoch: float


class Target(NamedTuple):
    """Where a training writes: a run in a store.

    Attributes:
        run: The MLflow run as its training ends it; None where somebody else answers for the run.
    """

    store: RunStore
    run_id: str
    run: TrainingRun | None = None


@dataclass(frozen=True)
class Listening:
    """How a training is asked to listen.

    Attributes:
        poll_interval: Seconds between two looks at the run's tags; more where the tracking store is slow.
        rank_sync_steps: On several ranks: steps between two agreements at most; fewer where steps are slow.
        store, run_id: A store to use, and a run in it; both or neither.

    Raises:
        ConfigError: An argument makes no sense.
    """

    poll_interval: float
    rank_sync_steps: int
    store: RunStore | None
    run_id: str | None

    def __post_init__(self) -> None:
        if not is_finite(self.poll_interval) or self.poll_interval <= 0:
            raise ConfigError(f"poll_interval must be seconds above 0, got {self.poll_interval!r}")
        if type(self.rank_sync_steps) is not int or self.rank_sync_steps < 1:
            raise ConfigError(f"rank_sync_steps must be a whole number from 1, got {self.rank_sync_steps!r}")
        if (self.store is None) != (self.run_id is None):
            raise ConfigError("store and run_id go together: give both or neither")

    def target(self, find_run: Callable[[], TrainingRun]) -> Target:
        """Where to write: the run that was given, or the one that `find_run` finds or begins."""
        if self.store is not None and self.run_id is not None:
            return Target(self.store, self.run_id)
        run = find_run()
        return Target(run.store, run.run_id, run)


class LiveTraining:
    """One training under live control, from its beginning to its end.

    Args:
        target: Where it writes. poll_interval: Seconds between two looks at the tags.
        tunables, unsupported, commands, host: As for `Session`.
        progress: Where the training is now; also called by the listener's thread.
        method: As the status names it. saves_on_signal: Whether Ctrl-C and SIGTERM save before they stop.
        agreement: How the ranks of the training agree, of which this is the leading one; None is one process.
        given: What it is asked by the one who starts it.
    """

    def __init__(
        self,
        target: Target,
        poll_interval: float,
        *,
        tunables: Mapping[str, Tunable],
        unsupported: Mapping[str, str],
        commands: tuple[str, ...],
        host: Host,
        progress: Callable[[], Progress],
        method: str,
        saves_on_signal: bool,
        agreement: Agreement | None = None,
        given: Given = NOTHING_GIVEN,
    ) -> None:
        self.run_id = target.run_id
        self._target = target
        self._progress = progress
        self._method = method
        self._saves_on_signal = saves_on_signal
        self._given = given
        self._error: str | None = None
        self._listener = Listener(target.store, target.run_id, self._heartbeat, poll_interval)
        self.signals = StopSignals(lambda: self.session.interrupt(self._stop_by_signal))
        self._ranks: Ranks | None = None
        if agreement is not None:
            self._ranks = Ranks(Hand(tunables, host), self.signals, agreement.timeout_s)
            tunables, host = on_every_rank(tunables, self._ranks), EveryHost(self._ranks)
        self._host = host
        self.session = Session(
            id=new_id(),
            tunables=tunables,
            unsupported=unsupported,
            commands=commands,
            host=host,
            outbox=self._listener,
            describe=self._describe,
            idle=self._ranks.keep_alive if self._ranks else None,
        )
        self._leader: Leader | None = None
        if agreement is not None and self._ranks is not None:
            self._leader = Leader(self.session, self._ranks, agreement.sync_steps, poll_interval)
        self.is_open = True

    @property
    def state(self) -> State:
        """The state that the training is in or has ended in."""
        return self.session.state

    @property
    def paused_s(self) -> float:
        """Seconds that the training has waited in pauses."""
        return self.session.paused_s

    def running(self) -> None:
        """A step begins."""
        self.session.running()

    def begin(self, step: int, saved: Mapping[str, Any]) -> None:
        """Reads the run's history, brings it into force, and starts to listen.

        Args:
            step: Optimizer steps done. saved: What `saved` gave for the checkpoint; empty without one.

        Raises:
            ConfigError: It refuses what was given. Other requests that wait are as they were.
        """
        if saved and saved["run_id"] != self.run_id:
            # A checkpoint of another run: its values go on here, its answers belong there.
            saved = {key: saved[key] for key in ("values", "asked", "changed")}
        run_tags = self._listener.read_first()
        ledger = None if run_tags is None else Ledger.read(run_tags)
        if ledger and ledger.last_ack_at and step == 0 and _is_finished(run_tags):
            # Not resumed: the next training of the same run, which was told nothing yet.
            saved = {"last_ack_at": ledger.last_ack_at.isoformat()}
        try:
            with self._leader.meeting() if self._leader else nullcontext():
                self.session.begin(step, saved, ledger)
                self._end_if(self.session.refusal(self._given))
                self._listener.start(self.session, self.session.surface().params, run_tags)
                self.signals.install()
                self.session.boundary(step)
                # After what was pending, so that it wins; which may leave less room for it.
                self._end_if(self.session.refusal(self._given) or self.session.ask(self._given))
        except RanksLost as error:
            logger.error("Live control is off; training goes on: %s", error)

    def boundary(self, step: int) -> None:
        """An optimizer step is done.

        Raises:
            RanksDiverged: The training cannot go on.
        """
        try:
            (self._leader or self.session).boundary(step)
        except RanksDiverged:
            raise
        except Exception:  # a fault of ours must never end somebody's training
            logger.exception("Live control failed at step %d; training goes on", step)

    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds of this training."""
        return {"run_id": self.run_id, **self.session.saved_state()}

    def end(self, state: State, error: str | None = None) -> None:
        """Answers what is open, delivers it, and ends the run."""
        self.is_open = False
        self._error = error
        self.signals.remove()
        self.session.end(state)
        run = self._target.run
        owned = run is None or run.owner == "training"
        delivered = self._listener.close(RUN_STATUS[state] if owned or state != "finished" else None)
        if run:
            run.end(state, reachable=delivered)
        if self._ranks:
            self._ranks.close()

    def abandon(self) -> None:
        """Gives everything back without an end: another training takes over the run."""
        self.is_open = False
        self.signals.remove()
        self._listener.close(None, last_look=False)
        if self._ranks:
            self._ranks.close()

    def _end_if(self, refused: str | None) -> None:
        if refused is None:
            return
        text = f"the training refuses what was given: {refused}"
        if self._ranks:
            self._ranks.call("refuse", text)
        raise ConfigError(text)

    def _stop_by_signal(self) -> None:
        received = self.signals.received
        assert received is not None
        logger.warning("%s: stopping at step %d", received.name, self.session.step)
        if self._saves_on_signal:
            try:
                logger.warning("Checkpoint: %s", self._host.checkpoint())
            except Exception:  # the process was asked to end: it ends, with or without a checkpoint
                logger.exception("No checkpoint could be written")
        self.session.stop_now()

    def _heartbeat(self) -> str:
        return self._describe(self.session.state)

    def _describe(self, state: State) -> str:
        progress = self._progress()
        return Status(
            state=state,
            step=progress.step,
            max_steps=progress.max_steps,
            epoch=round(progress.epoch, 4),
            at=utc_now(),
            every_s=round(self._listener.heartbeat_s, 1),
            session=self.session.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            method=self._method,
            error=self._error,
        ).encode()


def ended_by(error: BaseException) -> tuple[State, str | None]:
    """How a training has ended that raised this, and what to say of it: Ctrl-C is no failure."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped", None
    return "failed", f"{type(error).__name__}: {error}".encode(errors="replace").decode()


def _is_finished(run_tags: Mapping[str, str] | None) -> bool:
    """Whether the training before this one, on the same run, came to its end."""
    try:
        return Status.decode((run_tags or {}).get(STATUS, "")).state == "finished"
    except MessageError:
        return False
