"""A program of two ranks: the cases of `test_ranks.py`, one training after the other in one process group.

``torchrun --nproc_per_node 2 ranks_child.py FOLDER`` leaves ``<case>-<rank>.json`` in the folder: what every
optimizer step of that rank used and how the case ended; on rank 0 also the run's tags.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from training_tiny import Lab, Net, arguments, data, weights
from transformers import Trainer, TrainerCallback

from ftlab_mlflow import LiveControl, attach
from ftlab_mlflow.control.messages import Update
from ftlab_mlflow.control.wire import utc_now

RANK = int(os.environ["RANK"])
SYNC_STEPS = 4
POLL_S = 0.1
STEPS = 40
ROWS = 64


class Begun(TrainerCallback):
    """Notes the steps begun; a training that goes back begins some of them twice."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(state.global_step + 1)


class Pair(Lab):
    """A tiny training of two ranks. Rank 0 has the store and tells the training what to do."""

    def __init__(self, folder: Path, before: "Pair | None" = None) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(folder, before.store if before else None, before.run_id if before else None)
        self.begun = Begun()
        self.ended: list[str] = []

    def make_two(
        self,
        *callbacks: TrainerCallback,
        attached: bool = False,
        store: bool = True,
        poll_interval: float = POLL_S,
        sync_steps: int = SYNC_STEPS,
        **options: Any,
    ) -> Trainer:
        chosen = {"max_steps": STEPS, "logging_steps": 10, "ddp_timeout": 60, "ddp_backend": "gloo"}
        self.trainer = Trainer(
            model=Net(),
            args=arguments(self.folder, **(chosen | options)),
            train_dataset=data(ROWS),  # type: ignore[arg-type]
            eval_dataset=data(8),  # type: ignore[arg-type]
            data_collator=self._collate,
            callbacks=[*callbacks, self.begun, self.script, self.recorder],
        )
        where = {"store": self.store, "run_id": self.run_id} if store and RANK == 0 else {}
        live: dict[str, Any] = {"rank_sync_steps": sync_steps, **where}
        if attached:
            self.control = attach(self.trainer, poll_interval, **live)
        else:
            self.control = LiveControl(poll_interval, **live)
            self.trainer.add_callback(self.control)
        return self.trainer

    def tell(self, step: int, request_id: str, **fields: Any) -> None:
        if RANK == 0:
            super().tell(step, request_id, **fields)

    def train(self, **options: Any) -> None:
        try:
            self.trainer.train(**options)
            self.ended.append("returned")
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            self.ended.append(repr(error))

    def leave(self, case: str, **more: Any) -> None:
        """Writes what this rank saw."""
        assert self.control is not None
        groups = self.recorder.groups
        seen = {
            "ended": self.ended,
            "outcome": self.control.outcome,
            "begun": self.begun.steps,
            "rates": [max(group["lr"] for group in at) for at in groups],
            "decays": [[group["weight_decay"] for group in at] for at in groups],
            "batches": [{k: v.tolist() for k, v in batch.items()} for batch in self.batches],
            "weights": [w.tolist() for w in weights(self.trainer.model)],
            "checkpoints": self.checkpoints(),
            "tags": self.tags() if RANK == 0 else {},
            **more,
        }
        (self.folder.parent / f"{case}-{RANK}.json").write_text(json.dumps(seen))


class StubbornGroup(dict[str, Any]):
    """A parameter group whose weight decay cannot be changed."""

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "weight_decay" and value != self.get(key):
            raise OSError("this group is read-only")
        super().__setitem__(key, value)


class FallingGroup(StubbornGroup):
    """Its rate can also not be raised, so that what was lowered cannot be undone."""

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "lr" and value > self["lr"]:
            raise OSError("this rate only falls")
        super().__setitem__(key, value)


class OnRank1(TrainerCallback):
    """Makes the optimizer's first group one of another kind."""

    def __init__(self, kind: type[dict[str, Any]]) -> None:
        self._kind = kind

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if RANK == 1:
            groups = kwargs["optimizer"].param_groups
            groups[0] = self._kind(groups[0])


def together(folder: Path) -> None:
    """Requests at once, at a step and in vain; a checkpoint, an evaluation, and a stop."""
    pair = Pair(folder)
    pair.make_two()
    pair.tell(5, "now", set={"learning_rate": 0.002, "weight_decay": 0.2})
    pair.tell(6, "exact", set={"learning_rate": 0.004}, at_step=21)
    pair.tell(6, "bad", set={"learning_rate": 7})
    pair.tell(12, "evaluate", command="evaluate")
    pair.tell(12, "checkpoint", command="checkpoint")
    pair.tell(30, "stop", command="stop")
    pair.train()
    pair.leave("together")


def idle(folder: Path) -> None:
    """Nothing is asked for; counts what that costs."""
    calls: list[int] = []
    plain = dist.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(*args, **kwargs)

    pair = Pair(folder)
    pair.make_two(poll_interval=60, max_steps=200)
    dist.all_reduce = counted
    pair.train()
    dist.all_reduce = plain
    pair.leave("idle", meetings=len(calls))


def undo(folder: Path) -> None:
    """Rank 1 cannot change its weight decay, nor write its part of a checkpoint."""
    pair = Pair(folder)
    pair.make_two(OnRank1(StubbornGroup), weight_decay=0.01)
    pair.tell(5, "both", set={"learning_rate": 0.002, "weight_decay": 0.2})
    pair.tell(10, "rate", set={"learning_rate": 0.003})

    def occupied() -> None:
        # torch.save meets a directory where rank 1's random state belongs, whatever the step will be.
        for step in range(20, STEPS):
            (folder / "out" / f"checkpoint-{step}" / "rng_state_1.pth").mkdir(parents=True)

    if RANK == 0:
        pair.script.at[19] = occupied
    pair.tell(20, "checkpoint", command="checkpoint")
    pair.train()
    pair.leave("undo")


def diverged(folder: Path) -> None:
    """Rank 1 cannot even undo."""
    pair = Pair(folder)
    pair.make_two(OnRank1(FallingGroup), weight_decay=0.01)
    pair.tell(5, "both", set={"learning_rate": 0.002, "weight_decay": 0.2})
    pair.train()
    pair.leave("diverged")


def pause(folder: Path) -> None:
    """A pause of more than twice the ranks' timeout, with a change in it."""
    pair = Pair(folder)
    pair.make_two(ddp_timeout=3)
    pair.tell(5, "pause", command="pause")
    seconds = []

    def client() -> None:
        while "pause" not in pair.answered():
            time.sleep(0.01)
        began = time.monotonic()
        while time.monotonic() < began + 6.5:
            time.sleep(0.1)
        pair.send("rate", set={"learning_rate": 0.002})
        while "rate" not in pair.answered():
            time.sleep(0.01)
        pair.send("resume", command="resume")
        seconds.append(time.monotonic() - began)

    thread = threading.Thread(target=client, daemon=True)
    if RANK == 0:
        thread.start()
    pair.train()
    pair.leave("pause", paused=seconds, paused_s=pair.control.paused_s if pair.control else 0)


def _boom() -> None:
    raise ZeroDivisionError("no data left")


def resume(folder: Path) -> None:
    """Both ranks fail after a checkpoint; the next training goes on from it."""
    first = Pair(folder)
    first.make_two(save_strategy="steps", save_steps=10)
    first.tell(4, "before", set={"learning_rate": 0.005})
    first.tell(12, "after", set={"learning_rate": 0.002, "weight_decay": 0.3})
    first.script.at[24] = _boom
    first.train()
    first.leave("died")
    second = Pair(folder, first)
    second.make_two()
    second.train(resume_from_checkpoint=str(folder / "out" / "checkpoint-10"))
    second.leave("resumed")


def rollback(folder: Path) -> None:
    """Attached: back to a checkpoint on both ranks, with another rate since."""
    pair = Pair(folder)
    pair.make_two(attached=True, save_strategy="steps", save_steps=10)
    pair.tell(4, "before", set={"weight_decay": 0.1})
    pair.tell(12, "after", set={"learning_rate": 0.002})
    pair.tell(15, "back", command="rollback", args={"checkpoint": "checkpoint-10"})
    pair.tell(25, "batch", set={"per_device_train_batch_size": 2})
    pair.train()
    pair.leave("rollback")


def batches(folder: Path) -> None:
    """Attached: other batches in the middle of an epoch; what each micro-batch of this rank held."""
    pair = Pair(folder)
    trainer = pair.make_two(attached=True, max_steps=-1, num_train_epochs=2, weight_decay=0.0)
    used: list[tuple[int, list[list[float]], list[float]]] = []
    plain = trainer.training_step

    def noted(model: Any, inputs: Any, *rest: Any) -> Any:
        used.append((trainer.state.global_step + 1, inputs["x"].tolist(), inputs["labels"].tolist()))
        return plain(model, inputs, *rest)

    trainer.training_step = noted  # type: ignore[method-assign]
    sizes = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2}
    pair.tell(1, "sizes", set=sizes, at_step=5)
    pair.train()
    pair.leave("batches", used=used, max_steps=trainer.state.max_steps, epoch=trainer.state.epoch)


def lost(folder: Path) -> None:
    """Rank 0 comes to a meeting later than the ranks' timeout."""
    pair = Pair(folder)
    pair.make_two(sync_steps=1, ddp_timeout=3)

    def linger() -> None:
        began = time.monotonic()
        while time.monotonic() < began + 5:
            time.sleep(0.1)

    if RANK == 0:
        pair.script.at[5] = linger
    pair.tell(5, "late", set={"learning_rate": 0.002})
    pair.tell(20, "later", set={"learning_rate": 0.003})
    pair.train()
    pair.leave("lost")


def refused(folder: Path) -> None:
    """The model says that its ranks share each sample, as with tensor parallelism."""
    pair = Pair(folder)
    pair.make_two(max_steps=4).model._tp_size = 2
    pair.train()
    pair.leave("refused")


def unfit(folder: Path) -> None:
    """It goes on from a checkpoint with a value that is out of bounds."""
    first = Pair(folder)
    first.make_two(max_steps=4, save_strategy="steps", save_steps=2)
    first.train()
    second = Pair(folder, first)
    second.make_two(max_steps=6)
    assert second.control is not None
    second.control.ask_first([Update(at=utc_now(), set={"learning_rate": 2.0})], must_fit=True)
    second.train(resume_from_checkpoint=str(folder / "out" / "checkpoint-2"))
    second.leave("unfit")


def signalled(folder: Path) -> None:
    """SIGTERM reaches rank 1 alone."""
    pair = Pair(folder)
    pair.make_two(save_strategy="steps", save_steps=10**5, max_steps=10**5)
    if RANK == 1:
        pair.script.at[5] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    pair.train()
    pair.leave("signalled")


CASES: dict[str, Callable[[Path], None]] = {
    "together": together,
    "idle": idle,
    "undo": undo,
    "diverged": diverged,
    "pause": pause,
    "resume": resume,
    "rollback": rollback,
    "batches": batches,
    "lost": lost,
    "refused": refused,
    "unfit": unfit,
    "signalled": signalled,
}


def served(folder: Path) -> None:
    """Attached, on MLflow, until somebody from outside ends it."""
    pair = Pair(folder)
    pair.make_two(attached=True, store=False, report_to=["mlflow"], max_steps=10**6, save_strategy="epoch")
    try:
        pair.trainer.train()
    finally:
        pair.ended.append(repr(sys.exc_info()[1]))
        pair.leave("served")


def main() -> None:
    folder = Path(sys.argv[1])
    if sys.argv[2:] == ["served"]:
        served(folder / "served")
        return
    for name, case in CASES.items():
        if name in (sys.argv[2:] or CASES):
            began = time.monotonic()
            case(folder / name)
            print(f"rank {RANK}: {name} took {time.monotonic() - began:.1f} s", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
