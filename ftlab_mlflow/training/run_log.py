"""The MLflow run of one `ftlab train`: started or joined, told what it trains, and ended truthfully."""

from __future__ import annotations

import gc
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

from transformers.integrations import MLflowCallback

from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.messages import State
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.control.tags import LIVE_METRIC_PREFIX
from ftlab_mlflow.errors import ConfigError, NotAuthenticated, NotPermitted, RunNotFound, StoreError
from ftlab_mlflow.plugin import RunContext
from ftlab_mlflow.training.mlflow_run import RUN_STATUS

logger = logging.getLogger("ftlab_mlflow")

EXPERIMENT = "ftlab"
"""The experiment of a run for which MLflow's environment variables name none."""
_NO_RUN = "0" * 32


def default_output_dir(run_id: str) -> str:
    """Where a run's model and checkpoints go if nobody says where."""
    return f"outputs/{run_id[:8]}"


class RunLog:
    """The run that is active from here to `end`.

    ``MLFLOW_RUN_ID`` names a run to join (``mlflow run`` sets it, and so can who resumes a training); else
    one is started in the experiment that MLflow's environment variables name, or in ``ftlab``.

    Args:
        parent: Start a run that is a child of this one, in the same experiment.
        run_id: The run to join, instead of ``MLFLOW_RUN_ID``.

    Attributes:
        run_id, name: Of the run. store: Where it is.
        undelivered: Whether the tracking store was away at the end. Then MLflow's own queue may still try
            for minutes to deliver its metrics.

    Raises:
        StoreError: The tracking store does not answer, or refuses.
        ConfigError: MLflow cannot join or start this run.
    """

    def __init__(
        self,
        tracking_uri: str | None,
        run_name: str | None,
        parent: RunLog | None = None,
        run_id: str | None = None,
    ) -> None:
        import mlflow

        if run_id:
            os.environ["MLFLOW_RUN_ID"] = run_id  # MLflow takes it out when it joins the run
        if tracking_uri:
            mlflow.set_tracking_uri(tracking_uri)
        self.store = MlflowRunStore()
        self.undelivered = False
        joined = os.environ.get("MLFLOW_RUN_ID")
        try:
            # MLflow's client would try for minutes, without a word; this tries once.
            self.store.get(joined or _NO_RUN)
        except RunNotFound as error:
            if joined:
                raise ConfigError(f"MLFLOW_RUN_ID: {error}") from error
        except NotPermitted as error:
            # A server with users says so of a run that is not there.
            if joined or isinstance(error, NotAuthenticated):
                raise
        try:
            if parent is None and not joined and not os.environ.get("MLFLOW_EXPERIMENT_ID"):
                mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT)
            # transformers' callback of an earlier training ends the active run, whichever that is, when it is
            # collected: it must not be this one.
            gc.collect()
            run = mlflow.start_run(
                experiment_id=parent._experiment_id if parent else None,
                run_name=run_name,
                nested=parent is not None,
                parent_run_id=parent.run_id if parent else None,
                log_system_metrics=_wants_system_metrics(),
            )
            if joined:  # MLflow asks its context providers only about runs that it starts here
                mlflow.set_tags(RunContext().tags())
        except mlflow.MlflowException as error:
            raise ConfigError(f"MLflow cannot start this run: {str(error).splitlines()[0]}") from error
        self._experiment_id: str = run.info.experiment_id
        self.run_id: str = run.info.run_id
        self.name: str = run.info.run_name or ""

    def write_config(self, text: str) -> None:
        """Puts the config file next to the run, as the artifact ``config.yaml``. Training goes on without."""
        import mlflow

        try:
            mlflow.log_text(text, "config.yaml")
        except (mlflow.MlflowException, OSError) as error:
            logger.warning("config.yaml was not saved with the run: %s", str(error).splitlines()[0])

    def end(self, state: State) -> None:
        """Ends the run with the status that fits the state."""
        import mlflow

        status = RUN_STATUS[state]
        try:
            self.store.set_status(self.run_id, status)
        except StoreError as error:
            self.undelivered = True
            logger.error("The run %s could not be set to %s: %s", self.run_id, status, error)
            return
        mlflow.end_run(status)


def _wants_system_metrics() -> bool:
    """Whether MLflow logs the load of this machine: unless its own variable says no."""
    from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING as WANTED

    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it tells every start and end
    return WANTED.get() if WANTED.is_set() else True


class ParameterLog(MLflowCallback):
    """transformers' MLflow callback, for a run that may have parameters and metrics already.

    ``mlflow run`` logs what it was given, as text (``1e-3``). MLflow refuses to change a parameter (to
    ``0.001``), and with it everything that is sent in the same batch, in the background.

    MLflow keeps every value that is logged for a step. A process that is killed has logged steps after its
    last checkpoint, which are trained again after a resume, and may not have delivered the values before it.
    So each metric is logged once a step: what the run has is left out, and what it lacks is taken from the
    checkpoint. After a rollback the steps that come again have values of their own, which are logged.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[str, set[int]] = {}
        self._last: dict[str, int] = {}
        self._step = 0

    def __del__(self) -> None:
        """`RunLog` ends the run."""

    def setup(self, args: Any, state: Any, model: Any) -> None:
        """Logs the parameters and the metrics that the run does not have yet."""
        active = self._ml_flow.active_run()
        run = None if active is None else self._ml_flow.get_run(active.info.run_id)
        known = set() if run is None else set(run.data.params)
        new_args = _Without(known, args)
        if getattr(model, "config", None) is not None:
            model = _Without((), model, config=_Without(known, model.config))
        super().setup(new_args, state, model)
        self._step = state.global_step
        if run is not None and self._step > 0:
            self._before = _logged_steps(run)
            if self._before:  # else it is a new run, from another run's checkpoint
                self._log_missing(state.log_history)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notices a rollback."""
        self._look_at(state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Logs what the run does not have for this step."""
        if not self._initialized:
            self.setup(args, state, model)
        self._look_at(state.global_step)
        super().on_log(args, state, control, self._new(logs, state.global_step), model, **kwargs)

    def _look_at(self, step: int) -> None:
        if step < self._step:
            self._before.clear()
            self._last.clear()
        self._step = step

    def _new(self, logs: Mapping[str, Any], step: int) -> dict[str, Any]:
        new = {key: value for key, value in logs.items() if self._is_new(_sanitized(key), step)}
        self._last |= {_sanitized(key): step for key in new}
        return new

    def _is_new(self, key: str, step: int) -> bool:
        return step > self._last.get(key, -1) and step not in self._before.get(key, ())

    def _log_missing(self, history: list[dict[str, Any]]) -> None:
        for entry in history:
            new = self._new({k: v for k, v in entry.items() if k != "step"}, entry["step"])
            numbers = {_sanitized(k): v for k, v in new.items() if isinstance(v, int | float)}
            if numbers:
                self._ml_flow.log_metrics(numbers, step=entry["step"], synchronous=False)


def _sanitized(key: str) -> str:
    """A metric's name as transformers gives it to MLflow."""
    return re.sub(r"[^0-9A-Za-z_\-\.\ :/]", "_", key)


def _logged_steps(run: Any) -> dict[str, set[int]]:
    """The logged steps by metric, without those that a rollback has undone.

    All of them, not the last: MLflow delivers in several threads, so a killed process may lack any.
    """
    from mlflow import MlflowClient

    rollbacks = [
        (entry.ack.at.timestamp() * 1000, entry.ack.step)
        for entry in Ledger.read(run.data.tags).entries
        if entry.ack and entry.ack.status == "applied" and entry.update and entry.update.command == "rollback"
    ]
    steps = {}
    for key in run.data.metrics:
        if key.startswith((LIVE_METRIC_PREFIX, "system/")):
            continue  # not from the trainer's log
        history = MlflowClient().get_metric_history(run.info.run_id, key)
        steps[key] = {
            metric.step
            for metric in history
            if not any(metric.timestamp <= at and metric.step > to for at, to in rollbacks)
        }
    return steps


class _Without:
    """An object whose ``to_dict()`` leaves out some keys."""

    def __init__(self, keys: Any, wrapped: Any, **attributes: Any) -> None:
        self._keys = keys
        self._wrapped = wrapped
        self.__dict__.update(attributes)

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in self._wrapped.to_dict().items() if key not in self._keys}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)
