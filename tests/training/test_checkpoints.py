"""Which checkpoints are whole: real ones, with every file lost, emptied or cut as a killed save does."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from training_tiny import Lab

from ftlab_mlflow.training.checkpoints import ASIDE, holds_only_model, last_whole, problem, set_aside, step_of

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 2, 4 and 10, as the trainer wrote them."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    lab.make(max_steps=10, save_strategy="steps", save_steps=2)
    lab.trainer.train()
    for step in (6, 8):
        shutil.rmtree(lab.folder / "out" / f"checkpoint-{step}")
    return lab.folder / "out"


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "out"))


def cut(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": lambda file: cut(file, 0),
    "7 bytes": lambda file: cut(file, 7),
    "half": lambda file: cut(file, file.stat().st_size // 2),
    "all but 3 bytes": lambda file: cut(file, file.stat().st_size - 3),
}


def test_what_the_trainer_wrote_is_whole(written: Path) -> None:
    for step in (2, 4, 10):
        assert problem(written / f"checkpoint-{step}") is None
    assert last_whole(written) == written / "checkpoint-10", "by number, not by text"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_file_that_was_not_written_to_its_end_is_named_and_the_checkpoint_before_is_taken(
    folder: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken = folder / "checkpoint-10"
    DAMAGES[damage](broken / file)
    reason = problem(broken)
    assert reason is not None
    expected = "there are no weights" if (file, damage) == ("model.safetensors", "missing") else file
    assert expected in reason
    with caplog.at_level(logging.WARNING, "ftlab_mlflow"):
        assert last_whole(folder) == folder / "checkpoint-4"
    assert caplog.messages == [f"Skipped the checkpoint {broken}: {reason}"]


def test_a_save_that_was_killed_after_any_of_its_files(folder: Path) -> None:
    """The trainer writes in this order; only the last file makes it whole."""
    source, target = folder / "checkpoint-10", folder / "checkpoint-12"
    target.mkdir()
    for file in FILES:
        assert problem(target) is not None
        shutil.copy(source / file, target / file)
    assert problem(target) == "trainer_state.json is of step 10"
    state = json.loads((target / "trainer_state.json").read_text())
    (target / "trainer_state.json").write_text(json.dumps(state | {"global_step": 12}))
    assert problem(target) is None


def test_nothing_whole_and_nothing_at_all(folder: Path, tmp_path: Path) -> None:
    for step in (2, 4, 10):
        (folder / f"checkpoint-{step}" / "scheduler.pt").unlink()
    assert last_whole(folder) is None
    assert last_whole(tmp_path / "none") is None
    assert problem(tmp_path / "checkpoint-3") == problem(tmp_path) is not None
    assert [step_of(name) for name in ("a/checkpoint-30", "checkpoint-x", "checkpoint-3x")] == [
        30,
        None,
        None,
    ]


def test_only_the_model(folder: Path) -> None:
    path = folder / "checkpoint-10"
    assert not holds_only_model(path)
    for file in FILES[1:4]:
        (path / file).unlink()
    assert holds_only_model(path)
    assert problem(path) is None
    cut(path / "model.safetensors", 100)
    assert problem(path) is not None


def test_weights_in_shards(folder: Path) -> None:
    path = folder / "checkpoint-10"
    (path / "model.safetensors").unlink()
    for i in (1, 2):
        save_file({f"w{i}": torch.ones(3)}, path / f"model-0000{i}-of-00002.safetensors")
    assert problem(path) == "there are no weights", "the index is written after the shards"
    index = {
        "weight_map": {"w1": "model-00001-of-00002.safetensors", "w2": "model-00002-of-00002.safetensors"}
    }
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert problem(path) is None
    cut(path / "model-00002-of-00002.safetensors", 70)
    assert "model-00002-of-00002.safetensors" in str(problem(path))
    (path / "model-00002-of-00002.safetensors").unlink()
    assert problem(path) == "model-00002-of-00002.safetensors is missing"
    (path / "model.safetensors.index.json").write_text("{}")
    assert problem(path) == "model.safetensors.index.json cannot be read"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin", "pytorch_model.bin"])
def test_other_kinds_of_weights(folder: Path, name: str) -> None:
    path = folder / "checkpoint-10"
    (path / "model.safetensors").unlink()
    weights = {"w": torch.ones(3)}
    save_file(weights, path / name) if name.endswith("safetensors") else torch.save(weights, path / name)
    assert problem(path) is None
    (path / "other").mkdir()  # a second adapter, in a folder of its own
    save_file(weights, path / "other" / "adapter_model.safetensors")
    assert problem(path) is None
    cut(path / "other" / "adapter_model.safetensors", 70)
    assert problem(path) is not None
    shutil.rmtree(path / "other")
    cut(path / name, (path / name).stat().st_size - 3)
    assert name in str(problem(path))


def test_every_rank_must_have_written_its_random_state(folder: Path) -> None:
    path = folder / "checkpoint-10"
    rng = (path / "rng_state.pth").rename(path / "rng_state_0.pth")
    shutil.copy(rng, path / "rng_state_2.pth")
    assert problem(path) == "rng_state_1.pth is missing"
    shutil.copy(rng, path / "rng_state_1.pth")
    assert problem(path) is None
    state = json.loads((path / "trainer_state.json").read_text())
    state["stateful_callbacks"]["LiveControl"]["attributes"]["saved"]["ranks"] = 4
    (path / "trainer_state.json").write_text(json.dumps(state))
    assert problem(path) == "rng_state_3.pth is missing", "the last rank, which no other file tells of"


def test_a_gradient_scaler_where_there_is_one(folder: Path) -> None:
    path = folder / "checkpoint-10"
    torch.save({"scale": 1.0}, path / "scaler.pt")
    assert problem(path) is None
    cut(path / "scaler.pt", 50)
    assert problem(path) == "scaler.pt cannot be loaded"


def test_later_checkpoints_are_set_aside(folder: Path) -> None:
    (folder / "checkpoint-12").mkdir()
    moved = set_aside(folder, 4)
    assert moved == [folder / ASIDE / "checkpoint-10", folder / ASIDE / "checkpoint-12"]
    assert sorted(path.name for path in folder.glob("*")) == ["checkpoint-2", "checkpoint-4", ASIDE]
    assert problem(moved[0]) is None
    assert last_whole(folder) == folder / "checkpoint-4"
    (folder / "checkpoint-10").mkdir()
    assert set_aside(folder, 4) == [folder / ASIDE / "checkpoint-10"], "the newer one takes the place"
    assert problem(folder / ASIDE / "checkpoint-10") is not None
    assert set_aside(folder, 4) == []
