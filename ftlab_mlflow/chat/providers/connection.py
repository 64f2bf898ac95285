"""Connections to model servers that another thread can break, and a reply that is read from one."""

from __future__ import annotations

import contextlib
import socket
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import lru_cache
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ftlab_mlflow.chat.provider import Completed, TextDelta
from ftlab_mlflow.chat.providers.service import sdk

if TYPE_CHECKING:
    import ssl

    import httpx2

Piece = TextDelta | Completed
Pieces = Generator[Piece, None, None]
MakeClient = Callable[..., "httpx2.Client"]

CONNECT_S = 10.0
_IDLE_S = 30.0
"""Seconds for which a connection is kept: tools run between two requests of an answer."""
_MOST_IDLE = 4


class _Socket:
    """The socket of an HTTP client with one connection, learned from its trace of what it connects."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._stream: Any = None
        self._is_cut = False

    def cut(self) -> None:
        with self._lock:
            self._is_cut = True
            self._shut_down()

    def watch(self, request: httpx2.Request) -> None:
        request.extensions = {**request.extensions, "trace": self._seen}

    def _seen(self, event: str, info: Mapping[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            with self._lock:
                self._stream = info["return_value"]
                if self._is_cut:
                    self._shut_down()

    def _shut_down(self) -> None:
        found = self._stream and self._stream.get_extra_info("socket")
        if found:
            with contextlib.suppress(OSError):  # it is closed already
                # Not the method of a TLS socket, which pulls its state from under the thread that reads.
                socket.socket.shutdown(found, socket.SHUT_RDWR)


class Line:
    """An HTTP client with one connection at most, which `cut` breaks from any thread, whatever waits for it.

    A client that is closed while another thread waits for a byte leaves that thread waiting. So the socket
    itself is shut down.

    Args:
        make: An SDK's `DefaultHttpxClient`, with its timeouts, proxies and socket options.
        options: More arguments of it.

    Attributes:
        http: The client, to be given to that SDK.
    """

    def __init__(self, make: MakeClient, options: Mapping[str, Any]) -> None:
        httpx2 = sdk("httpx2")
        self._socket = _Socket()
        limits = httpx2.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=_IDLE_S)
        self.http = make(limits=limits, event_hooks={"request": [self._socket.watch]}, **options)
        self.close = weakref.finalize(self, self.http.close)
        """Gives its connection back to the system, at the latest when nobody holds the line any more."""

    def cut(self) -> None:
        """Ends the connection. The line cannot be used any more."""
        self._socket.cut()


@lru_cache
def shared_tls() -> ssl.SSLContext:
    """What the SDKs would check certificates with. Made once: reading all authorities takes 20 ms."""
    made: ssl.SSLContext = sdk("httpx2").create_ssl_context()
    return made


class Lines:
    """Lines of a provider: one for each request at a time. One that is left is used again.

    Args:
        make: See `Line`; may also raise.
        options: More arguments of it; by default certificates are checked as it would.
    """

    def __init__(self, make: MakeClient, options: Callable[[], Mapping[str, Any]] | None = None) -> None:
        self._make, self._options = make, options or (lambda: {"verify": shared_tls()})
        self._lock = Lock()
        self._idle: list[Line] = []
        weakref.finalize(self, _close_all, self._idle)

    def take(self) -> Line:
        """A line for one request."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return Line(self._make, self._options())

    def give_back(self, line: Line, *, is_whole: bool) -> None:
        """is_whole: It was not cut."""
        with self._lock:
            if is_whole and len(self._idle) < _MOST_IDLE:
                self._idle.append(line)
                return
        line.close()


def _close_all(lines: list[Line]) -> None:
    for line in lines:
        line.close()


class Streaming:
    """A reply as it comes, as `Provider.stream` gives it: a context and the iterator in it.

    Args:
        pieces: Makes the reply on a line. It is called at the first look for a piece, so that leaving ends
            also the waiting for the server's first byte.
    """

    def __init__(self, lines: Lines, pieces: Callable[[Line], Pieces]) -> None:
        self._lines, self._make = lines, pieces
        self._pieces: Pieces | None = None
        self._line: Line | None = None
        self._is_left = False
        self._reading = Lock()
        self._state = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        with self._reading:
            try:
                return next(self._begun())
            except BaseException as error:
                self._end()
                # What a broken connection raises is no news to whoever broke it.
                if self._is_left and isinstance(error, Exception):
                    raise StopIteration from None
                raise

    def close(self) -> None:
        """Breaks the connection, if the reply has not come to its end. Another thread's iteration ends.

        Only the connecting itself cannot be broken: it takes `CONNECT_S` at most.
        """
        with self._state:
            self._is_left = True
            if self._line is not None:
                self._line.cut()
        if self._reading.acquire(blocking=False):  # else who reads wakes up now and does it
            try:
                self._end()
            finally:
                self._reading.release()

    def _begun(self) -> Pieces:
        if self._pieces is None:
            with self._state:
                if self._is_left:
                    raise StopIteration
                self._line = self._lines.take()
            self._pieces = self._make(self._line)
        return self._pieces

    def _end(self) -> None:
        if self._pieces is not None:
            self._pieces.close()
        with self._state:
            line, self._line = self._line, None
            is_whole = not self._is_left
        if line is not None:
            self._lines.give_back(line, is_whole=is_whole)
