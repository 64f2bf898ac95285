"""`RunNumbers`: throughput, step time, ETA, best evaluation, NaN steps and peak memory of a training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import environ
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from ftlab_mlflow.training.callback import LiveControl, calling_trainer
from ftlab_mlflow.training.pace import Pace

METRICS = (
    "samples_per_second",
    "tokens_per_second",
    "step_time_s",
    "eta_s",
    "nonfinite_steps",
    "gpu_<i>_peak_memory_mb",
    "best_<metric>",
    "best_eval_step",
    "train_samples_per_second",
)
"""Every name that is logged, as in docs/metrics.md."""

_TOKEN_MASKS = (
    ("attention_mask",),
    ("chosen_attention_mask", "rejected_attention_mask"),  # ORPO
    ("prompt_mask", "completion_mask"),  # GRPO, RLOO
)
"""Which masks of a batch mark the tokens that are trained on: the first group that is there."""

_PAIRED = frozenset({"DPOTrainer", "RewardTrainer"})
"""Trainers whose batch has two rows a sample: chosen and rejected."""


@dataclass
class _Counts:
    """What was consumed since the last entry, by this process. Tensors stay on their device until then."""

    samples: int = 0
    tokens: int | torch.Tensor = 0
    nonfinite: int | torch.Tensor = 0


class RunNumbers(TrainerCallback):
    """Adds numbers about the run to what a transformers or TRL trainer logs; docs/metrics.md defines them.

    For ``callbacks=[RunNumbers()]`` or ``trainer.add_callback(RunNumbers())``; on several ranks, on all.

    Args:
        clock: Seconds from anywhere, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._trainer: Any = None

    # --- transformers' events --------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer = calling_trainer(self)
        _release(trainer)
        plain = type(trainer)
        body = {"_numbers": self, "__module__": plain.__module__}
        trainer.__class__ = type(plain.__name__, (_Counting, plain), body)
        # The first to hear of an entry, so that MLflow's callback sees what is added to it. A new list,
        # because transformers is going through the old one.
        handler = trainer.callback_handler
        handler.callbacks = [self, *(other for other in handler.callbacks if other is not self)]
        self.pace = Pace(self._clock)
        self._rows_a_sample = 2 if _PAIRED & {base.__name__ for base in plain.__mro__} else 1
        self._counts = _Counts()
        self._step_is_bad: bool | torch.Tensor = False
        self._samples = 0  # of all ranks, in this training
        self._is_countable = self._has_tokens = True
        # What the checkpoint remembers of the run, if this is a resume.
        earlier = [entry["nonfinite_steps"] for entry in state.log_history if "nonfinite_steps" in entry]
        self._nonfinite = int(earlier[-1]) if earlier else 0
        self._metric, self._is_greater_better = _best_metric(args)
        self.best_names = (f"best_{self._metric}", "best_eval_step")
        self._best: tuple[float, int] | None = None
        for entry in state.log_history:
            self._take_best(entry, entry["step"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.pace.begin(self._paused_s())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.pace.step()
        self._counts.nonfinite = self._counts.nonfinite + self._step_is_bad
        self._step_is_bad = False

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer is None:
            return
        logs = kwargs["logs"]
        added: dict[str, float] = {}
        is_last = "train_runtime" in logs
        if is_last or "loss" in logs:  # transformers logs these on all ranks
            added = self._training_numbers(state)
            if is_last and self._is_countable and logs["train_runtime"]:
                # transformers takes the launch's batch size for that of all steps.
                added["train_samples_per_second"] = round(self._samples / logs["train_runtime"], 3)
        elif self._take_best(logs, state.global_step) and self._best:
            added = dict(zip(self.best_names, self._best, strict=True))
        logs.update(added)
        for entry in state.log_history[-1:]:  # a copy of `logs` by now
            entry.update(added)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer is not None:
            _release(self._trainer)
            self._trainer = None

    # --- what the trainer does ---------------------------------------------------------------------

    def consumes(self, inputs: Any) -> None:
        """A batch goes into the training's loss."""
        samples, tokens = samples_of(inputs), tokens_of(inputs)
        self._is_countable &= samples is not None
        self._has_tokens &= tokens is not None
        self._counts.samples += (samples or 0) // self._rows_a_sample
        self._counts.tokens = self._counts.tokens + (0 if tokens is None else tokens)

    def saw(self, value: float | torch.Tensor | None) -> None:
        """A loss or a gradient norm of the step in progress. Nothing waits for the device."""
        if isinstance(value, torch.Tensor):
            # Of sharded weights: this process's share.
            local: torch.Tensor = value.to_local() if hasattr(value, "to_local") else value
            self._step_is_bad = self._step_is_bad | ~torch.isfinite(local).all()
        elif value is not None and not math.isfinite(value):
            self._step_is_bad = True

    # --- inside ------------------------------------------------------------------------------------

    def _training_numbers(self, state: Any) -> dict[str, float]:
        lap = self.pace.lap(self._paused_s())
        if lap is None:
            return {}
        counts, self._counts = self._counts, _Counts()
        samples, tokens, nonfinite, peaks = self._over_ranks(counts)
        self._samples += samples
        self._nonfinite += nonfinite
        numbers: dict[str, float] = {"nonfinite_steps": self._nonfinite}
        numbers |= {f"gpu_{i}_peak_memory_mb": peak for i, peak in enumerate(peaks) if peak}
        if lap.seconds > 0:
            numbers["step_time_s"] = lap.step_time
            numbers["eta_s"] = self.pace.eta(lap, state.max_steps - state.global_step)
            if self._is_countable:
                numbers["samples_per_second"] = lap.rate(samples)
            if self._has_tokens:
                numbers["tokens_per_second"] = lap.rate(tokens)
        return numbers

    def _over_ranks(self, counts: _Counts) -> tuple[int, int, int, list[float]]:
        """Samples, tokens and nonfinite steps of all processes, and the peak of every device (MB)."""
        args = self._trainer.args
        devices = torch.cuda.device_count()
        row = [counts.samples, int(counts.tokens), int(counts.nonfinite)]
        row += [torch.cuda.max_memory_allocated(i) for i in range(devices)]
        rows = [row]
        if args.world_size > 1:
            rows = self._trainer.accelerator.gather(torch.tensor(rows, device=args.device)).tolist()
        samples, tokens, nonfinite, *_ = map(list, zip(*rows, strict=True))
        # Each process sees all devices of its machine, and mostly uses one of them.
        beside = int(environ.get("LOCAL_WORLD_SIZE", len(rows)))
        machines = [rows[i : i + beside] for i in range(0, len(rows), beside)]
        peaks = [max(row[3 + i] for row in machine) / 1e6 for machine in machines for i in range(devices)]
        return sum(samples), sum(tokens), max(nonfinite), peaks

    def _take_best(self, entry: Mapping[str, Any], step: int) -> bool:
        """Whether the entry is one of an evaluation; it may be the best so far."""
        value = entry.get(self._metric)
        if value is None:
            return False
        sign = 1 if self._is_greater_better else -1
        if math.isfinite(value) and (self._best is None or sign * value > sign * self._best[0]):
            self._best = (value, step)
        return True

    def _paused_s(self) -> float:
        callbacks = self._trainer.callback_handler.callbacks
        return sum(callback.paused_s for callback in callbacks if isinstance(callback, LiveControl))


class _Counting(Trainer):
    """A trainer that tells its `RunNumbers` what it does; mixed into the trainer's class while it trains."""

    _numbers: RunNumbers

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        self._numbers.consumes(inputs)
        result = super().compute_loss(model, inputs, *args, **kwargs)
        self._numbers.saw(result[0] if isinstance(result, tuple) else result)
        return result

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        self._numbers.saw(norm)
        return norm

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with self._numbers.pace.away():
            metrics = super().evaluate(*args, **kwargs)
        # They belong to the log entry. A search over hyperparameters sums up all metrics that it gets.
        for name in self._numbers.best_names:
            metrics.pop(name, None)
        return metrics

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._numbers.pace.away():
            super()._save_checkpoint(*args, **kwargs)


def _release(trainer: Trainer) -> None:
    """Gives a trainer its own class back."""
    if isinstance(trainer, _Counting):
        trainer.__class__ = type(trainer).__bases__[1]


def _best_metric(args: Any) -> tuple[str, bool]:
    """The metric of the evaluation that decides what is best, and whether greater is better."""
    name = "eval_" + (args.metric_for_best_model or "loss").removeprefix("eval_")
    is_greater_better = args.greater_is_better
    return name, not name.endswith("loss") if is_greater_better is None else is_greater_better


def samples_of(inputs: Any) -> int | None:
    """Rows of a batch; where a collator joins sequences into one row (padding-free), sequences.

    None for what is no mapping with tensors in it.
    """
    if not isinstance(inputs, Mapping):
        return None
    if "cu_seq_lens_q" in inputs:
        return len(inputs["cu_seq_lens_q"]) - 1
    sizes = [len(value) for value in inputs.values() if isinstance(value, torch.Tensor) and value.ndim]
    return sizes[0] if sizes else None


def tokens_of(inputs: Any) -> int | torch.Tensor | None:
    """Tokens of a batch without its padding, on the device of the batch; None if they cannot be told."""
    if not isinstance(inputs, Mapping):
        return None
    for names in _TOKEN_MASKS:
        masks = [inputs[name] for name in names if isinstance(inputs.get(name), torch.Tensor)]
        if len(masks) == len(names) and all(mask.ndim == 2 for mask in masks):
            return torch.stack([mask.sum() for mask in masks]).sum()
    ids = inputs.get("input_ids")
    return ids.numel() if isinstance(ids, torch.Tensor) else None
