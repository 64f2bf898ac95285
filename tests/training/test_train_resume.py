"""`ftlab train --resume_from_checkpoint`: what the command line says wins, and the history shows it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ftlab_mlflow import LiveRun


def train(folder: Path, uri: str, *options: str, run_id: str = "") -> None:
    command = [sys.executable, "-m", "ftlab_mlflow.cli", "train", "sft", "--output_dir", str(folder / "out")]
    quick = ["--per_device_train_batch_size", "2", "--max_length", "32", "--eval_strategy", "no"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_RUN_ID": run_id, "OMP_NUM_THREADS": "1"}
    if not run_id:
        del environment["MLFLOW_RUN_ID"]
    subprocess.run([*command, *quick, *options], cwd=folder, env=environment, check=True, timeout=300)


def test_a_value_on_the_command_line_of_a_resume_is_a_new_request(tracking_uri: str, tmp_path: Path) -> None:
    train(tmp_path, tracking_uri, "--max_steps", "4", "--save_steps", "2", "--learning_rate", "1e-3")
    run = LiveRun("latest", tracking_uri=tracking_uri)
    checkpoint = ("--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-2"))
    train(
        tmp_path,
        tracking_uri,
        *("--max_steps", "4", "--learning_rate", "9e-4", "--weight_decay", "0.5"),
        *checkpoint,
        run_id=run.run_id,
    )
    asked = {name: param.asked for name, param in run.surface().params.items()}
    assert (asked["learning_rate"], asked["weight_decay"]) == (9e-4, 0.5)
    entries = [(e.update, e.ack) for e in run.history() if e.update and e.ack]
    told = {name: value for update, _ in entries for name, value in (update.set or {}).items()}
    assert told == {
        "learning_rate": 9e-4,
        "weight_decay": 0.5,
        "per_device_train_batch_size": 2,
        "max_steps": 4,
    }
    assert {(update.reason, ack.status, ack.step) for update, ack in entries} == {
        ("given on resume", "applied", 2)
    }
