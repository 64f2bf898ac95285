"""A TRL training that another process changes, over SQLite, as in the README."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
from datasets import Dataset
from tiny_llama import tiny_config, tiny_tokenizer
from transformers import LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from ftlab_mlflow import LiveRun, attach

CLIENT = """
import json, sys, time
from ftlab_mlflow import LiveRun, RunNotFound, UpdateRejected

end = time.monotonic() + 60
while True:
    try:
        run = LiveRun("latest")
        if run.status().state == "running":
            break
    except RunNotFound:
        pass
    assert time.monotonic() < end, "no live run"
    time.sleep(0.05)
told = {}
told["rate"] = run.update(learning_rate=5e-4, reason="plateau", expect={"learning_rate": 1e-3}).wait(60).step
told["both"] = run.update(weight_decay=0.1, max_grad_norm=0.5).wait(60).step
try:
    run.update(learning_rate=5e-4, expect={"learning_rate": 1e-3}).wait(60)
except UpdateRejected as error:
    told["stale"] = error.code
told["pause"] = run.pause().wait(60).step
told["evaluate"] = run.evaluate().wait(60).result["metrics"]["eval_loss"]
told["checkpoint"] = run.checkpoint().wait(60).result["checkpoint"]
told["resume"] = run.resume().wait(60).step
told["stop"] = run.stop(save=True).wait(60).result["checkpoint"]
print(json.dumps(told))
"""


def test_another_process_changes_a_trl_training(tracking_uri: str, tmp_path: Path) -> None:
    rows = [{"text": " ".join(f"w{(i + k) % 28}" for k in range(8))} for i in range(32)]
    trainer = SFTTrainer(
        model=LlamaForCausalLM(tiny_config()),
        args=SFTConfig(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=4,
            max_steps=100_000,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            logging_steps=50,
            save_strategy="no",
            eval_strategy="no",
            report_to="mlflow",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            dataloader_pin_memory=False,
            dataset_num_proc=None,
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:8]),
        processing_class=tiny_tokenizer(),
    )
    control = attach(trainer, 0.05)
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        env=os.environ | {"MLFLOW_TRACKING_URI": tracking_uri},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    trainer.train()
    output, errors = client.communicate(timeout=60)
    assert client.returncode == 0, errors
    told = json.loads(output)
    assert told["stale"] == "stale"
    assert told["pause"] == told["resume"], "not a step while it was paused"
    assert told["evaluate"] > 0
    assert Path(told["checkpoint"]).name == f"checkpoint-{told['pause']}"
    assert Path(told["stop"]).name == f"checkpoint-{trainer.state.global_step}"
    assert Path(told["stop"], "trainer_state.json").exists()

    run = LiveRun(str(control.run_id))
    assert (run.status().state, run.status().method, run.data().status) == ("stopped", "sft", "KILLED")
    history = mlflow.MlflowClient().get_metric_history(run.run_id, "live/learning_rate")
    assert [(m.value, m.step) for m in history] == [(5e-4, told["rate"])]
    rates = {log["step"]: log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log}
    before = [rate for step, rate in rates.items() if step <= told["rate"]]
    after = [rate for step, rate in rates.items() if step > told["rate"]]
    assert all(rate > 9e-4 for rate in before)
    assert after
    assert all(rate <= 5e-4 for rate in after)
    assert after == sorted(after, reverse=True), "the cosine goes on beneath the new value"
