"""The samples of an epoch: in which order they come, which are used, and batches of those that are left."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard
from torch.utils.data import BatchSampler, DataLoader, Sampler, SequentialSampler

_LOADER_OPTIONS = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "in_order",
)


def why_fixed(loader: Any, batch_size: int) -> str | None:
    """Why the batches of a dataloader cannot be cut anew; None if they can.

    Args:
        loader: As the trainer iterates it. batch_size: Samples that the trainer thinks are in a batch.
    """
    if type(loader) is DataLoader:
        return "the dataloader was not prepared by accelerate (accelerator.prepare)"
    if not isinstance(loader, DataLoaderShard):
        return f"a {type(loader).__name__} makes the batches itself"
    batches = loader.batch_sampler
    if isinstance(batches, BatchSamplerShard):
        if batches.split_batches:
            return "split_batches is on: a batch is shared out among the ranks"
        if not batches.even_batches and batches.num_processes > 1:
            return "even_batches is off: the ranks may have different numbers of batches"
        batches = batches.batch_sampler
    if type(batches) is not BatchSampler:
        return f"a {type(batches).__name__} makes the batches itself"
    draws = not hasattr(batches.sampler, "set_epoch") and not isinstance(batches.sampler, SequentialSampler)
    if draws and batches is not loader.batch_sampler and loader.batch_sampler.num_processes > 1:
        return "every rank draws the order of the samples by itself"
    if batches.batch_size != batch_size:
        return f"the dataloader has batches of {batches.batch_size}, not of {batch_size}"
    return None


class EpochData:
    """The data of a training, epoch by epoch.

    Args:
        loader: The trainer's dataloader, of which `why_fixed` is None. It gives the same batches as before.

    Attributes:
        total: Samples in an epoch. ranks: Processes that share a round of batches.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        shard = loader.batch_sampler
        self.ranks: int = shard.num_processes if isinstance(shard, BatchSamplerShard) else 1
        self._plain: Any = shard.batch_sampler if isinstance(shard, BatchSamplerShard) else shard
        self._order = RecordedSampler(self._plain.sampler)
        loader.set_sampler(self._order)
        self.total = len(self._order)
        self._start = 0
        self._size: int = self._plain.batch_size

    def begin(self, start: int, batch_size: int) -> None:
        """From sample `start` of the epoch on, batches have `batch_size` samples a rank."""
        self._start, self._size = start, batch_size

    def used(self, rounds: int) -> int:
        """Samples of the epoch that are used, `rounds` batches a rank after the last `begin`."""
        return min(self._start + rounds * self._size * self.ranks, self.total)

    def rounds(self, samples: int, batch_size: int) -> int:
        """Batches a rank that so many samples make."""
        together = batch_size * self.ranks
        return samples // together if self._plain.drop_last else -(-samples // together)

    def rest(self, epoch: int) -> RestOfEpoch:
        """The batches of what is left of the epoch, for this rank."""
        _end(self._loader)
        self._loader.base_dataloader._iterator = None  # persistent workers would wait for ever
        is_whole = self._start == 0
        if not is_whole and self._order.epoch_order is None:
            self._loader.set_epoch(epoch)
            iter(self._order)
        # A whole epoch draws its order when it begins, after what the dataloader draws, as the trainer's own.
        order = self._order if is_whole else (self._order.epoch_order or [])[self._start :]
        batches: Any = BatchSampler(order, self._size, self._plain.drop_last)
        if self.ranks > 1:
            rank = self._loader.batch_sampler.process_index
            batches = BatchSamplerShard(batches, self.ranks, rank)
        options = {name: getattr(self._loader, name) for name in _LOADER_OPTIONS}
        device = self._loader.device
        loader = DataLoaderShard(
            self._loader.dataset, device=device, batch_sampler=batches, iteration=epoch, **options
        )
        return RestOfEpoch(loader, is_whole)

    def state(self, epoch: int, used: int) -> dict[str, Any]:
        """What a checkpoint must hold when so many samples of an epoch are used, as JSON values."""
        return {
            "epoch": epoch,
            "used": used,
            "total": self.total,
            "drawn_from": self._order.drawn_from,
            "group": getattr(self._order.sampler, "batch_size", None),
        }

    def load(self, state: Mapping[str, Any], batch_size: int, epoch_now: int) -> int:
        """Goes to the sample at which `state` was taken; the order of another epoch is drawn again.

        Returns:
            The epoch: the one after, if nothing is left of the one in which it was taken.
        """
        is_over = self.rounds(max(0, self.total - state["used"]), batch_size) == 0
        epoch, start = (state["epoch"] + 1, 0) if is_over else (state["epoch"], state["used"])
        self.begin(start, batch_size)
        if state["group"] is not None:  # a sampler that groups by length does it so many samples at a time
            self._order.sampler.batch_size = state["group"]
        if start and not (epoch == epoch_now and self._order.epoch_order):
            self._order.epoch_order = None
            self._order.draw_from = state["drawn_from"]
        return int(epoch)


class RecordedSampler(Sampler[int]):
    """A sampler that remembers the order that it gave last.

    Attributes:
        epoch_order: That order.
        drawn_from: The random states that it was drawn from, as JSON values; None for a sampler that draws
            from the number of the epoch (``set_epoch``), or not at all.
        draw_from: Random states to draw the next order from.
    """

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.epoch_order: list[int] | None = None
        self.drawn_from: dict[str, Any] | None = None
        self.draw_from: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        if self.draw_from is not None:
            now = self._random_states()
            self._set_random_states(self.draw_from)
            try:
                self._draw()
            finally:
                self._set_random_states(now)
            self.draw_from = None
        else:
            self._draw()
        return iter(self.epoch_order or ())

    def _draw(self) -> None:
        fixed = hasattr(self.sampler, "set_epoch") or isinstance(self.sampler, SequentialSampler)
        self.drawn_from = None if fixed else self._random_states()
        self.epoch_order = list(self.sampler)

    def _random_states(self) -> dict[str, Any]:
        """Of all that a sampler may draw from."""
        numpy: Any = np.random.get_state()
        name, numbers, *rest = numpy
        version, words, gauss = random.getstate()
        own = getattr(self.sampler, "generator", None)
        return {
            "torch": _text(torch.get_rng_state()),
            "numpy": [name, numbers.tolist(), *rest],
            "python": [version, list(words), gauss],
            "own": _text(own.get_state()) if isinstance(own, torch.Generator) else None,
        }

    def _set_random_states(self, states: Mapping[str, Any]) -> None:
        torch.set_rng_state(_bytes(states["torch"]))
        np.random.set_state(tuple(states["numpy"]))
        version, words, gauss = states["python"]
        random.setstate((version, tuple(words), gauss))
        if states["own"]:
            self.sampler.generator.set_state(_bytes(states["own"]))

    def __getattr__(self, name: str) -> Any:  # such as set_epoch
        return getattr(self.sampler, name)


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(bytes(state.tolist())).decode()


def _bytes(text: str) -> torch.Tensor:
    return torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)


class RestOfEpoch:
    """Batches of what is left of an epoch. Going on within one draws no random number that a model would see.

    Args:
        is_whole: Whether nothing of the epoch is used: then it draws what the trainer's own dataloader would.
    """

    def __init__(self, loader: Any, is_whole: bool) -> None:
        self._loader = loader
        self._is_whole = is_whole

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        with torch.random.fork_rng(devices=[], enabled=not self._is_whole):
            batches = iter(self._loader)
            first = next(batches, None)
        if first is not None:
            yield first
            yield from batches

    def drop(self) -> None:
        """Ends it before its end."""
        _end(self._loader)


def _end(loader: DataLoaderShard) -> None:
    """accelerate keeps count of the dataloaders that are in use; one that was left early still is."""
    if any(loader is used for used in loader.gradient_state.dataloader_references):
        loader.end()
