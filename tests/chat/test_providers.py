"""What every provider does with a reply, over the real SDKs and loopback servers: one suite for all."""

from __future__ import annotations

import json
import re
from threading import Event, Thread
from typing import Any

import pytest
from chat_requests import asked, calls_of, text_of, told
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_servers import Call, OpenAIServer, Reply, Tokens
from provider_served import KEY, Served

from ftlab_mlflow.chat.model import Usage
from ftlab_mlflow.chat.provider import (
    AssistantMessage,
    Completed,
    ToolCall,
    ToolMessage,
    ToolResult,
    UserMessage,
)
from ftlab_mlflow.errors import ModelNotUsable

TEXT = "Die Verlustkurve fällt: 0.5 → 0.25 — 🎉 done."
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def test_text_comes_in_pieces_and_whole(served: Served) -> None:
    with served.server([Reply(TEXT, usage=Tokens(100, 20))]) as server:
        texts, done = told(served.use(server))
    assert len(texts) > 3
    assert "".join(texts) == done.message.text == TEXT
    assert (done.finish, done.message.calls, done.usage, done.note) == ("end", (), Usage(100, 20), None)


def test_text_is_given_before_the_reply_ends(served: Served) -> None:
    hold = Event()
    with (
        served.server([Reply("one two three", hold=hold, hold_at=4)]) as server,
        served.use(server).stream(asked()) as stream,
    ):
        first = text_of(next(iter(stream)))
        hold.set()
        rest = [each for each in stream if not isinstance(each, Completed)]
    assert first + "".join(text_of(each) for each in rest) == "one two three"
    assert first != "one two three"


def test_a_slow_first_token_is_waited_for(served: Served) -> None:
    hold = Event()
    found: list[str] = []
    with served.server([Reply("late", hold=hold, hold_headers=True)]) as server:
        provider = served.use(server)
        thread = Thread(target=lambda: found.extend(told(provider)[0]))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        assert not found
        hold.set()
        thread.join(10)
    assert found == ["late"]


def test_a_request_goes_out_as_asked(served: Served) -> None:
    with served.server([Reply("ok"), Reply("ok")], key=KEY) as server:
        provider = served.use(server)
        told(provider, asked("Hello?", model="Org/Some-Model:8b", temperature=0.3, max_tokens=77))
        told(provider, asked("Hello?", tools=()))
    first, second = (each.json for each in server.requests)
    assert (first["model"], first["temperature"], first["stream"]) == ("Org/Some-Model:8b", 0.3, True)
    assert 77 in (first.get("max_tokens"), first.get("max_completion_tokens"))
    assert "Be brief." in json.dumps(first)
    assert len(first["tools"]) == 2
    assert not {"temperature", "tools", "tool_choice", "top_p"} & second.keys()


@given(cuts=st.lists(st.integers(1, 2500), max_size=6))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks_may_be_cut_anywhere(served: Served, cuts: list[int]) -> None:
    calls = [Call("get_run", {"run": "äöü"}), Call("rank_runs")]
    with served.server([Reply(TEXT, calls, split=cuts)]) as server:
        texts, done = told(served.use(server))
    assert "".join(texts) == TEXT
    assert [name for name, _ in calls_of(done)] == ["get_run", "rank_runs"]
    assert json.loads(done.message.calls[0].arguments) == {"run": "äöü"}


def test_single_bytes(served: Served) -> None:
    with served.server([Reply("fällt 🎉", [Call("get_run", {"run": "ä"})], split="bytes")]) as server:
        texts, done = told(served.use(server))
    assert "".join(texts) == "fällt 🎉"
    assert calls_of(done) == [("get_run", json.dumps({"run": "ä"}))]


def test_parallel_calls_and_their_results(served: Served) -> None:
    calls = [Call("get_run", {"run": "a"}), Call("get_run", {"run": "b"}), Call("rank_runs")]
    with served.server([Reply("I look.", calls), Reply("Done.")]) as server:
        provider = served.use(server)
        texts, done = told(provider)
        assert texts == ["I ", "look."]
        assert calls_of(done) == [(call.name, call.text) for call in calls]
        ids = [call.id for call in done.message.calls]
        assert len(set(ids)) == 3
        assert all(ID.fullmatch(each) for each in ids)
        assert done.finish == "calls"
        results = ToolMessage(tuple(ToolResult(each, f"result of {each}", each == ids[1]) for each in ids))
        _, after = told(provider, asked("Hello?", done.message, results, UserMessage("Now.", by_us=True)))
    assert after.message.text == "Done."
    sent = json.dumps(server.requests[1].json)
    assert all(f"result of {each}" in sent for each in ids)


def test_malformed_arguments_are_kept_as_they_came(served: Served) -> None:
    broken = ['{"run": "a', "{bad: 1}}", "[1, 2]", '"text"', '{"run": NaN}', '{"a": 1}{"a": 2}', "{]"]
    with served.server([Reply("", [Call("get_run", each) for each in broken]), Reply("Sorry.")]) as server:
        provider = served.use(server)
        _, done = told(provider)
        assert [arguments for _, arguments in calls_of(done)] == broken
        results = ToolMessage(tuple(ToolResult(call.id, "no JSON", True) for call in done.message.calls))
        _, after = told(provider, asked("Hello?", done.message, results))
    assert after.message.text == "Sorry."


def test_a_call_without_arguments(served: Served) -> None:
    with served.server([Reply("", [Call("rank_runs", "")])]) as server:
        _, done = told(served.use(server))
    assert calls_of(done)[0][1] in ("", "{}")


@pytest.mark.parametrize("given", ["", "call 1/ü", "x" * 100, "call_0"])
def test_ids_are_made_good(served: Served, given: str) -> None:
    before = AssistantMessage("", (ToolCall("call_0", "get_run", "{}"),))
    history = asked("Hello?", before, ToolMessage((ToolResult("call_0", "r"),)))
    reply = Reply("", [Call("get_run", {}, id=given), Call("get_run", {"run": "b"}, id=given)])
    with served.server([reply]) as server:
        _, done = told(served.use(server), history)
    ids = {"call_0", *(call.id for call in done.message.calls)}
    assert len(ids) == 3
    assert all(ID.fullmatch(each) for each in ids)


def test_what_another_provider_said_is_taken(served: Served) -> None:
    foreign = AssistantMessage(
        "",
        (ToolCall("toolu_01", "get_run", '{"run": "a"}'), ToolCall("call_2", "gone_tool", "{broken")),
        native={"anthropic": [{"type": "thinking", "thinking": "hm", "signature": "of another"}], "x": 1},
    )
    results = ToolMessage((ToolResult("toolu_01", "0.5"), ToolResult("call_2", "", is_error=True)))
    history = asked("Hello?", foreign, results, AssistantMessage("It is 0.5."), "", "And now?")
    with served.server([Reply("ok")]) as server:
        _, done = told(served.use(server), history)
    assert done.message.text == "ok"
    assert "of another" not in json.dumps(server.requests[0].json)


def test_it_can_be_kept_from_calling(served: Served) -> None:
    before = AssistantMessage("", (ToolCall("c1", "get_run", "{}"),))
    history = asked("Hello?", before, ToolMessage((ToolResult("c1", "r"),)), may_call=False)
    with served.server([Reply("Words.")]) as server:
        told(served.use(server), history)
    sent = server.requests[0].json
    assert sent["tool_choice"] in ("none", {"type": "none"})
    assert len(sent["tools"]) == 2


def test_usage_that_is_not_said_is_unknown(served: Served) -> None:
    with served.server([Reply("ok", usage=None)]) as server:
        _, done = told(served.use(server))
    assert done.usage is None


def test_cached_tokens_are_part_of_the_input(served: Served) -> None:
    with served.server([Reply("ok", usage=Tokens(1000, 20, cached=600))]) as server:
        _, done = told(served.use(server))
    assert done.usage == Usage(1000, 20, cached_tokens=600)


@pytest.mark.parametrize(
    ("reply", "finish"),
    [
        (Reply("and then", finish="length"), "length"),
        (Reply("", [Call("get_run", '{"ru')], finish="length"), "length"),
        (Reply("No.", finish="refused"), "refused"),
        (Reply("", [Call("get_run")], finish="end"), "calls"),
        (Reply("Well.", finish="calls"), "end"),
        (Reply("Well.", finish="something_new"), "end"),
        (Reply("", finish="end"), "end"),
    ],
)
def test_how_it_ends(served: Served, reply: Reply, finish: str) -> None:
    with served.server([reply]) as server:
        _, done = told(served.use(server))
    assert done.finish == finish


def test_thinking_is_no_text(served: Served) -> None:
    with served.server([Reply("Yes.", thinking="let me see")]) as server:
        texts, done = told(served.use(server))
    assert (texts, done.message.text) == (["Yes."], "Yes.")


def test_a_temperature_that_a_model_does_not_take_is_left_out_and_said(served: Served) -> None:
    with served.server(lambda request: Reply("ok"), refuses=["temperature"]) as server:
        provider = served.use(server)
        for _ in range(2):
            _, done = told(provider, asked("Hello?", temperature=0.3))
            assert done.note == "some-model takes no temperature of your choice: its own is used"
        _, done = told(provider, asked("Hello?"))
        assert done.note is None
    sent = [each.json.get("temperature") for each in server.requests]
    assert sent == [0.3, None, None, None]


def test_one_instance_serves_threads(served: Served) -> None:
    found: list[str] = []

    def echo(request: dict[str, Any]) -> Reply:
        return Reply(re.findall(r"word-\d", json.dumps(request))[0])

    with served.server(echo) as server:
        provider = served.use(server)

        def ask(word: str) -> None:
            found.append("".join(told(provider, asked(word))[0]))

        threads = [Thread(target=ask, args=(f"word-{each}",)) for each in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert sorted(found) == [f"word-{each}" for each in range(6)]


def test_what_is_no_unicode_does_not_get_in_or_out(served: Served) -> None:
    lone = "a\ud83d!"
    reply = Reply(lone, [Call("get_run", '{"run": "' + lone + '"}')])
    history = asked(lone, AssistantMessage(lone, (ToolCall("c1", "get_run", '{"x": "\\ud83d"}'),)))
    history = asked(*history.messages, ToolMessage((ToolResult("c1", lone),)))
    with served.server([reply]) as server:
        _, done = told(served.use(server), history)
    (done.message.text + done.message.calls[0].arguments).encode()
    assert done.message.text == "a?!"


def test_it_says_what_it_serves_and_what_is_missing(served: Served) -> None:
    with served.server(models=["b/model", "a-model"]) as server:
        provider = served.use(server)
        models = provider.models()
    assert provider.name == served.name
    assert provider.why_unavailable() is None
    assert {model.provider for model in models} == {served.name}
    if served.name in ("local", "gateway"):
        assert [model.name for model in models] == ["b/model", "a-model"]


@pytest.mark.parametrize("value", ["", "  ", "sk-ümlaut", "two words"])
def test_a_key_that_is_none(served: Served, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with OpenAIServer() as server:
        provider = served.use(server)
        monkeypatch.setenv(served.key_from, value)
        if served.name == "gateway":  # its server may need none
            assert provider.why_unavailable() is None
            return
        why = provider.why_unavailable() or ""
        assert served.key_from in why
        with pytest.raises(ModelNotUsable, match=served.key_from):
            provider.stream(asked())
    assert not server.requests
