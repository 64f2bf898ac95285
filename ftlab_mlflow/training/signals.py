"""Ctrl-C and SIGTERM as a request to stop cleanly; a second one ends the process as it always did."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class StopSignals:
    """Calls back on the first SIGINT or SIGTERM, while installed.

    A signal that somebody else already handles is left alone, and so are all of them outside the main thread,
    where Python allows no handlers.
    """

    def __init__(self, on_signal: Callable[[], None]) -> None:
        self._on_signal = on_signal
        self._replaced: dict[signal.Signals, Any] = {}
        self.received: signal.Signals | None = None

    def install(self) -> None:
        """Begins to catch the signals."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, default in _DEFAULTS.items():
            if signal.getsignal(number) == default:
                self._replaced[number] = default
                signal.signal(number, self._handle)

    def remove(self) -> None:
        """Gives the signals back."""
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._replaced.clear()

    def raise_received(self) -> None:
        """Ends the program as the signal asked, now that the training has stopped cleanly.

        Raises:
            KeyboardInterrupt: There was a SIGINT.
            SystemExit: There was a SIGTERM; its code is 143, as a shell reports it.
        """
        received, self.received = self.received, None
        if received == signal.SIGINT:
            raise KeyboardInterrupt
        if received is not None:
            raise SystemExit(128 + received)

    def hear(self, number: int) -> None:
        """Another process of this training received a signal: the same as if it had come here."""
        if self.received is None:
            self.received = signal.Signals(number)
            self._on_signal()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.remove()
        self.hear(number)
