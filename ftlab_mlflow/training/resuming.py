"""`ftlab train --resume`: which run goes on, from which checkpoint, and which values win."""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from ftlab_mlflow.control.client import resolve
from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.messages import Status
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.control.store import RunData
from ftlab_mlflow.control.surface import Surface
from ftlab_mlflow.control.tags import STATUS, SURFACE
from ftlab_mlflow.control.wire import shown_value, utc_now
from ftlab_mlflow.errors import ConfigError, FTLabError, MessageError
from ftlab_mlflow.training.checkpoints import holds_only_model, last_whole, problem
from ftlab_mlflow.training.run_log import EXPERIMENT, default_output_dir

logger = logging.getLogger("ftlab_mlflow")

_SEARCHED = 100
"""So many of the newest runs are looked at for one that did not finish."""
_STORE_KEY = "ftlab/resume"
_READERS_S = 300.0
_STORES: list[Any] = []
"""Rank 0 serves it to the others for as long as its object lives: until the process ends."""


@dataclass(frozen=True)
class Asked:
    """A value that an applied request left in force."""

    value: Any
    step: int
    by: str


@dataclass(frozen=True)
class Resumption:
    """A run that goes on.

    Attributes:
        config: What it was launched with: its ``config.yaml``.
        checkpoint: The folder that it goes on from.
        live: Parameters that can be changed while it trains. A value given for one is a request, not an
            argument: data order and schedule go on from the checkpoint and change there.
        asked: What it was told while it trained, by parameter.
    """

    run_id: str
    config: dict[str, Any]
    checkpoint: str
    live: list[str]
    asked: dict[str, Asked]

    def told(self, given: Mapping[str, Any]) -> list[str]:
        """Which values win, one line each.

        Args:
            given: What was given for this resume, by key.
        """
        lines = []
        for name, value in given.items():
            over = _asked(self.asked[name]) if name in self.asked else self._launched(name)
            how = "asked for as a live change" if name in self.live else "as an argument"
            lines.append(f"{name} {_shown(value)}, given now ({how}), wins over {over}")
        for name, asked in self.asked.items():
            if name not in given:
                lines.append(f"{name} {_asked(asked)}, wins over {self._launched(name)}")
        return lines

    def _launched(self, name: str) -> str:
        return f"{_shown(self.config[name])} of the launch" if name in self.config else "the default"


def _shown(value: Any) -> str:
    return shown_value(value) if isinstance(value, int | float) else str(value)


def _asked(asked: Asked) -> str:
    return f"{_shown(asked.value)}, asked for at step {asked.step}" + (f" by {asked.by}" if asked.by else "")


def find_resumption(
    store: MlflowRunStore, method: str, reference: str | None, given: Mapping[str, Any]
) -> Resumption:
    """The run that is meant, if it can go on.

    Args:
        method: The name of the training method. reference: As for other verbs; None or empty is the newest
            run of this method in the experiment that did not finish.
        given: What was given for this resume; of it, ``output_dir`` and ``resume_from_checkpoint`` say
            where else the checkpoint is.

    Raises:
        ConfigError: The run cannot go on: it is alive, finished, of another method, or has no whole
            checkpoint. The text says what to do.
        RunNotFound: There is no such run.
    """
    run = store.get(resolve(store, reference)) if reference else _newest_unfinished(store, method)
    status = _status(run)
    if status is None:
        raise ConfigError(f"run {run.run_id} was not trained by ftlab: there is nothing to resume")
    if reason := _refusal(run, status, method):
        raise ConfigError(f"run {run.run_id[:8]} ({run.name}) {reason}")
    config = _read_config(store, run, given)
    folder = str(given.get("output_dir") or config.get("output_dir") or default_output_dir(run.run_id))
    checkpoint = _checkpoint(run, status, folder, given.get("resume_from_checkpoint"), method)
    return Resumption(run.run_id, config, checkpoint, _live(run), _asked_before(run))


def _status(run: RunData) -> Status | None:
    try:
        return Status.decode(run.tags.get(STATUS, ""))
    except MessageError:
        return None


def _newest_unfinished(store: MlflowRunStore, method: str) -> RunData:
    runs = store.find(live=True, limit=_SEARCHED)
    experiment = _experiment(store)
    found = []
    for run in runs:
        status = _status(run)
        if status and status.method == method and run.experiment_id == experiment:
            if not _refusal(run, status, method):
                return run
            found.append((run, status))
    if not found:
        raise ConfigError(f"there is no {method} run in this experiment; `ftlab runs` lists all runs")
    newest = ", ".join(f"{run.run_id[:8]} ({status.state})" for run, status in found[:3])
    raise ConfigError(f"no {method} run of this experiment ended unfinished; the newest: {newest}")


def _experiment(store: MlflowRunStore) -> str | None:
    """The id of the experiment in which a training starts its run; None if there is none yet."""
    from mlflow import MlflowClient

    if by_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return by_id
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = MlflowClient(store.tracking_uri).get_experiment_by_name(name)
    return found.experiment_id if found else None


def _refusal(run: RunData, status: Status, method: str) -> str | None:
    """Why a run cannot go on, and what to do; None if it can."""
    short = run.run_id[:8]
    if status.method != method:
        return f"is a {status.method} run: resume it with `ftlab train {status.method} --resume {short}`"
    if status.state == "finished" and run.status == "FINISHED":
        return (
            f"is finished at step {status.step}: to train its model further, start anew with "
            f"`ftlab train {method} --model` and its output folder"
        )
    if _may_be_alive(status, utc_now()):
        age = (utc_now() - status.at).total_seconds()
        return (
            f"is {status.state}, its last heartbeat on {status.host} was {age:.0f} s ago: stop it with "
            f"`ftlab stop {short}`; if its process is dead, wait until that is {3 * status.every_s:.0f} s"
        )
    return None


def _may_be_alive(status: Status, now: datetime) -> bool:
    """Whether the process that trained may still be there. After ``finished`` it saves the model."""
    if status.state in ("stopped", "failed") or (now - status.at).total_seconds() > 3 * status.every_s:
        return False
    return status.host != socket.gethostname() or _exists(status.pid)


def _exists(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read_config(store: MlflowRunStore, run: RunData, given: Mapping[str, Any]) -> dict[str, Any]:
    import mlflow

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = mlflow.artifacts.download_artifacts(
                run_id=run.run_id,
                artifact_path="config.yaml",
                dst_path=folder,
                tracking_uri=store.tracking_uri,
            )
            config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (mlflow.MlflowException, OSError, yaml.YAMLError) as error:
        if given:  # a run whose tracking store could not take the file
            logger.warning("Run %s has no readable config.yaml: only what is given now counts", run.run_id)
            return {}
        raise ConfigError(
            f"run {run.run_id} has no readable config.yaml: give its launch arguments again ({_first(error)})"
        ) from error
    if not isinstance(config, dict):
        raise ConfigError(f"the config.yaml of run {run.run_id} is no mapping")
    return config


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _checkpoint(run: RunData, status: Status, folder: str, asked: Any, method: str) -> str:
    if asked and asked is not True:
        if reason := problem(asked):
            raise ConfigError(f"--resume_from_checkpoint: {asked}: {reason}")
        found: Path | None = Path(asked)
    else:
        found = last_whole(folder)
    if found is None:
        elsewhere = "" if status.host == socket.gethostname() else f" (it trained on {status.host})"
        raise ConfigError(
            f"run {run.run_id[:8]} has no whole checkpoint in {folder}{elsewhere}, so it cannot go on: "
            f"--output_dir says where else they are; if there are none, start anew: `ftlab train {method}`"
        )
    if holds_only_model(found):
        logger.warning("%s holds only the model: the optimizer and the schedule begin anew", found)
    return str(found)


def _live(run: RunData) -> list[str]:
    try:
        return sorted(Surface.decode(run.tags.get(SURFACE, "")).params)
    except MessageError:
        return []


def _asked_before(run: RunData) -> dict[str, Asked]:
    asked: dict[str, Asked] = {}
    for update, ack in Ledger.read(run.tags).applied_sets():
        for name, value in (update.set or {}).items():
            asked[name] = Asked(value, ack.step, update.by or "")
    return asked


def decided_by_first(decide: Callable[[], Resumption]) -> Resumption:
    """What rank 0 decides, on every rank. Only rank 0 speaks to MLflow and looks at the checkpoints.

    Raises:
        ConfigError: Rank 0 could not decide, for this reason.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return decide()
    from torch.distributed.rendezvous import rendezvous

    # The store that the ranks meet at, before there is a process group.
    store, rank, _ = next(rendezvous("env://"))
    _STORES.append(store)
    if rank == 0:
        try:
            decided = decide()
        except FTLabError as error:
            store.set(_STORE_KEY, json.dumps({"error": str(error)}))
            _wait_for_readers(store)
            raise
        store.set(_STORE_KEY, json.dumps(asdict(decided)))
        _wait_for_readers(store)
        return decided
    said = json.loads(store.get(_STORE_KEY))
    store.add(_STORE_KEY + "/readers", 1)
    if "error" in said:
        raise ConfigError(said["error"])
    return Resumption(**{**said, "asked": {name: Asked(**a) for name, a in said["asked"].items()}})


def _wait_for_readers(store: Any) -> None:
    """This process may end now, and the store with it: not before all ranks have read."""
    end = time.monotonic() + _READERS_S
    while store.add(_STORE_KEY + "/readers", 0) < int(os.environ["WORLD_SIZE"]) - 1:
        if time.monotonic() > end:
            raise ConfigError(f"the other ranks did not come within {_READERS_S:g} s")
        time.sleep(0.02)
