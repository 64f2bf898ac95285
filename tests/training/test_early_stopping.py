"""Early stopping: its two parameters live, over a resume, and from the config of `ftlab train`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_tiny import Lab
from training_trl import rows, save_tiny_model
from transformers import EarlyStoppingCallback

from ftlab_mlflow.errors import ConfigError
from ftlab_mlflow.training.config import TrainConfig, load_config
from ftlab_mlflow.training.methods import METHODS
from ftlab_mlflow.training.train import Training

EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss", "max_steps": 12}
NEVER_BETTER = 1e9
"""No evaluation improves by so much, so every one after the first counts."""


def test_patience_acts_from_the_next_evaluation_on(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    callback = EarlyStoppingCallback(100, NEVER_BETTER)
    lab.make(callbacks=(callback,), **EVALUATED)
    lab.tell(5, "a", set={"early_stopping_patience": 6})
    lab.tell(6, "b", set={"early_stopping_patience": 0})
    lab.trainer.train()
    assert lab.ack("a").changes == {"early_stopping_patience": (100, 6)}
    assert lab.ack("b").code == "out_of_bounds"
    # The evaluations of the steps 2 to 7 are the six without an improvement.
    assert lab.trainer.state.global_step == 7


def test_the_threshold_acts_from_the_next_evaluation_on(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.make(callbacks=(EarlyStoppingCallback(3),), **EVALUATED)
    lab.tell(5, "a", set={"early_stopping_threshold": NEVER_BETTER})
    lab.trainer.train()
    losses = list(lab.logged("eval_loss").values())
    assert losses == sorted(losses, reverse=True), "it improves all the time"
    # The evaluation of step 5 comes after its boundary: 5, 6 and 7 count.
    assert lab.trainer.state.global_step == 7


@pytest.mark.parametrize("restores", [True, False])
def test_patience_survives_a_resume(restores: bool, tmp_path: Path) -> None:
    options = EVALUATED | {
        "save_strategy": "steps", "save_steps": 4, "restore_callback_states_from_checkpoint": restores
    }  # fmt: skip
    lab = Lab(tmp_path)
    lab.make(callbacks=(EarlyStoppingCallback(100, NEVER_BETTER),), **options)
    lab.tell(2, "a", set={"early_stopping_patience": 5})
    lab.trainer.train()
    assert lab.trainer.state.global_step == 6

    again = Lab(tmp_path, run_id=lab.run_id, store=lab.store)
    again.make(callbacks=(EarlyStoppingCallback(100, NEVER_BETTER),), **options)
    again.trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert again.surface().params["early_stopping_patience"].value == 5
    # Without its state, transformers counts the evaluations anew.
    assert again.trainer.state.global_step == (6 if restores else 9)


def test_an_evaluation_on_request_does_not_count(tmp_path: Path) -> None:
    """Somebody who looks at a training must not end it by that."""
    lab = Lab(tmp_path)
    lab.make(callbacks=(EarlyStoppingCallback(4, NEVER_BETTER),), **EVALUATED)
    for i in range(5):
        lab.tell(3, f"look{i}", command="evaluate")
    lab.trainer.train()
    assert all(lab.ack(f"look{i}").status == "applied" for i in range(5))
    assert lab.trainer.state.global_step == 5


# --- from the config of `ftlab train` -------------------------------------------------------------------

Folder = tuple[str, str, Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A model, data for it, and where the training goes."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows("sft")))
    return save_tiny_model(tmp_path / "model"), str(data), tmp_path / "out"


def _config(folder: Folder, **options: object) -> TrainConfig:
    model, data, out = folder
    given = {"model": model, "data": data, "output_dir": out, "max_steps": 12, "logging_steps": 1} | options
    return load_config(METHODS["sft"], None, [word for k, v in given.items() for word in (f"--{k}", str(v))])


STOPS: dict[str, object] = {
    "early_stopping_patience": 3, "early_stopping_threshold": NEVER_BETTER, "eval_strategy": "steps",
    "eval_steps": 1, "save_strategy": "steps", "save_steps": 2,
}  # fmt: skip


@pytest.mark.usefixtures("tracking_uri")
def test_a_config_stops_a_training_early_also_one_that_is_resumed(folder: Folder) -> None:
    first = Training(_config(folder, **STOPS)).run()
    assert (first.step, first.state) == (4, "finished")
    # The checkpoint has seen one evaluation without an improvement, so two are left.
    resumed = _config(folder, **STOPS, resume_from_checkpoint=folder[2] / "checkpoint-2")
    assert Training(resumed).run().step == 4


def test_what_early_stopping_needs(folder: Folder) -> None:
    assert _config(folder, eval_strategy="epoch").training.metric_for_best_model is None
    asked = {"early_stopping_patience": 2, "eval_strategy": "epoch"}
    args = _config(folder, **asked).training
    assert (args.metric_for_best_model, args.greater_is_better) == ("loss", False)
    assert _config(folder, **asked, metric_for_best_model="mean_token_accuracy").training.greater_is_better
    for wrong, text in (
        ({"early_stopping_patience": 2}, "eval_strategy is no"),
        ({"early_stopping_patience": 0, "eval_strategy": "epoch"}, "at least 1, got '0'"),
        ({"early_stopping_patience": 2, "early_stopping_threshold": -1, "eval_strategy": "epoch"}, "least 0"),
        ({"early_stopping_threshold": 0.1, "eval_strategy": "epoch"}, "without early_stopping_patience"),
    ):
        with pytest.raises(ConfigError, match=text):
            _config(folder, **wrong)
