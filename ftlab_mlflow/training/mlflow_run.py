"""The MLflow run that a training logs to: found or started, and ended with a truthful status."""

from __future__ import annotations

import atexit
import logging
from typing import Any, Literal

from ftlab_mlflow.control.messages import State
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.control.store import RunStatus, RunStore
from ftlab_mlflow.errors import StoreError

logger = logging.getLogger("ftlab_mlflow")

RUN_STATUS: dict[State, RunStatus] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
}
"""The MLflow run's own status by final state."""

Owner = Literal["training", "user"]

_not_finished: dict[str, TrainingRun] = {}
"""By run id: the last training, if it was stopped or failed and its run goes on."""


class TrainingRun:
    """The run that is active when training begins, else the one of `run_id`, else a new one.

    Attributes:
        store, run_id: Where to write.
        owner: Who ends the run: the training (transformers' ``MLflowCallback`` started it, or it was
            started here), or the user, whose ``mlflow.start_run`` goes on after the training.
    """

    def __init__(self, callbacks: list[Any], run_name: str | None, run_id: str | None = None) -> None:
        import mlflow

        active = mlflow.active_run()
        by_callback = any(getattr(callback, "_auto_end_run", False) for callback in callbacks)
        self.owner: Owner = "training" if active is None or by_callback else "user"
        if active is None:
            active = mlflow.start_run(run_id, run_name=None if run_id else run_name)
        self.run_id: str = active.info.run_id
        self.store: RunStore = MlflowRunStore()
        if before := _not_finished.pop(self.run_id, None):
            atexit.unregister(before._say_again)

    def end(self, state: State, *, reachable: bool) -> None:
        """Ends the run if the training owns it.

        A run of the user's stays active, so that what the program logs after the training finds it. If the
        training was stopped or failed (and no other on the same run came after it), its status is set again
        when the process ends, because the ``with mlflow.start_run()`` around it would say FINISHED.
        """
        import mlflow

        status = RUN_STATUS[state]
        active = mlflow.active_run()
        is_active = active is not None and active.info.run_id == self.run_id
        if self.owner == "training" and reachable:
            if is_active:
                mlflow.end_run(status)
        elif state != "finished":
            _not_finished[self.run_id] = self
            atexit.register(self._say_again, status)

    def _say_again(self, status: RunStatus) -> None:
        import mlflow

        active = mlflow.active_run()
        try:
            if active is not None and active.info.run_id == self.run_id:
                mlflow.end_run(status)
            elif self.store.get(self.run_id).status != status:
                self.store.set_status(self.run_id, status)
        except (StoreError, mlflow.MlflowException) as error:
            logger.error("Could not set run %s to %s: %s", self.run_id, status, error)
