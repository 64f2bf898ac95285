"""Every method of `ftlab train`: trained for real on its demo and changed while it trains; its mistakes."""

from __future__ import annotations

import gc
import json
import math
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from safetensors.torch import load_file
from transformers.integrations import MLflowCallback

from ftlab_mlflow import LiveRun, NotLive, RunNotFound
from ftlab_mlflow.errors import ConfigError
from ftlab_mlflow.training.config import DEMO_REWARD, load_config
from ftlab_mlflow.training.data import load_data
from ftlab_mlflow.training.demo_model import demo_model
from ftlab_mlflow.training.methods import METHODS
from ftlab_mlflow.training.run_log import RunLog
from ftlab_mlflow.training.train import Outcome, Training

BASE, ASKED = 1e-3, 2.5e-4
ONLINE = ("--per_device_train_batch_size", "8", "--num_generations", "4")
OFFLINE = ("--per_device_train_batch_size", "2")
LORA = ("--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj")
LIMIT_S = 180


@pytest.fixture(scope="module", autouse=True)
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The demo model, in a cache of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield Path(demo_model())


def method_options(method: str) -> tuple[str, ...]:
    return ONLINE if METHODS[method].is_rewarded else OFFLINE


class Person(threading.Thread):
    """Waits for a run to train, sets its learning rate, and stops it three steps later."""

    def __init__(self, name: str, uri: str) -> None:
        super().__init__(daemon=True)
        self._name, self._uri = name, uri
        self.changed_at = -1
        self.method = ""

    def run(self) -> None:
        end = time.monotonic() + LIMIT_S
        while not (run := self._running()):
            assert time.monotonic() < end, "no run that trains"
            time.sleep(0.1)
        ack = run.update({"learning_rate": ASKED}).wait(LIMIT_S)
        assert ack.status == "applied"
        self.changed_at = ack.step
        self.method = run.status().method
        run.command("stop", at_step=ack.step + 3)

    def _running(self) -> LiveRun | None:
        try:
            run = LiveRun(self._name, tracking_uri=self._uri)
            return run if run.status().state == "running" else None
        except (RunNotFound, NotLive):
            return None


def train(method: str, uri: str, folder: Path, *options: str) -> tuple[Outcome, Person]:
    fixed = f"--tracking_uri {uri} --run_name {method} --output_dir {folder} --poll_interval 0.05"
    words = f"{fixed} --logging_steps 1 --eval_strategy no --save_strategy no --lr_scheduler_type constant"
    never = ("--max_steps", "100000", "--warmup_steps", "0", "--disable_tqdm")
    person = Person(method, uri)
    person.start()
    config = load_config(METHODS[method], None, (*words.split(), *never, *method_options(method), *options))
    outcome = Training(config).run()
    person.join(LIMIT_S)
    return outcome, person


@pytest.mark.parametrize(
    ("method", "options", "metric"),
    [
        ("sft", (), "loss"),
        ("dpo", (), "rewards/margins"),
        ("orpo", (), "log_odds_ratio"),
        ("kto", (), "kl"),
        ("reward", (), "accuracy"),
        ("grpo", (), "rewards/sum_reward/mean"),
        ("rloo", (), "rewards/sum_reward/mean"),
        ("dpo", LORA, "rewards/margins"),
        ("reward", LORA, "accuracy"),
        ("grpo", LORA, "rewards/sum_reward/mean"),
    ],
)
def test_a_method_trains_its_demo_and_takes_a_new_rate(
    demo: Path, tracking_uri: str, tmp_path: Path, method: str, options: tuple[str, ...], metric: str
) -> None:
    outcome, person = train(method, tracking_uri, tmp_path / "out", *options)
    changed_at = person.changed_at
    assert (outcome.state, person.method) == ("stopped", method)
    assert outcome.step >= changed_at + 3 >= 3
    run = LiveRun(outcome.run_id, tracking_uri=tracking_uri)
    assert (run.data().status, run.status().method) == ("KILLED", method)
    rates = {point.step: point.value for point in run.metric_history("learning_rate")}
    assert rates == {
        step: pytest.approx(BASE if step <= changed_at else ASKED) for step in range(1, outcome.step + 1)
    }
    logged = run.metric_history(metric)
    assert logged
    assert all(math.isfinite(point.value) for point in logged)

    assert outcome.saved == str(tmp_path / "out")
    if options:
        adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert (adapter["r"], adapter["task_type"]) == (4, "SEQ_CLS" if method == "reward" else "CAUSAL_LM")
        trained = load_file(tmp_path / "out" / "adapter_model.safetensors")
        assert any(bool(weight.any()) for name, weight in trained.items() if "lora_B" in name)
        assert any("score" in name for name in trained) is (method == "reward")
    else:
        before, after = load_file(demo / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
        assert ("score.weight" in after) is (method == "reward")
        assert all(not torch.equal(before[name], after[name]) for name in before)


def test_nothing_given_is_a_demo_with_data_and_rewards_of_its_own() -> None:
    for method in METHODS.values():
        config = load_config(method, None, ("--max_steps", "5"))
        assert config.model.model_name_or_path == config.script.dataset_name == "demo"
        assert (config.training.max_steps, config.training.learning_rate) == (5, BASE)
        for key, value in method.demo_defaults.items():
            assert key == "max_steps" or getattr(config.training, key) == value
        assert (config.given.get("reward_funcs") == [DEMO_REWARD]) is method.is_rewarded
        data = load_data(config)
        assert data.test is not None
        assert len(data.train) > 10 * len(data.test) > 0


def test_the_demo_has_a_reward_also_with_a_file(tmp_path: Path) -> None:
    file = tmp_path / "grpo.yaml"
    file.write_text("model_name_or_path: demo\ndataset_name: demo\n")
    assert load_config(METHODS["grpo"], str(file), ()).script.reward_funcs == [DEMO_REWARD]
    model = ("--reward_model_name_or_path", "some/model")
    assert load_config(METHODS["grpo"], str(file), model).script.reward_funcs is None


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PAIRS = "prompt + chosen + rejected, or chosen + rejected"
HAVE = "has the columns prompt, completion"


@pytest.mark.parametrize(
    ("method", "row", "error"),
    [
        ("dpo", {"prompt": "a", "completion": "b"}, f"{HAVE}; dpo needs {PAIRS}; missing: chosen, rejected"),
        ("orpo", {"prompt": "a", "chosen": "b"}, f"; orpo needs {PAIRS}; missing: rejected"),
        (
            "reward",
            {"rejected": "a"},
            f"; reward needs {PAIRS}, or chosen_ids + rejected_ids; missing: chosen",
        ),
        (
            "kto",
            {"prompt": "a", "completion": "b"},
            f"{HAVE}; kto needs prompt + completion + label, or {PAIRS}; missing: label",
        ),
        ("grpo", {"question": "a"}, "has the columns question; grpo needs prompt"),
        ("rloo", {"question": "a"}, "has the columns question; rloo needs prompt"),
    ],
)
def test_columns_that_are_missing_are_named(
    tmp_path: Path, method: str, row: dict[str, str], error: str
) -> None:
    path = write(tmp_path / "a.jsonl", row)
    options = ("--model", "demo", "--data", str(path), "--eval_strategy", "no")
    rewards = ("--reward_funcs", "x:y") if METHODS[method].is_rewarded else ()
    with pytest.raises(ConfigError, match=re.escape(error) + "$"):
        load_data(load_config(METHODS[method], None, (*options, *rewards)))


@pytest.mark.parametrize(
    ("method", "row"),
    [
        ("dpo", {"chosen": "a b", "rejected": "a c"}),
        ("kto", {"prompt": "a", "chosen": "b", "rejected": "c"}),
        ("reward", {"chosen_ids": [1], "rejected_ids": [2]}),
    ],
)
def test_other_forms_that_trl_takes_are_taken(tmp_path: Path, method: str, row: dict[str, Any]) -> None:
    path = write(tmp_path / "a.jsonl", row)
    options = ("--model", "demo", "--data", str(path), "--eval_strategy", "no")
    assert load_data(load_config(METHODS[method], None, options)).train.to_list() == [row]


def test_batches_that_a_method_cannot_use_are_refused(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("grpo", "rloo"):
        with pytest.raises(ConfigError, match="holds no whole groups of num_generations"):
            load_config(METHODS[method], None, ("--per_device_train_batch_size", "3"))
    monkeypatch.chdir(tmp_path)
    config = load_config(METHODS["kto"], None, ("--per_device_train_batch_size", "1", "--max_steps", "1"))
    training = Training(config)
    with pytest.raises(ConfigError, match=r"^demo cannot be trained: .* batch size must be > 1"):
        training.run()
    assert training.log is not None
    assert training.log.store.get(training.log.run_id).status == "FAILED"


def test_data_without_a_reward_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "a"})
    with pytest.raises(
        ConfigError, match=r"^reward_funcs is missing: --reward_funcs takes functions, module:"
    ):
        load_config(METHODS["grpo"], None, ("--model", "demo", "--data", str(path)))


def test_a_dead_callback_of_an_earlier_training_does_not_end_this_run(tracking_uri: str) -> None:
    """transformers' callback ends whatever run is active when it is collected, at any time later."""
    dead = MLflowCallback()
    dead._ml_flow = mlflow
    dead._initialized = dead._auto_end_run = True
    dead.__dict__["itself"] = dead
    del dead
    log = RunLog(tracking_uri, "run")
    gc.collect()
    active = mlflow.active_run()
    assert active is not None
    assert active.info.run_id == log.run_id
    log.end("finished")
