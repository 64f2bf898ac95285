"""A training on sequences of known lengths under a clock that only its own events move."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from training_tiny import arguments
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from ftlab_mlflow.training.run_numbers import RunNumbers

STEP_S, EVAL_S, SAVE_S = 2.0, 100.0, 3000.0
LENGTHS = [3 + (7 * i) % 11 for i in range(21)]
"""Tokens of each sample; a sample's first token is its number."""


def text_data() -> list[dict[str, list[int]]]:
    """Sample i is LENGTHS[i] times its own number."""
    return [{"input_ids": [i] * length} for i, length in enumerate(LENGTHS)]


def pad(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch as collators make it: padded on the right, with a mask."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows]
    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    batch = {"input_ids": ids, "labels": ids, "attention_mask": mask}
    return {name: torch.tensor(values) for name, values in batch.items()}


class TextModel(torch.nn.Module):
    """Notes which samples every training step got.

    Attributes:
        steps: For each optimizer step, its batches of sample numbers.
        add: What is added to the loss of a batch, given the numbers of its step and of itself in it.
        eval_losses: Loss of the evaluation after a step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(32, 4)
        self.steps: list[list[list[int]]] = [[]]
        self.add: Callable[[int, int], float] = lambda step, batch: 0.0
        self.eval_losses: dict[int, float] = {}
        self.step = 0

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, attention_mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        hidden = self.embedding(input_ids) * attention_mask[..., None]
        loss = (hidden**2).mean()
        if not self.training:
            return {"loss": loss * 0 + self.eval_losses.get(self.step, 1.0)}
        self.steps[-1].append(input_ids[:, 0].tolist())
        return {"loss": loss + self.add(len(self.steps), len(self.steps[-1]))}


class _Time(TrainerCallback, ExportableState):
    """Moves the clock: at the end of a step, in an evaluation, and while a checkpoint is written."""

    def __init__(self, scene: "Scene") -> None:
        self.scene = scene

    def state(self) -> dict[str, Any]:
        self.scene.now += SAVE_S
        return {"args": {}, "attributes": {}}

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.scene.now += EVAL_S

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.scene.now += STEP_S
        model = self.scene.model
        model.step = state.global_step
        model.steps.append([])
        if action := self.scene.at.get(state.global_step):
            action()


class Scene:
    """A tiny training with `RunNumbers`: batches of 2, two of them a step, 21 samples.

    Attributes:
        now: The clock. at: What to do at the end of a step.
    """

    def __init__(
        self, folder: Path, callbacks: Any = (), trainer_class: type[Trainer] = Trainer, **options: Any
    ) -> None:
        self.now = 0.0
        self.at: dict[int, Callable[[], None]] = {}
        torch.manual_seed(0)
        self.model = TextModel()
        chosen: dict[str, Any] = {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "per_device_eval_batch_size": 8,
            "remove_unused_columns": False,
            "eval_strategy": "steps" if "eval_steps" in options else "no",
            "save_strategy": "steps" if "save_steps" in options else "no",
        }
        self.trainer = trainer_class(
            model=self.model,
            args=arguments(folder, **(chosen | options)),
            train_dataset=text_data(),  # type: ignore[arg-type]
            eval_dataset=text_data()[:8],  # type: ignore[arg-type]
            data_collator=pad,
            callbacks=[_Time(self), *callbacks, RunNumbers(lambda: self.now)],
        )

    def logged(self, key: str) -> dict[int, float]:
        """What was logged under a key, by step."""
        return {log["step"]: log[key] for log in self.trainer.state.log_history if key in log}

    def expected(self, ends: list[int]) -> list[dict[str, float]]:
        """The rates of windows that end at these steps, from what the model was given."""
        windows = []
        for begin, end in zip([0, *ends], ends, strict=False):
            samples = [i for step in self.model.steps[begin:end] for batch in step for i in batch]
            seconds = STEP_S * (end - begin)
            windows.append(
                {
                    "samples_per_second": len(samples) / seconds,
                    "tokens_per_second": sum(LENGTHS[i] for i in samples) / seconds,
                    "step_time_s": STEP_S,
                }
            )
        return windows
