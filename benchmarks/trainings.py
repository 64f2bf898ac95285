"""The training that benchmarks run: a real `Trainer`, on the CPU with one thread, and a Llama of any size."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded; the server needs a core of its own
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

VOCABULARY = 256


@dataclass(frozen=True)
class Size:
    """How much work an optimizer step is."""

    hidden: int
    layers: int
    tokens: int
    batch: int


STEP_2_MS = Size(hidden=16, layers=1, tokens=8, batch=1)
STEP_50_MS = Size(hidden=128, layers=4, tokens=64, batch=6)


class _Tokens(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, tokens: int) -> None:
        self._tokens = torch.randint(VOCABULARY, (512, tokens))

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._tokens[index], "labels": self._tokens[index]}


def quiet(folder: str, **options: Any) -> TrainingArguments:
    """Arguments of a training on the CPU that logs and saves nothing by itself."""
    return TrainingArguments(
        output_dir=folder,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **options,
    )


def make_trainer(size: Size, steps: int, folder: str) -> Trainer:
    """A new trainer with a new model. It logs and saves nothing by itself; its rate is constant."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        intermediate_size=4 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=size.tokens,
    )
    arguments = quiet(
        folder,
        max_steps=steps,
        per_device_train_batch_size=size.batch,
        lr_scheduler_type="constant",
        ddp_backend="gloo" if "RANK" in os.environ else None,
    )
    trainer = Trainer(model=LlamaForCausalLM(config), args=arguments, train_dataset=_Tokens(size.tokens))
    trainer.remove_callback(PrinterCallback)
    return trainer
