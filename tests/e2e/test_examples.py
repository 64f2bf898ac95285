"""The examples run as they are."""

from __future__ import annotations

import os
import subprocess
import sys
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
