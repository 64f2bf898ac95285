"""The answers of a session: in order, each given once, none lost if training dies before it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.messages import Ack, AckStatus
from ftlab_mlflow.control.store import Point
from ftlab_mlflow.control.wire import utc_now


class Outbox(Protocol):
    """Where a session leaves what is to be written. Never blocks."""

    def post(self, tags: Mapping[str, str], points: Iterable[Point] = ()) -> None:
        """Leaves tags and metric values that are written together, after all that was left before."""


class Answers:
    """What one session has answered.

    Attributes:
        known_at: The time of the last answer that the checkpoint knows of, which training resumes from.

    Args:
        session: Its id. outbox: Where answers go.
        points: The metric values that are written with an answer.
        beside: The tags that are written with an answer, because it changes them.
    """

    def __init__(
        self,
        session: str,
        outbox: Outbox,
        points: Callable[[Ack], list[Point]],
        beside: Callable[[], Mapping[str, str]],
    ) -> None:
        self._session = session
        self._outbox = outbox
        self._points = points
        self._beside = beside
        self._given: set[str] = set()
        self._unconfirmed: dict[str, Ack] = {}
        self._last_at = self.known_at = datetime.min.replace(tzinfo=UTC)

    def give(self, request_id: str, status: AckStatus, step: int, **fields: Any) -> None:
        """Answers a request."""
        # Strictly increasing, also over restarts and a clock that was set back: it orders the replay.
        self._last_at = max(utc_now(), self._last_at + timedelta(milliseconds=1))
        ack = Ack(status, step, self._last_at, self._session, **fields)
        self._unconfirmed[request_id] = ack
        self._given.add(request_id)
        self._outbox.post({**self._beside(), tags.ACK_PREFIX + request_id: ack.encode()}, self._points(ack))

    def has(self, request_id: str) -> bool:
        """Whether the request is answered: by this session, or by one that the checkpoint remembers."""
        return request_id in self._given

    def confirmed(self, keys: Iterable[str]) -> None:
        """The listener has written these tags: answers among them need not ride in checkpoints."""
        for key in keys:
            self._unconfirmed.pop(key.removeprefix(tags.ACK_PREFIX), None)

    def saved(self) -> dict[str, Any]:
        """What a checkpoint must hold, as JSON values."""
        return {
            "last_ack_at": self._last_at.isoformat(),
            "unconfirmed": {k: ack.encode() for k, ack in self._unconfirmed.copy().items()},
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Goes on from what `saved` gave; from nothing if it is empty."""
        if "last_ack_at" in saved:
            self._last_at = datetime.fromisoformat(saved["last_ack_at"])
        self.known_at = self._last_at
        self._unconfirmed = {k: Ack.decode(v) for k, v in saved.get("unconfirmed", {}).items()}
        self._given = set(self._unconfirmed)

    def follow(self, ledger: Ledger) -> None:
        """Goes on after the answers in the run's history, and writes those that are missing there."""
        answered = {entry.id for entry in ledger.entries if entry.answered}
        for request_id, ack in list(self._unconfirmed.items()):
            if request_id in answered:
                self._unconfirmed.pop(request_id, None)
            else:
                self._outbox.post({tags.ACK_PREFIX + request_id: ack.encode()}, self._points(ack))
        if ledger.last_ack_at:
            self._last_at = max(self._last_at, ledger.last_ack_at)
