"""Streamlit collects garbage after each run of the script, also after a refresh of a part of a page.

That looks at every object of the process, half a million with the libraries that pages need: 0.1 s in which
nothing else runs. What modules made when they were loaded is there for good, and is left out of it.
"""

from __future__ import annotations

import gc
import sys
import threading

_ENOUGH = 100
"""So many modules more are worth a look at all objects."""
_lock = threading.Lock()
_known = 0


def leave_out_modules() -> None:
    """Leaves all objects of now out of collections, if many modules were loaded since the last time."""
    global _known
    if len(sys.modules) - _known < _ENOUGH or not _lock.acquire(blocking=False):
        return
    try:
        gc.collect()
        gc.freeze()
        _known = len(sys.modules)
    finally:
        _lock.release()
