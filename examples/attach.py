"""Live control in a training script of your own: two lines. Run it, and in another terminal:

ftlab set latest learning_rate=2e-4 --reason "try a smaller rate" --wait
"""

from __future__ import annotations

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from ftlab_mlflow import attach


class Counting(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Sequences of consecutive numbers: enough to have something to learn."""

    def __len__(self) -> int:
        return 20_000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.arange(index, index + 32) % 256
        return {"input_ids": tokens, "labels": tokens}


def main() -> None:
    """Trains a tiny language model with live control."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max_steps", type=int, default=2000)
    parser.add_argument("--output_dir", default="outputs/attach")
    options = parser.parse_args()
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    args = TrainingArguments(
        output_dir=options.output_dir,
        max_steps=options.max_steps,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        logging_steps=10,
        save_strategy="no",
        report_to="mlflow",
        dataloader_pin_memory=torch.accelerator.is_available(),
    )
    trainer = Trainer(LlamaForCausalLM(config), args, train_dataset=Counting())
    attach(trainer, limits={"learning_rate": (0, 1e-2)})
    trainer.train()


if __name__ == "__main__":
    main()
