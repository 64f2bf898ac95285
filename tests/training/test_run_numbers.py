"""The numbers about a run, against counts of the raw data and a clock that the test sets."""

import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
from itertools import accumulate
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from run_numbers_text import EVAL_S, LENGTHS, SAVE_S, STEP_S, Scene
from training_doubles import wait_for
from training_tiny import Lab, train_beside
from training_trl import new_trainer, rows, save_tiny_model
from transformers import Trainer, TrainerCallback

from ftlab_mlflow import RunNumbers
from ftlab_mlflow.training.config import load_config
from ftlab_mlflow.training.methods import METHODS
from ftlab_mlflow.training.run_log import RunLog
from ftlab_mlflow.training.run_numbers import METRICS, samples_of, tokens_of
from ftlab_mlflow.training.train import Training

RATES = ("samples_per_second", "tokens_per_second", "step_time_s")
pytestmark = pytest.mark.filterwarnings(
    # transformers, of TRL's own defaults.
    "ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning"
)
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


class _Ticks(TrainerCallback):
    """A clock for which every step is a second."""

    now = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.now += 1


def test_counts_and_times(tmp_path: Path) -> None:
    """An epoch is 6 steps, its last one of a single sample; evaluations and checkpoints take time, too."""
    scene = Scene(tmp_path, max_steps=8, logging_steps=3, eval_steps=3, save_steps=3)
    result = scene.trainer.train()
    ends = [3, 6, 8]
    for end, window in zip(ends, scene.expected(ends), strict=True):
        assert {key: scene.logged(key)[end] for key in RATES} == pytest.approx(window)
    away = {3: 0.0, 6: (EVAL_S + SAVE_S) / 6, 8: 2 * (EVAL_S + SAVE_S) / 8}
    expected_eta = {end: (8 - end) * (STEP_S + away[end]) for end in ends}
    assert scene.logged("eta_s") == pytest.approx(expected_eta)
    assert set(scene.logged("nonfinite_steps").values()) == {0}
    samples = sum(len(batch) for step in scene.model.steps for batch in step)
    runtime = result.metrics["train_runtime"]
    assert result.metrics["train_samples_per_second"] == pytest.approx(samples / runtime, rel=1e-3)
    assert result.metrics["train_samples_per_second"] == scene.logged("train_samples_per_second")[8]
    assert type(scene.trainer) is Trainer, "the class is the trainer's own again"


def test_changes_while_it_runs(tmp_path: Path) -> None:
    """What was consumed counts, not what the arguments say at the end; the ETA follows max_steps."""
    scene = Scene(tmp_path, max_steps=6, logging_steps=2)

    def change() -> None:
        scene.trainer.args.gradient_accumulation_steps = 1
        scene.trainer.state.max_steps = 10

    scene.at[2] = change
    result = scene.trainer.train()
    samples = [sum(map(len, step)) for step in scene.model.steps]
    assert samples[0] != samples[3], "the change changed nothing"
    ends = sorted(scene.logged("eta_s"))
    for end, window in zip(ends, scene.expected(ends), strict=True):
        assert {key: scene.logged(key)[end] for key in RATES} == pytest.approx(window)
        assert scene.logged("eta_s")[end] == ((6 if end < 2 else 10) - end) * STEP_S
    seen = result.metrics["train_samples_per_second"] * result.metrics["train_runtime"]
    assert seen == pytest.approx(sum(samples), rel=1e-3)


def test_a_live_batch_size(tmp_path: Path) -> None:
    """transformers' own total would take the batch size of the launch for that of all steps."""
    lab = Lab(tmp_path)
    ticks = _Ticks()
    lab.make(attached=True, callbacks=(ticks, RunNumbers(lambda: ticks.now)), max_steps=8, logging_steps=2)
    lab.tell(2, "b", set={"per_device_train_batch_size": 8, "max_steps": 10})
    result = lab.trainer.train()
    assert lab.logged("samples_per_second") == {2: 4.0, 4: 8.0, 6: 8.0, 8: 8.0, 10: 8.0}
    assert lab.logged("eta_s") == {2: 8.0, 4: 6.0, 6: 4.0, 8: 2.0, 10: 0.0}
    seen = result.metrics["train_samples_per_second"] * result.metrics["train_runtime"]
    assert seen == pytest.approx(2 * 4 + 8 * 8, rel=1e-3)


def test_a_pause_is_not_throughput(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    ticks = _Ticks()
    # A pause takes what it takes.
    numbers = RunNumbers(lambda: ticks.now + (lab.control.paused_s if lab.control else 0))
    lab.make(callbacks=(ticks, numbers), max_steps=6, logging_steps=2)
    lab.tell(3, "p", command="pause")

    def client() -> None:
        wait_for(lambda: lab.control and lab.control.paused_s > 0.1, "the pause")
        lab.send("r", command="resume")

    train_beside(lab.trainer, client)
    assert lab.control is not None
    assert lab.control.paused_s > 0.1
    assert lab.logged("step_time_s") == pytest.approx({2: 1.0, 4: 1.0, 6: 1.0})
    assert lab.logged("samples_per_second") == pytest.approx({2: 4.0, 4: 4.0, 6: 4.0})
    assert lab.logged("eta_s") == pytest.approx({2: 4.0, 4: 2.0, 6: 0.0})
    assert lab.logged("tokens_per_second") == {}, "there are no tokens in this data"


@pytest.mark.parametrize("is_filtered", [True, False])
def test_nonfinite_steps(tmp_path: Path, is_filtered: bool) -> None:
    """Each step counts once, also where transformers hides the loss, and where only the gradient is bad."""
    scene = Scene(tmp_path, max_steps=6, logging_steps=3, logging_nan_inf_filter=is_filtered)
    bad = {(2, 2): math.nan, (3, 1): math.inf, (3, 2): math.nan}  # their gradient is finite
    scene.model.add = lambda step, batch: bad.get((step, batch), 0.0)

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf if len(scene.model.steps) == 6 else gradient

    scene.model.embedding.weight.register_hook(spoil)
    scene.trainer.train()
    assert math.isfinite(scene.logged("loss")[3]) == is_filtered
    assert scene.logged("nonfinite_steps") == {3: 2, 6: 3}


class _Scored(Trainer):
    """Adds a metric when it logs, as TRL's trainers do."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "eval_loss" in logs:
            logs["eval_score"] = 10 - logs["eval_loss"]
        super().log(logs, start_time)


@pytest.mark.parametrize("metric", ["eval_loss", "eval_score"])
def test_best_evaluation(tmp_path: Path, metric: str) -> None:
    losses = {1: math.nan, 2: 3.0, 3: 1.0, 4: -math.inf, 5: 2.0, 6: 1.0}
    chosen = {} if metric == "eval_loss" else {"metric_for_best_model": "score"}
    scene = Scene(tmp_path, trainer_class=_Scored, max_steps=6, eval_steps=1, **chosen)
    scene.model.eval_losses = losses
    returned = []
    scene.at[6] = lambda: returned.append(scene.trainer.evaluate())
    scene.trainer.train()
    sign = 1 if metric == "eval_loss" else -1
    best, steps = scene.logged(f"best_{metric}"), scene.logged("best_eval_step")
    assert steps == {2: 2, 3: 3, 4: 3, 5: 3, 6: 3}
    logged = scene.logged(metric)
    for step, at in steps.items():
        finite = [sign * logged[s] for s in range(1, step + 1) if math.isfinite(logged[s])]
        assert best[step] == logged[at] == sign * min(finite)
    assert not [name for name in returned[0] if name.startswith("best_")]


def test_resume(tmp_path: Path) -> None:
    first = Scene(tmp_path, max_steps=4, logging_steps=2, eval_steps=2, save_steps=4)
    first.model.eval_losses = {2: 0.5, 4: 0.7}
    first.model.add = lambda step, batch: math.nan if step == 1 else 0.0
    first.trainer.train()
    second = Scene(tmp_path, max_steps=8, logging_steps=2, eval_steps=2)
    second.model.eval_losses = {6: 0.6, 8: 0.4}
    second.now = 1e6
    second.model.add = lambda step, batch: math.nan if step == 1 else 0.0
    result = second.trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert second.logged("nonfinite_steps") == {2: 1, 4: 1, 6: 2, 8: 2}
    assert second.logged("best_eval_loss") == pytest.approx({2: 0.5, 4: 0.5, 6: 0.5, 8: 0.4})
    assert second.logged("best_eval_step") == {2: 2, 4: 2, 6: 2, 8: 8}
    for end, window in zip([6, 8], second.expected([2, 4]), strict=True):
        assert {key: second.logged(key)[end] for key in RATES} == pytest.approx(window)
    samples = sum(len(batch) for step in second.model.steps for batch in step)
    seen = result.metrics["train_samples_per_second"] * result.metrics["train_runtime"]
    assert seen == pytest.approx(samples, rel=1e-3)


def test_second_training_of_the_same_trainer_begins_anew(tmp_path: Path) -> None:
    scene = Scene(tmp_path, max_steps=2, logging_steps=2, eval_steps=2)
    scene.model.eval_losses = {2: 0.5}
    scene.model.add = lambda step, batch: math.nan
    scene.trainer.train()
    scene.model.eval_losses, scene.model.add = {2: 0.7}, lambda step, batch: 0.0
    scene.trainer.train()
    assert scene.logged("nonfinite_steps") == {2: 0}
    assert scene.logged("best_eval_loss") == pytest.approx({2: 0.7})


def test_a_failed_training_is_no_obstacle(tmp_path: Path) -> None:
    scene = Scene(tmp_path, max_steps=3, logging_steps=1)

    def fail() -> None:
        scene.at.clear()
        raise RuntimeError("out of luck")

    scene.at[2] = fail
    with pytest.raises(RuntimeError, match="out of luck"):
        scene.trainer.train()
    scene.model.steps = [[]]
    scene.trainer.train()
    for end, window in zip([1, 2, 3], scene.expected([1, 2, 3]), strict=True):
        assert {key: scene.logged(key)[end] for key in RATES} == pytest.approx(window)
    assert type(scene.trainer) is Trainer


def test_mlflow_has_them_under_the_same_steps(tmp_path: Path, tracking_uri: str) -> None:
    with mlflow.start_run() as run:
        scene = Scene(tmp_path, max_steps=4, logging_steps=2, eval_steps=2, report_to=["mlflow"])
        scene.trainer.train()
    client = MlflowClient()
    names = {re.sub("eval_loss", "<metric>", name) for name in client.get_run(run.info.run_id).data.metrics}
    expected = {name for name in METRICS if not name.startswith("gpu")}
    assert expected <= {*names, "best_<metric>"}
    for name in ("tokens_per_second", "eta_s", "best_eval_loss", "nonfinite_steps"):
        history = {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)}
        assert history == pytest.approx(scene.logged(name))
        assert set(history) == {2, 4}


def test_peak_memory_of_every_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine of ours has one, so torch says what it would say where there are two, one of them unused."""
    scene = Scene(tmp_path, max_steps=2, logging_steps=2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123_000_000 * device)
    scene.trainer.train()
    assert scene.logged("gpu_1_peak_memory_mb") == {2: 123.0}
    assert scene.logged("gpu_0_peak_memory_mb") == {}


def test_documented() -> None:
    names = re.findall(r"^\| `([^`]+)` \|", DOCS.read_text(), re.MULTILINE)
    assert names == list(METRICS)


def test_two_ranks(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name("run_numbers_rank.py")), str(tmp_path)]
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in (0, 1)
    ]
    try:
        assert [rank.wait(180) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    parts = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for begin, end in ((0, 2), (2, 4)):
        samples = [i for part in parts for step in part["steps"][begin:end] for batch in step for i in batch]
        assert len(set(samples)) > len(parts[0]["steps"][0][0]), "both ranks have samples of their own"
        for part in parts:
            assert part["samples_per_second"][str(end)] == pytest.approx(len(samples) / (2 * STEP_S))
            tokens = sum(LENGTHS[i] for i in samples)
            assert part["tokens_per_second"][str(end)] == pytest.approx(tokens / (2 * STEP_S))
    # One rank had a loss that is not finite in the second step, and the other in the fourth.
    assert parts[0]["nonfinite_steps"] == {"2": 1, "4": 2}


# --- TRL's trainers ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples as the batch size says; tokens as TRL counts them itself, with a sync at every batch."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    ticks = _Ticks()
    numbers = RunNumbers(lambda: ticks.now)
    options = {"max_steps": 4, "gradient_accumulation_steps": 2}
    trainer = new_trainer(method, tiny_model, tmp_path, ticks, numbers, **options)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["samples_per_second"] for entry in logs] == [8.0] * 4
    counted = list(accumulate(entry["tokens_per_second"] for entry in logs))
    if method != "orpo":  # it does not count them
        assert counted == [entry["num_tokens"] for entry in logs]


def test_counting_changes_nothing(tiny_model: str, tmp_path: Path) -> None:
    weights = []
    for callbacks in ((), (RunNumbers(),)):
        options = {"gradient_accumulation_steps": 2, "eval_dataset": rows("sft", 4), "eval_strategy": "steps"}
        trainer = new_trainer("sft", tiny_model, tmp_path, *callbacks, eval_steps=2, **options)
        trainer.train()
        weights.append(trainer.model.state_dict())
    without, with_numbers = weights
    assert without.keys() == with_numbers.keys()
    assert all(torch.equal(without[name], with_numbers[name]) for name in without)


def _joined(batch: str) -> tuple[dict[str, Any], int, int]:
    """A batch as TRL's own collator makes it, its samples, the tokens in it without padding."""
    from trl.experimental.utils import DPODataCollatorWithPadding
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    def ids(length: int) -> list[int]:
        return [7] * length

    if batch == "orpo":
        parts = ({"prompt": 2, "chosen": 5, "rejected": 6}, {"prompt": 1, "chosen": 7, "rejected": 3})
        pairs = [
            {f"{part}_input_ids": ids(length) for part, length in lengths.items()}
            | {f"{part}_attention_mask": [1] * length for part, length in lengths.items()}
            for lengths in parts
        ]
        return DPODataCollatorWithPadding(0)(pairs), 2, 5 + 6 + 7 + 3
    collate = DataCollatorForLanguageModeling(0, padding_free=True)
    if batch == "packed":
        return collate([{"input_ids": ids(8), "seq_lengths": [3, 5]}]), 2, 3 + 5
    return collate([{"input_ids": ids(3)}, {"input_ids": ids(5)}, {"input_ids": ids(1)}]), 3, 3 + 5 + 1


@pytest.mark.parametrize("batch", [[torch.ones(2, 3)], {"text": ["a", "b"]}])
def test_what_cannot_be_counted(batch: Any) -> None:
    assert samples_of(batch) is None
    assert tokens_of(batch) is None


@pytest.mark.parametrize("batch", ["orpo", "packed", "padding-free"])
def test_batches_of_several_parts(batch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    inputs, samples, tokens = _joined(batch)
    counted = tokens_of(inputs)
    assert counted is not None
    assert (samples_of(inputs), int(counted)) == (samples, tokens)


# --- MLflow's system metrics ---------------------------------------------------------------------


def _monitors() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]


def test_system_metrics(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    log = RunLog(None, "measured")
    client = MlflowClient()
    wait_for(
        lambda: "system/cpu_utilization_percentage" in client.get_run(log.run_id).data.metrics,
        "a measurement",
    )
    log.end("finished")
    assert _monitors() == []


def test_system_metrics_switched_off(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    log = RunLog(None, "not measured")
    assert _monitors() == []
    log.end("finished")


def test_ftlab_train(
    tiny_model: str, tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It logs them without being asked, and the machine's load besides."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.02")
    Path("data.jsonl").write_text('{"text": "abc"}\n{"text": "bcdef"}\n' * 4)
    words = {
        "model": tiny_model,
        "data": "data.jsonl",
        "max_steps": "2",
        "logging_steps": "1",
        "use_cpu": "true",
    }
    options = [part for key, value in words.items() for part in (f"--{key}", value)]
    outcome = Training(load_config(METHODS["sft"], None, options)).run()
    metrics = MlflowClient().get_run(outcome.run_id).data.metrics
    assert {"samples_per_second", "tokens_per_second", "eta_s", "nonfinite_steps"} <= metrics.keys()
    assert _monitors() == []
