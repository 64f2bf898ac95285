"""`set`, the commands and `cancel` against a trainer that answers, with every exit code."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cli_helpers import Ftlab, RealTrainer, WrittenRun, request_id, until

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Entry, read_entry
from ftlab_mlflow.control.mlflow_store import MlflowRunStore

COMMANDS = ("pause", "resume", "stop", "checkpoint", "evaluate", "rollback")


def entry_of(uri: str, run_id: str, update_id: str) -> Entry:
    return read_entry(MlflowRunStore(uri).get(run_id).tags, update_id)


def update_count(run: WrittenRun) -> int:
    return sum(key.startswith(tags.UPDATE_PREFIX) for key in run.store.get(run.run_id).tags)


def test_set_waits_and_tells_old_and_new(ftlab: Ftlab, trainer: RealTrainer) -> None:
    arguments = (
        "learning_rate=5e-5",
        "weight_decay=1e-2",
        "lr_schedule=hold",
        "eval_steps=7",
        "shuffle=false",
    )
    result = ftlab("set", "latest", *arguments, "--reason", "plateau", "--wait")

    assert result.code == 0, result.err
    assert trainer.knobs.values | {"broken": 1.0} == {
        "learning_rate": 5e-5,
        "weight_decay": 0.01,
        "lr_schedule": "hold",
        "eval_steps": 7,
        "shuffle": False,
        "broken": 1.0,
    }
    for change in ("learning_rate 0.0001 → 5e-05", "weight_decay 0 → 0.01", "lr_schedule keep → hold"):
        assert change in result.out
    entry = entry_of_sent(result.err, trainer)
    assert entry.ack is not None
    assert f"Applied at step {entry.ack.step}: " in result.out
    assert (entry.update and entry.update.reason, entry.update and entry.update.via) == ("plateau", "cli")


def entry_of_sent(text: str, trainer: RealTrainer) -> Entry:
    import mlflow

    return entry_of(mlflow.get_tracking_uri(), trainer.run_id, request_id(text))


def test_set_json_is_the_answer(ftlab: Ftlab, trainer: RealTrainer) -> None:
    result = ftlab("set", "trained", "learning_rate=0.5", "--wait", "--json")

    assert result.code == 0
    entry = entry_of_sent(result.err, trainer)
    assert entry.ack is not None
    assert result.json == {
        "run_id": trainer.run_id,
        "id": entry.id,
        "answer": {
            "status": "applied",
            "code": None,
            "step": entry.ack.step,
            "at": entry.ack.at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "session": trainer.session.id,
            "changes": {"learning_rate": [1e-4, 0.5]},
            "errors": {},
            "result": {},
        },
    }


def test_without_wait_it_prints_the_id_and_how_to_go_on(
    ftlab: Ftlab, new_run: Callable[..., WrittenRun]
) -> None:
    run = new_run()
    result = ftlab("set", run.run_id[:12], "learning_rate=5e-5")

    sent = request_id(result.out)
    assert result.code == 0
    assert f"ftlab history {run.run_id}" in result.out
    assert f"ftlab cancel {run.run_id} {sent}" in result.out
    assert "the run is running at step 130" in result.out
    as_json = ftlab("set", "latest", "learning_rate=5e-5", "--json")
    assert as_json.json == {"run_id": run.run_id, "id": request_id(as_json.err), "answer": None}


def test_everything_asked_for_reaches_the_tag(
    ftlab: Ftlab, new_run: Callable[..., WrittenRun], tracking_uri: str
) -> None:
    run = new_run()
    before = datetime.now(UTC)
    result = ftlab(
        "set", "tiny", "learning_rate=5e-5", "--expect", "learning_rate=1e-4", "--expect", "lr_schedule=keep",
        "--at-step", "500", "--expires", "10m", "--reason", "[red]x\x1b[31m",
    )  # fmt: skip

    update = entry_of(tracking_uri, run.run_id, request_id(result.out)).update
    assert update is not None
    assert update.set == {"learning_rate": 5e-5}
    assert update.expect == {"learning_rate": 1e-4, "lr_schedule": "keep"}
    assert update.at_step == 500
    assert update.expires is not None
    assert abs(update.expires - before - timedelta(minutes=10)) < timedelta(seconds=20)
    assert update.reason == "[red]x\x1b[31m"
    iso = ftlab("set", "tiny", "eval_steps=9", "--expires", "2126-11-21T20:00:00+01:00")
    update = entry_of(tracking_uri, run.run_id, request_id(iso.out)).update
    assert update is not None
    assert update.expires == datetime(2126, 11, 21, 19, tzinfo=UTC)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("learning_rate=nan",), "wrong_type", "must be a finite number from 0 to 1"),
        (("learning_rate=2",), "out_of_bounds", "from 0 to 1, got 2"),
        (("learning_rate=fast",), "wrong_type", 'got "fast"'),
        (("eval_steps=8.5",), "wrong_type", "must be a whole number"),
        (("lr_schedule=later",), "out_of_bounds", "keep, hold"),
        (("warmup=3",), "unknown_parameter", "learning_rate, lr_schedule, eval_steps"),
        (("learning_rate=0.1", "--expect", "learning_rate=0.2"), "stale", "expected 0.2, but 0.0001"),
        (("learning_rate=0.1", "--reason", "x" * 8001), "invalid", "shorten the reason"),
    ],
)
def test_the_surface_refuses_before_anything_is_written(
    ftlab: Ftlab, new_run: Callable[..., WrittenRun], arguments: tuple[str, ...], code: str, says: str
) -> None:
    run = new_run()
    result = ftlab("set", "latest", *arguments)

    assert result.code == 1
    assert result.out == ""
    assert result.err.startswith(f"Rejected: {code}: ")
    assert says in result.err
    assert "Nothing was written." in result.err
    assert result.err.count("\n") == 1
    error = ftlab("set", "latest", *arguments, "--json").error
    assert (error["code"], error["id"], error["exit_code"]) == (code, None, 1)
    assert update_count(run) == 0


def test_a_rejection_by_the_trainer_is_exit_1_with_its_reason(ftlab: Ftlab, trainer: RealTrainer) -> None:
    result = ftlab("set", "latest", "learning_rate=0.3", "broken=2", "--wait")

    assert result.code == 1
    assert "Rejected: failed: broken: RuntimeError: it is  [31mbroken [red]." in result.err
    assert "\x1b" not in result.err
    assert trainer.knobs.values["learning_rate"] == 1e-4
    error = ftlab("set", "latest", "broken=2", "--wait", "--json").error
    assert (error["type"], error["code"], error["exit_code"]) == ("UpdateRejected", "failed", 1)
    assert error["errors"] == {"broken": "RuntimeError: it is \x1b[31mbroken [red]"}


def test_what_the_trainer_does_not_offer_is_refused_with_its_reason(
    ftlab: Ftlab, trainer: RealTrainer
) -> None:
    result = ftlab("set", "latest", "save_steps=5")

    assert result.code == 1
    reason = "save_strategy is 'no', not 'steps'"
    assert result.err == f"Rejected: not_supported: save_steps: {reason}. Nothing was written.\n"
    assert ftlab("status", "--json").json["unsupported"] == {"save_steps": reason}


def test_no_answer_in_time_is_exit_3_and_stays_pending(
    ftlab: Ftlab, new_run: Callable[..., WrittenRun]
) -> None:
    run = new_run(heartbeat_s=500)
    began = time.monotonic()
    result = ftlab("set", "latest", "learning_rate=5e-5", "--wait", "--timeout", "0.5")

    assert result.code == 3
    assert time.monotonic() - began < 5
    assert "the run is lost" in result.err
    assert "still pending" in result.err
    error = ftlab("pause", "--wait", "--timeout", "0.1s", "--json").error
    assert (error["type"], error["exit_code"]) == ("UpdateTimeout", 3)
    assert update_count(run) == 2


def test_every_command_is_done_and_answered(ftlab: Ftlab, trainer: RealTrainer) -> None:
    results = {}
    for command in ("checkpoint", "evaluate", "pause", "resume", "stop"):
        answered = ftlab(command, trainer.run_id, "--wait", "--reason", "now", "--json")
        assert answered.code == 0, answered.err
        results[command] = answered.json["answer"]
        if command == "pause":
            assert trainer.session.state == "paused"
            assert ftlab("evaluate", "--wait").out.startswith("Applied at step ")
    assert results["checkpoint"]["result"]["checkpoint"].endswith(
        f"checkpoint-{results['checkpoint']['step']}"
    )
    assert "0.5" in str(results["evaluate"]["result"])
    assert "checkpoint" in results["stop"]["result"]
    assert trainer.session.state == "stopped"
    status = ftlab("status", trainer.run_id, "--json").json
    assert (status["state"], status["mlflow_status"]) == ("stopped", "KILLED")


def test_going_back_to_a_checkpoint(ftlab: Ftlab, trainer: RealTrainer) -> None:
    until(lambda: trainer.step > 1, "a step to go back from")
    last = ftlab("rollback", "--wait", "--json")
    assert last.code == 0, last.err
    assert last.json["answer"]["result"]["checkpoint"].endswith("/checkpoint-1")
    assert (last.json["answer"]["step"], last.json["answer"]["result"]["step"]) == (1, 1)
    named = ftlab("rollback", trainer.run_id, "--checkpoint", "checkpoint-7", "--wait")
    assert "/checkpoint-7" in named.out


def test_stop_without_saving(ftlab: Ftlab, trainer: RealTrainer) -> None:
    result = ftlab("stop", "--no-save", "--wait")
    assert result.code == 0
    assert "stop save=false" in result.out
    after = ftlab("pause")
    assert after.code == 1
    assert "is stopped: it takes no more requests" in after.err


def test_cancel_withdraws_what_is_pending(ftlab: Ftlab, trainer: RealTrainer) -> None:
    sent = request_id(ftlab("set", "latest", "learning_rate=0.9", "--at-step", "90000").out)
    assert ftlab("status", "--json").json["pending"][0]["id"] == sent
    cancelled = ftlab("cancel", "latest", sent, "--wait")
    assert cancelled.code == 0, cancelled.err
    assert ftlab("history", "--json").json["requests"][0]["answer"]["status"] == "cancelled"
    again = ftlab("cancel", "latest", sent, "--wait")
    assert again.code == 1
    assert "is pending" in again.err


def test_a_cancelled_request_that_is_waited_for_is_exit_1(ftlab: Ftlab, trainer: RealTrainer) -> None:
    import mlflow

    uri = mlflow.get_tracking_uri()

    def cancel() -> None:
        from ftlab_mlflow.control.client import LiveRun

        run = LiveRun(trainer.run_id, tracking_uri=uri)
        run.cancel(until(run.history, "the request")[0].id).wait()

    helper = threading.Thread(target=cancel)
    helper.start()
    result = ftlab("set", "latest", "learning_rate=0.9", "--at-step", "90000", "--wait", "--json")
    helper.join()
    assert result.code == 1
    assert result.error["code"] == "cancelled"


def test_a_command_can_wait_for_a_step(ftlab: Ftlab, trainer: RealTrainer) -> None:
    at = trainer.step + 800  # more steps than can pass while it is sent
    result = ftlab("pause", "--at-step", str(at), "--wait", "--json")
    assert result.json["answer"]["step"] == at
    assert trainer.step == at


def test_a_reference_that_fits_no_run(ftlab: Ftlab, new_run: Callable[..., WrittenRun]) -> None:
    new_run()
    for command in COMMANDS:
        result = ftlab(command, "nobody")
        assert result.code == 1
        assert "no run has the id, id prefix or name nobody" in result.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("set", "learning_rate=5e-5"), "ftlab set latest learning_rate=5e-5"),
        (("set", "latest"), "at least one NAME=VALUE"),
        (("set", "latest", "learning_rate"), "no NAME=VALUE"),
        (("set", "latest", "=5"), "no NAME=VALUE"),
        (("set", "latest", "a=1", "a=2"), "a is given twice"),
        (("set", "latest", "a=1", "--expect", "b=1", "--expect", "b=2"), "--expect b is given twice"),
        (("set", "latest", "a=1", "--at-step", "-1"), "--at-step"),
        (("set", "latest", "a=1", "--expires", "yesterday"), "10m"),
        (("set", "latest", "a=1", "--expires", "2026-11-21T20:00:00"), "10m"),
        (("set", "latest", "a=1", "--wait", "--timeout", "nan"), "no time above 0"),
        (("set", "latest", "a=1", "--wait", "--timeout", "0"), "no time above 0"),
        (("set", "latest", "a=1", "--timeout", "5"), "give both"),
        (("pause", "--timeout", "5"), "give both"),
        (("pause", "latest", "now"), "unexpected extra argument"),
        (("cancel", "latest"), "Missing argument"),
        (("watch", "--interval", "-1"), "no time above 0"),
        (("runs", "--limit", "0"), "--limit"),
        (("runs", "--colour"), "--colour"),
        (("fly",), "fly"),
    ],
)
def test_wrong_usage_is_exit_2(ftlab: Ftlab, arguments: tuple[str, ...], says: str) -> None:
    result = ftlab(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert says in result.err
    assert "--help` says how to use it." in result.err
    assert result.err.count("\n") == 2
    assert ftlab(*arguments, "--json").error["exit_code"] == 2
