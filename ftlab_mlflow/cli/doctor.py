"""`doctor`: checks that everything that is needed is here; each line OK, or what to do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any, Literal, NamedTuple

import click

from ftlab_mlflow.cli.opening import effective_uri, open_store, sqlite_file
from ftlab_mlflow.cli.options import common
from ftlab_mlflow.cli.output import cell, emit, say, show, table
from ftlab_mlflow.control import mlflow_store
from ftlab_mlflow.errors import FTLabError

PACKAGE = "ftlab-mlflow"
EXTRAS = {
    "app": "the dashboard",
    "chat": "the chat",
    "gguf": "ftlab demo --real",
    "gpu": "a GPU's figures in MLflow",
    "postgres": "PostgreSQL",
    "ray": "Ray",
}
"""What each extra is for."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DOCTOR_RUN = "ftlab doctor (may be deleted)"

_OLDEST_PYTHON = (3, 11)
_STYLES = {"OK": "green", "WARN": "yellow", "FAIL": "red"}


class Check(NamedTuple):
    """One line: WARN is for what only some need, FAIL for what all need."""

    name: str
    result: Literal["OK", "WARN", "FAIL"]
    detail: str
    todo: str = ""


@click.command()
@common
@click.pass_context
def doctor(ctx: click.Context, tracking_uri: str | None, as_json: bool) -> None:
    """Check versions, tracking store, permissions, GPU, browser and extras.

    To see whether it may write, it makes a run in the tracking store and deletes it. Exit 1 if anything
    that is needed is missing.
    """
    checks = [*_versions(), *_tracking(tracking_uri), _gpu(), _browser(), *_extras()]
    is_well = all(check.result != "FAIL" for check in checks)
    if as_json:
        emit({"ok": is_well, "checks": [check._asdict() for check in checks]})
    else:
        rows = [
            (
                cell(check.result, _STYLES[check.result]),
                check.name,
                check.detail + (f" → {check.todo}" if check.todo else ""),
            )
            for check in checks
        ]
        show(table(("", "what", "found"), rows))
        say("All that is needed is here." if is_well else "Something that is needed is missing: see FAIL.")
    if not is_well:
        ctx.exit(1)


def _versions() -> Iterator[Check]:
    is_new = sys.version_info[:2] >= _OLDEST_PYTHON
    oldest = ".".join(map(str, _OLDEST_PYTHON))
    todo = "" if is_new else f"use Python {oldest} or newer"
    yield Check("python", "OK" if is_new else "FAIL", f"{platform.python_version()}, needs {oldest}", todo)
    for requirement in _requirements(""):
        yield _package(requirement, "FAIL", f"pip install '{requirement}'")


def _requirements(extra: str) -> list[Any]:
    """The requirements of the package, or of one extra of it alone."""
    from packaging.requirements import Requirement

    found = [Requirement(text) for text in metadata.requires(PACKAGE) or []]
    if not extra:
        return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [
        r
        for r in found
        if r.marker and r.marker.evaluate({"extra": extra}) and not r.marker.evaluate({"extra": ""})
    ]


def _package(requirement: Any, if_missing: Literal["WARN", "FAIL"], todo: str) -> Check:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(requirement.name, if_missing, f"not installed, needs {requirement.specifier}", todo)
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(requirement.name, if_missing, f"{version}, needs {requirement.specifier}", todo)
    return Check(requirement.name, "OK", f"{version}, needs {requirement.specifier}")


# --- the tracking store ------------------------------------------------------------------------------


def _tracking(tracking_uri: str | None) -> Iterator[Check]:
    try:
        uri = effective_uri(tracking_uri)
    except ImportError as error:
        yield Check("tracking store", "FAIL", f"MLflow cannot be imported: {error}", "pip install mlflow")
        return
    file = sqlite_file(uri)
    if file and not file.exists():
        folder = next(parent for parent in file.absolute().parents if parent.exists())
        if os.access(folder, os.W_OK):
            yield Check("tracking store", "OK", f"{uri}: no database yet, the first run makes it")
        else:
            yield Check("tracking store", "FAIL", f"{uri} cannot be made", f"get write access to {folder}")
        return
    started = time.monotonic()
    try:
        store = open_store(uri)
        store.find(limit=1)
    except FTLabError as error:
        todo = "start the server, or set --tracking-uri or MLFLOW_TRACKING_URI to where your runs are"
        yield Check("tracking store", "FAIL", str(error), todo)
        return
    took = 1000 * (time.monotonic() - started)
    yield Check("tracking store", "OK", f"{store.shown_uri} answers in {took:.0f} ms")
    yield _permission(store)


def _permission(store: mlflow_store.MlflowRunStore) -> Check:
    """Makes a run, tags it and deletes it."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client, run_id, done = MlflowClient(store.tracking_uri), "", ""
    name = "permission to write"
    try:
        with _one_attempt():
            experiment = _experiment(client)
            if experiment is None:
                return Check(name, "WARN", "not tried: there is no experiment yet")
            run_id = client.create_run(experiment.experiment_id, run_name=DOCTOR_RUN).info.run_id
            done = "made a run, but "
            store.write(run_id, {"ftlab.doctor": "may be deleted"})
            store.set_status(run_id, "FINISHED")
            done = "made and tagged a run, but "
            client.delete_run(run_id)
            return Check(
                name, "OK", f"made, tagged and deleted a run in {experiment.name!r}{_gone(client, run_id)}"
            )
    except (MlflowException, FTLabError, OSError) as error:
        left = f"; it left run {run_id}, delete it by hand" if run_id else ""
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        return Check(name, "FAIL", f"{done}{reason}", f"ask for the right to write runs{left}")


def _experiment(client: Any) -> Any:
    """The experiment that a training here would use, if it exists, or any other."""
    wanted = client.get_experiment_by_name(os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default"))
    if wanted is not None and wanted.lifecycle_stage == "active":
        return wanted
    return next(iter(client.search_experiments(max_results=1)), None)


def _gone(client: Any, run_id: str) -> str:
    """Removes a deleted run for good where that is possible; says so where it is not."""
    # What `mlflow gc` calls. A tracking server offers no way to it.
    erase = getattr(client._tracking_client.store, "_hard_delete_run", None)
    if erase is None:
        return f"; run {run_id} stays in the trash until `mlflow gc` empties it"
    erase(run_id)
    return ""


@contextmanager
def _one_attempt() -> Iterator[None]:
    """MLflow's client tries a call for minutes; in here once, and not for long."""
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

    settings = {
        MLFLOW_HTTP_REQUEST_MAX_RETRIES.name: "0",
        MLFLOW_HTTP_REQUEST_TIMEOUT.name: str(mlflow_store.TIMEOUT_S),
    }
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


# --- the machine -------------------------------------------------------------------------------------


def _gpu() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:  # a CUDA library that cannot be loaded is an OSError
        return Check("gpu", "FAIL", f"torch cannot be imported: {error}", "install torch for this machine")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("gpu", "OK", ", ".join(names))
    if torch.backends.mps.is_available():
        return Check("gpu", "OK", "Apple GPU (mps)")
    return Check("gpu", "OK", "none: training uses the CPU")


def _browser() -> Check:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found:
        return Check("browser", "OK", found)
    return Check("browser", "WARN", "no Chromium; only tests of the dashboard need it", "install chromium")


def _extras() -> Iterator[Check]:
    for extra, purpose in EXTRAS.items():
        todo = f"pip install '{PACKAGE}[{extra}]'"
        checks = [_package(requirement, "WARN", todo) for requirement in _requirements(extra)]
        missing = [f"{check.name} {check.detail}" for check in checks if check.result != "OK"]
        if missing:
            yield Check(f"extra {extra}", "WARN", f"for {purpose}: {'; '.join(missing)}", todo)
        else:
            yield Check(f"extra {extra}", "OK", f"for {purpose}")
