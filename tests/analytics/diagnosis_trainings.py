"""Real trainings of a tiny model, healthy ones and ones made to go wrong, each logged to MLflow.

``TRAININGS`` names each with the kinds of findings that must be there, and those that may be beside them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from mlflow import MlflowClient
from mlflow.entities import Metric
from training_trl import LETTERS, OPTIONS, new_model, save_tiny_model
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

from ftlab_mlflow import RunNumbers
from ftlab_mlflow.training.methods import METHODS

STEPS = 160
EVALUATED = 24
"""Rows of an evaluation."""
_TIMES = ("per_second", "step_time", "runtime", "eta_s")


@dataclass(frozen=True)
class Training:
    """How a run is trained, and what must be found (`expected`) or may be (`allowed`); else it is healthy."""

    method: str = "sft"
    options: Mapping[str, Any] | None = None
    rows: Callable[[int], Dataset] | None = None
    eval_rows: Callable[[int], Dataset] | None = None
    reward: Callable[..., list[float]] | None = None
    callback: Callable[[], TrainerCallback] | None = None
    seed: int = 0
    expected: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()
    timed: bool = False


def train(training: Training, uri: str, folder: Path) -> str:
    """Trains, logs to MLflow, and gives the run's id."""
    model = str(folder / "model")
    if not Path(model).exists():
        save_tiny_model(folder / "model")
    torch.manual_seed(training.seed)
    options = dict(training.options or {})
    own: dict[str, Any] = {}
    if training.eval_rows:
        own["eval_dataset"] = training.eval_rows(1000 + training.seed).select(range(EVALUATED))
        options = {"eval_strategy": "steps", "eval_steps": STEPS // 12} | options
    if training.reward:
        own["reward_funcs"] = training.reward
    of_method = {"grpo": {"num_generations": 4, "max_completion_length": 8}, "orpo": {"max_length": 32}}
    everything = (
        OPTIONS
        | {"max_steps": STEPS, "learning_rate": 3e-3, "lr_scheduler_type": "cosine", "seed": training.seed}
        | of_method.get(training.method, {})
        | options
    )
    log = _Log(uri, training)
    callbacks = [log, RunNumbers()] if training.timed else [log]
    method = METHODS[training.method]
    trainer = method.trainer_class()(
        model=new_model(training.method, model),
        args=method.config_class()(output_dir=str(folder / "out"), **everything),
        train_dataset=(training.rows or ROWS[training.method])(training.seed),
        processing_class=PreTrainedTokenizerFast.from_pretrained(model),
        callbacks=[*callbacks, *([training.callback()] if training.callback else [])],
        **own,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return log.end()


class _Log(TrainerCallback):
    """Every entry of the trainer's log, as transformers' own callback writes it, at the end.

    How long things take on a test machine depends on what else runs: left out unless it is about that.
    """

    def __init__(self, uri: str, training: Training) -> None:
        self.client = MlflowClient(uri)
        self.run_id: str = self.client.create_run("0", tags={"mlflow.runName": training.method}).info.run_id
        self.client.set_tag(self.run_id, "ftlab.command_line", f"ftlab train {training.method}")
        self.is_timed = training.timed
        self.points: list[Metric] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **_: Any) -> None:
        now = int(time.time() * 1000)
        for key, value in logs.items():
            if self.is_timed or not any(part in key for part in _TIMES):
                self.points.append(Metric(key, float(value), now, state.global_step))

    def end(self) -> str:
        for begin in range(0, len(self.points), 1000):
            self.client.log_batch(self.run_id, metrics=self.points[begin : begin + 1000])
        self.client.set_terminated(self.run_id)
        return self.run_id


# --- data --------------------------------------------------------------------------------------------


def _chain(dice: random.Random, length: int = 12, noise: float = 0.1) -> str:
    """Letters, each the one that lies as far on as the first says; some of them at random."""
    place, stride = dice.randrange(16), dice.choice((1, 3, 5))
    letters = [LETTERS[stride]]
    for _ in range(length):
        place = dice.randrange(16) if dice.random() < noise else (place + stride) % 16
        letters.append(LETTERS[place])
    return "".join(letters)


def _noise(dice: random.Random, length: int = 12) -> str:
    return "".join(dice.choice(LETTERS) for _ in range(length))


def chains(seed: int, count: int = 1200) -> Dataset:
    """What can be learned, for the most part."""
    dice = random.Random(seed)
    return Dataset.from_dict({"text": [_chain(dice) for _ in range(count)]})


def few_chains(seed: int) -> Dataset:
    return Dataset.from_dict({"text": [_noise(random.Random(f"{seed} {i}")) for i in range(24)]})


def noises(seed: int, count: int = 64 * 240) -> Dataset:
    """What cannot be learned but for the frequency of letters: half of them are the same one."""
    dice = random.Random(seed)
    texts = [
        "".join(dice.choice(LETTERS[:8] + "a" * 24) for _ in range(dice.randrange(20, 50)))
        for _ in range(count)
    ]
    return Dataset.from_dict({"text": texts})


def with_bad_batches(seed: int) -> Dataset:
    """Every fortieth batch of four is of another language."""
    dice = random.Random(seed)
    texts = [_noise(dice) if i // 4 % 40 == 39 else _chain(dice, noise=0.0) for i in range(4 * STEPS)]
    return Dataset.from_dict({"text": texts})


def pairs(seed: int, *, swapped: float = 0.0, count: int = 1200) -> Dataset:
    """The chosen answer goes on as the prompt does, the rejected one at random; `swapped` is a share."""
    dice = random.Random(seed)
    found = []
    for _ in range(count):
        whole = _chain(dice, 10, noise=0.0)
        answers = [whole[5:], _noise(dice, 6)]
        if dice.random() < swapped:
            answers.reverse()
        found.append({"prompt": whole[:5], "chosen": answers[0], "rejected": answers[1]})
    return Dataset.from_list(found)


def alike(seed: int) -> Dataset:
    """Chosen and rejected differ by their last letter."""
    dice = random.Random(seed)
    found = []
    for _ in range(1200):
        whole = _chain(dice, 10, noise=0.0)
        found.append({"prompt": whole[:5], "chosen": whole[5:], "rejected": whole[5:-1] + dice.choice("abc")})
    return Dataset.from_list(found)


def verdicts(seed: int) -> Dataset:
    found = []
    for i, row in enumerate(pairs(seed)):
        is_good = i % 2 == 0
        answer = row["chosen"] if is_good else row["rejected"]
        found.append({"prompt": row["prompt"], "completion": answer, "label": is_good})
    return Dataset.from_list(found)


def prompts(seed: int) -> Dataset:
    dice = random.Random(seed)
    return Dataset.from_dict({"prompt": [_chain(dice, 3) for _ in range(400)]})


ROWS: Mapping[str, Callable[[int], Dataset]] = {
    "sft": chains, "dpo": pairs, "orpo": pairs, "kto": verdicts, "grpo": prompts, "rloo": prompts
}  # fmt: skip


# --- rewards -----------------------------------------------------------------------------------------


def early_letters(completions: list[str], **_: Any) -> list[float]:
    """The share of letters of the first half of the alphabet."""
    return [sum(letter in "abcdefgh" for letter in text) / max(1, len(text)) for text in completions]


def same(completions: list[str], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


# --- what goes wrong while it trains -----------------------------------------------------------------


class Slow(TrainerCallback):
    """The second half of the steps takes longer."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step > state.max_steps // 2:
            time.sleep(0.06)


class Shrinking(TrainerCallback):
    """Decays all weights, the norms' too, far more than they can learn, from some share of the steps on."""

    def __init__(self, factor: float = 0.85, begin: float = 0.0) -> None:
        self.factor, self.begin = factor, begin

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step > self.begin * state.max_steps:
            with torch.no_grad():
                for weight in model.parameters():
                    weight.mul_(self.factor)


def _wrong(method: str, expected: str, allowed: str = "", *, like: Any = None, **others: Any) -> Training:
    """A training with `like` as its options; kinds of findings are separated by blanks."""
    kinds = {"expected": frozenset(expected.split()), "allowed": frozenset(allowed.split())}
    return Training(method, like, **kinds, **others)


_HIGH = "rate_too_high gradient_explosion loss_spikes divergence plateau underfitting gradient_vanishing"
_POLICY = "kl_blow_up zero_variance_groups length_clipping length_growth gradient_explosion reward_collapse"
_STILL: dict[str, Any] = {"lr_scheduler_type": "constant"}
_UP: dict[str, Any] = {"lr_scheduler_type": "linear", "warmup_steps": STEPS - 1}
_GENTLE: dict[str, Any] = {
    "learning_rate": 3e-3,
    "beta": 0.05,
    "max_completion_length": 56,
    "max_steps": 100,
    "per_device_train_batch_size": 16,
}
HEALTHY = {
    **{f"sft {seed}": Training(eval_rows=chains, seed=seed) for seed in range(3)},
    "sft, batch 1": Training(options={"per_device_train_batch_size": 1}),
    "sft, warm-up": Training(options={"warmup_steps": 40, "learning_rate": 5e-3}, eval_rows=chains),
    "sft, constant": Training(options={**_STILL, "learning_rate": 1e-3}, eval_rows=chains),
    "sft, sgd": Training(options={"optim": "sgd", "learning_rate": 0.5}),
    "sft, short": Training(options={"max_steps": 60, "learning_rate": 5e-3}, eval_rows=chains),
    "dpo 0": Training("dpo", eval_rows=pairs),
    "dpo 1": Training("dpo", eval_rows=pairs, seed=1),
    "orpo": Training("orpo"),
    "kto": Training("kto"),
    "grpo 0": Training("grpo", _GENTLE, reward=early_letters),
    "grpo 1": Training("grpo", _GENTLE, reward=early_letters, seed=1),
    "rloo": Training("rloo", {"num_generations": 4} | _GENTLE, reward=early_letters),
}
ILL = {
    "rate rises to 2": _wrong("sft", "divergence rate_too_high", _HIGH, like={**_UP, "learning_rate": 2.0}),
    "rate 1 at once": _wrong("sft", "loss_spikes", _HIGH, like={**_STILL, "learning_rate": 1.0}),
    "ends in NaN": _wrong(
        "sft",
        "nonfinite rate_too_high",
        _HIGH,
        like={**_STILL, "optim": "sgd", "learning_rate": 1e25, "max_grad_norm": 0.0},
    ),
    "24 texts": _wrong(
        "sft", "overfitting", rows=few_chains, eval_rows=few_chains, like={**_STILL, "learning_rate": 1e-2}
    ),
    "24 texts, slowly": _wrong(
        "sft", "overfitting", rows=few_chains, eval_rows=few_chains, seed=5, like={"learning_rate": 4e-3}
    ),
    "rate 1e-8": _wrong(
        "sft",
        "underfitting rate_too_low",
        like={**_STILL, "learning_rate": 1e-8, "per_device_train_batch_size": 32},
    ),
    "rate 1.5e-5": _wrong(
        "sft",
        "rate_too_low",
        "underfitting",
        like={**_STILL, "learning_rate": 1.5e-5, "per_device_train_batch_size": 64, "max_steps": 240},
    ),
    "nothing to learn": _wrong(
        "sft",
        "plateau",
        rows=noises,
        like={**_STILL, "learning_rate": 2e-2, "per_device_train_batch_size": 64, "max_steps": 200},
    ),
    "bad batches": _wrong(
        "sft",
        "loss_spikes",
        "gradient_explosion",
        rows=with_bad_batches,
        like={"learning_rate": 1e-2, "train_sampling_strategy": "sequential"},
    ),
    "weights shrink": _wrong("sft", "gradient_vanishing", _HIGH, callback=Shrinking),
    "gets slow": _wrong("sft", "throughput_drop", timed=True, callback=Slow, like={"max_steps": 120}),
    "dpo, half swapped": _wrong(
        "dpo",
        "no_accuracy",
        f"no_margin margin_falls likelihood_displacement {_HIGH}",
        rows=lambda seed: pairs(seed, swapped=0.5),
        like={"learning_rate": 1e-3},
    ),
    "dpo, pairs alike": _wrong(
        "dpo",
        "likelihood_displacement",
        f"no_accuracy overfitting {_HIGH}",
        rows=alike,
        like={"learning_rate": 1e-2, "max_steps": 240},
    ),
    "grpo, one reward": _wrong("grpo", "zero_variance_groups", "length_clipping", reward=same),
    "grpo, forgets": _wrong(
        "grpo",
        "reward_collapse",
        _POLICY,
        reward=early_letters,
        callback=lambda: Shrinking(0.8, 0.5),
        like={**_GENTLE, **_STILL, "max_steps": 160, "per_device_train_batch_size": 32},
    ),
    "grpo, rate 0.03": _wrong(
        "grpo",
        "kl_blow_up",
        _POLICY,
        reward=early_letters,
        like={**_STILL, "learning_rate": 3e-2, "beta": 1e-4},
    ),
    "grpo, paid by length": _wrong(
        "grpo",
        "length_growth length_clipping",
        _POLICY,
        reward=length,
        like={**_GENTLE, "learning_rate": 2e-2, "temperature": 2.0},
    ),
}
TRAININGS: Mapping[str, Training] = {f"healthy {name}": one for name, one in HEALTHY.items()} | ILL
