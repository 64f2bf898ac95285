"""Every tag key, prefix and length limit of the protocol, once."""

from __future__ import annotations

import re

SURFACE = "ftlab.surface"
STATUS = "ftlab.status"
UPDATE_PREFIX = "ftlab.update."
ACK_PREFIX = "ftlab.ack."
SET_PREFIX = "ftlab.set."
HAND_COMMAND = "command"
"""``ftlab.set.command`` is a command by hand, every other ``ftlab.set.*`` a parameter."""

PACKAGES = "ftlab.packages"
GIT_COMMIT = "ftlab.git.commit"
GIT_DIRTY = "ftlab.git.dirty"
HOST = "ftlab.host"
ACCELERATORS = "ftlab.accelerators"
COMMAND_LINE = "ftlab.command_line"

LIVE_METRIC_PREFIX = "live/"
"""Metrics ``live/<parameter>`` hold each applied change at its step."""

MAX_VALUE_LENGTH = 8000
"""Characters in a tag's value; MLflow cuts a longer one with only a warning."""

_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")


def is_valid_id(request_id: str) -> bool:
    """Whether a request may go by this id."""
    return _ID.fullmatch(request_id) is not None
