"""`chat`, `chats` and `usage`: a question from the command line to its answer, and what is kept of it."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_store import EXPERIMENT, fill
from cli_helpers import Ftlab, ftlab_process, until
from model_servers import AnthropicServer, Call, Failure, OpenAIServer, Reply, Tokens

from ftlab_mlflow import LiveRun

RANK = Call("rank_runs", {"experiment": EXPERIMENT, "metric": "eval_loss"})
KEY = "sk-test-1234567890"
CHEAP, OTHER = "gpt-4o-mini", "claude-haiku-4-5"
KINDS = {CHEAP: ("OPENAI", OpenAIServer), OTHER: ("ANTHROPIC", AnthropicServer)}
Serve = Callable[..., Any]


@pytest.fixture
def runs(tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("FTLAB_DATABASE_URL", f"sqlite:///{tmp_path}/app.db")
    monkeypatch.setenv("FTLAB_TRACE", "0")
    return fill(tracking_uri)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, runs: dict[str, str]) -> Iterator[Serve]:
    started = []

    def start(replies: Any, model: str = CHEAP) -> Any:
        name, kind = KINDS[model]
        started.append(kind(replies))
        monkeypatch.setenv(f"{name}_BASE_URL", started[-1].base_url)
        monkeypatch.setenv(f"{name}_API_KEY", KEY)
        return started[-1]

    yield start
    for server in started:
        server.close()
        assert not server.problems


@pytest.mark.parametrize("model", KINDS)
def test_an_answer_as_one_object(ftlab: Ftlab, serve: Serve, model: str) -> None:
    bad = Call("rank_runs", '{"experiment')
    server = serve(
        [
            Reply(calls=[RANK, bad], usage=Tokens(1000, 10, cached=400)),
            Reply("`red-fox` has 0.4375, 0.9 was before.", usage=Tokens(2000, 20)),
        ],
        model,
    )
    done = ftlab("chat", "which is best?", "--model", model, "--experiment", EXPERIMENT, "--json")
    assert (done.code, done.err) == (0, "")
    cost = done.json.pop("cost_usd")
    assert cost > 0
    found = json.loads(done.out)
    assert found == {
        "answer": "`red-fox` has 0.4375, 0.9 [unverified] was before.",
        "model": f"{'openai' if model == CHEAP else 'anthropic'}/{model}",
        "tool_calls": [
            {"name": "rank_runs", "arguments": RANK.arguments, "ok": True},
            {"name": "rank_runs", "arguments": '{"experiment', "ok": False},
        ],
        "usage": {"input_tokens": 3000, "cached_tokens": 400, "output_tokens": 30},
        "cost_usd": found["cost_usd"],
        "unverified": [0.9],
        "stopped": None,
    }
    assert all(request.json["model"] == model and request.json["stream"] for request in server.requests)


def test_an_answer_for_a_person(ftlab: Ftlab, serve: Serve) -> None:
    serve([Reply("I look.", [RANK]), Reply("`red-fox`: 0.4375 \x1b[m‮ not 0.9.")])
    done = ftlab("chat", "which is best?")
    assert done.code == 0
    assert done.out.splitlines()[0] == "I look."
    assert done.out.splitlines()[1].endswith("not 0.9 [unverified].")
    assert "\x1b" not in done.out
    assert "‮" not in done.out
    assert "· rank_runs" in done.err
    assert "Unverified, for no tool returned it: 0.9" in done.err
    assert "openai/gpt-4o-mini: " in done.err


def test_a_server_that_says_no_usage_has_no_cost(ftlab: Ftlab, serve: Serve) -> None:
    serve([Reply("Hello.", usage=None)])
    found = ftlab("chat", "hello", "--json").json
    assert found["cost_usd"] is None
    assert set(found["usage"].values()) == {None}


@pytest.mark.parametrize(
    ("arguments", "replies", "said"),
    [
        (["--model", "gpt-4o-minny"], [], "gpt-4o-mini"),
        (["--model", "gpt-3.5-turbo"], [], "2026-10-23"),
        (["--model", "anthropic/claude-haiku-4-5"], [], "ANTHROPIC_API_KEY"),
        (["--model", CHEAP], [Failure(401, f"Incorrect API key provided: {KEY}")], "OPENAI_API_KEY"),
        (["--model", CHEAP], [Failure(429, headers={"retry-after": "999"})], "16 min 39 s"),
        (["--experiment", "tunning"], [], EXPERIMENT),
        (["--run", "red-fix"], [], "red-fox"),
        (["--chat", "nothing"], [], "nothing"),
        (["--tracking-uri", "sqlite:////nowhere/at/all.db"], [], "/nowhere/at/all.db"),
    ],
)
def test_errors_are_a_line_or_two(
    ftlab: Ftlab,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    replies: list[Any],
    said: str,
) -> None:
    server = serve(replies)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    done = ftlab("chat", "which is best?", *arguments)
    assert done.code == 1
    assert said in done.err
    assert 1 <= len(done.err.splitlines()) <= 2
    assert KEY not in done.err + done.out
    assert "Traceback" not in done.err
    assert len(server.requests) == len(replies)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("FTLAB_CHAT_ROUNDS", "many"), ("ANALYTICS_DEFAULT_MODEL", "nobody/knows"), ("FTLAB_MODELS", "broken")],
)
def test_wrong_settings_are_errors_as_well(
    ftlab: Ftlab, serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str
) -> None:
    if value == "broken":
        value = str(tmp_path / "models.toml")
        Path(value).write_text("[endpoints.x]\nkey = 1\n")
    server = serve([])
    monkeypatch.setenv(variable, value)
    named = ["--model", "vllm/some"] if variable == "FTLAB_MODELS" else []
    done = ftlab("chat", "which is best?", *named)
    assert done.code == 1
    assert variable in done.err or value in done.err
    assert server.requests == []


def test_no_key_at_all(ftlab: Ftlab, runs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "XAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    done = ftlab("chat", "which is best?", "--json")
    assert done.code == 1
    assert "OPENAI_API_KEY" in done.error["message"]
    free = ftlab("chat", "/rank eval_loss", "--experiment", EXPERIMENT, "--json")
    assert free.code == 0
    assert "red-fox" in free.json["answer"]
    assert (free.json["model"], free.json["cost_usd"]) == (None, 0)


def test_a_cut_reply_is_an_error_that_shows_what_came(ftlab: Ftlab, serve: Serve) -> None:
    serve([Reply("The best run is ", cut="socket")])
    done = ftlab("chat", "which is best?")
    assert done.code == 1
    assert done.out.startswith("The best run is")
    assert "ask again" in done.err
    serve([Reply("The best run is ", cut="socket")])
    done = ftlab("chat", "which is best?", "--json")
    assert done.code == 1
    assert (done.json["answer"].splitlines()[0], done.json["stopped"]) == ("The best run is ", "cut")
    assert len(done.err.splitlines()) == 1


def test_a_command_that_fails_is_an_error(ftlab: Ftlab, runs: dict[str, str]) -> None:
    for command, said in (("/rank nosuch tuning", "eval_loss"), ("/run red-fix", "red-fox"), ("/", "/help")):
        done = ftlab("chat", command)
        assert (done.code, done.out) == (1, "")
        assert said in done.err


def test_one_question_says_how_to_send_what_it_proposes(ftlab: Ftlab, serve: Serve, trainer: Any) -> None:
    arguments = {"run": trainer.run_id, "values": {"weight_decay": 0.25}, "reason": "it overfits"}
    serve([Reply(calls=[Call("propose_update", arguments)]), Reply("I propose it.")])
    done = ftlab("chat", "propose something")
    (line,) = [line for line in done.err.splitlines() if line.startswith("To send it: ")]
    sent = ftlab(*shlex.split(line.removeprefix("To send it: ftlab ")), "--wait")
    assert sent.code == 0
    assert "weight_decay 0.0 → 0.25" in sent.out or "weight_decay 0 → 0.25" in sent.out


def test_a_chat_goes_on_and_is_looked_after(ftlab: Ftlab, serve: Serve, tmp_path: Path) -> None:
    server = serve([Reply("One."), Reply("Two.")])
    ftlab("chat", "first question?")
    (chat,) = ftlab("chats", "list", "--json").json["chats"]
    assert (chat["title"], chat["messages"]) == ("first question?", 2)
    assert ftlab("chat", "second?", "--chat", chat["id"][:30]).code == 0
    told = [message["content"] for message in server.requests[1].json["messages"][1:]]
    assert told == ["first question?", "One.", "second?"]
    assert "first question?" in ftlab("chats", "list", "--search", "TWO").out
    assert ftlab("chats", "list", "--search", "three").out == "No chat speaks of it.\n"
    assert ftlab("chats", "rename", chat["id"], "named").out == "first question? → named\n"
    file = tmp_path / "chat.md"
    assert ftlab("chats", "export", chat["id"], "--out", str(file)).code == 0
    assert file.read_text().startswith("# named\n")
    assert "Two." in ftlab("chats", "export", chat["id"]).out
    assert ftlab("chats", "delete", chat["id"], "--yes").code == 0
    assert ftlab("chats", "list").out == "No chats.\n"
    assert ftlab("chats", "export", chat["id"]).code == 1


def test_usage_by_day_and_model(ftlab: Ftlab, serve: Serve) -> None:
    assert ftlab("usage").out == "No answers yet.\n"
    serve([Reply("One.", usage=Tokens(1_000_000, 0)), Reply("Two.", usage=None)])
    ftlab("chat", "first?")
    (row,) = ftlab("usage", "--by", "model", "--json").json["usage"]
    assert (row["model"], row["input_tokens"], row["cost_usd"]) == ("openai/gpt-4o-mini", 1_000_000, 0.15)
    ftlab("chat", "second?")
    (line,) = ftlab("usage").out.splitlines()[1:]
    assert line.split()[1:] == ["2", "1,000,000", "0", "0", "$0.15", "1"]


def test_what_is_not_known_is_no_zero(ftlab: Ftlab, serve: Serve) -> None:
    serve([Reply("One.", usage=None)])
    ftlab("chat", "first?")
    assert "unknown" in ftlab("usage").out
    assert ftlab("usage", "--json").json["usage"][0]["cost_usd"] is None


def test_lines_of_a_pipe_are_questions(serve: Serve, tracking_uri: str) -> None:
    server = serve([Reply("One."), Failure(401), Reply("Three.")])
    talk = ftlab_process("chat", "--tracking-uri", tracking_uri, stdin=subprocess.PIPE)
    out, err = talk.communicate("first?\n\nsecond?\n/calc 1+1\nthird?\n/quit\nnever?\n", timeout=90)
    assert talk.returncode == 0, err
    assert out.index("One.") < out.index("2") < out.index("Three.")
    assert "OPENAI_API_KEY" in err
    assert len(server.requests) == 3


def test_a_person_in_a_terminal_sends_a_proposal(
    serve: Serve, trainer: Any, tracking_uri: str, tmp_path: Path
) -> None:
    """A real trainer: the change that was proposed is sent by a `y`, and by nothing else."""
    arguments = {"run": trainer.run_id, "values": {"weight_decay": 0.25}, "reason": "it overfits"}
    proposal = Reply(calls=[Call("propose_update", arguments)])
    serve([proposal, Reply("I propose it."), proposal, Reply("Again.")])
    live = LiveRun(trainer.run_id, tracking_uri=tracking_uri)
    ours, theirs = pty.openpty()
    talk = subprocess.Popen(
        [sys.executable, "-m", "ftlab_mlflow.cli", "chat", "--tracking-uri", tracking_uri],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path), "TERM": "dumb"},
        start_new_session=True,
    )
    os.close(theirs)
    seen: list[bytes] = []
    reader = threading.Thread(target=_read_all, args=(ours, seen), daemon=True)
    reader.start()
    try:
        _type(ours, seen, "ftlab> ", "propose something\n")
        _type(ours, seen, "Send it? [y/N]: ", "\n")
        assert not live.history()
        _type(ours, seen, "ftlab> ", "once more\n", times=2)
        _type(ours, seen, "Send it? [y/N]: ", "y\n", times=2)
        (update,) = [entry.update for entry in until(live.history, "the request")]
        assert (update.via, update.reason, dict(update.set)) == (
            "chat",
            "it overfits",
            {"weight_decay": 0.25},
        )
        _type(ours, seen, "ftlab> ", "\x04", times=3)
        assert talk.wait(30) == 0
    finally:
        talk.kill()
        talk.wait()
        reader.join(10)
        os.close(ours)
    assert "weight_decay" in b"".join(seen).decode()
    history = tmp_path / "ftlab" / "chat_history"
    assert "propose something" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_came(serve: Serve, tracking_uri: str, number: signal.Signals) -> None:
    hold = threading.Event()
    server = serve([Reply("The best run of all is red-fox.", hold=hold, hold_at=6)])
    talk = ftlab_process("chat", "which?", "--tracking-uri", tracking_uri, start_new_session=True)
    assert talk.stdout is not None
    until(lambda: server.requests, "the request")
    got = talk.stdout.read(4)
    talk.send_signal(number)
    out, err = talk.communicate(timeout=60)
    hold.set()
    assert talk.returncode == 0
    assert (got + out).startswith("The ")
    assert "red-fox" not in out
    assert "Stopped by you." in out
    assert "Traceback" not in err


def _read_all(terminal: int, seen: list[bytes]) -> None:
    while True:
        try:
            data = os.read(terminal, 4096)
        except OSError:  # the other side has closed
            return
        if not data:
            return
        seen.append(data)


def _type(terminal: int, seen: list[bytes], prompt: str, text: str, times: int = 1) -> None:
    """Answers a prompt when it has come for the nth time."""
    until(lambda: b"".join(seen).decode(errors="replace").count(prompt) >= times, f"{prompt!r}")
    os.write(terminal, text.encode())
