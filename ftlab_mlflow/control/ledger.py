"""A run's tags read as a history: what was asked for, what became of it, what is still open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.messages import Ack, Update
from ftlab_mlflow.errors import MessageError

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Entry:
    """One request with its answer.

    Attributes:
        update: The request; None when it cannot be read (then `error` says why).
        answered: Whether there is an answer, readable or not. Pending is the opposite.
        ack: The answer, when there is a readable one.
    """

    id: str
    update: Update | None = None
    error: MessageError | None = None
    answered: bool = False
    ack: Ack | None = None

    @property
    def order(self) -> tuple[datetime, str]:
        """Requests are applied in this order: by time, then by id."""
        return (self.update.at if self.update else _LONG_AGO, self.id)


def read_entry(run_tags: Mapping[str, str], request_id: str) -> Entry:
    """One request and its answer from a run's tags. Total: what cannot be read becomes an `Entry.error`."""
    error: MessageError | None = None
    update: Update | None = None
    ack: Ack | None = None
    if not tags.is_valid_id(request_id):
        error = MessageError("invalid", {"id": "must match [0-9A-Za-z_-]{1,64}"})
    else:
        try:
            update = Update.decode(run_tags[tags.UPDATE_PREFIX + request_id])
        except MessageError as problem:
            error = problem
    answer = run_tags.get(tags.ACK_PREFIX + request_id)
    if answer is not None:
        try:
            ack = Ack.decode(answer)
        except MessageError:
            ack = None  # answered all the same: nobody but the trainer writes this key
    return Entry(request_id, update, error, answer is not None, ack)


def request_ids(run_tags: Mapping[str, str]) -> list[str]:
    """Ids of all requests in a run's tags."""
    start = len(tags.UPDATE_PREFIX)
    return [key[start:] for key in run_tags if key.startswith(tags.UPDATE_PREFIX)]


@dataclass(frozen=True)
class Ledger:
    """All requests of a run with their answers, in the order of the requests."""

    entries: tuple[Entry, ...]

    @staticmethod
    def read(run_tags: Mapping[str, str]) -> Ledger:
        """The history that a run's tags hold."""
        entries = [read_entry(run_tags, request_id) for request_id in request_ids(run_tags)]
        return Ledger(tuple(sorted(entries, key=lambda entry: entry.order)))

    @property
    def pending(self) -> tuple[Entry, ...]:
        """Requests without an answer."""
        return tuple(entry for entry in self.entries if not entry.answered)

    def applied_sets(self, after: datetime | None = None) -> list[tuple[Update, Ack]]:
        """Every applied `set` in the order of application, of those applied later than `after`."""
        found = [
            (entry.update, entry.ack)
            for entry in self.entries
            if entry.update and entry.update.set and entry.ack and entry.ack.status == "applied"
        ]
        found.sort(key=lambda pair: pair[1].at)
        return [(update, ack) for update, ack in found if after is None or ack.at > after]

    @property
    def last_ack_at(self) -> datetime | None:
        """Time of the newest answer, or None."""
        return max((entry.ack.at for entry in self.entries if entry.ack), default=None)
