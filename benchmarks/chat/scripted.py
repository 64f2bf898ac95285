"""A loopback server that speaks OpenAI's chat completions, and answers each question as its script does.

It knows of a conversation what a model would: the messages of the request. So what comes out wrong is the
fault of the tools, of what the loop sends, or of a script, and no model's.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from facts import Call, Done, Fact, Script, Talk

NAME = "perfect"
"""What the model goes by."""
_DATA = re.compile(r'<data source="([^"]*)">(.*?)</data>', re.DOTALL)
_PIECE = 12
"""Characters of a piece of text."""


def scripts_of(facts: Sequence[Fact]) -> dict[str, Script]:
    """The script of every question."""
    return {asked: turn.script for fact in facts for turn in fact.turns for asked in turn.asked}


@contextmanager
def serving(scripts: Mapping[str, Script], default: str | None = None) -> Iterator[str]:
    """Serves in its context, and gives the base URL. default: The answer where there is no script."""

    class Handler(_Handler):
        def reply(self, messages: Sequence[Mapping[str, Any]]) -> Call | str:
            return next_step(messages, scripts, default)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def next_step(
    messages: Sequence[Mapping[str, Any]], scripts: Mapping[str, Script], default: str | None = None
) -> Call | str:
    """What a perfect model does next in a conversation.

    Raises:
        ValueError: There is no script for the question, and no default.
    """
    asked = [place for place, message in enumerate(messages) if message["role"] == "user"]
    question, context = _question(messages[asked[-1]]["content"])
    script = scripts.get(question)
    if script is None:
        if default is None:
            raise ValueError(f"no script for {question!r}")
        return default
    results = [done.result for done in _done(messages[asked[-1] :])]
    steps: Generator[Call, Any, str] = script(Talk(_done(messages[: asked[-1]]), context))
    try:
        step = next(steps)
        for result in results:
            step = steps.send(result)
    except StopIteration as end:
        return str(end.value)
    return step


def _question(content: str) -> tuple[str, Mapping[str, Any]]:
    """What the person asked, and what was picked on the page."""
    found = _DATA.match(content)
    return (content[found.end() :].strip(), json.loads(found[2])) if found else (content.strip(), {})


def _done(messages: Sequence[Mapping[str, Any]]) -> list[Done]:
    """The calls with their results."""
    names = {
        call["id"]: call["function"]["name"]
        for message in messages
        for call in message.get("tool_calls") or ()
    }
    said = [message for message in messages if message["role"] == "tool"]
    return [Done(names[message["tool_call_id"]], _value(message["content"])) for message in said]


def _value(content: str) -> Any:
    found = _DATA.search(content)
    return json.loads(found[2] if found else content)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def reply(self, messages: Sequence[Mapping[str, Any]]) -> Call | str:
        raise NotImplementedError

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": NAME, "object": "model"}]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = json.loads(body)
        try:
            step = self.reply(request["messages"])
        except Exception as error:  # it has to reach whoever reads the results
            self._send(
                400, {"error": {"message": f"the script failed: {error!r}", "type": "invalid_request_error"}}
            )
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in _events(step, request["model"], len(body)):
            data = f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _send(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _events(step: Call | str, model: str, sent: int) -> Iterator[dict[str, Any] | str]:
    """A reply as chunks. Its tokens are counted at four bytes each."""
    moment = time.time_ns()
    base = {
        "id": f"chatcmpl-{moment}",
        "object": "chat.completion.chunk",
        "created": moment // 10**9,
        "model": model,
    }

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    yield chunk({"role": "assistant", "content": ""})
    if isinstance(step, Call):
        written = json.dumps(dict(step.arguments))
        function = {"name": step.name, "arguments": written}
        yield chunk(
            {"tool_calls": [{"index": 0, "id": f"call_{moment}", "type": "function", "function": function}]}
        )
    else:
        written = step
        for at in range(0, len(step), _PIECE):
            yield chunk({"content": step[at : at + _PIECE]})
    yield chunk({}, "tool_calls" if isinstance(step, Call) else "stop")
    tokens = {"prompt_tokens": sent // 4, "completion_tokens": len(written) // 4 + 1}
    yield {**base, "choices": [], "usage": tokens | {"total_tokens": sum(tokens.values())}}
    yield "[DONE]"


def main() -> None:
    """Answers everything with the same sentence until its input ends; prints its address first."""
    with serving({}, default=" ".join(sys.argv[1:]) or "Good morning.") as url:
        print(url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
