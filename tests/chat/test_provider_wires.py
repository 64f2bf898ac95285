"""What is particular to one wire format or one provider, over the real SDKs and loopback servers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from chat_requests import TOOLS, asked, calls_of, told
from model_servers import AnthropicServer, Call, Failure, OpenAIServer, Reply, Tokens
from provider_served import Make

from ftlab_mlflow.chat.model import Usage
from ftlab_mlflow.chat.provider import (
    AssistantMessage,
    Message,
    ToolCall,
    ToolMessage,
    ToolResult,
    UserMessage,
)
from ftlab_mlflow.errors import (
    BadKey,
    ContextOverflow,
    ProviderError,
)

# --- chat completions: what a server does not take ---------------------------------------------------


@pytest.mark.parametrize(("name", "limit"), [("openai", "max_completion_tokens"), ("xai", "max_tokens")])
def test_the_limit_of_output_as_each_spells_it(make: Make, name: str, limit: str) -> None:
    with OpenAIServer([Reply("ok")]) as server:
        told(make(name, server), asked("Hello?", max_tokens=77))
    assert server.requests[0].json[limit] == 77
    assert server.requests[0].json["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("refused", "gone", "instead", "note"),
    [
        (["stream_options"], ["stream_options"], [], None),
        (["max_completion_tokens"], ["max_completion_tokens"], ["max_tokens"], None),
        (
            ["max_completion_tokens", "max_tokens"],
            ["max_completion_tokens", "max_tokens"],
            [],
            "some-model takes no limit of 4096 tokens of output: its own is used",
        ),
        (["tool_choice"], ["tool_choice", "tools"], [], None),
        (["stream_options", "tool_choice"], ["stream_options", "tool_choice", "tools"], [], None),
    ],
)
def test_an_option_that_a_server_refuses_is_left_out_from_then_on(
    make: Make, refused: list[str], gone: list[str], instead: list[str], note: str | None
) -> None:
    with OpenAIServer(lambda request: Reply("ok"), refuses=refused) as server:
        provider = make("openai", server)
        for _ in range(2):
            _, done = told(provider, asked("Hello?", may_call=False))
            assert (done.message.text, done.note) == ("ok", note)
    assert len(server.requests) == len(refused) + 2
    for each in server.requests[-2:]:
        assert not each.json.keys() & set(gone)
        assert each.json.keys() >= set(instead)


def test_more_output_than_a_model_gives(make: Make) -> None:
    text = "'max_tokens' is too large: 4096. This model's maximum context length is 2048 tokens"

    def script(request: dict[str, Any]) -> Reply | Failure:
        return Failure(400, text, param="max_tokens") if "max_tokens" in request else Reply("ok")

    with OpenAIServer(script) as server:
        _, done = told(make("local", server))
    assert done.note == "some-model takes no limit of 4096 tokens of output: its own is used"


def test_a_refusal_that_comes_in_the_stream(make: Make) -> None:
    def script(request: dict[str, Any]) -> Any:
        said = {"message": "422: `stream_options` is not supported", "type": "HTTPException"}
        return [{"error": said}] if "stream_options" in request else Reply("ok")

    with OpenAIServer(script) as server:
        _, done = told(make("gateway", server))
    assert (done.message.text, done.usage) == ("ok", None)


def test_a_status_that_the_gateway_puts_into_the_stream(make: Make) -> None:
    said = {"message": "401: Incorrect API key provided", "type": "HTTPException"}
    with OpenAIServer([[{"error": said}]]) as server, pytest.raises(BadKey, match="endpoint in MLflow"):
        told(make("gateway", server))


def test_organizations_are_for_openai_only(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    with OpenAIServer(lambda request: Reply("ok")) as server:
        for name in ("openai", "xai", "local", "gateway"):
            told(make(name, server))
    sent = [
        (each.headers.get("openai-organization"), each.headers.get("openai-project"))
        for each in server.requests
    ]
    assert sent == [("org-1", "proj-1"), (None, None), (None, None), (None, None)]


# --- chat completions: replies -----------------------------------------------------------------------


def chunk(finish: str | None = None, usage: Any = None, **delta: Any) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": usage}


def piece(arguments: Any = None, name: str | None = None, **more: Any) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": name} if name else {})}
    return chunk(tool_calls=[{"function": function, **more}])


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        pytest.param(
            [piece("", "a", id="1"), piece('{"x"'), piece(": 1}"), piece("{}", "b", id="2")],
            [("a", '{"x": 1}'), ("b", "{}")],
            id="no index",
        ),
        pytest.param(
            [piece('{"x": 1}', "a", index=0), piece('{"x": 2}', "a", index=0), piece("{}", "b", index=0)],
            [("a", '{"x": 1}'), ("a", '{"x": 2}'), ("b", "{}")],
            id="whole, all at 0, no id",
        ),
        pytest.param(
            [piece('{"x": 1}', "a", index=0, id="7"), piece('{"x": 2}', "a", index=0, id="8")],
            [("a", '{"x": 1}'), ("a", '{"x": 2}')],
            id="whole, all at 0",
        ),
        pytest.param(
            [piece('{"x"', "a", index=0, id="7"), piece(": 1}", "a", index=0, id="7")],
            [("a", '{"x": 1}')],
            id="id and name in each",
        ),
        pytest.param(
            [piece("{}", "a", index=0, id="7"), piece("{}", "a", index=1, id="7")],
            [("a", "{}"), ("a", "{}")],
            id="the same id twice",
        ),
        pytest.param(
            [
                piece("", "a", index=0, id="1"),
                piece("", "b", index=1, id="2"),
                piece("{1", index=1),
                piece("{2", index=0),
            ],
            [("a", "{2"), ("b", "{1")],
            id="in turns",
        ),
        pytest.param([piece({"x": 1}, "a", index=0, id=3)], [("a", '{"x": 1}')], id="an object"),
        pytest.param([piece(None, "a", index=0), piece(None, index=0)], [("a", "")], id="no arguments"),
        pytest.param([piece('{"x": 1}', None, index=0)], [], id="no name"),
    ],
)
def test_calls_as_other_servers_send_them(
    make: Make, pieces: list[dict[str, Any]], expected: list[tuple[str, str]]
) -> None:
    with OpenAIServer([[*pieces, chunk("tool_calls"), "[DONE]"]]) as server:
        _, done = told(make("local", server))
    assert calls_of(done) == expected
    assert len({call.id for call in done.message.calls}) == len(expected)
    assert done.finish == ("calls" if expected else "end")


def test_odd_usage(make: Make) -> None:
    said = [
        {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
        {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 45},
    ]
    details = {"prompt_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 3}}
    for usage, expected in (
        (said, Usage(10, 35)),  # in every chunk; xAI's thinking only in the total
        ([{**said[0], **details}], Usage(10, 1, 6, 3)),
        ([{"prompt_tokens": None, "completion_tokens": 5}], None),
        ([{"total_tokens": 5}], None),
    ):
        chunks = [chunk("stop", content="ok"), *({"id": "x", "choices": [], "usage": each} for each in usage)]
        with OpenAIServer([chunks]) as server:
            _, done = told(make("xai", server))
        assert done.usage == expected


def test_a_reply_that_has_ended_before_its_connection(make: Make) -> None:
    with OpenAIServer([Reply(raw=[chunk(content="ok"), chunk("stop")], cut="socket")]) as server:
        _, done = told(make("openai", server))
    assert done.message.text == "ok"


def test_a_refusal_is_text(make: Make) -> None:
    with OpenAIServer([[chunk(refusal="I will not."), chunk("content_filter")]]) as server:
        _, done = told(make("openai", server))
    assert (done.message.text, done.finish) == ("I will not.", "refused")


def test_what_is_no_stream(make: Make) -> None:
    said = "text/html instead of a stream: check OPENAI_BASE_URL"
    with (
        OpenAIServer([Failure(200, body="<html>Hello</html>")]) as server,
        pytest.raises(ProviderError, match=said),
    ):
        told(make("openai", server))


def test_signed_thinking_of_gemini_goes_back(make: Make) -> None:
    first = [piece("{}", "get_run", index=0, id="c1", thought_signature="signed"), chunk("tool_calls")]
    with OpenAIServer([first, Reply("ok"), Reply("ok")]) as server:
        provider = make("gateway", server)
        _, done = told(provider)
        history = ("Hello?", done.message, ToolMessage((ToolResult("c1", "r"),)))
        told(provider, asked(*history))
        told(make("openai", server), asked(*history))
    calls = [each.json["messages"][2]["tool_calls"][0] for each in server.requests[1:]]
    assert [each.get("thought_signature") for each in calls] == ["signed", None]


def test_tools_are_sent_as_they_are(make: Make) -> None:
    with OpenAIServer([Reply("ok")]) as server:
        told(make("openai", server))
    (first, _) = server.requests[0].json["tools"]
    assert first["function"] == {
        "name": TOOLS[0].name, "description": TOOLS[0].description, "parameters": TOOLS[0].schema
    }  # fmt: skip


# --- Anthropic ---------------------------------------------------------------------------------------

CALLS = (ToolCall("c1", "get_run", '{"run": "a"}'), ToolCall("c2", "rank_runs", "{}"))
RESULTS = ToolMessage((ToolResult("c1", "0.5"), ToolResult("c2", "broke", is_error=True)))


def sent_to_anthropic(make: Make, *messages: Message | str, **more: Any) -> dict[str, Any]:
    with AnthropicServer([Reply("ok")]) as server:
        told(make("anthropic", server), asked(*messages, **more))
    return server.requests[0].json


def test_results_are_one_message_and_the_prompt_is_cached(make: Make) -> None:
    now = UserMessage("Answer now.", by_us=True)
    sent = sent_to_anthropic(make, "Hello?", AssistantMessage("I look.", CALLS), RESULTS, now)
    cached = {"cache_control": {"type": "ephemeral"}}
    assert sent["system"] == [{"type": "text", "text": "Be brief.", **cached}]
    assert [each["role"] for each in sent["messages"]] == ["user", "assistant", "user"]
    assert sent["messages"][1]["content"][1] == {
        "type": "tool_use", "id": "c1", "name": "get_run", "input": {"run": "a"}
    }  # fmt: skip
    assert sent["messages"][2]["content"] == [
        {"type": "tool_result", "tool_use_id": "c1", "content": "0.5"},
        {"type": "tool_result", "tool_use_id": "c2", "content": "broke", "is_error": True},
        {"type": "text", "text": "Answer now.", **cached},
    ]
    assert json.dumps(sent).count("cache_control") == 2


def test_nothing_empty_is_sent(make: Make) -> None:
    sent = sent_to_anthropic(
        make, "One.", AssistantMessage("  \n"), "", "Two.", AssistantMessage("", CALLS), RESULTS, system=" "
    )
    assert "system" not in sent
    assert [block["type"] for block in sent["messages"][0]["content"]] == ["text", "text"]
    assert [block["type"] for block in sent["messages"][1]["content"]] == ["tool_use", "tool_use"]


def test_thinking_goes_back_within_its_answer_only(make: Make) -> None:
    with AnthropicServer([Reply("I look.", [Call("get_run")], thinking="hm")]) as server:
        _, done = told(make("anthropic", server))
    said = done.message
    assert json.loads(json.dumps(said.native)) == said.native
    results = ToolMessage((ToolResult(said.calls[0].id, "0.5"),))
    now = UserMessage("Answer now.", by_us=True)
    other = replace(said, calls=(replace(said.calls[0], id="other"),))
    for messages, kinds in (
        (("Hello?", said, results, now), ["thinking", "text", "tool_use"]),
        (("Hello?", said, results, AssistantMessage("0.5"), "And b?"), ["text", "tool_use"]),
        (("Hello?", replace(said, native=None), results), ["text", "tool_use"]),
        (("Hello?", other, ToolMessage((ToolResult("other", "0.5"),))), ["text", "tool_use"]),
    ):
        sent = sent_to_anthropic(make, *messages)
        assert [block["type"] for block in sent["messages"][1]["content"]] == kinds


def test_all_of_the_input_is_counted(make: Make) -> None:
    with AnthropicServer([Reply("ok", usage=Tokens(1000, 20, cached=600, written=300))]) as server:
        _, done = told(make("anthropic", server))
    assert done.usage == Usage(1000, 20, cached_tokens=600, cache_write_tokens=300)


def test_a_context_that_is_full(make: Make) -> None:
    full = "model_context_window_exceeded"
    with AnthropicServer([Reply("so", finish=full), Reply("", finish=full)]) as server:
        provider = make("anthropic", server)
        assert told(provider)[1].finish == "length"
        with pytest.raises(ContextOverflow):
            told(provider)


def test_a_call_that_comes_whole_and_blocks_that_are_new(make: Make) -> None:
    use = {"type": "tool_use", "id": "c1", "name": "get_run", "input": {"run": "a"}}
    start = {"id": "m", "type": "message", "role": "assistant", "content": [], "model": "m", "usage": {}}
    events = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "new_kind", "x": 1}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "new_delta", "x": 1}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": "So: "}},
        {"type": "content_block_start", "index": 2, "content_block": use},
        {"type": "new_event"},
        {"type": "message_delta", "delta": {"stop_reason": "pause_turn"}, "usage": {}},
        {"type": "message_stop"},
    ]
    with AnthropicServer([events]) as server:
        texts, done = told(make("anthropic", server))
    assert (texts, calls_of(done)) == (["So: "], [("get_run", '{"run": "a"}')])
    assert (done.usage, done.finish) == (None, "calls")
