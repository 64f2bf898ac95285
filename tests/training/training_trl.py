"""Every method of TRL on a model of some thousand weights: data, trainers, and requests to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from training_tiny import POLL_S, Lab
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from ftlab_mlflow import attach
from ftlab_mlflow.training.methods import METHODS

LETTERS = "abcdefghijklmnop"
SPECIAL = ("<pad>", "<end>", "<unk>")
_TEMPLATE = "{% for message in messages %}{{ message['content'] + '<end>' }}{% endfor %}"
_BY_LETTER = pre_tokenizers.Split(Regex("."), "isolated")


def save_tiny_model(
    folder: Path,
    words: Sequence[str] = LETTERS,
    split: pre_tokenizers.PreTokenizer = _BY_LETTER,
) -> str:
    """A one-layer Llama whose tokens are these words, after `SPECIAL`. Its folder."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *words))}
    spelling = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    spelling.pre_tokenizer = split
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=spelling, pad_token="<pad>", eos_token="<end>", unk_token="<unk>",
        chat_template=_TEMPLATE, model_max_length=64,
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(5)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _word(i: int, length: int) -> str:
    return "".join(LETTERS[(i * 7 + j * (3 + i % 5)) % len(LETTERS)] for j in range(length))


def rows(method: str, count: int = 16) -> Dataset:
    """Data of the kind that a method takes."""
    prompts = [_word(i, 3) for i in range(count)]
    chosen = [_word(i + 1, 4 + i % 3) for i in range(count)]
    if method == "sft":
        return Dataset.from_dict({"text": [p + c for p, c in zip(prompts, chosen, strict=True)]})
    if method == "kto":
        return Dataset.from_dict(
            {"prompt": prompts, "completion": chosen, "label": [i % 3 != 0 for i in range(count)]}
        )
    if method in ("grpo", "rloo"):
        return Dataset.from_dict({"prompt": prompts})
    rejected = [_word(i + 5, 3 + i % 4) for i in range(count)]
    return Dataset.from_dict({"prompt": prompts, "chosen": chosen, "rejected": rejected})


class Reward:
    """Counts the letters of the first half of the alphabet, and notes the completions that it sees."""

    __name__ = "first_half"

    def __init__(self) -> None:
        self.seen: list[list[list[int]]] = []

    def __call__(self, completion_ids: list[list[int]], **_: Any) -> list[float]:
        self.seen.append(completion_ids)
        half = len(SPECIAL) + len(LETTERS) // 2
        return [float(sum(token < half for token in tokens)) for tokens in completion_ids]


OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": 4, "max_steps": 5, "learning_rate": 0.02, "logging_steps": 1,
    "save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True, "bf16": False,
    "dataloader_pin_memory": False, "gradient_checkpointing": False,
}  # fmt: skip
_OF_METHOD: dict[str, dict[str, Any]] = {
    "orpo": {"max_length": 32},
    "grpo": {"num_generations": 2, "max_completion_length": 6, "beta": 0.2},
    "rloo": {"num_generations": 2, "max_completion_length": 6, "beta": 0.2},
}


def new_trainer(method: str, model: str, folder: Path, *callbacks: Any, **options: Any) -> Any:
    """A TRL trainer of a method, with its `Reward` as ``trainer.reward_funcs[0]`` where it needs one.

    Args:
        model: A folder that `save_tiny_model` made.
        options: Of TRL's config; `peft_config` and `eval_dataset` go to the trainer.
    """
    trainer_class, config_class = METHODS[method].trainer_class(), METHODS[method].config_class()
    own = {name: options.pop(name) for name in ("peft_config", "eval_dataset") if name in options}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    if method in ("grpo", "rloo"):
        own["reward_funcs"] = Reward()
    return (options.pop("trainer_class", None) or trainer_class)(
        model=new_model(method, model),
        args=config_class(output_dir=str(folder / "out"), **(OPTIONS | _OF_METHOD.get(method, {}) | options)),
        train_dataset=rows(method),
        processing_class=tokenizer,
        callbacks=list(callbacks),
        **own,
    )


def new_model(method: str, folder: str) -> Any:
    """The model as every training of the method begins with it."""
    torch.manual_seed(9)  # for the reward model's head
    if method == "reward":
        return LlamaForSequenceClassification.from_pretrained(folder, num_labels=1)
    return LlamaForCausalLM.from_pretrained(folder)


class MethodLab(Lab):
    """A `Lab` whose training is one of TRL's."""

    def start(self, method: str, model: str, *callbacks: Any, **options: Any) -> Any:
        """The trainer, under live control."""
        self.trainer = new_trainer(method, model, self.folder, self.script, *callbacks, **options)
        self.control = attach(self.trainer, POLL_S, store=self.store, run_id=self.run_id)
        return self.trainer

    @property
    def losses(self) -> list[float]:
        """What was logged at every step."""
        return list(self.logged("loss").values())
