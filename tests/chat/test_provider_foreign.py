"""Replies that are odd, but whole; and whatever else a server sends: only errors of ours come of it."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Any

import pytest
from chat_requests import asked, calls_of, told
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_servers import AnthropicServer, Call, OpenAIServer, Raw, Reply, Tokens
from provider_served import Make, Served, served_by

from ftlab_mlflow.chat.model import Usage
from ftlab_mlflow.chat.provider import ToolMessage, ToolResult
from ftlab_mlflow.chat.providers.foreign import events
from ftlab_mlflow.errors import MissingExtra, ProviderError, StreamCut


def chunk(finish: Any = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def called(arguments: str) -> dict[str, Any]:
    return chunk(tool_calls=[{"index": 0, "id": "c1", "function": {"name": "a", "arguments": arguments}}])


# --- where a reply ends ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "finish"),
    [
        ([chunk(content="ok")], "end"),
        ([called('{"x": 1}')], "calls"),
        ([called("")], "calls"),
        ([chunk(content="ok"), called("{}")], "calls"),
    ],
)
def test_done_is_an_end_without_a_reason(make: Make, sent: list[Any], finish: str) -> None:
    with OpenAIServer([[*sent, "[DONE]"], sent]) as server:
        provider = make("local", server)
        assert told(provider)[1].finish == finish
        with pytest.raises(StreamCut):
            told(provider)


@pytest.mark.parametrize(
    "sent", [[], [chunk(content="")], [called('{"x": ')], [chunk(content="ok"), called("{")]]
)
def test_done_is_no_end_of_what_is_none(make: Make, sent: list[Any]) -> None:
    with OpenAIServer([[*sent, "[DONE]"]]) as server, pytest.raises(StreamCut):
        told(make("local", server))


def test_an_end_without_a_blank_line_counts(make: Make) -> None:
    for last in (chunk("stop"), "[DONE]"):
        data = json.dumps(last) if isinstance(last, dict) else last
        with OpenAIServer([[chunk(content="ok"), f"data: {data}".encode()]]) as server:
            assert told(make("openai", server))[1].finish == "end"
    stop = {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}}
    with AnthropicServer([[stop, b'event: message_stop\ndata: {"type": "message_stop"}\n']]) as server:
        assert told(make("anthropic", server))[1].finish == "length"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_events_as_they_may_be_written(end: bytes, size: int) -> None:
    lines = [
        b": comment", b"", b"event: x", b"data: one", b"data:two", b"", b"id", b"", b"",
        "data: ä\u2028".encode(), b"", b"data: \xff", b"", b"data", b"", b"data:  last",
    ]  # fmt: skip
    sent = end.join(lines)
    chunks = [sent[at : at + size] for at in range(0, len(sent), size)]
    assert list(events(chunks)) == ["one\ntwo", "ä\u2028", "\ufffd", "", " last"]


def test_a_refusal_without_a_word(served: Served) -> None:
    with served.server([Reply("", finish="refused", usage=Tokens(10, 0))]) as server:
        _, done = told(served.use(server))
    assert (done.message.text, done.finish, done.usage) == ("", "refused", Usage(10, 0))


# --- usage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absurd", [-1, 10**9 + 1, 10**30, 3.5, 100.0, True, "100", [1], {}])
@pytest.mark.parametrize("at", range(4))
def test_absurd_usage_is_not_believed(make: Make, absurd: Any, at: int) -> None:
    names = [
        ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens"),
        ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
    ]
    openai, anthropic = (dict.fromkeys(each, 1) | {each[at]: absurd} for each in names)
    openai["prompt_tokens_details"] = {"cached_tokens": openai.pop("cached_tokens")}
    with OpenAIServer([[chunk("stop", content="ok"), {"choices": [], "usage": openai}]]) as server:
        _, done = told(make("openai", server))
    assert (done.message.text, done.usage) == ("ok", None)
    start = {"type": "message_start", "message": {"usage": anthropic}}
    stream: Raw = [start, {"type": "message_stop"}]
    with AnthropicServer([stream]) as server:
        _, done = told(make("anthropic", server))
    assert done.usage is None


# --- arguments ---------------------------------------------------------------------------------------


def test_arguments_that_are_nested_too_deep_go_back_as_none(served: Served) -> None:
    deep = ['{"a":' * levels + "1" + "}" * levels for levels in (900, 1500)]
    deep.append('{"a":' + "[" * 900 + "]" * 900 + "}")
    with served.server([Reply("", [Call("get_run", each) for each in deep]), Reply("ok")]) as server:
        provider = served.use(server)
        _, done = told(provider)
        assert [arguments for _, arguments in calls_of(done)] == deep
        results = ToolMessage(tuple(ToolResult(call.id, "too deep", True) for call in done.message.calls))
        told(provider, asked("Hello?", done.message, results))
    said = server.requests[1].json["messages"][-2 if served.name == "anthropic" else 2]
    sent = (
        [block["input"] for block in said["content"]]
        if served.name == "anthropic"
        else [json.loads(call["function"]["arguments"]) for call in said["tool_calls"]]
    )
    assert sent == [{}, {}, {}]


def test_a_tool_use_without_an_id_gets_one(make: Make) -> None:
    block = {"type": "tool_use", "name": "get_run"}
    start = {"type": "content_block_start", "index": 0, "content_block": block}
    stream: Raw = [start, {"type": "message_stop"}]
    with AnthropicServer([stream]) as server:
        _, done = told(make("anthropic", server))
    assert calls_of(done) == [("get_run", "{}")]
    assert done.message.calls[0].id


def test_anthropic_is_asked_over_messages_stream(make: Make) -> None:
    with AnthropicServer([Reply("ok")]) as server:
        told(make("anthropic", server))
    assert server.requests[0].headers["x-stainless-helper-method"] == "stream"


# --- what is none ------------------------------------------------------------------------------------

DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.mark.parametrize(
    "data",
    ["[]", "null", "1", '"x"', '{"choices": [{}]}', '{"choices": [null]}', '{"choices": "x"}',
     '{"choices": [{"delta": []}]}', '{"choices": [{"delta": {"tool_calls": [1]}}]}',
     '{"choices": [{"delta": {"tool_calls": [{"function": 1}]}}]}', DEEP],
)  # fmt: skip
@pytest.mark.parametrize("before", [[], [{"choices": [{"delta": {"content": "so"}}]}]])
def test_what_is_no_chat_completion(make: Make, data: str, before: list[Any]) -> None:
    with OpenAIServer([[*before, data, "[DONE]"]]) as server, pytest.raises(ProviderError) as raised:
        told(make("openai", server))
    assert type(raised.value) is ProviderError
    assert "openai sent what is no chat completion" in str(raised.value)


@pytest.mark.parametrize(
    "data",
    ["[]", "null", '"x"', '{"type": "message_start", "message": 1}', '{"type": "content_block_start"}',
     '{"type": "content_block_start", "index": 0, "content_block": "x"}',
     '{"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use"}}',
     '{"type": "content_block_delta", "index": {}, "delta": {}}',
     '{"type": "message_delta", "delta": [1]}', DEEP],
)  # fmt: skip
@pytest.mark.parametrize("before", [[], [{"type": "message_start", "message": {}}]])
def test_what_is_no_message(make: Make, data: str, before: list[Any]) -> None:
    with AnthropicServer([[*before, data]]) as server, pytest.raises(ProviderError) as raised:
        told(make("anthropic", server))
    assert type(raised.value) is ProviderError
    assert "anthropic sent what is no message" in str(raised.value)


def test_a_list_that_is_none(make: Make) -> None:
    said: list[Any] = ["x", [1], [{}], None]
    for data in said:
        with (
            OpenAIServer(pages={"/v1/models": {"data": data}}) as server,
            pytest.raises(ProviderError, match="sent what is no list of models"),
        ):
            make("local", server).models()


# --- anything ----------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.sampled_from([None, True, 0, -1, 1.5, "", "x", "stop", "tool_use", "text", "text_delta", 10**20]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "index", "x"]), inner)
    ),
    max_leaves=4,
)
OPENAI = [
    chunk(content="so"), called('{"x"'), called(": 1}"), chunk("stop"), {"usage": {"prompt_tokens": 1}}
]  # fmt: skip
ANTHROPIC: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"usage": {"input_tokens": 1, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "hm"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "s"}},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": "so"}},
    {
        "type": "content_block_start",
        "index": 2,
        "content_block": {"type": "tool_use", "id": "1", "name": "a"},
    },
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
]


def changed(value: Any, draw: st.DrawFn) -> Any:
    """The same with one part of it, at any depth, put away or made another."""
    keys = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    if not keys or draw(st.integers(0, 3)) == 0:
        return draw(VALUES)
    key = draw(st.sampled_from(keys))
    made = value.copy()
    if draw(st.integers(0, 4)) == 0:
        del made[key]
    else:
        made[key] = changed(value[key], draw)
    return made


@st.composite
def streams(draw: st.DrawFn) -> tuple[str, list[str]]:
    name, sent = draw(st.sampled_from([("openai", OPENAI), ("anthropic", ANTHROPIC)]))
    made: Any = sent
    for _ in range(draw(st.integers(1, 3))):
        made = changed(made, draw) if isinstance(made, list) else made
    return name, [json.dumps(each) for each in made] if isinstance(made, list) else [json.dumps(made)]


@given(stream=streams())
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_is_sent(stream: tuple[str, list[str]], make: Make) -> None:
    name, data = stream
    with (OpenAIServer if name == "openai" else AnthropicServer)([data]) as server:
        provider = make(name, server)
        with suppress(ProviderError):
            _, done = told(provider)
            json.dumps(done.message.native)
            assert all(call.name and call.id for call in done.message.calls)


# --- without an SDK ----------------------------------------------------------------------------------


class Blocked:
    """Refuses to look for the packages of the chat."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in ("openai", "anthropic", "httpx2"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(("name", "missing"), [("openai", ""), ("anthropic", ""), ("openai", "httpx2")])
def test_what_looks_for_packages_may_raise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, name: str, missing: str
) -> None:
    with OpenAIServer() as server:
        provider = served_by(name, monkeypatch, tmp_path).use(server)
    monkeypatch.setattr(sys, "meta_path", [Blocked(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, missing or name, raising=False)
    hint = f"{missing or name} is not installed: pip install 'ftlab-mlflow[chat]'"
    if not missing:
        assert provider.why_unavailable() == hint
    with pytest.raises(MissingExtra) as raised:
        told(provider)
    assert str(raised.value) == hint
