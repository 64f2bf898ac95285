"""`ftlab train` in processes that kill themselves (-9) at a chosen point. What imports cost is paid once.

Reads one JSON object a line: ``{"folder", "uri", "arguments", "kill": [point, step], "tell": {id: text},
"ranks"}``. Each is a fork of this process that runs the command line in its folder; the answer is a line with
its exit codes. In its folder it leaves ``output``, and ``steps``: one JSON object for each optimizer step
with the ids of its samples (their first tokens) and its learning rate.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.store.tracking.sqlalchemy_store
import torch
import trl.trainer.sft_trainer
from transformers import LlamaForCausalLM, TrainerCallback, TrainerState

from ftlab_mlflow import cli
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.training import resuming, train

USED_BY_EVERY_CHILD = (LlamaForCausalLM, mlflow, resuming, trl)

LIMIT_S = 60


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(LIMIT_S)  # until it has come


def die_half_written(path: Any, content: bytes) -> None:
    Path(path).write_bytes(content[: len(content) // 2])
    die()


class Notes(TrainerCallback):
    """Writes down what every step used, and dies at the beginning or the end of one, or while it logs."""

    def __init__(self, trainer: Any, kill: tuple[str, int]) -> None:
        self.trainer, self.kill = trainer, kill
        self.ids: list[int] = []
        plain = trainer.training_step

        def training_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.ids += inputs["input_ids"][:, 0].tolist()
            self._die_at("forward", trainer.state.global_step + 1)
            return plain(model, inputs, *args, **kwargs)

        trainer.training_step = training_step

    def _die_at(self, point: str, step: int) -> None:
        if self.kill == (point, step):
            die()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._die_at("gradient", state.global_step + 1)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rate = kwargs["optimizer"].param_groups[0]["lr"]
        line = json.dumps({"step": state.global_step + 1, "ids": sorted(self.ids), "rate": rate})
        with Path(f"steps{os.environ.get('RANK', '')}").open("a") as file:
            print(line, file=file)
        self.ids.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._die_at("boundary", state.global_step)  # live control comes after it

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._die_at("log", state.global_step)


class Told(train.Training):
    """A training that is told things from its beginning, and is noted down."""

    kill: tuple[str, int]
    tell: dict[str, str]

    def _trainer(self, *args: Any) -> Any:
        trainer = super()._trainer(*args)
        trainer.add_callback(Notes(trainer, self.kill))
        if self.log is not None:
            self.log.store.write(
                self.log.run_id, {f"ftlab.update.{i}": text for i, text in self.tell.items()}
            )
            point, step = self.kill
            if point in POINTS:
                POINTS[point](trainer, self.log, step)
        return trainer


def _at(trainer: Any, name: str, step: int, act: Callable[..., None]) -> None:
    plain = getattr(trainer, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == step:
            act(*args)
        return plain(*args, **kwargs)

    setattr(trainer, name, method)


def answer(trainer: Any, log: Any, step: int) -> None:
    """While the answer to what was applied at this step is being written."""
    plain = MlflowRunStore.write

    def write(self: Any, run_id: str, tags: Any, points: Any = ()) -> None:
        if any(key.startswith("ftlab.ack.") for key in tags) and trainer.state.global_step >= step:
            die()
        plain(self, run_id, tags, points)

    MlflowRunStore.write = write  # type: ignore[method-assign]
    _at(trainer, "get_batch_samples", step, lambda *_: time.sleep(LIMIT_S))


def answered(trainer: Any, log: Any, step: int) -> None:
    """As soon as everything that it was told is answered."""

    def wait(*_: Any) -> None:
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            tags = log.store.get(log.run_id).tags
            asked, given = ({k for k in tags if k.startswith(f"ftlab.{p}.")} for p in ("update", "ack"))
            if len(asked) == len(given):
                die()
            time.sleep(0.02)

    _at(trainer, "get_batch_samples", step, wait)


def optimizer(trainer: Any, log: Any, step: int) -> None:
    """In the middle of the optimizer's file."""
    plain = torch.save

    def save(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if str(file).endswith("optimizer.pt") and trainer.state.global_step == step:
            buffer = io.BytesIO()
            plain(content, buffer)
            die_half_written(file, buffer.getvalue())
        plain(content, file, *args, **kwargs)

    torch.save = save


def state(trainer: Any, log: Any, step: int) -> None:
    """In the middle of the last file of a checkpoint."""
    plain = TrainerState.save_to_json

    def save(self: Any, path: str) -> None:
        plain(self, path)
        if self.global_step == step:
            die_half_written(path, Path(path).read_bytes())

    TrainerState.save_to_json = save


POINTS: dict[str, Callable[[Any, Any, int], None]] = {
    "answer": answer,
    "answered": answered,
    "optimizer": optimizer,
    "state": state,
    "weights": lambda t, _, step: _at(t, "_save_optimizer_and_scheduler", step, lambda *_: die()),
    "random": lambda t, _, step: _at(t, "_save_rng_state", step, lambda *_: die()),
    "term": lambda t, _, step: _at(t, "get_train_dataloader", step, lambda *_: os.kill(os.getpid(), 15)),
    "model": lambda t, _, step: _at(t, "_finish_current_push", step, lambda *_: die()),
}


def child(order: dict[str, Any], environment: dict[str, str]) -> None:
    os.environ.update(environment | {"MLFLOW_TRACKING_URI": order["uri"]})
    folder = Path(order["folder"])
    os.chdir(folder)
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    Told.kill, Told.tell = tuple(order.get("kill", ("", 0))), order.get("tell", {})
    train.Training = Told  # type: ignore[misc]
    sys.exit(cli.run(order["arguments"]))


def forks(order: dict[str, Any]) -> list[int]:
    ranks = order.get("ranks", 1)
    environments: list[dict[str, str]] = [{}]
    if ranks > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environments = [common | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(ranks)]
    pids = []
    for environment in environments:
        pid = os.fork()
        if not pid:
            child(order, environment)
        pids.append(pid)
    codes = []
    for pid in pids:
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        if codes[-1] < 0:  # a launcher ends the others when one has died
            for other in pids[len(codes) :]:
                os.kill(other, signal.SIGKILL)
    return codes


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(forks(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
