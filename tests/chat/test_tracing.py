"""Answers as MLflow traces: what a store and a server make of them; what happens where there is none."""

from __future__ import annotations

import json
import logging
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from ftlab_mlflow.chat import mlflow_trace, tracing
from ftlab_mlflow.chat.events import Answer, Round, ToolRun
from ftlab_mlflow.chat.model import Model, Price, Rates, Usage
from ftlab_mlflow.chat.tracing import Tracer
from ftlab_mlflow.errors import StoreError, StoreUnavailable

BEGAN = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
BEGAN_NS = 1_772_366_400_250_000_000
TIERS = Price([Rates(0.15, 0.6, cached=0.075), Rates(0.3, 1.2, cached=0.15, above_tokens=1000)])
MINI = Model("openai", "gpt-4o-mini", "openai", price=TIERS)
CHAT_ID = "0199aaaa-0000-7000-8000-000000000001"


def answer(model: Model = MINI, **values: Any) -> Answer:
    """Two requests, the first of which calls two tools; the second is beyond the long-context price."""
    first, second = Usage(900, 40, cached_tokens=100), Usage(2000, 60, 1500, 200)
    ranked = ToolRun("c1", "rank_runs", {"metric": "eval_loss"}, True, {"runs": ["b2"]}, 0.25, 1.0)
    failed = ToolRun("c2", "get_run", {"run": "zz"}, False, {"error": "no run zz"}, 0.01, 1.25)
    asked = {"c1": '{"metric": "eval_loss"}', "c2": '{"run": "zz"}'}
    rounds = (
        Round("I look.", (ranked, failed), asked, first, 0.0, 1.0),
        Round("b2 [x]", (), {}, second, 1.5, 0.5),
    )
    costs = [model.price.cost(each) for each in (first, second)] if model.price else []
    made = {
        "text": "b2 is best",
        "model": model.id,
        "rounds": rounds,
        "usage": first + second,
        "cost_usd": sum(costs) if costs else None,
        "first_token_s": 0.4,
        "seconds": 2.0,
    }
    return Answer(**{**made, **values})  # type: ignore[arg-type]


def traced(uri: str | None, given: Answer | None = None, **values: Any) -> mlflow_trace.Traced:
    made = {
        "question": "Which run is best?",
        "answer": given or answer(),
        "began": BEGAN,
        "tracking_uri": uri,
        "user": "alice",
        "chat_id": CHAT_ID,
        "model": MINI,
        "experiment": "ftlab-chat",
    }
    return mlflow_trace.Traced(**{**made, **values})


def send(tracer: Tracer, uri: str, **values: Any) -> None:
    made = {"question": "Which?", "answer": answer(), "began": BEGAN, "user": "alice", "chat_id": CHAT_ID}
    tracer.trace(**{**made, "model": MINI, "tracking_uri": uri, **values})  # type: ignore[arg-type]


def all_traces(uri: str, experiment: str = "ftlab-chat") -> list[Any]:
    """The traces of an experiment; none, too, where there is no such experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_traces(locations=[found.experiment_id])) if found else []


@pytest.fixture(params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest) -> str:
    """A tracking store: a file, and the same behind a server."""
    if request.param == "server":
        server: str = request.getfixturevalue("mlflow_server").uri
        return server
    path: str = request.getfixturevalue("new_sqlite")(request.getfixturevalue("tmp_path"))
    return path


def read(uri: str, trace_id: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri).get_trace(trace_id)


# --- what is written ---------------------------------------------------------------------------------


def test_an_answer_is_an_agent_with_requests_and_tools(uri: str) -> None:
    trace = read(uri, mlflow_trace.write(traced(uri)))
    agent = trace.data.spans[0]
    found = [
        (span.name, span.span_type, span.parent_id, span.status.status_code.value)
        for span in trace.data.spans
    ]
    assert found == [
        ("ftlab chat", "AGENT", None, "OK"),
        ("gpt-4o-mini", "CHAT_MODEL", agent.span_id, "OK"),
        ("rank_runs", "TOOL", agent.span_id, "OK"),
        ("get_run", "TOOL", agent.span_id, "ERROR"),
        ("gpt-4o-mini", "CHAT_MODEL", agent.span_id, "OK"),
    ]
    times = [((s.start_time_ns - BEGAN_NS) / 1e9, (s.end_time_ns - BEGAN_NS) / 1e9) for s in trace.data.spans]
    assert times == [(0, 2), (0, 1), (1, 1.25), (1.25, 1.26), (1.5, 2)]
    assert (trace.info.request_time, trace.info.execution_duration) == (BEGAN_NS // 1_000_000, 2000)
    assert (agent.inputs, agent.outputs) == ({"question": "Which run is best?"}, {"answer": "b2 is best"})
    first, ranked, failed, second = trace.data.spans[1:]
    assert first.inputs == {"messages": [{"role": "user", "content": "Which run is best?"}]}
    said = first.outputs["choices"][0]["message"]
    assert (said["content"], [call["function"]["name"] for call in said["tool_calls"]]) == (
        "I look.",
        ["rank_runs", "get_run"],
    )
    assert (ranked.inputs, ranked.outputs) == ({"metric": "eval_loss"}, {"runs": ["b2"]})
    assert failed.status.description == "no run zz"
    heard = [(each["tool_call_id"], json.loads(each["content"])) for each in second.inputs["messages"]]
    assert heard == [("c1", {"runs": ["b2"]}), ("c2", {"error": "no run zz"})]
    assert second.outputs["choices"][0]["message"] == {"role": "assistant", "content": "b2 [x]"}


def test_tokens_and_our_cost_are_on_each_request_and_summed(uri: str) -> None:
    trace = read(uri, mlflow_trace.write(traced(uri)))
    first, second = (span for span in trace.data.spans if span.span_type == "CHAT_MODEL")
    assert first.attributes["mlflow.chat.tokenUsage"] == {
        "input_tokens": 900,
        "output_tokens": 40,
        "total_tokens": 940,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 0,
    }
    # The second has more input than 1000 tokens: all of it at the price of long contexts.
    input_cost = (300 * 0.3 + 1500 * 0.15 + 200 * 0.3) / 1e6
    assert second.llm_cost == pytest.approx(
        {"input_cost": input_cost, "output_cost": 60 * 1.2e-6, "total_cost": input_cost + 60 * 1.2e-6}
    )
    for span in (first, second):
        assert (span.model_name, span.attributes["mlflow.llm.provider"]) == ("gpt-4o-mini", "openai")
        assert span.attributes["ftlab.model"] == "openai/gpt-4o-mini"
    assert trace.info.token_usage == {
        "input_tokens": 2900,
        "output_tokens": 100,
        "total_tokens": 3000,
        "cache_read_input_tokens": 1600,
        "cache_creation_input_tokens": 200,
    }
    whole = answer().cost_usd
    assert trace.info.cost["total_cost"] == pytest.approx(whole)
    assert trace.info.cost["input_cost"] + trace.info.cost["output_cost"] == pytest.approx(whole)


def test_a_price_that_is_not_known_is_not_guessed_and_not_zero(uri: str) -> None:
    # MLflow's catalog has a model of that name, of other vendors.
    local = Model("local", "gpt-4o-mini", "ollama")
    trace = read(uri, mlflow_trace.write(traced(uri, answer(local), model=local)))
    assert trace.info.cost is None
    assert trace.info.token_usage["total_tokens"] == 3000
    assert trace.info.trace_metadata["ftlab.model"] == "ollama/gpt-4o-mini"
    requested = [span for span in trace.data.spans if span.span_type == "CHAT_MODEL"]
    assert [span.attributes["mlflow.chat.tokenUsage"]["input_tokens"] for span in requested] == [900, 2000]
    for span in trace.data.spans:
        assert span.llm_cost is None
        assert "mlflow.llm.cost" not in span.attributes
    free = Model("local", "tiny", "ollama", price=Price([Rates(0, 0)]))
    trace = read(uri, mlflow_trace.write(traced(uri, answer(free), model=free)))
    assert trace.info.cost["total_cost"] == 0


def test_tokens_that_the_server_did_not_say_make_the_cost_unknown(uri: str) -> None:
    known, _ = answer().rounds
    given = answer(rounds=(known, Round("b2", (), {}, None, 1.5, 0.5)), usage=None, cost_usd=None)
    trace = read(uri, mlflow_trace.write(traced(uri, given)))
    first, second = (span for span in trace.data.spans if span.span_type == "CHAT_MODEL")
    assert first.attributes["mlflow.chat.tokenUsage"]["input_tokens"] == 900
    assert "mlflow.chat.tokenUsage" not in second.attributes
    assert trace.info.cost is first.llm_cost is second.llm_cost is None


def test_session_user_and_what_else_is_listed(uri: str) -> None:
    given = answer(stopped="time", unverified=(3.5,), notes=("no temperature",))
    trace_id = mlflow_trace.write(traced(uri, given, question="q" * 3000, experiment="mine"))
    (info,) = (trace.info for trace in all_traces(uri, "mine") if trace.info.trace_id == trace_id)
    assert info.trace_metadata["mlflow.trace.session"] == CHAT_ID
    assert info.trace_metadata["mlflow.trace.user"] == "alice"
    assert info.trace_metadata["ftlab.model"] == "openai/gpt-4o-mini"
    assert info.trace_metadata["ftlab.stopped"] == "time"
    assert info.tags["mlflow.traceName"] == "ftlab chat"
    assert info.state.value == "OK"
    assert (info.request_preview, info.response_preview) == ("q" * 1000, "b2 is best")
    agent = read(uri, trace_id).data.spans[0]
    assert agent.attributes["ftlab.unverified"] == [3.5]
    assert agent.attributes["ftlab.notes"] == ["no temperature"]
    assert agent.attributes["ftlab.first_token_s"] == 0.4
    if uri.startswith("http"):
        said = requests.get(f"{uri}/api/3.0/mlflow/traces/{trace_id}", timeout=10).json()
        metadata = said["trace"]["trace_info"]["trace_metadata"]
        assert (metadata["mlflow.trace.session"], metadata["mlflow.trace.user"]) == (CHAT_ID, "alice")


def test_traces_are_found_by_session(uri: str) -> None:
    from mlflow import MlflowClient

    other = mlflow_trace.write(traced(uri, chat_id="other-chat"))
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("ftlab-chat")
    found = client.search_traces(
        locations=[experiment.experiment_id], filter_string="metadata.`mlflow.trace.session` = 'other-chat'"
    )
    assert other in [trace.info.trace_id for trace in found]
    assert {trace.info.trace_metadata["mlflow.trace.session"] for trace in found} == {"other-chat"}


def test_a_slash_command_is_its_tools(uri: str) -> None:
    ran = answer().rounds[0].runs
    given = Answer("a table", "", (Round("", ran, {}, Usage(0, 0), 0.0, 0.3),), Usage(0, 0), 0.0, seconds=0.3)
    trace = read(
        uri, mlflow_trace.write(traced(uri, given, question="/rank eval_loss", model=None, chat_id=None))
    )
    assert [span.span_type for span in trace.data.spans] == ["AGENT", "TOOL", "TOOL"]
    assert (trace.info.cost, trace.info.token_usage) == (None, None)
    assert "mlflow.trace.session" not in trace.info.trace_metadata


def test_what_names_and_results_hold_is_taken(uri: str) -> None:
    run = ToolRun("c", "x" * 999, {"\0": "\ud800"}, False, {"error": "a\0b", "v": [math.nan, -math.inf]}, 0.1)
    empty = ToolRun("d", "", {}, True, {}, 0.1)
    given = answer(text="a\0b \ud800", rounds=(Round("\0", (run, empty), {}, None, 0, 1),))
    name = traced(uri, given, question="\0?", user="é\0" * 200)
    trace = read(uri, mlflow_trace.write(name))
    agent, request, tool, nameless = trace.data.spans
    assert (agent.inputs, agent.outputs) == ({"question": "␀?"}, {"answer": "a␀b ?"})
    assert (tool.name, tool.inputs, tool.outputs["v"]) == ("x" * 250, {"␀": "?"}, ["NaN", "-Infinity"])
    assert (nameless.name, request.outputs["choices"][0]["message"]["content"]) == ("TOOL", "␀")
    assert trace.info.trace_metadata["mlflow.trace.user"] == "é␀" * 125
    assert trace.info.response_preview == "a␀b ?"


def test_a_store_on_files_keeps_spans_as_an_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "runs").as_uri()
    trace = read(uri, mlflow_trace.write(traced(uri)))
    assert [span.span_type for span in trace.data.spans] == [
        "AGENT",
        "CHAT_MODEL",
        "TOOL",
        "TOOL",
        "CHAT_MODEL",
    ]
    assert trace.info.trace_metadata["mlflow.trace.session"] == CHAT_ID


# --- where it is written -----------------------------------------------------------------------------


def test_two_tracking_uris_at_once_and_the_process_keeps_its_own(
    tracking_uri: str, new_sqlite: Callable[[Path], str], mlflow_server: Any, tmp_path: Path
) -> None:
    import mlflow

    mlflow.set_experiment("training")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    uris = [new_sqlite(tmp_path / "a"), new_sqlite(tmp_path / "b"), mlflow_server.uri]
    tracer = Tracer()
    with mlflow.start_run() as run:
        for number, uri in enumerate(uris * 2):
            send(tracer, uri, chat_id=f"two-{number}")
        assert tracer.flush(60)
        assert mlflow.active_run().info.run_id == run.info.run_id
    assert mlflow.get_tracking_uri() == tracking_uri
    assert mlflow.get_last_active_trace_id() is None
    for number, uri in enumerate(uris):
        sessions = [trace.info.trace_metadata.get("mlflow.trace.session", "") for trace in all_traces(uri)]
        ours = [session for session in sessions if session.startswith("two-")]
        assert sorted(ours) == [f"two-{number}", f"two-{number + 3}"]
        assert not [t for t in all_traces(uri) if "mlflow.sourceRun" in t.info.trace_metadata]
    assert all_traces(tracking_uri) == []


def test_without_a_uri_it_is_mlflows_own(tracking_uri: str) -> None:
    trace_id = mlflow_trace.write(traced(None))
    assert [trace.info.trace_id for trace in all_traces(tracking_uri)] == [trace_id]


def test_several_that_make_the_experiment_at_once(uri: str) -> None:
    start, failed = threading.Barrier(3), []

    def run() -> None:
        start.wait(10)
        try:
            mlflow_trace.write(traced(uri, experiment="new for all"))
        except StoreError as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert len(all_traces(uri, "new for all")) == 3


def test_settings_turn_it_off_and_name_the_experiment(
    new_sqlite: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, tracer = new_sqlite(tmp_path), Tracer()
    monkeypatch.setenv("FTLAB_TRACE", "0")
    send(tracer, uri)
    assert tracer._thread is None
    monkeypatch.setenv("FTLAB_TRACE", "1")
    monkeypatch.setenv("FTLAB_TRACE_EXPERIMENT", "elsewhere")
    send(tracer, uri)
    assert tracer.flush(60)
    assert (len(all_traces(uri)), len(all_traces(uri, "elsewhere"))) == (0, 1)


# --- what goes wrong ---------------------------------------------------------------------------------


def test_a_setting_that_is_wrong_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setenv("FTLAB_TRACE", "maybe")
    tracer = Tracer()
    for _ in range(2):
        send(tracer, "sqlite://")
    (record,) = caplog.records
    assert record.message.endswith("(FTLAB_TRACE=0 turns it off): FTLAB_TRACE must be 0 or 1, got 'maybe'")


def test_a_server_that_is_away_is_a_warning_once_and_the_next_store_is_written(
    new_sqlite: Callable[[Path], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://ann:hush@127.0.0.1:{free.getsockname()[1]}"
    uri, tracer = new_sqlite(tmp_path), Tracer()
    with caplog.at_level(logging.WARNING, "ftlab_mlflow"):
        for _ in range(2):
            send(tracer, dead)
        send(tracer, uri)
        assert tracer.flush(30)
    (record,) = [record for record in caplog.records if record.name == "ftlab_mlflow"]
    assert record.levelno == logging.WARNING
    assert "the tracking store http://127.0.0.1" in record.message
    assert "Connection refused" in record.message
    assert "hush" not in caplog.text
    assert len(all_traces(uri)) == 1


def test_a_server_that_does_not_answer_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    import mlflow  # noqa: F401  # what is measured is the server

    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracer = Tracer()
        began = time.monotonic()
        send(tracer, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - began < 1
        assert not tracer.flush(0.2)
        assert time.monotonic() - began < 5
        connection, _ = silent.accept()
        connection.close()
    assert tracer.flush(30)
    assert "has not taken 1 of them in 0.2 s" in caplog.text


def test_no_more_than_so_many_wait(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MAX_WAITING", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracer = Tracer()
        for _ in range(5):
            send(tracer, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert len(tracer._waiting) == 2
        for _ in range(2):
            connection, _ = silent.accept()
            connection.close()
        assert tracer.flush(30)
    assert caplog.text.count("2 answers already wait for the tracking store") == 1


def test_an_experiment_that_is_deleted_is_left_so(new_sqlite: Callable[[Path], str], tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = new_sqlite(tmp_path)
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("ftlab-chat"))
    with pytest.raises(StoreError, match="ftlab-chat is deleted: restore it, or set FTLAB_TRACE_EXPERIMENT"):
        mlflow_trace.write(traced(uri))


def test_a_store_that_is_none_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database at all, " * 100)
    with pytest.raises(StoreUnavailable, match="file is not a database"):
        mlflow_trace.write(traced(f"sqlite:///{tmp_path}/mlflow.db"))
    tracer = Tracer()
    send(tracer, "nothing://known", began=None)
    assert tracer.flush(30)
    assert "nothing://known is no tracking URI that MLflow knows" in caplog.text


def test_to_import_it_loads_no_mlflow() -> None:
    code = "import sys, ftlab_mlflow.chat.tracing; print(*{name.partition('.')[0] for name in sys.modules})"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"mlflow", "openai", "anthropic", "torch", "streamlit", "opentelemetry"} & set(printed.split())
