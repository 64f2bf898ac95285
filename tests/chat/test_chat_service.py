"""Chats that are kept: what stays of a question, in the app database, in MLflow, and for the next one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_store import EXPERIMENT, ask, collect, service, until
from markdown_it import MarkdownIt
from mlflow import MlflowClient
from model_servers import Call, Failure, OpenAIServer, Reply, Tokens

from ftlab_mlflow.chat.events import Answer, Text
from ftlab_mlflow.chat.export import export
from ftlab_mlflow.chat.running import Called, Running, Said
from ftlab_mlflow.chat.service import ChatService
from ftlab_mlflow.chat.tracing import Tracer
from ftlab_mlflow.errors import (
    AnalyticsError,
    BudgetReached,
    ChatError,
    ChatNotFound,
    ModelNotUsable,
    ProviderUnavailable,
)

RANK = Call("rank_runs", {"experiment": EXPERIMENT, "metric": "eval_loss"})
MODEL = "openai/gpt-4o-mini"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., OpenAIServer]]:
    started: list[OpenAIServer] = []

    def start(replies: Any) -> OpenAIServer:
        started.append(OpenAIServer(replies))
        monkeypatch.setenv("OPENAI_BASE_URL", started[-1].base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test-1234567890")
        return started[-1]

    yield start
    for server in started:
        server.close()


def test_an_answer_is_kept_whole(chats: ChatService, serve: Callable[..., OpenAIServer]) -> None:
    serve([Reply("Wait.", [RANK]), Reply("red-fox: 0.4375, not 0.9.", usage=Tokens(1000, 10, cached=400))])
    chat = chats.open(experiment=EXPERIMENT)
    _, answer = collect(chats.ask(chat.id, "  which is\nbest? ", model_id=MODEL))
    kept = chats.store.chats.get("ada", chat.id)
    assert kept.title == "which is best?"
    assert [message.role for message in kept.messages] == ["user", "assistant"]
    again = Answer.from_dict(json.loads(json.dumps(kept.messages[1].data)))
    assert again == answer
    (row,) = chats.store.chats.usage("ada", by="model")
    assert (row.model, row.answers, row.requests) == (MODEL, 1, 2)
    assert (row.input_tokens, row.cached_tokens, row.output_tokens) == (1100, 400, 30)
    assert row.cost_usd == pytest.approx(answer.cost_usd)


def test_what_went_wrong_is_kept_too(chats: ChatService, serve: Callable[..., OpenAIServer]) -> None:
    chat = chats.open()
    for model, error in (("gpt-4o-minni", ModelNotUsable), ("gpt-3.5-turbo", ModelNotUsable)):
        with pytest.raises(error):
            ask(chats, "hello?", model_id=model, chat_id=chat.id)
    server = serve([Failure(400, "no")])
    with pytest.raises(ChatError):
        ask(chats, "hello?", model_id=MODEL, chat_id=chat.id)
    kept = chats.store.chats.get("ada", chat.id).messages
    assert [bool(message.data.get("error")) for message in kept] == [False, True] * 3
    assert len(server.requests) == 1
    with pytest.raises(ChatError, match="empty"):
        ask(chats, " \n", chat_id=chat.id)


def test_another_try_is_not_told_of_the_first(chats: ChatService, serve: Callable[..., OpenAIServer]) -> None:
    server = serve([Reply("One."), Reply("Two."), Failure(401), Reply("Four.")])
    chat = chats.open()
    ask(chats, "first?", model_id=MODEL, chat_id=chat.id)
    ask(chats, "first?", model_id=MODEL, chat_id=chat.id, again=True)
    with pytest.raises(ChatError):
        ask(chats, "second?", model_id=MODEL, chat_id=chat.id)
    ask(chats, "second?", model_id=MODEL, chat_id=chat.id, again=True)
    told = [[message["content"] for message in each.json["messages"][1:]] for each in server.requests]
    assert told[1] == ["first?"]
    assert told[3] == ["first?", "One.", "first?", "Two.", "second?"]


def test_a_chat_is_its_persons_alone(chats: ChatService, uri: str, tmp_path: Path) -> None:
    chat = chats.open()
    with pytest.raises(ChatNotFound):
        ask(service(uri, tmp_path, user="bob"), "/experiments", chat_id=chat.id)


def test_what_a_chat_is_about(chats: ChatService) -> None:
    chat = chats.open(runs=["red-fox"], goal="lower")
    assert chats.open(chat.id[:30], goal="higher").data == {**chat.data, "goal": "higher"}
    with pytest.raises(AnalyticsError, match="blue-whale"):
        chats.open(runs=["blue-wale"])
    with pytest.raises(AnalyticsError, match=EXPERIMENT):
        chats.open(experiment="tunnning")


def test_slash_commands_need_no_model_and_are_told_to_one(
    chats: ChatService, serve: Callable[..., OpenAIServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    chat = chats.open(experiment=EXPERIMENT)
    answer = ask(chats, "/rank eval_loss", chat_id=chat.id)
    assert "red-fox" in answer.text
    assert (answer.model, answer.cost_usd, [run.name for run in answer.runs]) == ("", 0.0, ["rank_runs"])
    assert chats.store.chats.usage("ada") == []
    server = serve([Reply("It was 0.4375.")])
    assert ask(chats, "how low?", model_id=MODEL, chat_id=chat.id).unverified == ()
    roles = [message["role"] for message in server.requests[0].json["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "user"]
    with pytest.raises(ChatError, match="rank"):
        ask(chats, "/rnak eval_loss", chat_id=chat.id)


def test_a_persons_own_budget_is_the_lower_one(
    chats: ChatService, serve: Callable[..., OpenAIServer]
) -> None:
    serve([Reply("One.", usage=Tokens(100_000, 0)), Reply("Two.")])
    ask(chats, "first?", model_id=MODEL)
    chosen = chats.store.preferences("ada").model_copy(update={"chat_usd_per_day": 0.01})
    chats.store.save("ada", chosen)
    with pytest.raises(BudgetReached, match="your limit on the page Settings"):
        ask(chats, "second?", model_id=MODEL)


def test_dollars_are_no_limit_where_nothing_costs(
    chats: ChatService, serve: Callable[..., OpenAIServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve([Reply("One.", usage=Tokens(1_000_000, 0))])
    ask(chats, "first?", model_id=MODEL)
    monkeypatch.setenv("FTLAB_CHAT_USD_PER_DAY", "0.1")
    with pytest.raises(BudgetReached, match="FTLAB_CHAT_USD_PER_DAY"):
        ask(chats, "second?", model_id=MODEL)
    local = serve([Reply("Two.")])
    local.models.append("own")
    monkeypatch.setenv("LOCAL_BASE_URL", local.base_url)
    fresh = ChatService("ada", chats.tracking_uri, chats.store)
    assert ask(fresh, "second?", model_id="local/own").cost_usd is None


def test_a_budget_counts_what_is_not_known(
    chats: ChatService, serve: Callable[..., OpenAIServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve([Reply("One.", usage=None)])
    assert ask(chats, "first?", model_id=MODEL).cost_usd is None
    monkeypatch.setenv("FTLAB_CHAT_USD_PER_DAY", "0.0001")
    with pytest.raises(BudgetReached):
        ask(chats, "second?", model_id=MODEL)
    (row,) = chats.store.chats.usage("ada")
    assert (row.cost_usd, row.unknown_cost_answers) == (0, 1)
    assert 0.0001 < row.counted_usd < 0.01


def test_an_answer_that_cannot_be_kept_is_given_all_the_same(
    chats: ChatService, serve: Callable[..., OpenAIServer]
) -> None:
    """Its chat is deleted meanwhile: what it took is counted."""
    serve([Reply("One.")])
    chat = chats.open()
    events = chats.ask(chat.id, "first?", model_id=MODEL)
    next(events)
    chats.store.chats.delete("ada", chat.id)
    _, answer = collect(events)
    assert answer.text == "One."
    assert "could not be kept" in answer.notes[-1]
    assert chats.store.chats.usage("ada")[0].answers == 1


def test_preferences_choose_where_nobody_asks(
    chats: ChatService, serve: Callable[..., OpenAIServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve([Reply("One."), Reply("Two."), Reply("Three.")])
    monkeypatch.setenv("ANALYTICS_DEFAULT_MODEL", "openai/gpt-4.1-mini")
    ask(chats, "first?")
    wanted = {"chat_model": "openai/gpt-4o", "chat_temperature": 0.5, "chat_max_tokens": 512}
    chats.store.save("ada", chats.store.preferences("ada").model_copy(update=wanted))
    ask(chats, "second?")
    ask(chats, "third?", model_id=MODEL, temperature=0.25, max_tokens=300)
    sent = [request.json for request in server.requests]
    assert [each["model"] for each in sent] == ["gpt-4.1-mini", "gpt-4o", "gpt-4o-mini"]
    assert [each.get("temperature") for each in sent] == [None, 0.5, 0.25]
    assert [each["max_completion_tokens"] for each in sent] == [4096, 512, 300]


def test_an_answer_is_a_trace(uri: str, tmp_path: Path, serve: Callable[..., OpenAIServer]) -> None:
    serve([Reply(calls=[RANK]), Reply("red-fox.")])
    tracer = Tracer()
    chats = service(uri, tmp_path, tracer)
    answer = ask(chats, "which is best?", model_id=MODEL)
    assert answer.text == "red-fox."
    assert tracer.flush(60)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("ftlab-chat")
    (trace,) = client.search_traces(locations=[experiment.experiment_id])
    kinds = [span.span_type for span in trace.data.spans]
    assert sorted(kinds) == ["AGENT", "CHAT_MODEL", "CHAT_MODEL", "TOOL"]


def test_an_answer_goes_on_where_nobody_looks(chats: ChatService, serve: Callable[..., OpenAIServer]) -> None:
    hold, begun = threading.Event(), threading.Event()

    def reply(request: dict[str, Any]) -> Reply:
        if len(request["messages"]) < 4:
            return Reply("I look.", [RANK])
        begun.set()
        return Reply("It is red-fox.", hold=hold)

    serve(reply)
    chat = chats.open()
    running = Running(lambda stop: chats.ask(chat.id, "which?", model_id=MODEL, stop=stop))
    until(begun, "the second request")
    seen = running.progress
    assert not seen.is_over
    assert isinstance(seen.parts[0], Said)
    assert isinstance(seen.parts[1], Called)
    assert seen.parts[1].run is not None
    hold.set()
    running.join(20)
    assert running.progress.answer is not None
    assert running.progress.answer.text == "It is red-fox."
    assert len(chats.store.chats.get("ada", chat.id).messages) == 2


def test_an_answer_that_fails_says_so_where_somebody_looks(
    chats: ChatService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-1234567890")
    monkeypatch.setenv("FTLAB_CHAT_SECONDS", "0.5")
    chat = chats.open()
    running = Running(lambda stop: chats.ask(chat.id, "which?", model_id=MODEL, stop=stop))
    running.join(20)
    assert running.progress.error is not None
    assert "127.0.0.1:9" in running.progress.error
    assert ProviderUnavailable.__name__ not in running.progress.error


def test_what_came_is_kept_where_nobody_waits_for_the_rest(
    chats: ChatService, serve: Callable[..., OpenAIServer]
) -> None:
    serve([Reply(calls=[RANK], usage=Tokens(1000, 10)), Reply("It is red-fox, by far.")])
    chat = chats.open()
    events = chats.ask(chat.id, "which?", model_id=MODEL)
    while not isinstance(next(events), Text):
        pass
    events.close()
    kept = Answer.from_dict(chats.store.chats.get("ada", chat.id).messages[-1].data)
    assert kept.stopped == "user"
    assert kept.text.startswith("It ")
    assert [run.name for run in kept.runs] == ["rank_runs"]
    (row,) = chats.store.chats.usage("ada")
    assert (row.requests, row.unknown_cost_answers) == (2, 1)


def test_two_questions_at_once_keep_their_answers(
    chats: ChatService, serve: Callable[..., OpenAIServer]
) -> None:
    server = serve(lambda request: Reply(f"To {request['messages'][-1]['content']}"))
    chat = chats.open()
    first, second = (chats.ask(chat.id, text, model_id=MODEL) for text in ("A?", "B?"))
    next(first), next(second)
    collect(first), collect(second)
    ask(chats, "C?", model_id=MODEL, chat_id=chat.id)
    told = [message["content"] for message in server.requests[-1].json["messages"][1:]]
    assert told == ["A?", "To A?", "B?", "To B?", "C?"]


def test_an_export_loads_nothing(chats: ChatService, serve: Callable[..., OpenAIServer]) -> None:
    text = "See ![x](http://evil.example/?q=1) <img src=x onerror=alert(1)> [y](javascript:alert(1)) 0.4375"
    serve([Reply(calls=[RANK, Call("x` <img src=y>\x1b", {})]), Reply(text)])
    chat = chats.open(goal="<b>low</b> `loss`")
    ask(chats, "<script>alert(1)</script>?", model_id=MODEL, chat_id=chat.id)
    document = export(chats.store.chats.get("ada", chat.id))
    assert "rank_runs" in document
    assert "0.4375" in document
    assert "\x1b" not in document
    html = MarkdownIt("commonmark", {"html": True}).render(document)
    for element in ("<img", "<script", "<a ", "<b>"):
        assert element not in html


def test_the_chat_loads_no_sdk_before_it_is_asked() -> None:
    script = (
        "import sys, ftlab_mlflow.chat.service, ftlab_mlflow.chat.running, ftlab_mlflow.chat.export\n"
        "heavy = ('openai', 'anthropic', 'torch', 'transformers', 'streamlit', 'mlflow')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert done.stdout.strip() == "[]"
