"""A training that takes milliseconds, for tests of live control in a real `Trainer`."""

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from training_doubles import LIMIT_S, FlakyStore, request, wait_for
from transformers import Trainer, TrainerCallback, TrainingArguments

from ftlab_mlflow import LiveControl, attach
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Entry, Ledger, read_entry
from ftlab_mlflow.control.messages import Ack, Status
from ftlab_mlflow.control.surface import Surface

POLL_S = 0.003


class Net(torch.nn.Module):
    """Weights, biases and a norm: so weight decay has something to act on, and something to leave alone."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.first = torch.nn.Linear(4, 8)
        self.norm = torch.nn.LayerNorm(8)
        self.last = torch.nn.Linear(8, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.norm(self.first(x)))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.last(self.hidden(x)).squeeze(-1)
        return {"loss": torch.nn.functional.mse_loss(y, labels), "logits": y}


def data(rows: int = 32) -> list[dict[str, Any]]:
    """Pairs that a `Net` can learn."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 4, generator=generator)
    return [{"x": x[i].tolist(), "labels": float(x[i].sum() * 3)} for i in range(rows)]


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows of `data` as a batch."""
    return {key: torch.tensor([row[key] for row in rows]) for key in ("x", "labels")}


class Watched(Net):
    """A `Net` that notes the samples of every batch that it is trained with: ``rows`` of `data`."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.ids = {tuple(torch.tensor(row["x"]).tolist()): i for i, row in enumerate(data(rows))}
        self.seen: list[list[int]] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training:
            self.seen.append([self.ids[tuple(row.tolist())] for row in x])
        return super().forward(x, labels)


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    """Copies of all parameters."""
    return [parameter.detach().clone() for parameter in model.parameters()]


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    """Arguments of a short silent training; `options` go over them."""
    chosen: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 4,
        "max_steps": 12,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**(chosen | options))


class Script(TrainerCallback):
    """Does something at the end of given steps, before live control looks at its queue."""

    def __init__(self, at: Mapping[int, Callable[[], None]] | None = None) -> None:
        self.at = dict(at or {})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.at:
            self.at[state.global_step]()


class Recorder(TrainerCallback):
    """Notes what every optimizer step really used."""

    def __init__(self) -> None:
        self.groups: list[list[dict[str, Any]]] = []
        self.events: list[tuple[str, int]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        groups = kwargs["optimizer"].param_groups
        self.groups.append([{k: v for k, v in group.items() if k != "params"} for group in groups])

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(("evaluate", state.global_step))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(("save", state.global_step))

    @property
    def rates(self) -> list[float]:
        """The largest rate of every optimizer step."""
        return [max(float(group["lr"]) for group in groups) for groups in self.groups]


class Lab:
    """A tiny training under live control over a store in memory, and the client that tells it what to do.

    A request that `tell` sends at the end of step n is brought to the session before that step's boundary, so
    it is applied at step n and step n + 1 is the first that uses it.
    """

    def __init__(self, folder: Path, store: FlakyStore | None = None, run_id: str | None = None) -> None:
        self.folder = folder
        self.store = store or FlakyStore()
        self.run_id = run_id or self.store.inner.create_run()
        self.script, self.recorder = Script(), Recorder()
        self.batches: list[dict[str, torch.Tensor]] = []
        self.control: LiveControl | None = None
        self.trainer: Trainer

    def make(
        self,
        *,
        live: bool = True,
        attached: bool = False,
        rows: int = 32,
        optimizers: tuple[Any, Any] = (None, None),
        model: torch.nn.Module | None = None,
        limits: Any = None,
        evaluates: bool = True,
        callbacks: tuple[TrainerCallback, ...] = (),
        **options: Any,
    ) -> Trainer:
        """The trainer; `attached`: by `attach`, not in its callbacks; `options` are training arguments."""
        if live and not attached:
            self.control = LiveControl(POLL_S, limits, store=self.store, run_id=self.run_id)
        chosen = [self.script, self.recorder, *callbacks, *([self.control] if self.control else [])]
        self.trainer = Trainer(
            model=model or Net(),
            args=arguments(self.folder, **options),
            train_dataset=data(rows),  # type: ignore[arg-type]
            eval_dataset=data(8) if evaluates else None,  # type: ignore[arg-type]
            data_collator=self._collate,
            callbacks=chosen,
            optimizers=optimizers,
        )
        if attached:
            self.control = attach(self.trainer, POLL_S, limits, store=self.store, run_id=self.run_id)
        return self.trainer

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(rows)
        if self.trainer.model.training:
            self.batches.append(batch)
        return batch

    def tell(self, step: int, request_id: str, **fields: Any) -> None:
        """Sends a request at the end of a step (several at one step in this order)."""
        before = self.script.at.get(step, lambda: None)

        def act() -> None:
            before()
            self.send(request_id, **fields)
            self.looked()

        self.script.at[step] = act

    def send(self, request_id: str, **fields: Any) -> None:
        self.store.inner.write(self.run_id, {tags.UPDATE_PREFIX + request_id: request(**fields)})

    def looked(self) -> None:
        """Waits until what is on the run has been brought to the session."""
        seen = self.store.gets
        wait_for(lambda: self.store.gets >= seen + 2, "two looks at the tags")

    def tags(self) -> dict[str, str]:
        return self.store.inner.get(self.run_id).tags

    def ack(self, request_id: str) -> Ack:
        ack = read_entry(self.tags(), request_id).ack
        assert ack is not None, f"no answer to {request_id}"
        return ack

    def entries(self) -> tuple[Entry, ...]:
        return Ledger.read(self.tags()).entries

    def answered(self) -> set[str]:
        return {entry.id for entry in self.entries() if entry.answered}

    def status(self) -> Status:
        return Status.decode(self.tags()[tags.STATUS])

    def surface(self) -> Surface:
        return Surface.decode(self.tags()[tags.SURFACE])

    def logged(self, key: str) -> dict[int, float]:
        """What the trainer logged under a key, by step."""
        return {log["step"]: log[key] for log in self.trainer.state.log_history if key in log}

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "out").glob("*"))


def train_beside(trainer: Trainer, client: Callable[[], Any]) -> None:
    """Trains while `client` runs in a thread; an error of the client ends the training and is raised."""
    errors: list[BaseException] = []

    class Failed(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if errors:
                raise errors[0]

    def run() -> None:
        try:
            client()
        except BaseException as error:
            errors.append(error)

    trainer.add_callback(Failed())
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    trainer.train()
    thread.join(LIMIT_S)
    if errors:
        raise errors[0]
    assert not thread.is_alive()


def saved(folder: Path, checkpoint: str) -> dict[str, Any]:
    """What live control left in a checkpoint."""
    state = json.loads((folder / "out" / checkpoint / "trainer_state.json").read_text())
    found: dict[str, Any] = state["stateful_callbacks"]["LiveControl"]["attributes"]["saved"]
    return found
