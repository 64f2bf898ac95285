"""The MLproject file: `mlflow run` trains the demo, and what -P says reaches the training."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
import yaml
from mlflow import MlflowClient
from mlflow.projects._project_spec import load_project
from mlflow.utils.environment import _PythonEnv
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from ftlab_mlflow.control import tags
from ftlab_mlflow.training.methods import METHODS

ROOT = Path(__file__).parents[2]
MLFLOW = Path(sys.executable).with_name("mlflow")


def command_and_environment(
    entry_point: str, uri: str, cache: Path, **parameters: object
) -> tuple[list[str], dict[str, str]]:
    """``mlflow run`` from an environment that is not activated: nothing of it is on PATH."""
    command = [str(MLFLOW), "run", str(ROOT), "-e", entry_point, "--env-manager", "local"]
    command += [part for key, value in parameters.items() for part in ("-P", f"{key}={value}")]
    kept = {k: v for k, v in os.environ.items() if k.startswith(("HF_", "MLFLOW_", "_MLFLOW_", "OMP_"))}
    kept |= {"PATH": "/usr/bin:/bin", "HOME": str(cache), "XDG_CACHE_HOME": str(cache)}
    return command, kept | {"MLFLOW_TRACKING_URI": uri}


def mlflow_run(
    entry_point: str, uri: str, cache: Path, **parameters: object
) -> subprocess.CompletedProcess[str]:
    """Runs an entry point to its end."""
    command, environment = command_and_environment(entry_point, uri, cache, **parameters)
    return subprocess.run(
        command, env=environment, cwd=cache, capture_output=True, text=True, timeout=240, check=False
    )


def test_mlflow_run_serves_the_dashboard(tracking_uri: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, environment = command_and_environment("dashboard", tracking_uri, tmp_path, port=port)
    log = tmp_path / "dashboard.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=out, stderr=out, start_new_session=True
        )
    try:
        end = time.monotonic() + 120
        while not _is_served(port):
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < end, log.read_text()[-2000:]
            time.sleep(0.2)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def _is_served(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).ok
    except requests.RequestException:
        return False


def test_mlflow_run_trains_the_demo_with_the_parameters_it_was_given(
    tracking_uri: str, tmp_path: Path
) -> None:
    (tmp_path / "sft.yaml").write_text(
        "model_name_or_path: demo\nmax_length: 32\nper_device_train_batch_size: 4\nlogging_steps: 1\n"
        "max_steps: 999\nlearning_rate: 0.5\nlr_scheduler_type: constant\nsave_strategy: 'no'\n"
    )
    done = mlflow_run(
        "sft",
        tracking_uri,
        tmp_path,
        config=tmp_path / "sft.yaml",
        data="demo",
        learning_rate="1e-3",
        max_steps=3,
        per_device_train_batch_size=2,
        num_train_epochs="",
        output_dir=tmp_path / "out put",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    client = MlflowClient(tracking_uri)
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    params = run.data.params
    # Given by -P: as it was written; all else as transformers logs it.
    assert params["learning_rate"] == "1e-3"
    assert params["max_steps"] == "3"
    assert params["per_device_train_batch_size"] == "2"
    assert (params["max_length"], params["lr_scheduler_type"]) == ("32", "constant")
    assert params["hidden_size"] == "160"
    # In force:
    rates = {metric.value for metric in client.get_metric_history(run.info.run_id, "learning_rate")}
    assert list(rates) == [pytest.approx(1e-3)]
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3]
    assert (tmp_path / "out put" / "model.safetensors").is_file()
    assert '"state":"finished"' in run.data.tags[tags.STATUS]
    assert "trl" in run.data.tags[tags.PACKAGES]
    (config,) = (tmp_path / "artifacts").rglob("config.yaml")
    assert yaml.safe_load(config.read_text())["max_steps"] == 3


def test_mlflow_run_trains_the_pipeline_as_children_of_its_run(tracking_uri: str, tmp_path: Path) -> None:
    quick = {"logging_steps": 1, "eval_strategy": "no", "per_device_train_batch_size": 4}
    stages = {"reward.max_steps": 2, "policy.max_steps": 1, "policy.num_generations": 2}
    chosen = {"policy.method": "rloo", "output_dir": tmp_path / "both"}
    done = mlflow_run("rlhf", tracking_uri, tmp_path, **quick, **stages, **chosen)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = MlflowClient(tracking_uri).search_runs(["0"], order_by=["attributes.start_time"])
    parent, reward, policy = runs
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert parent.data.params["policy.method"] == "rloo"
    assert tags.STATUS not in parent.data.tags
    for child, method, steps in ((reward, "reward", "2"), (policy, "rloo", "1")):
        assert child.data.tags[MLFLOW_PARENT_RUN_ID] == parent.info.run_id
        assert f'"method":"{method}"' in child.data.tags[tags.STATUS]
        assert child.data.params["max_steps"] == steps
    assert (tmp_path / "both" / "policy" / "model.safetensors").is_file()


def test_a_mistake_in_a_parameter_fails_the_run(tracking_uri: str, tmp_path: Path) -> None:
    done = mlflow_run("sft", tracking_uri, tmp_path, lerning_rate="1e-3")
    assert done.returncode != 0
    assert "--lerning_rate is unknown; did you mean learning_rate?" in done.stderr
    (run,) = MlflowClient(tracking_uri).search_runs(["0"])
    assert run.info.status == "FAILED"


def test_the_project_has_its_entry_points_and_an_environment_that_is_there() -> None:
    project = load_project(str(ROOT))
    assert project.name == "ftlab-mlflow"
    methods = {*METHODS, "rlhf"}
    assert set(project._entry_points) == {*methods, "dashboard"}
    for name in methods:
        assert project.get_entry_point(name).compute_command({}, None).endswith(f"ftlab train {name}")
    assert project.get_entry_point("dashboard").compute_command({}, None).endswith("ftlab dashboard")
    # A declared parameter would be logged with its default, and a run cannot change what it has logged.
    assert not any(entry_point.parameters for entry_point in project._entry_points.values())
    environment = _PythonEnv.from_yaml(str(ROOT / "python_env.yaml"))
    assert environment.python == "3.11"
    assert environment.dependencies == ["-c constraints.txt", "."]
    assert (ROOT / "constraints.txt").is_file()
