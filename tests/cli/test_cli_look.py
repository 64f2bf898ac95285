"""`runs`, `status` and `history` against runs whose tags are known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from cli_helpers import Ftlab, WrittenRun

from ftlab_mlflow.cli.output import emit
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import read_entry

HOSTILE = "[red]x[/red]\x1b[31m\x9b2J\u202e\r\n| évil :smile:"
DISARMED = "[red]x[/red] [31m 2J   | évil :smile:"

NUMBER, TEXT, NONE = (int, float), str, type(None)
RUN_SCHEMA: dict[str, Any] = {
    "run_id": TEXT,
    "name": TEXT,
    "state": TEXT,
    "step": int,
    "max_steps": int,
    "progress": (*NUMBER, NONE),
    "epoch": NUMBER,
    "loss": (*NUMBER, NONE, TEXT),
    "learning_rate": (*NUMBER, NONE, TEXT),
    "method": TEXT,
    "started": TEXT,
    "heartbeat": TEXT,
    "error": (TEXT, NONE),
    "mlflow_status": TEXT,
}
ROW_SCHEMA = RUN_SCHEMA | {
    "experiment": TEXT,
    "model": (TEXT, NONE),
    "eval_loss": (*NUMBER, NONE, TEXT),
    "best_eval_loss": (*NUMBER, NONE),
    "eta_s": (*NUMBER, NONE),
    "ended": (TEXT, NONE),
    "tags": dict,
}
STATUS_SCHEMA = RUN_SCHEMA | {
    "heartbeat_age_s": NUMBER,
    "host": TEXT,
    "pid": int,
    "session": TEXT,
    "parameters": dict,
    "commands": list,
    "unsupported": dict,
    "metrics": dict,
    "pending": list,
}
REQUEST_SCHEMA: dict[str, Any] = {
    "id": TEXT,
    "at": (TEXT, NONE),
    "by": (TEXT, NONE),
    "via": (TEXT, NONE),
    "reason": (TEXT, NONE),
    "set": (dict, NONE),
    "command": (TEXT, NONE),
    "args": (dict, NONE),
    "expect": (dict, NONE),
    "at_step": (int, NONE),
    "expires": (TEXT, NONE),
    "unreadable": (TEXT, NONE),
    "pending": bool,
    "answer": (dict, NONE),
}


def check(document: dict[str, Any], schema: dict[str, Any]) -> None:
    assert set(document) == set(schema)
    for key, types in schema.items():
        assert isinstance(document[key], types), (key, document[key])


def test_runs_are_listed_newest_first_with_their_state(
    ftlab: Ftlab, new_run: Callable[..., WrittenRun]
) -> None:
    from mlflow import MlflowClient

    first, second, third = (
        new_run("first", heartbeat_s=31),
        new_run("second"),
        new_run("third", state="paused"),
    )
    MlflowClient().create_run("0", run_name="not live")
    second.metrics(loss=1.25)

    found = ftlab("runs", "--json").json["runs"]
    assert [(run["name"], run["state"]) for run in found] == [
        ("third", "paused"),
        ("second", "running"),
        ("first", "lost"),
    ]
    for run in found:
        check(run, ROW_SCHEMA)
    assert found[1] | {"loss": 1.25, "learning_rate": 8.7e-05, "progress": 0.13} == found[1]
    lines = ftlab("runs").out.splitlines()
    row = next(line for line in lines if "second" in line)
    for part in (second.run_id[:8], "running", "130/1000 13%", "1.25", "8.7e-05", "sft"):
        assert part in row
    assert third.run_id[:8] in lines[1]
    assert first.run_id[:8] in lines[3]
    assert [run["name"] for run in ftlab("runs", "--limit", "1", "--json").json["runs"]] == ["third"]


def test_runs_are_chosen_by_what_the_table_of_runs_knows(
    ftlab: Ftlab, new_run: Callable[..., WrittenRun]
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient()
    live, lost = new_run("Sweep one"), new_run("sweep two", heartbeat_s=31)
    live.metrics(eval_loss=0.5, best_eval_loss=0.25, eta_s=600)
    client.set_tag(live.run_id, "team", "nlp")
    client.log_param(lost.run_id, "_name_or_path", "org/llama")
    other = client.create_experiment("other")
    plain = client.create_run(other, run_name="plain").info.run_id
    client.log_metric(plain, "eval_loss", 3.0, step=1)
    client.log_metric(plain, "eval_loss", 4.0, step=2)
    client.set_terminated(plain, "FAILED")

    def names(*options: str) -> list[str]:
        return [run["name"] for run in ftlab("runs", "--json", *options).json["runs"]]

    assert names() == ["sweep two", "Sweep one"]
    assert names("--all") == ["plain", "sweep two", "Sweep one"]
    assert names("--all", "--limit", "2") == ["plain", "sweep two"]
    assert names("--all", "--experiment", "other") == names("--all", "--experiment", other) == ["plain"]
    assert names("--state", "lost", "--state", "failed") == ["sweep two"]
    assert names("--all", "--state", "lost", "--state", "failed") == ["plain", "sweep two"]
    assert names("--all", "--method", "sft") == ["sweep two", "Sweep one"]
    assert names("--text", "SWEEP two") == names("--text", "llama") == ["sweep two"]
    assert names("--tag", "team=nlp") == names("--tag", "team") == ["Sweep one"]
    assert names("--tag", "team=other") == []

    rows = {run["name"]: run for run in ftlab("runs", "--all", "--json").json["runs"]}
    expected: dict[str, dict[str, Any]] = {
        "Sweep one": {"eval_loss": 0.5, "best_eval_loss": 0.25, "tags": {"team": "nlp"}, "ended": None},
        "sweep two": {"model": "org/llama", "eta_s": None, "best_eval_loss": None},
        "plain": {
            "state": "failed", "experiment": "other", "eval_loss": 4.0, "best_eval_loss": 3.0, "step": None,
            "method": None, "error": None,
        },
    }  # fmt: skip
    for name, values in expected.items():
        assert rows[name] | values == rows[name]
    assert 590 < rows["Sweep one"]["eta_s"] <= 600
    line = next(line for line in ftlab("runs", "--all").out.splitlines() if "plain" in line)
    assert line.split()[:4] == [plain[:8], "plain", "failed", "3"]
    assert ftlab("runs", "--text", "nothing").out == "None of the 3 runs fits.\n"
    result = ftlab("runs", "--state", "runing")
    assert result.code == 2
    assert "'running'" in result.err


def test_no_runs_yet(ftlab: Ftlab, tracking_uri: str) -> None:
    assert ftlab("runs").out.startswith("No live run yet: start one with `ftlab train sft`")
    assert ftlab("runs", "--json").json == {"runs": []}
    result = ftlab("status")
    assert (result.code, result.out) == (1, "")
    assert "no live run yet" in result.err


def test_status_tells_all_that_the_tags_say(ftlab: Ftlab, new_run: Callable[..., WrittenRun]) -> None:
    run = new_run()
    run.metrics(loss=1.25, eval_loss=math.nan)
    pending = run.request(set={"learning_rate": 5e-5}, by="alice", via="cli", at_step=500)

    document = ftlab("status", "tiny", "--json").json
    check(document, STATUS_SCHEMA)
    assert document["run_id"] == run.run_id
    assert document["metrics"] == {"loss": 1.25, "eval_loss": "NaN"}
    assert document["commands"] == ["pause", "resume", "cancel"]
    assert document["parameters"]["learning_rate"] == {
        "type": "float", "value": 8.7e-05, "asked": 1e-4, "min": 0, "max": 1,
    }  # fmt: skip
    assert 0 <= document["heartbeat_age_s"] < 30
    assert [entry["id"] for entry in document["pending"]] == [pending]
    check(document["pending"][0], REQUEST_SCHEMA)

    text = ftlab("status", run.run_id).out
    for part in (
        f"tiny {run.run_id}",
        "running at step 130/1000 13%, epoch 0.41, sft",
        "process 4242 on node7",
        "commands: pause, resume, cancel",
        "from 0 to 1",
        "keep, hold",
        "eval_loss",
        pending,
        "learning_rate=5e-05 (from step 500)",
    ):
        assert part in text, part


def test_the_error_of_a_failed_run_is_shown(ftlab: Ftlab, new_run: Callable[..., WrittenRun]) -> None:
    run = new_run()
    run.status("failed", error="RuntimeError: CUDA\nout of memory")
    assert "error: RuntimeError: CUDA out of memory" in ftlab("status").out
    assert ftlab("status", "--json").json["error"] == "RuntimeError: CUDA\nout of memory"


def test_a_run_that_is_not_live_or_not_readable(
    ftlab: Ftlab, new_run: Callable[..., WrittenRun], tracking_uri: str
) -> None:
    from mlflow import MlflowClient

    plain = MlflowClient().create_run("0").info.run_id
    result = ftlab("status", plain)
    assert result.code == 1
    assert "its trainer does not listen" in result.err
    assert ftlab("watch", plain, "--json").error["type"] == "NotLive"
    assert "No requests yet" in ftlab("history", plain).out

    broken = new_run("broken")
    broken.store.write(broken.run_id, {tags.STATUS: "{", tags.SURFACE: "[]"})
    assert ftlab("runs", "--json").json["runs"][0]["state"] == "unreadable"
    result = ftlab("status", "broken")
    assert result.code == 1
    assert result.err.startswith("Error: invalid: ")
    result = ftlab("set", "broken", "learning_rate=1")
    assert (result.code, result.err.count("\n")) == (1, 1)


def test_history_has_every_request_in_order_with_its_answer(
    ftlab: Ftlab, new_run: Callable[..., WrittenRun]
) -> None:
    run = new_run()
    applied = run.request(set={"learning_rate": 5e-5}, by="alice", via="cli", reason="plateau")
    run.answer(applied, changes={"learning_rate": (8.7e-05, 5e-05)})
    rejected = run.request(set={"learning_rate": 7}, by="bob", via="tag")
    run.answer(rejected, "rejected", code="out_of_bounds", errors={"learning_rate": "must be less, got 7"})
    evaluated = run.request(command="evaluate", by="carol", via="dashboard")
    run.answer(evaluated, step=140, result={"metrics": {"eval_loss": 0.75}})
    cancelled = run.request(set={"eval_steps": 5})
    run.answer(cancelled, "cancelled")
    pending = run.request(command="pause", by="dave", via="cli")
    run.store.write(run.run_id, {f"{tags.UPDATE_PREFIX}cut": '{"v":1,"se'})

    document = ftlab("history", "--json").json
    assert document["run_id"] == run.run_id
    found = {entry["id"]: entry for entry in document["requests"]}
    assert list(found) == ["cut", applied, rejected, evaluated, cancelled, pending]
    for entry in found.values():
        check(entry, REQUEST_SCHEMA)
    assert found[applied]["answer"]["changes"] == {"learning_rate": [8.7e-05, 5e-05]}
    assert found[rejected]["answer"]["code"] == "out_of_bounds"
    assert [entry["pending"] for entry in found.values()] == [True, False, False, False, False, True]
    assert "is no JSON" in found["cut"]["unreadable"]

    lines = ftlab("history").out.splitlines()
    expected = [
        ("unreadable", "pending", "id cut"),
        ("alice", "cli", "learning_rate=5e-05", "plateau", "applied", "131", "learning_rate 8.7e-05 → 5e-05"),
        ("bob", "tag", "learning_rate=7", "out_of_bounds", "learning_rate: must be less, got 7"),
        ("carol", "dashboard", "evaluate", "applied", "140", "eval_loss 0.75"),
        ("eval_steps=5", "cancelled"),
        ("dave", "pause", "pending", f"id {pending}"),
    ]
    for line, parts in zip(lines[1:], expected, strict=True):
        for part in parts:
            assert part in line, (part, line)


def test_foreign_text_cannot_act_on_the_terminal(ftlab: Ftlab, new_run: Callable[..., WrittenRun]) -> None:
    run = new_run(HOSTILE)
    update_id = run.request(
        set={HOSTILE: HOSTILE}, by=HOSTILE, via=HOSTILE, reason=HOSTILE, expect={HOSTILE: HOSTILE}
    )
    run.request(command=HOSTILE, args={HOSTILE: [HOSTILE]}, by=HOSTILE)
    run.status("failed", host=HOSTILE, method=HOSTILE, error=HOSTILE)
    text = "".join(ftlab(verb).out for verb in ("runs", "status", "history", "watch"))
    run.answer(update_id, "rejected", code=HOSTILE, errors={HOSTILE: HOSTILE})
    text += ftlab("history").out
    text += ftlab("status", HOSTILE + "?").err

    assert DISARMED in text
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    assert read_entry(run.store.get(run.run_id).tags, update_id).update is not None
    for verb in ("runs", "status", "history"):
        printed = ftlab(verb, "--json").out
        assert printed.isascii()
        assert not [c for c in printed if not c.isprintable() and c != "\n"]


def test_json_has_no_number_that_json_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"a": [math.inf, -math.inf], "b": (math.nan, 1.5)})
    assert json.loads(capsys.readouterr().out) == {"a": ["Infinity", "-Infinity"], "b": ["NaN", 1.5]}
