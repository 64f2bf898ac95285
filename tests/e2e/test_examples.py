"""The examples run as they are."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from ftlab_mlflow import LiveRun

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_attach(tracking_uri: str, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, str(EXAMPLES / "attach.py"), "--max_steps", "20"],
        cwd=tmp_path,
        env=os.environ | {"MLFLOW_TRACKING_URI": tracking_uri},
        check=True,
        timeout=300,
    )
    run = LiveRun("latest", tracking_uri=tracking_uri)
    assert (run.data().status, run.status().state, run.status().step) == ("FINISHED", "finished", 20)
    assert run.surface().params["learning_rate"].max == 0.01
    assert [point.step for point in run.metric_history("loss")] == [10, 20]


def test_plain_pytorch(tracking_uri: str, tmp_path: Path) -> None:
    """It is changed while it runs, stopped, and resumed from the checkpoint that the stop wrote."""
    command = [sys.executable, str(EXAMPLES / "plain_pytorch.py"), "--max_steps"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": tracking_uri}
    process = subprocess.Popen(
        [*command, "10000000"], cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        told = process.stdout.readline()
        run = LiveRun("latest", tracking_uri=tracking_uri)
        assert run.run_id in told
        end = time.monotonic() + 60
        while not run.data().is_live:
            assert time.monotonic() < end
            time.sleep(0.05)
        changed = run.update(learning_rate=1e-3, mix_ratio=0.9).wait(60)
        evaluated = run.evaluate().wait(60)
        stopped = run.stop().wait(60)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait(10)
    assert process.returncode == 0
    assert changed.changes["mix_ratio"] == (0.5, 0.9)
    assert changed.changes["learning_rate"][1] == 1e-3
    assert 0 < evaluated.result["metrics"]["eval_loss"] < 1
    assert f"stopped at step {stopped.step}" in output
    assert run.data().status == "KILLED"

    path = stopped.result["checkpoint"]
    steps = stopped.step + 20
    subprocess.run(
        [*command, str(steps), "--resume", path], cwd=tmp_path, env=environment, check=True, timeout=300
    )
    assert LiveRun("latest", tracking_uri=tracking_uri).run_id == run.run_id, "the same run goes on"
    assert (run.data().status, run.status().state, run.status().step) == ("FINISHED", "finished", steps)
    assert run.surface().params["mix_ratio"].value == 0.9
