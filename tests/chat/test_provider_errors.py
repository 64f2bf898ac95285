"""What every provider raises, over the real SDKs and loopback servers: one suite for all."""

from __future__ import annotations

import socket
import time
import traceback
from email.utils import formatdate
from threading import Event, Thread
from typing import Any

import pytest
from chat_requests import asked, text_of, told
from model_servers import Failure, OpenAIServer, Reply
from provider_served import KEY, Make, Served

from ftlab_mlflow.chat.provider import Provider, Request
from ftlab_mlflow.errors import (
    BadKey,
    ChatError,
    ContextOverflow,
    ModelNotUsable,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    RateLimited,
    StreamCut,
)

PAGE = "<!doctype html>\n<html><head><title>502 Bad Gateway</title></head><body>" + "<p>x</p>" * 500


def raised(provider: Provider, request: Request | None = None) -> ChatError:
    """What a request ends with. Its text is fit to be shown."""
    with pytest.raises(ChatError) as found:
        told(provider, request)
    text = str(found.value)
    assert len(text) < 600
    assert text.isprintable()
    assert KEY not in "".join(traceback.format_exception(found.value))
    assert found.value.__cause__ is not None or isinstance(found.value, StreamCut | ProviderError)
    return found.value


def failing(served: Served, failure: Failure | Reply, request: Request | None = None) -> ChatError:
    with served.server([failure]) as server:
        error = raised(served.use(server), request)
    assert len(server.requests) == 1, "it must be sent once"
    return error


def test_a_wrong_key(served: Served) -> None:
    with served.server(key="another") as server:
        error = raised(served.use(server))
    assert type(error) is BadKey
    assert served.key_from in str(error)


def test_a_server_that_repeats_the_key(served: Served) -> None:
    said = f"Incorrect API key provided: {KEY}, Authorization: Bearer {KEY}, or sk-proj-abc123****wxyz."
    for failure in (
        Failure(401, said),
        Failure(400, said),
        Failure(403, said),
        Failure(404, said),
        Failure(429, said),
        Failure(500, "", body=f"<html>{KEY}</html>"),
        Failure(500, "", body=KEY),
        Reply("so", error=Failure(500, said)),
    ):
        text = str(failing(served, failure))
        assert KEY not in text
        assert "sk-proj-abc123" not in text


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (Failure(403, "Country not supported"), BadKey),
        (Failure(400, "Incorrect API key provided: xa***", code="invalid-argument"), BadKey),
        (Failure(402, "Payment Required"), QuotaExceeded),
        (Failure(429, "You exceeded your current quota", code="insufficient_quota"), QuotaExceeded),
        (Failure(400, "Your credit balance is too low to access the API"), QuotaExceeded),
        (Failure(429, "Budget limit exceeded. Limit: $1.00 USD per 1 day. Request rejected."), QuotaExceeded),
        (Failure(429, "slow down"), RateLimited),
        (Failure(500, "The server had an error"), ProviderUnavailable),
        (Failure(502, body=PAGE), ProviderUnavailable),
        (Failure(503, "Loading model"), ProviderUnavailable),
        (Failure(529, "Overloaded"), ProviderUnavailable),
        (Failure(408, "Request timeout"), ProviderUnavailable),
        (Failure(400, "context_length_exceeded: too long", code="context_length_exceeded"), ContextOverflow),
        (Failure(400, "prompt is too long: 210000 tokens > 200000 maximum"), ContextOverflow),
        (Failure(400, "input length and `max_tokens` exceed context limit: 1 + 2 > 2"), ContextOverflow),
        (Failure(400, "This model's maximum context length is 4096 tokens. However, …"), ContextOverflow),
        (Failure(400, "the request exceeds the available context size, try again"), ContextOverflow),
        (
            Failure(400, "The input token count (1200000) exceeds the maximum number of tokens"),
            ContextOverflow,
        ),
        (Failure(413, "Request exceeds the maximum size"), ContextOverflow),
        (Failure(404, "The model `x` does not exist or you do not have access to it."), ProviderError),
        (Failure(400, "registry.ollama.ai/library/gemma:2b does not support tools"), ModelNotUsable),
        (Failure(400, '"auto" tool choice requires --enable-auto-tool-choice and …'), ModelNotUsable),
        (Failure(501, "The AI Gateway is disabled"), ProviderError),
        (Failure(400, "something else"), ProviderError),
        (Failure(422, "something else"), ProviderError),
        (Failure(418, body=""), ProviderError),
    ],
)
def test_a_refusal(served: Served, failure: Failure, kind: type[ChatError]) -> None:
    error = failing(served, failure)
    assert type(error) is kind
    if failure.message != "it failed":
        assert failure.message.split(".")[0] in str(error)
    assert "<" not in str(error).replace("tokens >", "")


def test_a_long_message_is_cut(served: Served) -> None:
    error = failing(served, Failure(400, "very\n\tlong " * 1000))
    assert "very long very" in str(error)


def test_a_model_that_is_not_there(served: Served) -> None:
    text = str(failing(served, Failure(404, "not found"), asked("Hello?", model="gone-1")))
    assert "gone-1" in text
    assert "ftlab models" in text


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_when_to_try_again(
    served: Served, status: int, headers: dict[str, str], seconds: float | None
) -> None:
    error = failing(served, Failure(status, "later", headers=headers))
    assert isinstance(error, RateLimited | ProviderUnavailable)
    assert error.retry_after_s == seconds


def test_when_to_try_again_as_a_date(served: Served) -> None:
    date = formatdate(time.time() + 90, usegmt=True)
    error = failing(served, Failure(429, "later", headers={"retry-after": date}))
    assert isinstance(error, RateLimited)
    assert 60 < (error.retry_after_s or 0) <= 90


@pytest.mark.parametrize("cut", ["socket", "end"])
def test_a_cut_stream(served: Served, cut: Any) -> None:
    with (
        served.server([Reply("half of it", cut=cut)]) as server,
        served.use(server).stream(asked()) as stream,
    ):
        texts: list[str] = []
        with pytest.raises(StreamCut):
            texts.extend(map(text_of, stream))
    assert "".join(texts) == "half of it"


def test_a_stream_of_nothing(served: Served) -> None:
    with served.server([[], [b": comment\n\n"]]) as server:
        provider = served.use(server)
        for _ in range(2):
            assert type(raised(provider)) is StreamCut


def test_what_is_no_json_in_a_stream(served: Served) -> None:
    with served.server([[b"event: message_start\ndata: {no json\n\n"]]) as server:
        assert type(raised(served.use(server))) is StreamCut


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (Failure(429, "slow down", type="rate_limit_error"), RateLimited),
        (Failure(529, "Overloaded", type="overloaded_error"), ProviderUnavailable),
        (Failure(500, "it broke", type="server_error"), ProviderUnavailable),
        (Failure(400, "prompt is too long: 3 > 2"), ContextOverflow),
        (Failure(400, "something else", type="invalid_request_error"), ProviderError),
    ],
)
@pytest.mark.parametrize("text", ["", "half of it"])
def test_an_error_in_the_stream(served: Served, failure: Failure, kind: type[ChatError], text: str) -> None:
    error = failing(served, Reply(text, error=failure))
    assert type(error) is kind
    assert failure.message in str(error)


def test_a_server_that_is_not_there(served: Served) -> None:
    with served.server() as server:
        provider = served.use(server)
    error = raised(provider)
    assert type(error) is ProviderUnavailable
    assert "127.0.0.1" in str(error)


def test_an_address_of_something_else(served: Served) -> None:
    with served.server(strict=False) as server:
        provider = served.use(server)
        server.chat_path = "/nowhere"
        assert type(raised(provider)) is ProviderError


def test_a_server_that_hangs_up(served: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def hang_up() -> None:
            connection, _ = listening.accept()
            connection.recv(100)
            connection.close()

        thread = Thread(target=hang_up)
        thread.start()

        class At:
            address = f"http://127.0.0.1:{port}"
            base_url = address + ("" if served.name == "anthropic" else "/v1")

        error = raised(served.use(At))
        thread.join(10)
    assert type(error) is ProviderUnavailable


@pytest.mark.parametrize("headers_first", [True, False])
def test_a_server_that_says_nothing(served: Served, headers_first: bool) -> None:
    reply = Reply("late", hold=Event(), hold_headers=not headers_first)
    with served.server([reply]) as server:
        error = raised(served.use(server), asked("Hello?", timeout_s=0.2))
    assert type(error) is ProviderUnavailable


def test_a_server_that_stops_in_the_middle(served: Served) -> None:
    with served.server([Reply("one two three", hold=Event(), hold_at=4)]) as server:
        error = raised(served.use(server), asked("Hello?", timeout_s=0.2))
    assert type(error) is StreamCut


# --- what a server should not send --------------------------------------------------------------------


def test_no_text_holds_the_key(served: Served) -> None:
    """Wherever a server repeats it, and however long what it sends is."""
    long = "x" * 2000 + KEY
    for answer in (
        Reply(raw=[b"data: \xff " + KEY.encode() + b"\n\n"]),
        Reply(raw=[f'{{"{KEY}": nothing}}']),
        Reply(raw=[f'"{KEY}"']),
        Failure(200, body=long, headers={"Content-Type": f"text/{long[-100:]}"}),
        Failure(200, body=KEY, headers={"Content-Encoding": "gzip", "Content-Type": "text/event-stream"}),
        Failure(307, body="", headers={"Location": f"{KEY}://{KEY}/"}),
        Failure(307, body="", headers={"Location": f"http://[{KEY}"}),
        Failure(307, body="", headers={"Location": f"http://127.0.0.1:9/{KEY}"}),
        Failure(400, body=f'{{"error": {{"message": ["{KEY}"], "type": ["{KEY}"], "code": "{KEY}"}}}}'),
    ):
        assert isinstance(failing(served, answer), ProviderError)


def test_a_name_that_is_the_key_is_shown(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with OpenAIServer() as server:
        provider = make("local", server)
    monkeypatch.setenv("VLLM_API_KEY", "vllm")
    assert str(raised(provider)).startswith("vllm cannot be reached at http://127.0.0.1")


def test_redirects_without_an_end(served: Served) -> None:
    again = Failure(307, body="", headers={"Location": served.server.chat_path})
    with served.server(lambda request: again) as server:
        error = raised(served.use(server))
    assert type(error) is ProviderError
    assert "without an end: check" in str(error)


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
def test_what_cannot_be_unpacked(served: Served, kind: str) -> None:
    packed = Failure(200, body="no gzip", headers={"Content-Encoding": "gzip", "Content-Type": kind})
    assert type(failing(served, packed)) is ProviderError


@pytest.mark.parametrize("body", ["<html>Hello</html>", '{"type": "message", "content": []}', ""])
@pytest.mark.parametrize("kind", ["text/html", "application/json"])
def test_what_is_no_stream(served: Served, body: str, kind: str) -> None:
    error = failing(served, Failure(200, body=body, headers={"Content-Type": kind}))
    assert type(error) is ProviderError
    assert f"with {kind} instead of a stream: check " in str(error)


@pytest.mark.parametrize(
    "address", ["http://[bad", "http://127.0.0.1:99999999", "ftp://127.0.0.1", "nowhere"]
)
@pytest.mark.parametrize("name", ["openai", "anthropic", "xai"])
def test_an_address_that_is_none(make: Make, name: str, address: str) -> None:
    class At:
        base_url = address

    error = raised(make(name, At))
    assert isinstance(error, ProviderError)
    assert address in str(error) or f"{name.upper()}_BASE_URL" in str(error)


# --- leaving -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["no headers", "no event", "text came"])
def test_leaving_from_another_thread_ends_the_wait(served: Served, state: str) -> None:
    held = Reply(
        "one two", hold=Event(), hold_headers=state == "no headers", hold_at=4 * (state == "text came")
    )
    with served.server([Reply("before"), held, Reply("after")]) as server:
        provider = served.use(server)
        told(provider)  # so that a connection may be there already
        stream = provider.stream(asked())
        pieces: list[Any] = []
        has_text = Event()
        failed: list[BaseException] = []

        def read() -> None:
            try:
                with stream as found:
                    for piece in found:
                        pieces.append(piece)
                        has_text.set()
            except BaseException as error:
                failed.append(error)

        thread = Thread(target=read)
        thread.start()
        if state == "text came":
            assert has_text.wait(10)
        end = time.monotonic() + 10
        while len(server.requests) < 2 and time.monotonic() < end:
            time.sleep(0.005)
        began = time.monotonic()
        stream.__exit__(None, None, None)
        thread.join(5)
        assert not thread.is_alive()
        assert time.monotonic() - began < 1
        assert not failed
        assert server.requests[1].gone.wait(5), "the connection must be closed"
        assert told(provider)[1].message.text == "after"


def test_leaving_early_closes_the_connection(served: Served) -> None:
    with served.server([Reply("one two", hold=Event(), hold_at=4), Reply("after")]) as server:
        provider = served.use(server)
        with provider.stream(asked()) as stream:
            next(iter(stream))
        assert list(stream) == []
        assert server.requests[0].gone.wait(5)
        assert told(provider)[1].message.text == "after"


def test_leaving_before_it_was_read(served: Served) -> None:
    with served.server() as server:
        with served.use(server).stream(asked()) as stream:
            pass
        assert list(stream) == []
    assert not server.requests
