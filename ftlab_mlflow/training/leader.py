"""The rank that decides: its session takes all ranks along, and meets them as often as it must."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from ftlab_mlflow.errors import RankError, RanksLost
from ftlab_mlflow.training.host import WentBack
from ftlab_mlflow.training.ranks import Ranks
from ftlab_mlflow.training.session import Session
from ftlab_mlflow.training.tunable import Tunable


class EveryHost:
    """The hosts of all ranks, as one. For the leader."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def checkpoint(self) -> str:
        """All ranks write their part; if one cannot, there is no checkpoint."""
        try:
            path: str = self._ranks.call("checkpoint")
        except RankError:
            self._ranks.call("discard")
            raise
        return path

    def evaluate(self) -> Mapping[str, float]:
        """Evaluates on all ranks; the leader's metrics are those of all."""
        metrics: Mapping[str, float] = self._ranks.call("evaluate")
        return metrics

    def stop(self) -> None:
        """Makes this boundary the last one on all ranks."""
        self._ranks.call("stop")

    def rollback(self, checkpoint: str | None) -> WentBack:
        """All ranks go back to the same checkpoint."""
        where: WentBack = self._ranks.call("rollback", checkpoint)
        return where


def on_every_rank(tunables: Mapping[str, Tunable], ranks: Ranks) -> dict[str, Tunable]:
    """Tunables that change all ranks, and are read on the leader."""
    return {
        name: replace(
            tunable,
            capture=partial(ranks.call, "capture", name),
            restore=lambda _, name=name: ranks.call("restore", name),  # type: ignore[misc]
            apply=partial(ranks.call, "apply", name),
            load=partial(ranks.call, "load", name),
        )
        for name, tunable in tunables.items()
    }


class Leader:
    """A session that all ranks take part in.

    Args:
        sync_steps: Steps between two meetings at most.
        latency_s: Seconds between two meetings, as long as that is more than one step.
    """

    def __init__(self, session: Session, ranks: Ranks, sync_steps: int, latency_s: float) -> None:
        self._session = session
        self._ranks = ranks
        self._sync_steps = sync_steps
        self._latency_s = latency_s
        self._meet_at = 0
        self._is_alone = False
        self._left = (0, 0.0)  # step and time of the last meeting's end
        self._stride = 1

    def boundary(self, step: int) -> None:
        """An optimizer step is done. At most steps that is all."""
        self._session.step = step  # a checkpoint between two meetings holds it
        if self._is_alone:
            self._session.boundary(step)
        elif step >= self._meet_at:
            done, took_s = step - self._left[0], time.monotonic() - self._left[1]
            self._stride = max(1, min(self._sync_steps, int(self._latency_s * done / max(took_s, 1e-6))))
            with self.meeting():
                self._session.boundary(step)

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """All ranks do what the leader does, until its end."""
        try:
            yield
        finally:
            session = self._session
            due = max(session.next_step, session.step + 1)
            self._meet_at = int(min(session.step + self._stride, due))
            self._left = (session.step, time.monotonic())
            try:
                self._ranks.go_on(self._meet_at)
            except RanksLost as error:
                self._is_alone = True
                self._session.withdraw(str(error))
                raise
