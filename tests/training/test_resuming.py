"""Which run `ftlab train --resume` goes on with, what it refuses, and what it says of the values that win."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from ftlab_mlflow import ConfigError, RunNotFound
from ftlab_mlflow.cli.train import train
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.messages import Ack, State, Status, Update
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.control.surface import Param, Surface
from ftlab_mlflow.control.wire import utc_now
from ftlab_mlflow.training.config import load_config
from ftlab_mlflow.training.methods import METHODS
from ftlab_mlflow.training.resuming import Resumption, find_resumption

HERE = socket.gethostname()


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


class Place:
    """An MLflow with runs whose trainers are long gone, and a folder with the smallest whole checkpoint."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.store = MlflowRunStore(uri)
        self.folder = folder
        checkpoint = folder / "out" / "checkpoint-8"
        checkpoint.mkdir(parents=True)
        save_file({"w": torch.ones(2)}, checkpoint / "model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({}, checkpoint / name)
        (checkpoint / "trainer_state.json").write_text('{"global_step": 8}')

    def run(
        self,
        state: State = "running",
        *,
        host: str = HERE,
        pid: int = 0,
        age_s: float = 1,
        method: str = "sft",
        mlflow_status: str = "RUNNING",
        experiment: str = "ftlab",
        config: str | None = None,
        **more: str,
    ) -> str:
        status = Status(
            state=state, step=9, max_steps=20, epoch=0.5, at=utc_now() - timedelta(seconds=age_s), every_s=10,
            session="s", host=host, pid=pid or dead_pid(), method=method,
        )  # fmt: skip
        text = f"output_dir: {self.folder / 'out'}\nlearning_rate: 0.001\nlive: {{poll_interval: 0.5}}\n"
        mlflow.set_experiment(experiment)
        with mlflow.start_run() as run:
            mlflow.set_tags({tags.STATUS: status.encode(), **more})
            mlflow.log_text(text if config is None else config, "config.yaml")
        mlflow.MlflowClient().set_terminated(run.info.run_id, mlflow_status)
        run_id: str = run.info.run_id
        return run_id

    def find(self, reference: str | None = None, method: str = "sft", **given: Any) -> Resumption:
        return find_resumption(self.store, method, reference, given)

    def refusal(self, reference: str | None = None, method: str = "sft", **given: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            self.find(reference, method, **given)
        return str(caught.value)


@pytest.fixture
def place(tracking_uri: str, tmp_path: Path) -> Place:
    return Place(tracking_uri, tmp_path)


def test_the_newest_run_of_the_method_that_did_not_finish(place: Place) -> None:
    assert "there is no sft run in this experiment" in place.refusal()
    place.run("finished", mlflow_status="FINISHED")
    assert "no sft run of this experiment ended unfinished; the newest: " in place.refusal()
    wanted = place.run("stopped", mlflow_status="KILLED")
    place.run("failed", experiment="another", mlflow_status="FAILED")
    place.run("failed", method="dpo", mlflow_status="FAILED")
    place.run("running", host="another")
    place.run("finished", mlflow_status="FINISHED")
    found = place.find()
    assert found.run_id == wanted
    assert found.checkpoint == str(place.folder / "out" / "checkpoint-8")
    assert found.config["learning_rate"] == 0.001
    assert place.find(wanted[:10]).run_id == wanted
    assert place.find(None, "dpo").run_id != wanted
    with pytest.raises(RunNotFound):
        place.find("nobody")


@pytest.mark.parametrize(
    ("state", "mlflow_status", "fields", "alive"),
    [
        ("running", "RUNNING", {"pid": os.getppid()}, True),
        ("paused", "RUNNING", {"pid": os.getppid()}, True),
        ("running", "RUNNING", {}, False),  # killed a second ago, here: its process is gone
        ("running", "RUNNING", {"host": "another"}, True),  # nobody can tell
        ("running", "RUNNING", {"host": "another", "age_s": 31}, False),
        ("running", "RUNNING", {"pid": os.getppid(), "age_s": 31}, False),  # another process has the number
        ("finished", "RUNNING", {"pid": os.getppid()}, True),  # it saves its model
        ("finished", "RUNNING", {}, False),  # died while it saved its model
        ("stopped", "KILLED", {"pid": os.getppid()}, False),
        ("failed", "FAILED", {"host": "another"}, False),
    ],
)
def test_a_run_that_is_alive_is_left_alone(
    place: Place, state: State, mlflow_status: str, fields: dict[str, Any], alive: bool
) -> None:
    run_id = place.run(state, mlflow_status=mlflow_status, **fields)
    if alive:
        text = place.refusal(run_id)
        assert f"`ftlab stop {run_id[:8]}`" in text
        assert "wait until that is 30 s" in text
    else:
        assert place.find(run_id).run_id == run_id


def test_what_cannot_go_on(place: Place) -> None:
    finished = place.run("finished", mlflow_status="FINISHED")
    assert "is finished at step 9: to train its model further, start anew" in place.refusal(finished)
    other = place.run("failed", method="dpo", mlflow_status="FAILED")
    assert f"is a dpo run: resume it with `ftlab train dpo --resume {other[:8]}`" in place.refusal(other)
    elsewhere = place.run("failed", host="node7", mlflow_status="FAILED", config="output_dir: nowhere")
    assert "no whole checkpoint in nowhere (it trained on node7)" in place.refusal(elsewhere)
    found = place.find(elsewhere, output_dir=str(place.folder / "out"))
    assert found.checkpoint.endswith("checkpoint-8"), "the folder has moved"
    (place.folder / "out" / "checkpoint-9").mkdir()
    asked = str(place.folder / "out" / "checkpoint-9")
    text = place.refusal(elsewhere, resume_from_checkpoint=asked)
    assert text == f"--resume_from_checkpoint: {asked}: trainer_state.json is missing"
    with mlflow.start_run() as run:
        pass
    assert "was not trained by ftlab" in place.refusal(run.info.run_id)


def test_without_its_config_a_run_goes_on_with_what_is_given(place: Place) -> None:
    mlflow.set_experiment("ftlab")
    run_id = place.run("failed", mlflow_status="FAILED", config="[")
    assert "has no readable config.yaml: give its launch arguments again" in place.refusal(run_id)
    found = place.find(run_id, output_dir=str(place.folder / "out"))
    assert found.config == {}


def test_what_is_given_now_and_what_was_asked_for(place: Place) -> None:
    now = utc_now()
    requests = {
        "a": (Update(at=now, set={"learning_rate": 5e-4}, by="alice"), Ack("applied", 3, now, "s")),
        "b": (
            Update(at=now, set={"learning_rate": 2e-4, "weight_decay": 0.1}, by="bob"),
            Ack("applied", 7, now + timedelta(seconds=1), "s"),
        ),
        "c": (Update(at=now, set={"weight_decay": 7.0}), Ack("rejected", 8, now, "s", code="out_of_bounds")),
    }
    told = {tags.UPDATE_PREFIX + i: update.encode() for i, (update, _) in requests.items()}
    told |= {tags.ACK_PREFIX + i: ack.encode() for i, (_, ack) in requests.items()}
    params = {name: Param("float", 0.1, 0.1) for name in ("learning_rate", "weight_decay", "max_grad_norm")}
    config = (
        f"model_name_or_path: demo\ndataset_name: demo\noutput_dir: {place.folder / 'out'}\n"
        "learning_rate: 0.001\nmax_steps: 20\nmax_grad_norm: 0.5\nlive: {poll_interval: 0.5}\n"
    )
    surface = {tags.SURFACE: Surface(params, ()).encode()}
    run_id = place.run("failed", mlflow_status="FAILED", config=config, **told, **surface)
    (place.folder / "now.yaml").write_text("learning_rate: 0.001\nmax_grad_norm: 0.7\nseed: 3\n")
    found: list[Resumption] = []

    def resume(settings: Any, given: Any) -> Resumption:
        found.append(find_resumption(place.store, "sft", run_id, given))
        return found[0]

    path = str(place.folder / "now.yaml")
    loaded = load_config(METHODS["sft"], path, ["--weight_decay", "0.2", "--logging_steps", "5"], resume)
    # What can be changed live stays as launched, and is asked for; the rest is an argument.
    assert loaded.explicit == {"max_grad_norm": 0.7, "seed": 3, "weight_decay": 0.2, "logging_steps": 5}
    training = loaded.training
    assert (training.learning_rate, training.max_grad_norm, training.weight_decay) == (1e-3, 0.5, 0.0)
    assert (training.seed, training.logging_steps, training.max_steps) == (3, 5, 20)
    assert training.resume_from_checkpoint == found[0].checkpoint
    assert loaded.settings.poll_interval == 0.5
    assert "resume_from_checkpoint" not in loaded.as_yaml()
    assert found[0].told(loaded.explicit) == [
        "max_grad_norm 0.7, given now (asked for as a live change), wins over 0.5 of the launch",
        "seed 3, given now (as an argument), wins over the default",
        "weight_decay 0.2, given now (asked for as a live change), wins over 0.1, asked for at step 7 by bob",
        "logging_steps 5, given now (as an argument), wins over the default",
        "learning_rate 0.0002, asked for at step 7 by bob, wins over 0.001 of the launch",
    ]


def test_the_option_may_stand_alone(tracking_uri: str) -> None:
    for words in (
        ["--resume"],
        ["--resume", "--learning_rate", "1e-3"],
        ["--learning_rate", "1e-3", "--resume"],
    ):
        result = CliRunner().invoke(train, ["sft", *words])
        assert isinstance(result.exception, ConfigError)
        assert "there is no sft run in this experiment" in str(result.exception)
    result = CliRunner().invoke(train, ["sft", "--resume", "abc", "--learning_rate", "1e-3"])
    assert isinstance(result.exception, RunNotFound)
