"""`ftlab demo --real`: LoRA on a real language model, its batch size and learning rate changed on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlab_mlflow.cli import demo_report

if TYPE_CHECKING:
    from ftlab_mlflow.cli.demo_stage import Stage

_SAMPLES = {"train": 120, "test": 24}
_OPTIONS = {
    "use_peft": "true",
    "lora_r": "8",
    "lora_alpha": "16",
    "lora_target_modules": "all-linear",
    "num_train_epochs": "1",
    "per_device_train_batch_size": "2",
    "per_device_eval_batch_size": "8",
    "max_length": "128",
    "learning_rate": "5e-4",
    "lr_scheduler_type": "cosine",
    "warmup_steps": "4",
    "gradient_checkpointing": "false",
    "logging_steps": "1",
    "eval_on_start": "true",
    "eval_strategy": "epoch",
    "save_strategy": "no",
    "poll_interval": "0.5",
}
"""About two minutes on two CPU cores. One epoch: that its steps become fewer is part of what is shown."""


def play(stage: Stage) -> dict[str, Any]:
    """Trains; the report also has the held-out loss, a sample answer and what went wrong, if anything."""
    from ftlab_mlflow.training.real_model import answers, real_model

    model, adapter = real_model(stage.tell), str(stage.place / "adapter")
    question, expected = _write_data(stage.place / "data")
    options = {"model": model, "data": str(stage.place / "data"), "output_dir": adapter, **_OPTIONS}
    run = stage.play(options, _act)
    losses = run.metric_history("eval_loss")
    stage.tell("Ask the model a held-out question, without and with what it has learned")
    before, after = answers(model, adapter, question)
    fell = losses[-1].value < losses[0].value
    return demo_report.document(run, stage.uri) | {
        "held_out": [{"step": point.step, "loss": point.value} for point in (losses[0], losses[-1])],
        "sample": {"question": question, "expected": expected, "before": before, "after": after},
        "problems": [] if fell else ["the held-out loss did not fall"],
    }


def show(report: dict[str, Any]) -> None:
    """Prints what `play` adds to the report."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    table = Table(title="On held-out samples", title_justify="left", show_lines=True)
    for heading in ("", "before", "after"):
        table.add_column(heading, overflow="fold")
    table.add_row("loss", *(f"{point['loss']:.4g} (step {point['step']})" for point in report["held_out"]))
    sample = report["sample"]
    table.add_row(sample["question"], sample["before"], sample["after"])
    console.print(table)
    console.print(f"From the documentation: {sample['expected']}")


def _act(stage: Stage) -> None:
    stage.at(0.3)
    surface = stage.run.surface().params
    new: dict[str, Any] = {
        "per_device_train_batch_size": int(surface["per_device_train_batch_size"].asked) * 2,
        "learning_rate": float(surface["learning_rate"].asked) * 2,
    }
    stage.tell("  → double batch size and learning rate, in one request")
    stage.answer(stage.run.update(new, reason="larger steps, fewer of them"))


def _write_data(folder: Path) -> tuple[str, str]:
    """Writes some of the demo's samples; returns a held-out question with its answer."""
    from ftlab_mlflow.training.demo_data import demo_samples

    folder.mkdir(exist_ok=True)
    for (split, count), samples in zip(_SAMPLES.items(), demo_samples(), strict=True):
        lines = (json.dumps(sample) + "\n" for sample in samples[:count])
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        held_out = samples[:count]
    pairs = ((sample["prompt"][0]["content"], sample["completion"][0]["content"]) for sample in held_out)
    # The first one that is not from the middle of a section, if there is one.
    return min(pairs, key=lambda pair: ", part " in pair[0])
