"""A change that a model has proposed: nothing happens until a person sends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftlab_mlflow.chat.events import ToolRun

if TYPE_CHECKING:
    from ftlab_mlflow.control.client import LiveRun, SentUpdate
    from ftlab_mlflow.control.wire import Scalar


@dataclass(frozen=True)
class Proposal:
    """New values for a run, as `propose_update` checked them.

    Attributes:
        run_id, name: Of the run. changes: Value last asked for, and the new one, by parameter.
        reason: Why, in the model's words.
        problems: By parameter, what is wrong; it can be sent only where there is none.
    """

    run_id: str
    name: str
    changes: dict[str, tuple[Scalar | None, Scalar]]
    reason: str | None
    problems: dict[str, str]

    @classmethod
    def of(cls, run: ToolRun) -> Proposal | None:
        """The proposal that a tool returned; None if it returned something else."""
        if run.name != "propose_update" or not run.ok:
            return None
        found = run.result
        changes = {name: (each["from"], each["to"]) for name, each in found["changes"].items()}
        return cls(found["run_id"], found["name"], changes, found["reason"], dict(found["problems"]))

    @property
    def values(self) -> dict[str, Scalar]:
        """The new values by parameter."""
        return {name: new for name, (_, new) in self.changes.items()}

    def send(self, run: LiveRun) -> SentUpdate:
        """Asks for it. It is refused as `stale` if somebody has asked for something else since.

        Args:
            run: The run, in the name of who sends it, with ``via="chat"``.

        Raises:
            UpdateRejected, NotLive, StoreError: As `LiveRun.update`.
        """
        expect = {name: old for name, (old, _) in self.changes.items() if old is not None}
        return run.update(self.values, expect=expect, reason=self.reason)
