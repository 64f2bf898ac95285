"""A plain PyTorch loop that takes milliseconds, for tests of `LiveLoop`."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from training_doubles import FlakyStore, request, wait_for

from ftlab_mlflow import LiveLoop
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import read_entry
from ftlab_mlflow.control.messages import Ack, Status
from ftlab_mlflow.control.surface import Surface

POLL_S = 0.003
RATES = (0.01, 0.002)
"""Of the group of weights, and of the group of biases and norms."""


def net() -> torch.nn.Module:
    """Weights, biases and a norm: so weight decay has something to act on, and something to leave alone."""
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 1)
    )
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Weights, and biases with norms, each with its rate."""
    kinds: tuple[list[Any], list[Any]] = ([], [])
    for parameter in model.parameters():
        kinds[parameter.ndim < 2].append(parameter)
    return [{"params": kind, "lr": rate} for kind, rate in zip(kinds, RATES, strict=True)]


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch of a step: so a loop that resumes at a step goes on with the right one."""
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
    return x, x.sum(1, keepdim=True) * 3


class Tiny:
    """A training loop over a store in memory, and the client that tells it what to do.

    A request that `tell` sends at step n is there at that step's boundary: step n + 1 is the first with it.

    Attributes:
        used: What every optimizer step used: its groups without the parameters.
        seen: What `watch` gave before every optimizer step.
    """

    def __init__(self, store: Any = None, run_id: str | None = None) -> None:
        self.store = store or FlakyStore()
        self.run_id = run_id or self.store.inner.create_run()
        self.model = net()
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups(self.model), weight_decay=0.0)
        self.scheduler: Any = None
        self.write_rates: Callable[[int], None] = lambda step: None
        self.step_scheduler: Callable[[int], None] = lambda step: self.scheduler and self.scheduler.step()
        self.watch: Callable[[], Any] = lambda: None
        self.at: dict[int, Callable[[], None]] = {}
        self.used: list[list[dict[str, Any]]] = []
        self.seen: list[Any] = []
        self.live: LiveLoop

    def lay(self, **options: Any) -> LiveLoop:
        """Live control for it; `options` are those of `LiveLoop`."""
        chosen = {"max_steps": 100, "poll_interval": POLL_S, "store": self.store, "run_id": self.run_id}
        self.live = LiveLoop(self.optimizer, self.scheduler, **(chosen | options))
        return self.live

    def train(self, steps: int) -> None:
        """The loop, to the end."""
        with self.live:
            for step in range(self.live.steps_done, steps):
                self.one(step)
                self.at.get(step + 1, lambda: None)()
                if self.live.step():
                    break

    def train_plain(self, steps: int) -> None:
        """The same loop without live control; a script may act on it."""
        for step in range(steps):
            self.one(step)
            self.at.get(step + 1, lambda: None)()

    def one(self, step: int) -> None:
        """One optimizer step, as any loop does it."""
        x, y = batch(step)
        torch.nn.functional.mse_loss(self.model(x), y).backward()
        self.write_rates(step)
        hook = self.optimizer.register_step_pre_hook(self._note)  # after those that were there before
        self.optimizer.step()
        hook.remove()
        self.step_scheduler(step)
        self.optimizer.zero_grad()

    def _note(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.used.append([{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups])
        self.seen.append(self.watch())

    @property
    def rates(self) -> list[list[float]]:
        """The rate of every group at every optimizer step."""
        return [[float(group["lr"]) for group in each] for each in self.used]

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]

    def checkpoint(self) -> dict[str, Any]:
        """Everything that a checkpoint of a loop holds."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler and self.scheduler.state_dict(),
            "live": self.live.state_dict(),
        }

    def load(self, checkpoint: dict[str, Any]) -> None:
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(checkpoint["scheduler"])
        self.live.load_state_dict(checkpoint["live"])

    # --- the client ------------------------------------------------------------------------------

    def tell(self, step: int, request_id: str, **fields: Any) -> None:
        """Sends a request at the end of a step (several at one step in this order)."""
        before = self.at.get(step, lambda: None)

        def act() -> None:
            before()
            self.send(request_id, **fields)
            self.looked()

        self.at[step] = act

    def send(self, request_id: str, **fields: Any) -> None:
        self.store.inner.write(self.run_id, {tags.UPDATE_PREFIX + request_id: request(**fields)})

    def looked(self) -> None:
        """Waits until what is on the run has been brought to the session."""
        seen = self.store.gets
        wait_for(lambda: self.store.gets >= seen + 2, "two looks at the tags")

    def beside(self, client: Callable[[], Any], steps: int) -> None:
        """Trains while `client` runs in a thread; raises what the client raised."""
        errors: list[BaseException] = []

        def run() -> None:
            try:
                wait_for(lambda: tags.STATUS in self.tags(), "the loop's beginning")
                client()
            except BaseException as error:
                errors.append(error)
                self.send("client-failed", command="resume")

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self.train(steps)
        thread.join(20)
        assert not errors, errors

    def tags(self) -> dict[str, str]:
        found: dict[str, str] = self.store.inner.get(self.run_id).tags
        return found

    def ack(self, request_id: str) -> Ack:
        """The answer, waited for."""

        def answer() -> Ack | None:
            found = self.tags()
            return read_entry(found, request_id).ack if tags.ACK_PREFIX + request_id in found else None

        ack: Ack = wait_for(answer, f"the answer to {request_id}")
        return ack

    def status(self) -> Status:
        return Status.decode(self.tags()[tags.STATUS])

    def surface(self) -> Surface:
        return Surface.decode(self.tags()[tags.SURFACE])


def asked(natural: list[list[float]], value: float, since: int) -> list[list[float]]:
    """The protocol's formula: the rates from step `since` on, at whose boundary `value` was asked for."""
    found = []
    for t in range(since, len(natural)):
        peak = max(max(rates) for rates in natural[since : t + 1])
        found.append([value * rate / peak for rate in natural[t]])
    return found


def close(a: Iterable[Iterable[float]], b: Iterable[Iterable[float]]) -> bool:
    """Whether two tables of rates are the same up to rounding."""
    return all(
        abs(x - y) <= 1e-12 * max(abs(x), abs(y))
        for rows in zip(a, b, strict=True)
        for x, y in zip(*rows, strict=True)
    )
