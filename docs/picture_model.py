"""A model for the pictures of the chat: a loopback server that calls tools and says what they returned.

It speaks OpenAI's chat completions, and knows two questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

EXPERIMENT = "ftlab"
BEST = "Which run is best, and how did they get there?"
LOWER = "Lower the rate of the one that still runs to 5e-4"


@contextmanager
def serving() -> Iterator[str]:
    """Serves in its context; gives the base URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        said = _next(body["messages"])
        usage = {"prompt_tokens": len(json.dumps(body)) // 4, "completion_tokens": len(json.dumps(said)) // 4}
        finish = "tool_calls" if "tool_calls" in said else "stop"
        for event in (
            {"choices": [{"index": 0, "delta": said, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
            {"choices": [], "usage": usage},
        ):
            head = {"id": "picture", "object": "chat.completion.chunk", "created": 0, "model": "picture"}
            whole = head | event
            self.wfile.write(f"data: {json.dumps(whole)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


def _next(messages: list[dict[str, Any]]) -> dict[str, Any]:
    begin = max(index for index, message in enumerate(messages) if message["role"] == "user")
    results = [_data(message["content"]) for message in messages[begin:] if message["role"] == "tool"]
    if BEST in messages[begin]["content"]:
        if not results:
            statuses = ["FINISHED", "RUNNING"]
            return _call("rank_runs", experiment=EXPERIMENT, metric="eval_loss", statuses=statuses)
        rows = results[0]["rows"]
        if len(results) == 1:
            return _call("plot_metrics", runs=[row["name"] for row in rows], metrics=["eval_loss"])
        best, *others = rows
        behind = ", ".join(f"`{row['name']}` ({row['value']:.4f})" for row in others)
        text = f"`{best['name']}` has the lowest eval_loss: **{best['value']:.4f}** at step {best['step']}. "
        text += f"Behind it: {behind}. One still runs, so its value may change."
        return {"role": "assistant", "content": text}
    if not results:
        running = {"field": "status", "op": "=", "value": "RUNNING"}
        return _call("search_runs", experiment=EXPERIMENT, where=[running])
    run = results[0]["rows"][0]["name"]
    if len(results) == 1:
        reason = "smaller steps towards the end"
        return _call("propose_update", run=run, values={"learning_rate": 5e-4}, reason=reason)
    new = results[1]["changes"]["learning_rate"]["to"]
    text = f"I propose {new:g} for `{run}`. Nothing has been changed yet."
    return {"role": "assistant", "content": text}


def _call(name: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    call = {"index": 0, "id": name, "type": "function", "function": function}
    return {"role": "assistant", "tool_calls": [call]}


def _data(text: str) -> Any:
    return json.loads(text[text.index(">") + 1 : text.rindex("<")])
