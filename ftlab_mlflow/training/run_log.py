"""The MLflow run of one `ftlab train`: started or joined, told what it trains, and ended truthfully."""

from __future__ import annotations

import logging
import os
from typing import Any

from transformers.integrations import MLflowCallback

from ftlab_mlflow.control.messages import State
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.errors import ConfigError, RunNotFound, StoreError
from ftlab_mlflow.plugin import RunContext
from ftlab_mlflow.training.mlflow_run import RUN_STATUS

logger = logging.getLogger("ftlab_mlflow")

_EXPERIMENT = "ftlab"
_NO_RUN = "0" * 32


class RunLog:
    """The run that is active from here to `end`.

    ``MLFLOW_RUN_ID`` names a run to join (``mlflow run`` sets it, and so can who resumes a training); else
    one is started in the experiment that MLflow's environment variables name, or in ``ftlab``.

    Attributes:
        run_id, name: Of the run. store: Where it is.
        undelivered: Whether the tracking store was away at the end. Then MLflow's own queue may still try
            for minutes to deliver its metrics.

    Raises:
        StoreError: The tracking store does not answer, or refuses.
        ConfigError: MLflow cannot join or start this run.
    """

    def __init__(self, tracking_uri: str | None, run_name: str | None) -> None:
        import mlflow

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
        try:
            if not joined and not os.environ.get("MLFLOW_EXPERIMENT_ID"):
                mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT)
            run = mlflow.start_run(run_name=run_name)
            if joined:  # MLflow asks its context providers only about runs that it starts here
                mlflow.set_tags(RunContext().tags())
        except mlflow.MlflowException as error:
            raise ConfigError(f"MLflow cannot start this run: {str(error).splitlines()[0]}") from error
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


class ParameterLog(MLflowCallback):
    """transformers' MLflow callback, for a run that may have some of the parameters already.

    ``mlflow run`` logs what it was given, as text (``1e-3``). MLflow refuses to change a parameter (to
    ``0.001``), and with it everything that is sent in the same batch, in the background.
    """

    def setup(self, args: Any, state: Any, model: Any) -> None:
        """Logs the parameters that the run does not have yet."""
        active = self._ml_flow.active_run()
        known = set() if active is None else set(self._ml_flow.get_run(active.info.run_id).data.params)
        new_args = _Without(known, args)
        if getattr(model, "config", None) is not None:
            model = _Without((), model, config=_Without(known, model.config))
        super().setup(new_args, state, model)


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
