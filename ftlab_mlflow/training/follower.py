"""A rank that follows: it does what the leader says, at the steps at which all ranks meet."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from ftlab_mlflow.control.messages import State
from ftlab_mlflow.errors import ConfigError, RanksLost
from ftlab_mlflow.training.host import Host
from ftlab_mlflow.training.ranks import Agreement, Hand, Ranks
from ftlab_mlflow.training.signals import StopSignals
from ftlab_mlflow.training.tunable import Tunable

logger = logging.getLogger("ftlab_mlflow")


class Follower:
    """One training on a rank that does what the leader says: no store, no thread, no MLflow run.

    Attributes:
        state: Of the training; a follower does not know of pauses. paused_s: Always 0.
        signals: Of this rank. is_open: Whether the training has not ended.
    """

    run_id: None = None
    paused_s = 0.0

    def __init__(self, tunables: Mapping[str, Tunable], host: Host, agreement: Agreement) -> None:
        self.state: State = "starting"
        self.signals = StopSignals(lambda: None)  # the leader hears of it at the next meeting
        self.is_open = True
        self._hand = Hand(tunables, host)
        self._ranks = Ranks(self._hand, self.signals, agreement.timeout_s)
        self._meet_at: float = 0

    def begin(self, step: int, saved: Mapping[str, Any]) -> None:
        """Brings into force what the leader finds in its checkpoint and in the run's history.

        Raises:
            ConfigError: As on the leader.
        """
        self.signals.install()
        self.boundary(step)
        if self._hand.refused:
            raise ConfigError(self._hand.refused)

    def running(self) -> None:
        """A step begins."""
        if self.state == "starting":
            self.state = "running"

    def boundary(self, step: int) -> None:
        """An optimizer step is done. At most steps that is all.

        Raises:
            RanksDiverged: The training cannot go on.
        """
        if step >= self._meet_at:
            try:
                self._meet_at = self._ranks.follow()
            except RanksLost as error:
                self._meet_at = math.inf
                logger.error("Live control is off on rank %d; training goes on: %s", dist.get_rank(), error)
            if self._hand.stopped:
                self.state = "stopping"

    def saved(self) -> dict[str, Any]:
        """Nothing: the leader writes the checkpoint's state."""
        return {}

    def end(self, state: State, error: str | None = None) -> None:
        """The training has ended."""
        self.state = state
        self.abandon()

    def abandon(self) -> None:
        """Gives everything back."""
        self.is_open = False
        self.signals.remove()
        self._ranks.close()
