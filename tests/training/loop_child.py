"""Plain loops in processes of their own (`forked_cases`); tests look at what they leave behind."""

import json
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forked_cases import main
from loop_tiny import POLL_S, batch, groups, net
from training_doubles import wait_for

from ftlab_mlflow import LiveLoop, LiveRun, MlflowRunStore
from ftlab_mlflow.control.store import Point

ENDLESS = 10**6


class Program:
    """A program with a plain loop, as its author would write it: it saves, it can resume."""

    def __init__(self, folder: Path, *, saves: bool = True, **options: Any) -> None:
        self.folder = folder
        self.model = net()
        self.optimizer = torch.optim.AdamW(groups(self.model), weight_decay=0.0)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.999)
        chosen = {"max_steps": ENDLESS, "poll_interval": POLL_S, "checkpoint": self.save if saves else None}
        self.live = LiveLoop(self.optimizer, self.scheduler, **(chosen | options))
        self.mix = self.live.tunable("mix_ratio", 0.5, min=0, max=1)
        self.used: list[tuple[float, float]] = []

    def parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "live": self.live,
        }

    def save(self) -> Path:
        """Whole or not at all: a program can be killed while it writes."""
        path = self.folder / f"step-{self.live.steps_done}.pt"
        torch.save({name: part.state_dict() for name, part in self.parts().items()}, f"{path}.part")
        return Path(f"{path}.part").replace(path)

    def resume(self, path: Path) -> None:
        checkpoint = torch.load(path, weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(checkpoint[name])

    def one(self, step: int) -> None:
        x, y = batch(step)
        torch.nn.functional.mse_loss(self.model(x), y).backward()
        if dist.is_initialized():
            for parameter in self.model.parameters():
                dist.all_reduce(parameter.grad)
        self.used.append((self.mix.value, self.optimizer.param_groups[0]["lr"]))
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()


def by_signal(folder: Path, number: int, *, saves: bool) -> None:
    program = Program(folder, saves=saves)
    with program.live as live:
        for step in range(ENDLESS):
            program.one(step)
            if step == 5:
                os.kill(os.getpid(), number)
            if live.step():
                break
    print("never printed")


class DiesBeforeItAnswers(MlflowRunStore):
    """Ends its process with -9 when it is to write an answer."""

    def write(self, run_id: str, tags: Mapping[str, str], points: Sequence[Point] = ()) -> None:
        if any(key.startswith("ftlab.ack.") for key in tags):
            os.kill(os.getpid(), signal.SIGKILL)
        super().write(run_id, tags, points)


def killed(folder: Path) -> None:
    """Dies between applying and answering; what it had applied is in a checkpoint that says so, or is not."""
    (run,) = MlflowRunStore().find()
    program = Program(folder, store=DiesBeforeItAnswers(), run_id=run.run_id)
    with program.live as live:
        for step in range(ENDLESS):
            program.one(step)
            live.step()
            if step % 10 == 9:
                program.save()


def two_ranks(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    program = Program(folder, saves=False, evaluate=lambda: {"rank": float(rank)})

    def client() -> None:
        run = LiveRun(str(program.live.run_id))
        wait_for(lambda: run.data().is_live, "the run to listen", 60)
        run.update(mix_ratio=0.9, learning_rate=0.003, at_step=40).wait(60)
        run.evaluate().wait(60)
        run.stop().wait(60)

    with program.live as live:
        if rank == 0:
            threading.Thread(target=client, daemon=True).start()
        for step in range(ENDLESS):
            program.one(step)
            if live.step():
                break
    weights = [parameter.tolist() for parameter in program.model.parameters()]
    (folder / f"rank-{rank}").write_text(json.dumps({"used": program.used, "weights": weights}))
    dist.destroy_process_group()


CASES = {
    "sigterm": lambda folder: by_signal(folder, signal.SIGTERM, saves=True),
    "sigint": lambda folder: by_signal(folder, signal.SIGINT, saves=False),
    "killed": killed,
    "two ranks": two_ranks,
}


if __name__ == "__main__":
    main(CASES, on_two_ranks=["two ranks"])
