"""`Host`: the seam between a session and the training loop that it lives in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol


class WentBack(NamedTuple):
    """Where a training is after a rollback.

    Attributes:
        checkpoint: Its path. saved: What it holds of the session (`Session.saved_state`).
        step: Optimizer steps done there.
    """

    checkpoint: str
    saved: Mapping[str, Any]
    step: int


class Host(Protocol):
    """What a session asks of the training loop it lives in. Called in the training thread, at a boundary."""

    def checkpoint(self) -> str:
        """Writes a checkpoint and returns its path."""

    def evaluate(self) -> Mapping[str, float]:
        """Evaluates and returns the metrics."""

    def stop(self) -> None:
        """Makes the boundary now the last one."""

    @property
    def rollback(self) -> Callable[[str | None], WentBack] | None:
        """Goes back to a checkpoint of this run, by its directory's name; None is the last one.

        If it raises, nothing has changed. A loop that cannot go back has None in its place.
        """
