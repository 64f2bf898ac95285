"""Models that are made on this machine, kept between trainings."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cached(name: str, build: Callable[[Path], None]) -> str:
    """The folder `name` under ``$XDG_CACHE_HOME`` (or ``~/.cache``) in ``ftlab``: whole, or not there.

    Args:
        build: Fills the empty folder that it is given. Called once, unless the folder is there already.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ftlab"
    folder = home / name
    if not folder.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix="building-", dir=home))
        try:
            build(building)
            building.rename(folder)
        except OSError:
            if not folder.is_dir():  # or else another process was faster, with the same result
                raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return str(folder)
