"""`ftlab demo --real`: a real model learns while it is changed, and what is shown of it is true."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftlab_mlflow import LiveRun
from ftlab_mlflow.training.real_model import real_model

EVAL_BATCH, MAX_TOKENS = 8, 128


def held_out_loss(model: Any, tokenizer: Any, samples: list[dict[str, Any]]) -> float:
    """Mean over batches of the mean negative log-likelihood of the answers' tokens, sample by sample."""
    means = []
    for start in range(0, len(samples), EVAL_BATCH):
        total, count = 0.0, 0
        for sample in samples[start : start + EVAL_BATCH]:
            text = tokenizer.apply_chat_template(sample["prompt"] + sample["completion"], tokenize=False)
            asked = tokenizer.apply_chat_template(
                sample["prompt"], tokenize=False, add_generation_prompt=True
            )
            ids = tokenizer(text, return_tensors="pt").input_ids[:, :MAX_TOKENS]
            first = len(tokenizer(asked).input_ids)
            with torch.inference_mode():
                scores = model(ids).logits[0, :-1].log_softmax(-1)
            likelihoods = scores.gather(-1, ids[0, 1:, None])[first - 1 :]
            total, count = total - likelihoods.sum().item(), count + likelihoods.numel()
        means.append(total / count)
    return sum(means) / len(means)


def answer(model: Any, tokenizer: Any, question: str) -> str:
    """Token by token, always the likeliest."""
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    step, cache = tokenizer(text, return_tensors="pt").input_ids, None
    said: list[int] = []
    while len(said) < 64 and tokenizer.eos_token_id not in said:
        with torch.inference_mode():
            out = model(step, past_key_values=cache, use_cache=True)
        step, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        said.append(step.item())
    return str(tokenizer.decode(said, skip_special_tokens=True)).strip()


@pytest.mark.slow
def test_a_real_model_learns_while_batch_size_and_rate_change(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    command = [sys.executable, "-m", "ftlab_mlflow.cli", "demo", "--real", "--folder", ".", "--json"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=1200, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["state"], report["problems"]) == ("finished", [])

    run = LiveRun(report["run_id"], tracking_uri=report["tracking_uri"])
    (entry,) = run.history()
    assert entry.ack is not None
    assert entry.ack.status == "applied"
    old_rate, new_rate = entry.ack.changes["learning_rate"]
    assert entry.ack.changes["per_device_train_batch_size"] == (2, 4)
    # 120 samples, two a step until then and four a step from then on, each of them once.
    steps = entry.ack.step + math.ceil((120 - 2 * entry.ack.step) / 4)
    status = run.status()
    assert (status.step, status.max_steps, status.epoch) == (steps, steps, 1.0)
    rates = {point.step: point.value for point in run.metric_history("learning_rate")}
    assert rates[entry.ack.step + 1] == new_rate == pytest.approx(1e-3)
    assert old_rate < 5e-4

    losses = run.metric_history("eval_loss")
    assert [point.step for point in losses] == [0, steps] == [point["step"] for point in report["held_out"]]
    before, after = (point.value for point in losses)
    assert after < before
    folder = real_model(print)
    samples = [json.loads(line) for line in (tmp_path / "data" / "test.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    sample = report["sample"]
    assert before == pytest.approx(held_out_loss(model, tokenizer, samples), rel=1e-4)
    assert sample["before"] == answer(model, tokenizer, sample["question"])
    tuned = PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    assert after == pytest.approx(held_out_loss(tuned, tokenizer, samples), rel=1e-4)
    assert sample["after"] == answer(tuned, tokenizer, sample["question"])
    assert sample["before"] != sample["after"]
    assert all(sample.values())
