"""TRL trainings whose samples can be told apart in what the model is given, and the same by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import pre_tokenizers
from torch.nn.functional import cross_entropy, logsigmoid, sigmoid
from training_tiny import POLL_S, Lab, weights
from training_trl import OPTIONS, SPECIAL, new_model, save_tiny_model
from transformers import PreTrainedTokenizerFast, TrainerCallback

from ftlab_mlflow import LiveControl, attach
from ftlab_mlflow.training.methods import METHODS

ROWS = 22
_MARKERS = tuple(f"s{i}" for i in range(ROWS))
_LETTERS = tuple("abcdefghijkl")
_FIRST = len(SPECIAL)
RATE, BETA = 0.005, 0.3

Batch = Mapping[str, torch.Tensor]
Loss = Callable[[Any, Any, Batch], torch.Tensor]


def save_model(folder: Path) -> str:
    """A tiny model whose words are letters, and markers that stand for one sample each. Its folder."""
    return save_tiny_model(folder, (*_MARKERS, *_LETTERS), pre_tokenizers.WhitespaceSplit())


def rows(method: str) -> Dataset:
    """Samples of the kind that a method takes; each has its marker once in all it is made of."""

    def words(i: int, step: int, count: int) -> str:
        return " ".join(_LETTERS[(i * 5 + j * step) % len(_LETTERS)] for j in range(count))

    prompts = [f"{marker} {words(i, 2, 1 + i % 3)}" for i, marker in enumerate(_MARKERS)]
    good = [" " + words(i, 3, 2 + i % 5) for i in range(ROWS)]
    bad = [" " + words(i + 4, 7, 2 + i % 4) for i in range(ROWS)]
    if method == "sft":
        return Dataset.from_dict({"text": [p + g for p, g in zip(prompts, good, strict=True)]})
    if method == "kto":
        labels = [i % 3 != 0 for i in range(ROWS)]
        return Dataset.from_dict({"prompt": prompts, "completion": good, "label": labels})
    return Dataset.from_dict({"prompt": prompts, "chosen": good, "rejected": bad})


def ids_of(batch: Batch) -> list[int]:
    """The samples of a batch, found in the tokens that the model is given."""
    pairs = batch["chosen_input_ids"] if "chosen_input_ids" in batch else batch["input_ids"]
    tokens = pairs[: len(pairs) // 2] if is_paired(batch) else pairs
    return markers(tokens.flatten().tolist())


def markers(tokens: list[int]) -> list[int]:
    """The samples whose markers are among the tokens."""
    return [token - _FIRST for token in tokens if _FIRST <= token < _FIRST + ROWS]


def is_paired(batch: Batch) -> bool:
    """Whether the second half of the rows are the answers that were rejected."""
    return "chosen_input_ids" not in batch and "labels" not in batch and "label" not in batch


class Diary(TrainerCallback):
    """Every batch that a trainer is given, by step, and what it says of itself then."""

    def __init__(self) -> None:
        self.steps: list[list[Batch]] = []
        self.rates: list[float] = []
        self.epochs: list[float] = []
        self._now: list[Batch] = []

    def watch(self, trainer: Any) -> None:
        plain = trainer.training_step

        def step(model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
            self._now.append({k: v.clone() for k, v in inputs.items() if isinstance(v, torch.Tensor)})
            return plain(model, inputs, *rest)

        trainer.training_step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(self._now)
        self.epochs.append(state.epoch)
        self._now = []

    @property
    def ids(self) -> list[list[list[int]]]:
        """The samples of every batch of every step."""
        return [[ids_of(batch) for batch in step] for step in self.steps]


class BatchLab(Lab):
    """A `Lab` whose training is one of TRL's, with `attach` unless told otherwise."""

    diary: Diary

    def start(self, method: str, folder: str, *, attached: bool = True, **options: Any) -> Any:
        """The trainer, under live control; `options` are of TRL's config, and `peft_config`."""
        own = {name: options.pop(name) for name in ("peft_config", "train_dataset") if name in options}
        kind = options.pop("trainer_class", None) or METHODS[method].trainer_class()
        self.diary = Diary()
        callbacks: list[TrainerCallback] = [self.diary, self.script]
        if not attached:
            self.control = LiveControl(POLL_S, store=self.store, run_id=self.run_id)
            callbacks.append(self.control)
        chosen: dict[str, Any] = {
            **OPTIONS, "learning_rate": RATE, "max_steps": -1, "num_train_epochs": 2, "optim": "adamw_torch",
            **({"beta": BETA} if method in ("dpo", "kto", "orpo") else {}), "max_length": 48, **options,
        }  # fmt: skip
        config = METHODS[method].config_class()(output_dir=str(self.folder / "out"), **chosen)
        own.setdefault("train_dataset", rows(method))
        self.trainer = kind(
            model=new_model(method, folder),
            args=config,
            processing_class=PreTrainedTokenizerFast.from_pretrained(folder),
            callbacks=callbacks,
            **own,
        )
        self.diary.watch(self.trainer)
        if attached:
            self.control = attach(self.trainer, POLL_S, store=self.store, run_id=self.run_id)
        return self.trainer


# --- the same by hand ------------------------------------------------------------------------------------


def by_hand(
    model: Any,
    steps: list[list[Batch]],
    rates: list[float],
    loss: Loss,
    scale: Callable[[list[Batch]], float],
) -> list[torch.Tensor]:
    """The trained weights after these batches with these rates: the sum of a step's losses by `scale`."""
    reference = copy.deepcopy(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    for step, rate in zip(steps, rates, strict=True):
        for batch in step:
            (loss(model, reference, batch) / scale(step)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


def mean_of_batches(step: list[Batch]) -> float:
    """Losses are means over a batch; a step's is the mean of its batches'."""
    return float(len(step))


def label_tokens(step: list[Batch]) -> float:
    """Losses are sums over tokens; a step's is their sum by the number of its tokens."""
    return float(sum((batch["labels"][:, 1:] != -100).sum() for batch in step))


def sft(model: Any, reference: Any, batch: Batch) -> torch.Tensor:
    """The sum of the tokens' cross entropies."""
    given = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "position_ids")}
    logits = model(**given, use_cache=False).logits[
        :, :-1
    ]  # with a cache, what is packed sees its neighbours
    return cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")


def _logps(model: Any, ids: torch.Tensor, attention: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """The log-probability of every row's counted tokens."""
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
    each = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return (each * counted[:, 1:]).sum(-1)


def dpo(model: Any, reference: Any, batch: Batch) -> torch.Tensor:
    """-log sigmoid of beta times the difference of the log-ratios, the mean over the pairs."""
    given = (batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    with torch.no_grad():
        before = _logps(reference, *given)
    good, bad = (_logps(model, *given) - before).chunk(2)
    return -logsigmoid(BETA * (good - bad)).mean()


def kto(model: Any, reference: Any, batch: Batch) -> torch.Tensor:
    """1 - sigmoid(beta * (log-ratio - KL)), turned round for what is not desired; the mean."""
    given = (batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    other = (batch["KL_input_ids"], batch["KL_attention_mask"], batch["KL_completion_mask"])
    with torch.no_grad():
        before = _logps(reference, *given)
        kl = (_logps(model, *other) - _logps(reference, *other)).mean().clamp(min=0)
    ratio = _logps(model, *given) - before
    sign = torch.where(batch["label"].bool(), 1.0, -1.0)
    return (1 - sigmoid(BETA * sign * (ratio - kl))).mean()


def orpo(model: Any, reference: Any, batch: Batch) -> torch.Tensor:
    """Cross entropy of the chosen texts minus beta times the log sigmoid of the log odds ratio."""
    means = []
    for kind in ("chosen", "rejected"):
        ids, attention = batch[f"{kind}_input_ids"], batch[f"{kind}_attention_mask"]
        counted = (batch[f"{kind}_labels"] != -100).float()
        means.append(_logps(model, ids, attention, counted) / counted[:, 1:].sum(-1))
    ids, attention = batch["chosen_input_ids"], batch["chosen_attention_mask"]
    labels = ids.masked_fill(attention == 0, -100)[:, 1:]
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
    nll = cross_entropy(logits.flatten(0, 1), labels.flatten())
    odds = [mean - torch.log(-torch.expm1(mean)) for mean in means]
    return nll - BETA * logsigmoid(odds[0] - odds[1]).mean()


def reward(model: Any, reference: Any, batch: Batch) -> torch.Tensor:
    """-log sigmoid of the difference of the rewards, the mean over the pairs."""
    scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
    good, bad = scores.chunk(2)
    return -logsigmoid(good - bad).mean()


LOSSES: Mapping[str, tuple[Loss, Callable[[list[Batch]], float]]] = {
    "sft": (sft, label_tokens),
    "dpo": (dpo, mean_of_batches),
    "kto": (kto, mean_of_batches),
    "orpo": (orpo, mean_of_batches),
    "reward": (reward, mean_of_batches),
}


# --- what is asked for, counted by hand --------------------------------------------------------------------

Sizes = tuple[int, int]
"""Samples of a batch, batches of a step."""


def planned(
    count: int, launch: Sizes, changes: Mapping[int, Sizes], epochs: int = 2
) -> list[list[list[int]]]:
    """The sizes of the batches of every step of every epoch; `changes` are made after so many steps."""
    (size, batches), done, found = launch, 0, []
    for _ in range(epochs):
        left, steps = count, []
        while left:
            step = []
            for _ in range(batches):
                if left:
                    step.append(min(size, left))
                    left -= step[-1]
            steps.append(step)
            done += 1
            size, batches = changes.get(done, (size, batches))
        found.append(steps)
    return found


def planned_rates(count: int, launch: Sizes, changes: Mapping[int, Sizes]) -> list[float]:
    """A linear schedule's rates, when what is left of it always ends with what is left of the run."""
    lengths = [
        len(flat(planned(count, launch, {at: to for at, to in changes.items() if at <= step})))
        for step in range(len(flat(planned(count, launch, changes))))
    ]
    time, rates = 0.0, []
    for step, length in enumerate(lengths):
        rates.append(RATE * (1 - time / lengths[0]))
        time += (lengths[0] - time) / (length - step)
    return rates


def planned_epochs(count: int, launch: Sizes, changes: Mapping[int, Sizes]) -> list[float]:
    """The epoch after every step. To a trainer all batches are alike; a change begins with what is."""
    size, done, found = launch[0], 0, []
    for epoch, steps in enumerate(planned(count, launch, changes)):
        begun = used = batches = 0
        for step in steps:
            done, used, batches = done + 1, used + sum(step), batches + len(step)
            left = math.ceil((count - begun) / size)
            found.append(epoch + begun / count + (1 - begun / count) * batches / left)
            if done in changes:
                size, begun, batches = changes[done][0], used, 0
    return found


def flat(lists: list[list[Any]]) -> list[Any]:
    """The items of lists."""
    return [item for items in lists for item in items]
