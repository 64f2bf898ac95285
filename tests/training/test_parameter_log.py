"""Metrics of a resumed training: each step once, none lost, and new values after a rollback."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from transformers import TrainingArguments

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.messages import Ack, Update
from ftlab_mlflow.control.wire import utc_now
from ftlab_mlflow.training.run_log import ParameterLog


def entry(step: int, value: float) -> dict[str, Any]:
    return {"loss": value, "eval/f1 (macro)": value, "epoch": step / 10, "step": step}


class Process:
    """A training process as its callback sees it, up to where it ends without a word."""

    def __init__(self, step: int = 0, history: list[dict[str, Any]] | None = None) -> None:
        self.history = list(history or [])
        self.state = SimpleNamespace(global_step=step, is_world_process_zero=True, log_history=self.history)
        self.log = ParameterLog()
        self.args = TrainingArguments(output_dir="out", report_to=[])
        self.log.on_train_begin(self.args, self.state, None, model=None)

    def step(self, to: int, value: float, *, is_delivered: bool = True) -> None:
        """Trains the step before `to` and logs it; a value that is not delivered died in MLflow's queue."""
        self.state.global_step = to - 1
        self.log.on_step_begin(self.args, self.state, None)
        self.state.global_step = to
        self.history.append(entry(to, value))
        if is_delivered:
            logs = {k: v for k, v in entry(to, value).items() if k != "step"}
            self.log.on_log(self.args, self.state, None, logs)


@pytest.fixture
def run_id(tracking_uri: str) -> str:
    mlflow.set_tracking_uri(tracking_uri)
    found: str = mlflow.start_run().info.run_id
    return found


def logged(run_id: str, key: str = "loss") -> list[tuple[int, float]]:
    mlflow.flush_async_logging()
    return [(m.step, m.value) for m in mlflow.MlflowClient().get_metric_history(run_id, key)]


def test_a_resume_logs_what_the_run_lacks_and_nothing_twice(run_id: str) -> None:
    died = Process()
    for step in range(1, 11):
        died.step(step, float(step), is_delivered=step not in (4, 6, 9))
    logged(run_id)
    resumed = Process(6, died.history[:6])
    for step in range(7, 13):
        resumed.step(step, step + 0.5)
    expected = {s: float(s) for s in (1, 2, 3, 4, 5, 6, 7, 8, 10)} | {9: 9.5, 11: 11.5, 12: 12.5}
    for key in ("loss", "eval/f1 _macro_"):
        points = logged(run_id, key)
        assert dict(points) == expected
        assert len(points) == len(expected)
    # Logged by the trainer with each entry, also where there are several for a step.
    resumed.log.on_log(resumed.args, resumed.state, None, {"train_loss": 1.0, "epoch": 1.2})
    assert len(logged(run_id, "epoch")) == 12
    assert logged(run_id, "train_loss") == [(12, 1.0)]


def test_steps_that_come_again_after_a_rollback_are_logged_again(run_id: str) -> None:
    died = Process()
    for step in range(1, 9):
        died.step(step, 1.0)
    logged(run_id)
    resumed = Process(6, died.history[:6])
    resumed.step(7, 2.0)  # the run has it
    resumed.state.global_step = 4  # a rollback
    for step in (5, 6, 7):
        resumed.step(step, 3.0)
    assert sorted(logged(run_id)) == sorted([(s, 1.0) for s in range(1, 9)] + [(s, 3.0) for s in (5, 6, 7)])


def test_what_a_rollback_has_undone_is_logged_again_after_a_resume(run_id: str) -> None:
    died = Process()
    for step in range(1, 9):
        died.step(step, 1.0)
    logged(run_id)
    now = utc_now()
    rollback = {
        tags.UPDATE_PREFIX + "r": Update(at=now, command="rollback").encode(),
        tags.ACK_PREFIX + "r": Ack("applied", 4, now, "s").encode(),
    }
    mlflow.set_tags(rollback)
    died.state.global_step = 4
    died.step(5, 2.0)
    logged(run_id)
    resumed = Process(4, died.history[:4])
    for step in range(5, 9):
        resumed.step(step, 3.0)
    old = [(s, 1.0) for s in range(1, 9)]
    assert sorted(logged(run_id)) == sorted([*old, (5, 2.0), (6, 3.0), (7, 3.0), (8, 3.0)])


def test_a_new_run_from_another_runs_checkpoint_begins_with_its_own_steps(run_id: str) -> None:
    resumed = Process(6, [entry(step, 1.0) for step in range(1, 7)])
    resumed.step(7, 2.0)
    assert logged(run_id) == [(7, 2.0)]
