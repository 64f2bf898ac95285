"""`ftlab train sft` as a process of its own: what it trains, what reaches MLflow, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from ftlab_mlflow import LiveRun, MlflowRunStore, NotLive, RunNotFound
from ftlab_mlflow.control.messages import Ack, Update
from ftlab_mlflow.control.store import RunData
from ftlab_mlflow.control.wire import utc_now

LIMIT_S = 180
OPTIONS = {
    "max_length": "48",
    "per_device_train_batch_size": "2",
    "logging_steps": "1",
    "eval_strategy": "no",
    "poll_interval": "0.1",
}


class Process:
    """One `ftlab train sft`, with its own home for caches, in its own folder."""

    def __init__(self, folder: Path, cache: Path, uri: str, *options: str, **environment: str) -> None:
        self.folder = folder
        self.uri = uri
        self.name = f"run-{folder.name}"
        named = {"run_name": self.name, **OPTIONS}
        defaults = [part for key, value in named.items() for part in (f"--{key}", value)]
        command = [sys.executable, "-m", "ftlab_mlflow.cli", "train", "sft", "--json", *defaults, *options]
        self._out, self._err = folder / "out.json", folder / "err.txt"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.popen = subprocess.Popen(
                command,
                cwd=folder,
                stdout=out,
                stderr=err,
                env=os.environ
                | {"MLFLOW_TRACKING_URI": uri, "XDG_CACHE_HOME": str(cache), "PYTHONHASHSEED": "0"}
                | environment,
            )

    @property
    def errors(self) -> str:
        return self._err.read_text().replace("\r", "\n")

    def until(self, what: str, reached: Callable[[], Any]) -> Any:
        end = time.monotonic() + LIMIT_S
        while not (found := reached()):
            assert self.popen.poll() is None, f"ended before {what}:\n{self.errors[-3000:]}"
            assert time.monotonic() < end, f"no {what}:\n{self.errors[-3000:]}"
            time.sleep(0.05)
        return found

    def run(self) -> LiveRun:
        """The run, once it trains."""

        def trains() -> LiveRun | None:
            try:
                run = LiveRun(self.name, tracking_uri=self.uri)
                return run if run.status().state == "running" else None
            except (RunNotFound, NotLive):
                return None

        found: LiveRun = self.until("training", trains)
        return found

    def end(self) -> tuple[int, dict[str, Any]]:
        """Exit code and the JSON document, the only thing on stdout."""
        code = self.popen.wait(LIMIT_S)
        return code, json.loads(self._out.read_text())


Start = Callable[..., Process]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start(tracking_uri: str, tmp_path: Path, cache: Path) -> Iterator[Start]:
    started: list[Process] = []

    def begin(*options: str, uri: str = tracking_uri, **environment: str) -> Process:
        started.append(Process(tmp_path, cache, uri, *options, **environment))
        return started[-1]

    yield begin
    for process in started:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait()


def stored(uri: str, run_id: str) -> RunData:
    return MlflowRunStore(uri).get(run_id)


def test_another_process_changes_the_rate_and_stops_the_training(
    start: Start, tracking_uri: str, tmp_path: Path
) -> None:
    steps, base, asked = 4000, 1e-3, 3e-4
    process = start("--max_steps", str(steps), "--warmup_steps", "2", "--save_strategy", "no")
    run = process.run()
    MlflowRunStore(tracking_uri).write(run.run_id, {"ftlab.set.learning_rate": str(asked)})
    history = process.until("an answer", lambda: [e for e in run.history() if e.ack])
    ack = history[0].ack
    assert ack.status == "applied"
    changed_at = ack.step
    enough = changed_at + 15
    process.until(
        "steps after it", lambda: (p := run.metric_history("learning_rate")) and p[-1].step >= enough
    )
    run.stop()
    code, document = process.end()

    assert code == 0, process.errors[-3000:]
    assert document["run_id"] == run.run_id
    assert document["state"] == run.status().state == "stopped"
    assert document["step"] == run.status().step >= enough
    assert document["metrics"]["loss"] > 0
    data = stored(tracking_uri, run.run_id)
    assert data.status == "KILLED"
    assert data.metrics["live/learning_rate"] == pytest.approx(asked, rel=1e-6)

    # Step t used the rate that the scheduler had given after t - 1 steps; the cosine falls after 2 of them.
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=2, num_training_steps=steps)
    untouched = [base * factor(t) for factor in scheduler.lr_lambdas for t in range(steps + 1)]
    for point in run.metric_history("learning_rate"):
        expected = untouched[point.step - 1]
        if point.step > changed_at:
            expected *= asked / max(untouched[changed_at : point.step])
        assert point.value == pytest.approx(expected, rel=1e-4), point

    assert f"Applied learning_rate {untouched[changed_at]:.6g}"[:30] in process.errors
    assert f"→ 0.0003 at step {changed_at} (tag)" in process.errors
    assert f"ftlab set {run.run_id[:8]} learning_rate=0.0005" in process.errors
    folder = tmp_path / document["output_dir"]
    assert folder == tmp_path / "outputs" / run.run_id[:8]
    assert (folder / "model.safetensors").is_file()

    # What is next to the run asks for the same training.
    (written,) = (tmp_path / "artifacts").rglob("config.yaml")
    assert "model_name_or_path: demo" in written.read_text()
    params = parameters(tracking_uri, run.run_id)
    assert params["learning_rate"] == "0.001"
    assert params["hidden_size"] == "160"


def parameters(uri: str, run_id: str) -> dict[str, str]:
    from mlflow import MlflowClient

    params: dict[str, str] = MlflowClient(uri).get_run(run_id).data.params
    return params


@pytest.mark.parametrize(("args", "wanted"), [({}, True), ({"save": True}, True), ({"save": False}, False)])
def test_a_model_is_kept_unless_the_stop_said_not_to_save(
    tracking_uri: str, args: dict[str, Any], wanted: bool
) -> None:
    from ftlab_mlflow.training.config import load_config
    from ftlab_mlflow.training.methods import METHODS
    from ftlab_mlflow.training.run_log import RunLog
    from ftlab_mlflow.training.train import Training

    training = Training(load_config(METHODS["sft"], None, ()))
    training.log = log = RunLog(tracking_uri, None)
    now = utc_now()
    earlier = Update(command="stop", args={"save": not wanted}, at=now - timedelta(hours=1))
    for name, update in (("a", earlier), ("b", Update(command="stop", args=args, at=now))):
        ack = Ack("applied", 3, now, "session")
        log.store.write(
            log.run_id, {f"ftlab.update.{name}": update.encode(), f"ftlab.ack.{name}": ack.encode()}
        )
    assert training._wants_model("stopped") is wanted
    assert training._wants_model("finished")
    log.end("stopped")
    assert log.store.get(log.run_id).status == "KILLED"


def test_a_lora_file_as_trl_takes_it_trains_and_sigterm_leaves_a_checkpoint(
    start: Start, tracking_uri: str, tmp_path: Path
) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 8
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sft.yaml").write_text(
        "model_name_or_path: demo\ndataset_name: chat.jsonl\nlearning_rate: 2.0e-4\nmax_steps: 100000\n"
        "gradient_accumulation_steps: 2\nuse_peft: true\nlora_r: 4\nlora_alpha: 8\n"
        "lora_target_modules: [q_proj, v_proj]\noutput_dir: out\nsave_strategy: epoch\n"
        "live: {limits: {learning_rate: [0, 1e-3]}}\n"
    )
    process = start("--config", "sft.yaml", "--save_steps", "100000", "--save_strategy", "steps")
    run = process.run()
    assert run.surface().params["learning_rate"].max == 1e-3
    process.until("a step", lambda: run.metric_history("loss"))
    process.popen.send_signal(signal.SIGTERM)
    code, document = process.end()

    assert code == 143, process.errors[-3000:]
    assert document["state"] == run.status().state == "stopped"
    assert stored(tracking_uri, run.run_id).status == "KILLED"
    checkpoint = tmp_path / "out" / f"checkpoint-{document['step']}"
    assert Path(document["saved"]).name == checkpoint.name
    adapter = json.loads((checkpoint / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"]) == (4, 8)
    assert set(adapter["target_modules"]) == {"q_proj", "v_proj"}
    # 5 layers, two adapted matrices of 160 x 160 each, 4 * (160 + 160) a matrix
    assert f"{5 * 2 * 4 * 320:,} of them trained" in process.errors


def test_ctrl_c_stops_without_a_checkpoint_where_none_are_wanted(
    start: Start, tracking_uri: str, tmp_path: Path
) -> None:
    process = start("--max_steps", "100000", "--save_strategy", "no", "--output_dir", "out")
    run = process.run()
    process.popen.send_signal(signal.SIGINT)
    code, document = process.end()
    assert code == 130, process.errors[-3000:]
    assert (document["state"], document["saved"]) == ("stopped", None)
    assert stored(tracking_uri, run.run_id).status == "KILLED"
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_model_that_cannot_be_loaded_leaves_a_failed_run(
    start: Start, tracking_uri: str, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}'
    )
    process = start("--model", "./model", "--data", "demo")
    code, document = process.end()
    assert code == 2, process.errors[-3000:]
    assert document["error"]["message"].startswith("./model cannot be trained: ")
    assert "Traceback" not in process.errors
    (run,) = MlflowRunStore(tracking_uri).find(name=process.name)
    assert (run.status, run.ended is not None) == ("FAILED", True)


def test_a_mistake_in_the_data_starts_no_run(start: Start, tracking_uri: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\n1,2\n")
    code, document = start("--model", "demo", "--data", "a.csv").end()
    assert code == 2
    assert document["error"]["message"].startswith("a.csv has the columns question, answer; sft needs ")
    assert MlflowRunStore(tracking_uri).find() == []


def test_a_server_that_goes_away_does_not_keep_the_process(
    start: Start, new_mlflow_server: Callable[[], Any]
) -> None:
    server = new_mlflow_server()
    process = start("--max_steps", "150", "--save_strategy", "no", uri=server.uri)
    run = process.run()
    server.stop()
    begun = time.monotonic()
    process.until("the end of training", lambda: "at the end of training" in process.errors)
    ended = time.monotonic()
    code, document = process.end()
    assert code == 0, process.errors[-3000:]
    assert (document["state"], document["step"]) == ("finished", 150)
    assert time.monotonic() - ended < 30, f"{ended - begun:.0f} s until the end"
    assert f"The run {run.run_id} could not be set to FINISHED" in process.errors
    server.start()
    assert stored(server.uri, run.run_id).status == "RUNNING"


def test_a_server_that_is_not_there_is_said_at_once(start: Start) -> None:
    begun = time.monotonic()
    process = start(uri="http://127.0.0.1:9")
    code, document = process.end()
    assert code == 1
    assert "the tracking store http://127.0.0.1:9 failed" in document["error"]["message"]
    assert time.monotonic() - begun < 60
