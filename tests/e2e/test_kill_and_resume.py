"""`ftlab train sft` killed with -9 and resumed with `--resume`: the same training as one never killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file
from tiny_llama import tiny_config, tiny_tokenizer
from transformers import LlamaForCausalLM

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.messages import Ack, Status, Update
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.control.wire import parse_time
from ftlab_mlflow.training.checkpoints import ASIDE

LIMIT_S = 240.0
STEPS, SAVED, ROWS, BATCH = 24, 4, 20, 4
"""Five steps an epoch, so that most checkpoints lie in the middle of one."""
OPTIONS = {
    "model": "./model",
    "data": "data.jsonl",
    "output_dir": "out",
    "max_steps": STEPS,
    "save_steps": SAVED,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "logging_steps": 1,
    "eval_strategy": "no",
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "max_length": 16,
    "poll_interval": 0.02,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "use_cpu": True,
}
ARGUMENTS = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]


def request(**fields: Any) -> str:
    return Update(at=parse_time("2026-01-01T00:00:00.000Z"), by="alice", **fields).encode()


EARLY = request(set={"weight_decay": 0.3}, at_step=3)
LATE = request(set={"learning_rate": 4e-3}, at_step=10)
TOLD = {"early": EARLY, "late": LATE}


@dataclass
class Lab:
    """One folder with a model, data and MLflow; `play` runs a command line there. `kill` is where it dies."""

    folder: Path
    uri: str
    parent: subprocess.Popen[str]
    codes: list[int] = field(default_factory=list)

    def play(self, *arguments: str, kill: tuple[str, int] = ("", 0), **order: Any) -> int:
        order |= {"folder": str(self.folder), "uri": self.uri, "arguments": arguments, "kill": kill}
        assert self.parent.stdin
        assert self.parent.stdout
        print(json.dumps(order), file=self.parent.stdin, flush=True)
        limit = threading.Timer(LIMIT_S, self.parent.kill)
        limit.start()
        self.codes = json.loads(self.parent.stdout.readline())
        limit.cancel()
        return self.codes[0]

    def launch(self, *arguments: str, kill: tuple[str, int] = ("", 0), **order: Any) -> None:
        code = self.play("train", "sft", *ARGUMENTS, *arguments, kill=kill, **({"tell": TOLD} | order))
        assert code == (-signal.SIGKILL if kill[0] else 0), self.output[-3000:]

    def resume(self, *arguments: str, kill: tuple[str, int] = ("", 0), **order: Any) -> None:
        code = self.play("train", "sft", "--resume", *arguments, kill=kill, **order)
        assert code == (-signal.SIGKILL if kill[0] else 0), self.output[-3000:]

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    @property
    def store(self) -> MlflowRunStore:
        return MlflowRunStore(self.uri)

    @property
    def run_id(self) -> str:
        (run,) = self.store.find()
        return run.run_id

    def acks(self) -> dict[str, Ack]:
        """Every request of the run has one answer."""
        entries = Ledger.read(self.store.get(self.run_id).tags).entries
        return {entry.id: entry.ack for entry in entries if entry.ack}

    def steps(self, rank: str = "") -> list[dict[str, Any]]:
        """What each step used, of the processes together: of a step that was trained twice, the later one."""
        lines = [json.loads(line) for line in (self.folder / f"steps{rank}").read_text().splitlines()]
        return [line for _, line in sorted({line["step"]: line for line in lines}.items())]

    def weights(self, folder: str = "out") -> dict[str, torch.Tensor]:
        return load_file(self.folder / folder / "model.safetensors")

    def metrics(self) -> dict[str, list[tuple[int, float]]]:
        client = MlflowClient(self.uri)
        keys = client.get_run(self.run_id).data.metrics
        return {key: [(m.step, m.value) for m in client.get_metric_history(self.run_id, key)] for key in keys}


@pytest.fixture(scope="module")
def parent() -> Iterator[subprocess.Popen[str]]:
    path = Path(__file__).with_name("kill_child.py")
    # None of the paths of a child's MLflow may come from this process's environment.
    process = subprocess.Popen(
        [sys.executable, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def new_lab(
    parent: subprocess.Popen[str],
    new_sqlite: Callable[[Path], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[], Lab]:
    def make() -> Lab:
        folder = tmp_path_factory.mktemp("kill")
        lab = Lab(folder, new_sqlite(folder), parent)
        write_model(folder / "model")
        rows = [{"input_ids": [4 + i, *((7 * i + 3 * k) % 28 + 4 for k in range(7))]} for i in range(ROWS)]
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return lab

    return make


def write_model(folder: Path) -> None:
    """One layer, with dropout, so that the random states matter."""
    torch.manual_seed(5)
    LlamaForCausalLM(tiny_config(attention_dropout=0.2)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module")
def whole(new_lab: Callable[[], Lab]) -> Lab:
    """Never killed."""
    lab = new_lab()
    lab.launch()
    return lab


@pytest.fixture(scope="module")
def whole_from_8(new_lab: Callable[[], Lab]) -> Lab:
    """Never killed, and told at step 8 what others are told at step 10."""
    lab = new_lab()
    lab.launch(tell={"early": EARLY, "late": request(set={"learning_rate": 4e-3}, at_step=8)})
    return lab


def assert_same(lab: Lab, whole: Lab, acks: dict[str, Ack] | None = None) -> None:
    """The same samples, rates and weights, and a run that looks as if nothing had happened."""
    assert lab.steps() == whole.steps()
    weights, expected = lab.weights(), whole.weights()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    metrics, all_metrics = lab.metrics(), whole.metrics()
    assert metrics.keys() == all_metrics.keys()
    for key, points in metrics.items():
        steps = [step for step, _ in points]
        assert len(steps) == len(set(steps)), f"{key} has a step twice: {sorted(steps)}"
        assert set(steps) == {step for step, _ in all_metrics[key]} or key.startswith("live/")
    run = lab.store.get(lab.run_id)
    assert (run.status, Status.decode(run.tags[tags.STATUS]).state) == ("FINISHED", "finished")
    answers = {i: ack.status for i, ack in (acks or lab.acks()).items()}
    assert answers == {"early": "applied", "late": "applied"}


def test_the_training_that_is_never_killed(whole: Lab) -> None:
    """The oracle itself: every epoch uses each sample once, and requests are applied where they should."""
    steps = whole.steps()
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    per_epoch = ROWS // BATCH
    for epoch in range(STEPS // per_epoch):
        ids = [i for line in steps[epoch * per_epoch : (epoch + 1) * per_epoch] for i in line["ids"]]
        assert sorted(ids) == list(range(4, 4 + ROWS))
    assert {i: ack.step for i, ack in whole.acks().items()} == {"early": 3, "late": 10}
    assert steps[9]["rate"] > 4e-3 == steps[10]["rate"]
    assert [step for step, _ in whole.metrics()["loss"]] == list(range(1, STEPS + 1))


KILLS: dict[str, tuple[str, int]] = {
    "before the request is applied": ("boundary", 10),
    "between apply and answer": ("answer", 10),
    "in the middle of a checkpoint": ("optimizer", 16),
}
SLOW_KILLS: dict[str, tuple[str, int]] = {
    "in the middle of a step": ("forward", 7),
    "with the gradient of a step": ("gradient", 13),
    "at the end of an epoch": ("boundary", 15),
    "right after a checkpoint": ("forward", 5),
    "while a step is logged": ("log", 14),
    "a checkpoint with weights only": ("weights", 16),
    "a checkpoint without random state": ("random", 16),
    "a checkpoint with half of its last file": ("state", 16),
    "the last checkpoint is written, the model is not": ("model", 24),
}


HALF_WRITTEN = ("weights", "optimizer", "random", "state")


@pytest.mark.parametrize(
    "point",
    [*KILLS, *(pytest.param(point, marks=pytest.mark.slow) for point in SLOW_KILLS)],
)
def test_killed_and_resumed(new_lab: Callable[[], Lab], whole: Lab, point: str) -> None:
    kill = (KILLS | SLOW_KILLS)[point]
    lab = new_lab()
    lab.launch(kill=kill)
    died = lab.store.get(lab.run_id)
    assert died.status == "RUNNING"
    is_half_written = kill[0] in HALF_WRITTEN
    lab.resume()
    assert_same(lab, whole)
    assert ("Skipped the checkpoint" in lab.output) == is_half_written
    assert (lab.folder / "out" / ASIDE).exists() == is_half_written
    # A request that is applied twice is acknowledged once, and was not in force before its step.
    assert {i: ack.step for i, ack in lab.acks().items()} == {"early": 3, "late": 10}


def test_killed_after_the_answer_before_the_next_checkpoint(
    new_lab: Callable[[], Lab], whole_from_8: Lab
) -> None:
    """What was asked for is in force from the checkpoint on; commands for the dead process do nothing."""
    lab = new_lab()
    lab.launch(kill=("answered", 11))
    assert {i: ack.step for i, ack in lab.acks().items()} == {"early": 3, "late": 10}
    commands = {"stop": request(command="stop"), "back": request(command="rollback")}
    lab.store.write(lab.run_id, {tags.UPDATE_PREFIX + i: text for i, text in commands.items()})
    lab.resume()
    acks = lab.acks()
    assert {acks[i].code for i in commands} == {"expired"}
    for i in commands:
        del acks[i]
    assert_same(lab, whole_from_8, acks)
    assert "learning_rate 0.004, asked for at step 10 by alice, wins over 0.01 of the launch" in lab.output


CUT = {
    "early": request(set={"per_device_train_batch_size": 3}, at_step=3),
    "late": request(set={"gradient_accumulation_steps": 1, "learning_rate": 4e-3}, at_step=10),
}


@pytest.mark.parametrize("kill", [("answer", 10), pytest.param(("forward", 14), marks=pytest.mark.slow)])
def test_killed_with_another_batch_size(new_lab: Callable[[], Lab], kill: tuple[str, int]) -> None:
    """The sample to go on with is known, whatever the batches were; an epoch uses each sample once."""
    whole = new_lab()
    whole.launch(tell=CUT)
    lab = new_lab()
    lab.launch(kill=kill, tell=CUT)
    lab.resume()
    assert_same(lab, whole)
    assert {i: ack.step for i, ack in lab.acks().items()} == {"early": 3, "late": 10}
    ids = [i for line in lab.steps() for i in line["ids"]]
    assert [len(line["ids"]) for line in lab.steps()][:5] == [4, 4, 4, 6, 2]
    assert len(lab.steps()[10]["ids"]) == 3
    for start in range(0, len(ids) - ROWS, ROWS):
        assert sorted(ids[start : start + ROWS]) == list(range(4, 4 + ROWS))


@pytest.mark.slow
def test_killed_again_and_again(new_lab: Callable[[], Lab], whole: Lab) -> None:
    lab = new_lab()
    lab.launch(kill=("forward", 6))
    lab.resume(kill=("optimizer", 8))
    lab.resume(kill=("answer", 10))
    lab.resume(lab.run_id[:9], kill=("gradient", 24))
    lab.resume(lab.run_id)
    assert_same(lab, whole)


def test_other_arguments(new_lab: Callable[[], Lab], whole: Lab) -> None:
    """A value given now wins over what the run was told; a file counts where it differs from the launch."""
    lab = new_lab()
    lab.launch(kill=("forward", 14))
    (lab.folder / "now.yaml").write_text("learning_rate: 1.0e-2\nlogging_steps: 2\nsave_steps: 6\n")
    assert_nothing_happens_if_one_is_refused(lab)
    lab.resume("--config", "now.yaml", "--weight_decay", "0.2", "--save_total_limit", "2")
    steps, expected = lab.steps(), whole.steps()
    assert [line["ids"] for line in steps] == [line["ids"] for line in expected]
    assert [line["rate"] for line in steps] == [line["rate"] for line in expected], (
        "the file said nothing new"
    )
    entries = Ledger.read(lab.store.get(lab.run_id).tags).entries
    asked = [e.update.set for e in entries if e.update and e.update.reason == "given on resume"]
    assert asked == [{"logging_steps": 2}, {"save_steps": 6}, {"weight_decay": 0.2}]
    assert {step for step, _ in lab.metrics()["loss"]} - {13} == {*range(1, 13), 14, 16, 18, 20, 22, 24}
    assert {path.name for path in (lab.folder / "out").glob("checkpoint-*")} == {
        "checkpoint-18",
        "checkpoint-24",
    }
    for line in (
        "weight_decay 0.2, given now (asked for as a live change), wins over 0.3, asked for at step 3",
        "logging_steps 2, given now (asked for as a live change), wins over 1",
        "save_total_limit 2, given now (as an argument), wins over the default",
        "learning_rate 0.004, asked for at step 10 by alice, wins over 0.01 of the launch",
    ):
        assert line in lab.output


def assert_nothing_happens_if_one_is_refused(lab: Lab) -> None:
    def requests() -> set[str]:
        return {key for key in lab.store.get(lab.run_id).tags if key.startswith(tags.UPDATE_PREFIX)}

    (config,) = lab.folder.rglob("config.yaml")
    before = (requests(), config.read_text(), lab.steps())
    assert (
        lab.play("train", "sft", "--resume", "--max_steps", "3", "--logging_steps", "5", "--seed", "9") == 2
    )
    text = "the training refuses what was given: max_steps: must be above 12, the steps that are done"
    assert f"\nError: {text}\n" in lab.output
    assert "wins over" not in lab.output
    assert (requests(), config.read_text(), lab.steps()) == before
    run = lab.store.get(lab.run_id)
    assert (run.status, Status.decode(run.tags[tags.STATUS]).error) == ("FAILED", f"ConfigError: {text}")


def test_killed_before_the_first_checkpoint(new_lab: Callable[[], Lab]) -> None:
    """It never silently begins anew."""
    lab = new_lab()
    lab.launch(kill=("boundary", 3))
    assert lab.play("train", "sft", "--resume") == 2
    assert f"run {lab.run_id[:8]} " in lab.output
    assert "has no whole checkpoint in" in lab.output
    assert "start anew: `ftlab train sft`" in lab.output
    assert lab.store.get(lab.run_id).status == "RUNNING", "nothing was touched"
    assert len(lab.steps()) == 3


def test_sigterm_before_the_first_step_ends_the_run(new_lab: Callable[[], Lab]) -> None:
    """The trainer was called, and live control does not catch signals yet."""
    lab = new_lab()
    assert lab.play("train", "sft", *ARGUMENTS, kill=("term", 0)) == 143, lab.output[-3000:]
    assert lab.store.get(lab.run_id).status == "KILLED"


@pytest.mark.slow
def test_two_ranks(new_lab: Callable[[], Lab]) -> None:
    """Rank 0 dies in a checkpoint; both ranks go on from the one before."""
    whole, lab = new_lab(), new_lab()
    whole.launch("--ddp_backend", "gloo", ranks=2)
    lab.launch("--ddp_backend", "gloo", ranks=2, kill=("optimizer", 16))
    lab.resume(ranks=2)
    assert lab.codes == [0, 0]
    for rank in ("0", "1"):
        assert lab.steps(rank) == whole.steps(rank)
    assert all(torch.equal(lab.weights()[name], tensor) for name, tensor in whole.weights().items())
    assert lab.store.get(lab.run_id).status == "FINISHED"
