"""An idle attached trainer trains to the same bits as one without us, in every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_trl import MethodLab, new_trainer, rows, save_tiny_model
from transformers import EarlyStoppingCallback

from ftlab_mlflow.control import tags
from ftlab_mlflow.training.methods import METHODS

pytestmark = pytest.mark.filterwarnings(
    # transformers, of TRL's own defaults.
    "ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning"
)
BUSY: dict[str, Any] = {
    "max_steps": 6, "gradient_accumulation_steps": 2, "warmup_steps": 2, "lr_scheduler_type": "cosine",
    "eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss", "save_strategy": "steps",
    "save_steps": 3,
}  # fmt: skip
"""Everything that live control has a hand in, or could have."""
OF_METHOD: dict[str, dict[str, Any]] = {
    "sft": {"neftune_noise_alpha": 2.0},
    "grpo": {"steps_per_generation": 4, "num_iterations": 2},
    "rloo": {"steps_per_generation": 4, "num_iterations": 2},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("method", METHODS)
def test_an_idle_attached_trainer_changes_no_bit(method: str, model: str, tmp_path: Path) -> None:
    options = BUSY | OF_METHOD.get(method, {}) | {"eval_dataset": rows(method, 8)}
    lab = MethodLab(tmp_path / "attached")
    attached = lab.start(method, model, EarlyStoppingCallback(9), **options)
    attached.train()
    alone = new_trainer(method, model, tmp_path / "alone", EarlyStoppingCallback(9), **options)
    alone.train()
    assert lab.status().state == "finished"
    assert tags.SURFACE in lab.tags()

    for (name, mine), theirs in zip(attached.model.named_parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    assert max(log["grad_norm"] for log in _logs(alone) if "grad_norm" in log) > 0, "it learned"
    _assert_same(attached.optimizer.state_dict(), alone.optimizer.state_dict())
    _assert_same(attached.lr_scheduler.state_dict(), alone.lr_scheduler.state_dict())
    assert _logs(attached) == _logs(alone)


def _assert_same(mine: Any, theirs: Any) -> None:
    """The same bits in nested dicts and lists."""
    assert type(mine) is type(theirs)
    if isinstance(mine, dict):
        assert mine.keys() == theirs.keys()
        for key in mine:
            _assert_same(mine[key], theirs[key])
    elif isinstance(mine, list | tuple):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            _assert_same(a, b)
    elif isinstance(mine, torch.Tensor):
        assert torch.equal(mine, theirs)
    else:
        assert mine == theirs


def _logs(trainer: Any) -> list[dict[str, Any]]:
    """What was logged, without the clock."""
    clock = ("time", "runtime", "per_second")
    return [
        {key: value for key, value in log.items() if not any(word in key for word in clock)}
        for log in trainer.state.log_history
    ]
