"""`ftlab demo`, the main job: what it prints is what the run's tags and metrics say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ftlab_mlflow import LiveRun


def test_the_demo_changes_a_training_and_reports_it(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    command = [sys.executable, "-m", "ftlab_mlflow.cli", "demo", "--folder", str(tmp_path), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    asked = [(row["request"], row["status"]) for row in report["requests"]]
    assert asked == [
        ("learning_rate=0.0005", "applied"),
        ("learning_rate=nan", "rejected"),
        ("weight_decay=0.05, max_grad_norm=0.5", "applied"),
        ("pause", "applied"),
        ("evaluate", "applied"),
        ("resume", "applied"),
    ]
    run = LiveRun(report["run_id"], tracking_uri=report["tracking_uri"])
    assert (run.data().status, report["state"]) == ("FINISHED", "finished")
    first = report["effects"][0]
    rates = run.metric_history("learning_rate")
    # A cosine over 240 steps with 10 of warm-up: the rate goes on falling from the value that was asked for.
    assert first["learning_rate_before"] > 0.0005 > first["learning_rate_after"] > 0
    after = [point.value for point in rates if point.step > first["step"]]
    assert after == sorted(after, reverse=True)
    assert first["loss_after"] < first["loss_before"]
    losses = [point.value for point in run.metric_history("loss") if point.step <= first["step"]]
    assert first["loss_before"] == pytest.approx(sum(losses[-5:]) / 5)
