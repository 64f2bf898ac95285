"""Loopback servers that speak the wire formats of chat models from a script: real HTTP, for the real SDKs.

    def test_it(...):
        call = Call("get_run", {"run": "a"})
        with OpenAIServer([Reply(calls=[call]), Reply("The loss is 0.5.")]) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
            ...
        assert server.requests[1].json["messages"][-1]["role"] == "tool"

A script is a list of replies, one a request, or a function from the request's JSON to a reply. `Reply` and
`Failure` mean the same to `OpenAIServer` and `AnthropicServer`; a list is `Reply.raw`. A request that the
real service would refuse is answered with 400, and leaving the context raises an AssertionError that says
what was wrong with it, also when a list of replies has run out; read `problems` and pass ``strict=False``
where that is the point of a test.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Any, Literal, Self

import model_wire
from model_wire import Call, Failure, Raw, Reply, Tokens

__all__ = ["AnthropicServer", "Call", "Failure", "OpenAIServer", "Raw", "Recorded", "Reply", "Tokens"]

Answer = Reply | Failure | Raw
Script = Iterable[Answer] | Callable[[dict[str, Any]], Answer]


@dataclass
class Recorded:
    """A request as it came.

    Attributes:
        headers: By name in lower case.
        json: Its body; empty for a GET.
        gone: Is set when the client has closed the connection before the whole reply was sent.
    """

    method: str
    path: str
    headers: dict[str, str]
    json: dict[str, Any]
    gone: Event = field(default_factory=Event)


class _ModelServer:
    """What both servers share.

    Args:
        script: What it replies.
        models: The names that it lists.
        key: The only key that it takes; None takes any.
        refuses: Options of a request that it does not know, such as ``temperature``: a 400 that names them.
        pages: JSON of other paths, for GET, such as of MLflow's REST API.
        tls: Makes it serve https.
        strict: Leaving the context raises where a request was malformed or the script ran out.

    Attributes:
        address: ``http://127.0.0.1:PORT``.
        requests: All requests to the model, in order. listings: All others.
        problems: What was wrong with requests.
        connections: How many were made to it.
    """

    def __init__(
        self,
        script: Script = (),
        *,
        models: Sequence[str | Mapping[str, Any]] = (),
        key: str | None = None,
        refuses: Collection[str] = (),
        pages: Mapping[str, Any] | None = None,
        tls: ssl.SSLContext | None = None,
        strict: bool = True,
    ) -> None:
        self.requests: list[Recorded] = []
        self.listings: list[Recorded] = []
        self.problems: list[str] = []
        self.connections = 0
        self.models, self.key, self.refuses, self.pages = list(models), key, set(refuses), dict(pages or {})
        self._script = script if callable(script) else iter(script)
        self._strict, self._lock, self.closing = strict, Lock(), Event()
        server = self

        class Handler(_Handler):
            def __init__(self, *arguments: Any) -> None:
                self.model_server = server
                server.connections += 1
                super().__init__(*arguments)

        self._http = _Http(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self.address = f"http{'s' if tls else ''}://127.0.0.1:{self._http.server_port}"
        self._thread = Thread(target=self._http.serve_forever, args=(0.005,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None and self._strict and self.problems:
            raise AssertionError("; ".join(self.problems))

    def close(self) -> None:
        """Stops answering; held replies end."""
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(10)

    def answer(self, recorded: Recorded) -> Answer:
        """What a request to the model gets."""
        with self._lock:
            self.requests.append(recorded)
            if self.key is not None and self.sent_key(recorded.headers) != self.key:
                return Failure(401, f"Incorrect API key provided: {self.sent_key(recorded.headers)}.")
            for name in sorted(self.refuses & recorded.json.keys()):
                return self.refusal(name)
            if wrong := self.why_malformed(recorded):
                self.problems.append(f"{recorded.path}: {wrong}")
                return Failure(400, wrong)
            try:
                return self._script(recorded.json) if callable(self._script) else next(self._script)
            except StopIteration:
                wrong = "the script has no more replies"
            except Exception as error:
                wrong = f"the script failed: {error!r}"
            self.problems.append(wrong)
            return Failure(400, wrong)

    def refusal(self, option: str) -> Failure:
        """What a request gets with an option that is in `refuses`."""
        text = f"Unsupported parameter: '{option}' is not supported with this model."
        return Failure(400, text, code="unsupported_parameter", param=option)

    # What the wire formats differ in.

    wire: Any
    chat_path: str

    def sent_key(self, headers: Mapping[str, str]) -> str:
        raise NotImplementedError

    def why_malformed(self, recorded: Recorded) -> str | None:
        raise NotImplementedError


class OpenAIServer(_ModelServer):
    """Chat completions of OpenAI, as many others serve them, at any path that ends in ``/chat/completions``.

    Attributes:
        base_url: ``address`` + ``/v1``.
    """

    wire = model_wire.OpenAIWire
    chat_path = "/chat/completions"

    @property
    def base_url(self) -> str:
        return f"{self.address}/v1"

    def sent_key(self, headers: Mapping[str, str]) -> str:
        return headers.get("authorization", "").removeprefix("Bearer ")

    def why_malformed(self, recorded: Recorded) -> str | None:
        return model_wire.openai_problem(recorded.json)


class AnthropicServer(_ModelServer):
    """Messages of Anthropic at ``/v1/messages``.

    Attributes:
        base_url: ``address``: the SDK adds the rest.
    """

    wire = model_wire.AnthropicWire
    chat_path = "/v1/messages"

    @property
    def base_url(self) -> str:
        return self.address

    def sent_key(self, headers: Mapping[str, str]) -> str:
        return headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")

    def refusal(self, option: str) -> Failure:
        return Failure(400, f"`{option}` is deprecated for this model.")

    def why_malformed(self, recorded: Recorded) -> str | None:
        if "anthropic-version" not in recorded.headers:
            return "anthropic-version: header is required"
        return model_wire.anthropic_problem(recorded.json)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; anything else is printed by the base class."""
        import sys

        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    model_server: _ModelServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        server = self.model_server
        recorded = self._recorded({})
        server.listings.append(recorded)
        path = self.path.partition("?")[0]
        if path in server.pages:
            self._send_json(200, server.pages[path])
        elif server.key is not None and server.sent_key(recorded.headers) != server.key:
            self._send_failure(Failure(401, "Incorrect API key provided."))
        elif path.endswith("/models"):
            known = [{"id": each} if isinstance(each, str) else dict(each) for each in server.models]
            self._send_json(200, server.wire.listing(known))
        else:
            self._send_failure(Failure(404, f"no such path: {path}"))

    def do_POST(self) -> None:
        server = self.model_server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        recorded = self._recorded(json.loads(body or b"{}"))
        if not self.path.partition("?")[0].endswith(server.chat_path):
            server.listings.append(recorded)
            self._send_failure(Failure(404, f"no such path: {self.path}"))
            return
        answer = server.answer(recorded)
        try:
            if isinstance(answer, Failure):
                if self._held(answer.hold, recorded):
                    self._send_failure(answer)
            else:
                self._send_stream(answer, recorded)
        except ConnectionError:
            recorded.gone.set()
            self.close_connection = True

    def _recorded(self, body: dict[str, Any]) -> Recorded:
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Recorded(self.command, self.path, headers, body)

    def _send_json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self._send_body(
            status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def _send_body(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_failure(self, failure: Failure) -> None:
        if failure.body is None:
            self._send_json(failure.status, self.model_server.wire.failure(failure), failure.headers)
            return
        self._send_body(
            failure.status, failure.body.encode(), {"Content-Type": "text/html", **failure.headers}
        )

    def _send_stream(self, answer: Reply | Raw, recorded: Recorded) -> None:
        reply = answer if isinstance(answer, Reply) else Reply(raw=answer)
        wire = self.model_server.wire
        if reply.raw is None:
            events = wire.events(reply, recorded.json)
        else:
            events = [each if isinstance(each, bytes) else wire.event(each) for each in reply.raw]
        if reply.hold_headers and not self._held(reply.hold, recorded):
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        before, after = events[: reply.hold_at], events[reply.hold_at :]
        self._send_chunks(_split(b"".join(before), reply.split))
        if not self._held(None if reply.hold_headers else reply.hold, recorded):
            return
        self._send_chunks(_split(b"".join(after), reply.split))
        if reply.cut == "socket":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_WR)
            return
        self.wfile.write(b"0\r\n\r\n")

    def _send_chunks(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            if piece:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()

    def _held(self, hold: Event | None, recorded: Recorded) -> bool:
        """Waits for an event, a minute at most; False where the client went or the server closes before."""
        for _ in range(3000):
            if hold is None or hold.wait(0.02):
                return True
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable and not socket.socket.recv(self.connection, 1, socket.MSG_PEEK):
                recorded.gone.set()
                break
            if self.model_server.closing.is_set():
                break
        self.close_connection = True
        return False


def _split(body: bytes, split: Literal["events", "bytes"] | Sequence[int]) -> Iterator[bytes]:
    """A body in the pieces that are flushed one by one: by event, by byte, or cut at positions."""
    if split == "events":
        yield from (piece + b"\n\n" for piece in body.split(b"\n\n") if piece)
        return
    ends = range(1, len(body)) if split == "bytes" else sorted({at for at in split if 0 < at < len(body)})
    begin = 0
    for end in (*ends, len(body)):
        yield body[begin:end]
        begin = end
