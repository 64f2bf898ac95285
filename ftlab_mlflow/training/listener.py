"""The thread between the tracking store and the step boundary: the only one that does I/O.

It reads the run's tags, brings new requests to the session, and writes what the session left, in order.
A store that is away costs the training nothing: the thread backs off, and what is to be written waits.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.hand import HandTags
from ftlab_mlflow.control.ledger import Entry, Ledger, read_entry, request_ids
from ftlab_mlflow.control.messages import Update
from ftlab_mlflow.control.store import Point, RunStatus, RunStore
from ftlab_mlflow.control.surface import Param
from ftlab_mlflow.control.wire import new_id, utc_now
from ftlab_mlflow.errors import NotPermitted, StoreError, StoreUnavailable

logger = logging.getLogger("ftlab_mlflow")

HEARTBEAT_S = 10.0
"""Seconds between two writes of the status; more where the polls are rarer than half of it."""
SURFACE_S = 30.0
"""Seconds after which the surface is written again while a schedule moves a value on it; at the beginning
of a training, where a warm-up moves it most, 2 s and then twice as long each time."""
MAX_LOAD = 20
"""The poll interval is at least so many times the store's answer time: 5 % of its time at most."""
BACKOFF_S = (1.0, 30.0)
"""First and longest pause after the store did not answer."""
DELIVERY_S = 10.0
"""Seconds given at the end of training to deliver what is left."""
_BATCH_TAGS = 90
_BATCH_POINTS = 500


class Receiver(Protocol):
    """What the listener brings its news to: a session. Called in the listener's thread."""

    def deliver(self, entries: Iterable[Entry], *, sent_before: bool) -> None:
        """New requests without an answer, in order."""

    def deliver_history(self, ledger: Ledger) -> None:
        """The run's history, when it could not be read at the beginning."""

    def refresh_surface(self) -> None:
        """Time to post the surface again."""

    def look_at_expiry(self, now: datetime) -> None:
        """Time to look whether a waiting request has expired."""

    def confirmed(self, keys: Iterable[str]) -> None:
        """Tags that are written now."""

    def answer_rest(self) -> None:
        """The training has ended, and its thread waits: answers what was delivered since."""


class Listener:
    """Reads requests from and writes answers to one run.

    Args:
        store: The tracking store. run_id: The run.
        heartbeat: Gives the status message as text.
        poll_interval: Seconds between two looks at the tags, if the store answers fast enough.
    """

    def __init__(
        self, store: RunStore, run_id: str, heartbeat: Callable[[], str], poll_interval: float
    ) -> None:
        self._store = store
        self._run_id = run_id
        self._heartbeat = heartbeat
        self._poll_interval = poll_interval
        self._posts: deque[tuple[Mapping[str, str], tuple[Point, ...]]] = deque()
        self._changed = threading.Condition()
        self._closing: float | None = None
        self._final_status: RunStatus | None = None
        self._last_look = False
        self._answers_s = (0.0, 0.0)
        self._failures = 0
        self._retry_at = 0.0
        self._receiver: Receiver | None = None
        self._params: Mapping[str, Param] = {}
        self._hand: HandTags | None = None
        self._seen: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="ftlab-listener", daemon=True)

    # --- called by the training thread -----------------------------------------------------------

    def read_first(self) -> Mapping[str, str] | None:
        """The run's tags, read before the first step; None if the store does not answer."""
        try:
            return self._look()
        except StoreError as error:
            self._note_failure(error)
            return None

    def start(self, receiver: Receiver, params: Mapping[str, Param], first: Mapping[str, str] | None) -> None:
        """Begins to listen. `first` is what `read_first` gave."""
        self._receiver = receiver
        self._params = params
        if first is not None:
            self._take_first(first)
        self._thread.start()

    @property
    def heartbeat_s(self) -> float:
        """Seconds until the status is written again, as the status itself promises."""
        return max(HEARTBEAT_S, 2 * self._interval())

    def post(self, tags: Mapping[str, str], points: Iterable[Point] = ()) -> None:
        """Leaves tags and metric values to be written, after all that was left before. Never blocks."""
        with self._changed:
            self._posts.append((tags, tuple(points)))
            self._changed.notify()

    def close(self, status: RunStatus | None, *, last_look: bool = True) -> bool:
        """Delivers what is left, for at most `DELIVERY_S` seconds, then sets the run's own status.

        Args:
            status: None leaves the run's status as it is.
            last_look: Whether requests that came since the last poll are answered too. Not so where another
                session takes over the run.

        Returns:
            Whether all was delivered; if not, what was not has been logged.
        """
        with self._changed:
            self._final_status = status
            self._last_look = last_look and self._receiver is not None
            self._closing = time.monotonic() + DELIVERY_S
            self._retry_at = 0.0
            self._changed.notify()
        if self._thread.ident is None:
            self._thread.start()  # the training ended before it began to listen
        self._thread.join(DELIVERY_S + 1)
        left = [key for post, _ in tuple(self._posts) for key in post]
        if self._last_look:
            left.append("answers to the latest requests")
        if self._final_status is not None:
            left.append(f"the run's status {self._final_status}")
        if not left:
            return True
        answers = sorted({key for key in left if key not in (tags.SURFACE, tags.STATUS)})
        logger.error(
            "The tracking store did not answer for %g s at the end of training. Not delivered: %s",
            DELIVERY_S,
            ", ".join(answers) or "the last status",
        )
        return False

    # --- the listener's thread -------------------------------------------------------------------

    def _run(self) -> None:
        now = time.monotonic()
        poll_at = now + random.uniform(0, self._poll_interval)
        surface_s = min(2.0, SURFACE_S)
        beat_at, surface_at = now + HEARTBEAT_S, now + surface_s
        while True:
            self._sleep(min(poll_at, beat_at, surface_at))
            if self._is_over():
                return
            try:
                self._write_posts()
                now = time.monotonic()
                if self._closing is not None:
                    self._finish()
                elif now >= poll_at:
                    self._poll()
                    poll_at = now + self._interval()
                self._note_success()
            except StoreError as error:
                self._note_failure(error)
                continue
            except Exception:  # a thread that died would leave the run deaf, without a word
                logger.exception("The listener failed; it goes on")
                self._back_off()
                continue
            if now >= beat_at:
                beat_at = now + self.heartbeat_s
                with self._changed:  # or a newer status could be posted before this one
                    self.post({tags.STATUS: self._heartbeat()})
            if now >= surface_at and self._receiver:
                self._receiver.refresh_surface()
                surface_s = min(2 * surface_s, SURFACE_S)
                surface_at = now + surface_s

    def _interval(self) -> float:
        # One slow answer is an accident, two are the store's pace.
        return max(self._poll_interval, MAX_LOAD * min(self._answers_s))

    def _sleep(self, until: float) -> None:
        """Until there is something to do: a deadline, a post, the end; while the store is away, a try."""
        with self._changed:
            while True:
                now = time.monotonic()
                away = now < self._retry_at
                if not away and (self._posts or self._closing is not None):
                    return
                if away:
                    until = self._retry_at
                if self._closing is not None:
                    until = min(until, self._closing)
                if now >= until:
                    return
                self._changed.wait(until - now)

    def _is_over(self) -> bool:
        if self._closing is None:
            return False
        delivered = not self._posts and self._final_status is None and not self._last_look
        return delivered or time.monotonic() >= self._closing

    def _write_posts(self) -> None:
        together = True
        while self._posts:
            written, points, count = self._batch() if together else (*self._posts[0], 1)
            try:
                self._store.write(self._run_id, written, points)
            except (StoreUnavailable, NotPermitted):  # a permission, too, can come back
                raise
            except StoreError as error:
                if count > 1:
                    together = False  # what is refused must not take with it what was written beside it
                    continue
                # It would be refused again, and must not hold up what comes after it.
                logger.error("The tracking store refused %s: %s", ", ".join(written), error)
            else:
                if self._receiver:
                    self._receiver.confirmed(written)
            for _ in range(count):
                self._posts.popleft()
            if self._closing is not None and time.monotonic() >= self._closing:
                return

    def _batch(self) -> tuple[Mapping[str, str], Sequence[Point], int]:
        """As many posts as one write may hold: their tags, their points, their number."""
        batch: dict[str, str] = {}
        points: list[Point] = []
        count = 0
        for post_tags, post_points in tuple(self._posts):
            too_many = len(batch) + len(post_tags) > _BATCH_TAGS
            if count and (too_many or len(points) + len(post_points) > _BATCH_POINTS):
                break
            batch |= post_tags
            points += post_points
            count += 1
        return batch, points, count

    def _finish(self) -> None:
        """All is written: one last look for what came since the one before, then the run's own status."""
        if self._last_look and self._receiver:
            self._poll()
            self._receiver.answer_rest()
            self._last_look = False
        elif self._final_status is not None:
            self._store.set_status(self._run_id, self._final_status)
            self._final_status = None

    def _look(self) -> Mapping[str, str]:
        started = time.monotonic()
        run_tags = self._store.get(self._run_id).tags
        self._answers_s = (self._answers_s[1], time.monotonic() - started)
        return run_tags

    def _poll(self) -> None:
        run_tags = self._look()
        assert self._receiver is not None
        if self._hand is None:
            self._receiver.deliver_history(Ledger.read(run_tags))
            self._take_first(run_tags)
            return
        fresh = [i for i in request_ids(run_tags) if i not in self._seen]
        self._seen.update(fresh)
        entries = [e for e in (read_entry(run_tags, i) for i in fresh) if not e.answered]
        entries += self._written_by_hand(self._hand.new(run_tags))
        if entries:
            entries.sort(key=lambda entry: entry.order)
            self._receiver.deliver(entries, sent_before=False)
        self._receiver.look_at_expiry(utc_now())

    def _take_first(self, run_tags: Mapping[str, str]) -> None:
        """The first tags that this session sees: what is pending there was sent before it began."""
        assert self._receiver is not None
        ledger = Ledger.read(run_tags)
        self._seen = {entry.id for entry in ledger.entries}
        self._hand = HandTags(ledger, run_tags, self._params)
        entries = [*ledger.pending, *self._written_by_hand(self._hand.new(run_tags))]
        if entries:
            self._receiver.deliver(entries, sent_before=True)

    def _written_by_hand(self, updates: Iterable[Update]) -> list[Entry]:
        entries = []
        for update in updates:
            entry = Entry(new_id(), update)
            self._seen.add(entry.id)
            self.post({tags.UPDATE_PREFIX + entry.id: update.encode()})
            entries.append(entry)
        return entries

    def _note_success(self) -> None:
        if self._failures:
            logger.warning("The tracking store answers again")
        self._failures = 0
        self._retry_at = 0.0

    def _note_failure(self, error: StoreError) -> None:
        if not self._failures:
            logger.warning("%s; training goes on, changes and answers wait", error)
        self._back_off()

    def _back_off(self) -> None:
        first, longest = BACKOFF_S
        pause = first if self._closing is not None else min(longest, first * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        self._retry_at = time.monotonic() + pause * random.uniform(0.75, 1.0)
