"""Work that can be left: it goes on in a thread of its own, and whoever waits for it may stop to wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Literal, TypeVar

_T = TypeVar("_T")
_LOOK_S = 0.05
"""Seconds between two looks at the reasons to leave."""


class Left(Exception):  # no error: somebody wants to go
    """The work is not waited for any more.

    Attributes:
        why: `user` or `time`.
    """

    def __init__(self, why: Literal["user", "time"]) -> None:
        super().__init__(why)
        self.why: Literal["user", "time"] = why


class Patience:
    """How long somebody waits: until a stop, or a moment of `time.monotonic`."""

    def __init__(self, stop: threading.Event, until: float) -> None:
        self.stop = stop
        self.until = until

    @property
    def left_s(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    def check(self) -> None:
        """Raises: Left: it is over."""
        if self.stop.is_set():
            raise Left("user")
        if self.left_s <= 0:
            raise Left("time")

    def sleep(self, seconds: float) -> None:
        """Waits, but not longer than there is patience. Raises: Left: it is over."""
        self.stop.wait(max(0.0, min(seconds, self.left_s)))
        self.check()


def each(make: Callable[[], Iterator[_T]], patience: Patience) -> Iterator[_T]:
    """What an iterator gives, run in a thread.

    Args:
        make: Called in the thread.

    Raises:
        Left: Patience is over. The thread ends with the iterator's next item.
        Exception: What the iterator raises.
    """
    items: SimpleQueue[tuple[_T] | BaseException | None] = SimpleQueue()
    is_left = threading.Event()

    def work() -> None:
        try:
            for item in make():
                items.put((item,))
                if is_left.is_set():
                    return
            items.put(None)
        except BaseException as error:  # given to whoever waits
            items.put(error)

    threading.Thread(target=work, name="ftlab-chat", daemon=True).start()
    try:
        while True:
            patience.check()
            try:
                item = items.get(timeout=max(0.001, min(_LOOK_S, patience.left_s)))
            except Empty:
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        is_left.set()


def call(work: Callable[[], _T], patience: Patience) -> _T:
    """What a function returns, run in a thread. Raises: as `each`."""

    def once() -> Iterator[_T]:
        yield work()

    (result,) = each(once, patience)
    return result
