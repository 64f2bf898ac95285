"""Which checkpoints of a run are whole. A process can be killed at any byte that it writes."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger("ftlab_mlflow")

ASIDE = "set-aside"
"""The folder, next to the checkpoints, for those that the training does not go on from."""

_NAME = re.compile(r"checkpoint-(\d+)")
_STATE = "trainer_state.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_OPTIMIZER, _SCHEDULER, _SCALER = "optimizer.pt", "scheduler.pt", "scaler.pt"


class _Broken(Exception):
    """Why a checkpoint is not whole."""


def problem(path: str | Path) -> str | None:
    """Why a checkpoint is not whole, in a few words; None if it is.

    Tensors are not read, only the tables that say where they are, so a large checkpoint costs little. A
    checkpoint that was meant to hold only the model (``save_only_model``) is whole without the rest.
    """
    folder = Path(path)
    step = step_of(folder)
    try:
        if step is None or not folder.is_dir():
            raise _Broken("it is no folder with the name checkpoint-<step>")
        state = _json(folder / _STATE)  # the trainer writes it last
        if state.get("global_step") != step:
            raise _Broken(f"{_STATE} is of step {state.get('global_step')}")
        _check_weights(folder)
        if not holds_only_model(folder):
            for name in (_OPTIMIZER, _SCHEDULER, *_rng_files(folder, state)):
                _check_saved(folder / name)
            if (folder / _SCALER).exists():
                _check_saved(folder / _SCALER)
    except _Broken as error:
        return str(error)
    return None


def holds_only_model(path: str | Path) -> bool:
    """Whether there is nothing but the model: training goes on from it, but with a new optimizer."""
    folder = Path(path)
    return not any((folder / name).exists() for name in (_OPTIMIZER, _SCHEDULER, *_rng_found(folder)))


def step_of(path: str | Path) -> int | None:
    """The number of optimizer steps in a checkpoint's name; None if it is no such name."""
    match = _NAME.fullmatch(Path(path).name)
    return int(match[1]) if match else None


def last_whole(folder: str | Path) -> Path | None:
    """The whole checkpoint of the highest step in a folder; each newer one is skipped with a warning."""
    for path in reversed(_checkpoints(folder)):
        reason = problem(path)
        if reason is None:
            return path
        logger.warning("Skipped the checkpoint %s: %s", path, reason)
    return None


def set_aside(folder: str | Path, after_step: int) -> list[Path]:
    """Moves the checkpoints of later steps away, into `ASIDE`, because training goes on from an earlier one.

    Else a later resume would find them and undo that, and a process killed while it writes over one would
    leave a mixture of two trainings that looks whole.

    Returns:
        Where they are now.
    """
    moved = []
    for path in _checkpoints(folder):
        if (step_of(path) or 0) > after_step:
            target = Path(folder, ASIDE, path.name)
            target.parent.mkdir(exist_ok=True)
            if target.exists():
                shutil.rmtree(target)
            moved.append(path.rename(target))
    return moved


def _checkpoints(folder: str | Path) -> list[Path]:
    """All checkpoints by step, whole or not."""
    found = [path for path in Path(folder).glob("checkpoint-*") if step_of(path) is not None]
    return sorted(found, key=lambda path: step_of(path) or 0)


def _json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _Broken(f"{file.name} is missing") from None
    except (OSError, ValueError) as error:
        raise _Broken(f"{file.name} cannot be read") from error
    if not isinstance(content, dict):
        raise _Broken(f"{file.name} cannot be read")
    return content


def _check_weights(folder: Path) -> None:
    files = {folder / name for name in _WEIGHTS if (folder / name).exists()}
    files |= {file for file in folder.glob("*/adapter_model.*") if file.name in _WEIGHTS}
    for index in (folder / name for name in _INDEXES if (folder / name).exists()):
        weight_map = _json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise _Broken(f"{index.name} cannot be read")
        files |= {folder / str(name) for name in weight_map.values()}
    if not files:
        raise _Broken("there are no weights")
    for file in sorted(files):
        if file.suffix == ".safetensors":
            _check_safetensors(file)
        else:
            _check_saved(file)


def _check_safetensors(file: Path) -> None:
    """A header's length in 8 bytes, the header, and as many bytes as the header says."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = file.stat().st_size
            header = json.loads(stream.read(min(length, size)))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
    except FileNotFoundError:
        raise _Broken(f"{file.name} is missing") from None
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise _Broken(f"{file.name} cannot be read") from error
    if size != end:
        raise _Broken(f"{file.name} has {size:,} bytes of {end:,}")


def _check_saved(file: Path) -> None:
    """What `torch.save` wrote can be loaded, as the trainer loads it."""
    from transformers.trainer_pt_utils import safe_globals

    if not file.exists():
        raise _Broken(f"{file.name} is missing")
    try:
        with safe_globals():
            torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch, pickle and zip each have their own for a file that ends too early
        raise _Broken(f"{file.name} cannot be loaded") from error


def _rng_found(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("rng_state*.pth"))


def _rng_files(folder: Path, state: Mapping[str, Any]) -> list[str]:
    """The files of the random states that must be there: one, or one for each rank that trained."""
    found = _rng_found(folder)
    indexes = [int(match[1]) for name in found if (match := re.fullmatch(r"rng_state_(\d+)\.pth", name))]
    ranks = max(_ranks(state), *(index + 1 for index in indexes), 1)
    if ranks == 1 and "rng_state_0.pth" not in found:
        return ["rng_state.pth"]
    return [f"rng_state_{rank}.pth" for rank in range(ranks)]


def _ranks(state: Mapping[str, Any]) -> int:
    """How many ranks wrote the checkpoint, as live control noted it there; 1 without its note."""
    try:
        return int(state["stateful_callbacks"]["LiveControl"]["attributes"]["saved"]["ranks"])
    except (LookupError, TypeError, ValueError):
        return 1
