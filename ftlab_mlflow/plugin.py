"""MLflow's entry point: tags every run with what reproduces it.

MLflow loads this module while it is half imported itself, so nothing here may import mlflow.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from ftlab_mlflow.control import tags

PACKAGES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "deepspeed",
    "flash-attn",
    "ftlab-mlflow",
    "liger-kernel",
    "mlflow",
    "numpy",
    "peft",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
    "vllm",
)
"""Packages whose version decides what a fine-tuning does; those that are installed are noted."""

_HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"(^|[-_.])(api[-_]?key|access[-_]?key|private[-_]?key|token|secret|password|passwd|pwd|credentials?|auth)$",
    re.IGNORECASE,
)
_PLAIN_TOKEN = re.compile(r"(^|[-_.])(bos|eos|pad|unk|sep|cls|mask|image|video|audio)[-_]token$", re.I)
_SECRET_VALUE = re.compile(
    r"\b(hf_\w{16,}|sk-[\w-]{16,}|xai-\w{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|AKIA[0-9A-Z]{12,}|dapi[0-9a-f]{16,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)
_URL_PASSWORD = re.compile(r"(?<=://)[^/\s@]*:[^/\s@]*(?=@)")


class RunContext:
    """Gives the tags to every run that ``mlflow.start_run`` begins (an MLflow run context provider)."""

    def in_context(self) -> bool:
        """Always: every run is to be reproduced."""
        return True

    def tags(self) -> dict[str, str]:
        """Package versions, git commit, host, accelerators and the command line without secrets."""
        found = {
            tags.PACKAGES: json.dumps(package_versions()),
            tags.HOST: socket.gethostname(),
            tags.ACCELERATORS: ", ".join(accelerators()) or "none",
            tags.COMMAND_LINE: command_line(sys.orig_argv)[: tags.MAX_VALUE_LENGTH],
        }
        return found | git_tags()


def package_versions() -> dict[str, str]:
    """Version by name: Python's, and those of `PACKAGES` that are installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_tags() -> dict[str, str]:
    """The commit that the program runs from and whether files differ from it; empty outside of git.

    Looked for where the program lies, then in the working directory.
    """
    if shutil.which("git") is None:
        return {}
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    for folder in (Path(main).resolve().parent if main else None, Path.cwd()):
        commit = _git(folder, "rev-parse", "HEAD") if folder else None
        if commit:
            changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
            dirty = {} if changed is None else {tags.GIT_DIRTY: str(bool(changed)).lower()}
            return {tags.GIT_COMMIT: commit} | dirty
    return {}


def _git(folder: Path | None, *args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *args],
            capture_output=True,
            text=True,
            timeout=5,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # a note about the run must never keep it from starting
    return done.stdout.strip() if done.returncode == 0 else None


def accelerators() -> list[str]:
    """Names of the accelerators of this machine, one for each; found without loading torch."""
    # The NVIDIA driver lists its devices here; asking torch would initialise CUDA in this process.
    models = [
        line.partition(":")[2].strip()
        for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        for line in file.read_text(errors="replace").splitlines()
        if line.startswith("Model:")
    ]
    if not models:
        models = [
            name
            for file in sorted(Path("/sys/class/kfd/kfd/topology/nodes").glob("*/name"))
            if (name := file.read_text(errors="replace").strip()) and name.startswith("gfx")
        ]
    if not models and sys.platform == "darwin" and platform.machine() == "arm64":
        models = ["Apple silicon"]
    return models


def command_line(arguments: list[str]) -> str:
    """A command line with its secrets left out, quoted for a shell."""
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if hide_next and not argument.startswith("--"):
            shown.append(_HIDDEN)
            hide_next = False
        elif equals and _is_secret(name):
            shown.append(f"{name}={_HIDDEN}")
        else:
            hide_next = not equals and argument.startswith("-") and _is_secret(argument)
            argument = _URL_PASSWORD.sub(_HIDDEN, argument)
            shown.append(_SECRET_VALUE.sub(_HIDDEN, argument))
    return shlex.join(shown)


def _is_secret(name: str) -> bool:
    return bool(_SECRET_NAME.search(name)) and not _PLAIN_TOKEN.search(name)
