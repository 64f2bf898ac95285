"""The demo's data and model: made from what Python brings along, small, and the same every time."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftlab_mlflow.training import demo_model as demo_model_module
from ftlab_mlflow.training.demo_data import demo_samples
from ftlab_mlflow.training.demo_model import demo_model


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return demo_model()


def test_samples_are_questions_with_pieces_of_the_documentation_as_answers() -> None:
    from pydoc_data.topics import topics

    train, test = demo_samples()
    assert 500 < len(train) < 4000
    assert len(test) == (len(train) + len(test)) // 20
    # Answers leave out blank space and the lines that underline a title.
    lines = [line for text in topics.values() for line in text.splitlines()]
    kept = [line for line in lines if len(line) < 3 or all(line.strip(mark) for mark in "*=-~^")]
    library = "".join("".join(kept).split())
    for sample in train + test:
        (question,), (answer,) = sample["prompt"], sample["completion"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert question["content"].startswith("Explain ")
        assert "".join(answer["content"].split()) in library
    questions = [sample["prompt"][0]["content"] for sample in train + test]
    assert len(set(questions)) > 0.9 * len(questions)


def test_no_test_sample_is_trained_on() -> None:
    train, test = demo_samples()
    assert not {digest(sample) for sample in test} & {digest(sample) for sample in train}


def test_samples_are_the_same_in_every_process() -> None:
    program = (
        "import hashlib, json; from ftlab_mlflow.training.demo_data import demo_samples;"
        "print(hashlib.sha256(json.dumps(demo_samples()).encode()).hexdigest())"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.strip() == digest(demo_samples())


def test_the_model_has_about_two_million_parameters_and_ties_its_ends(folder: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.model_type == "llama"
    # vocabulary + layers * (4 attention matrices, 3 of the feed-forward net, 2 norms) + last norm
    expected = 2048 * 160 + 5 * (4 * 160 * 160 + 3 * 160 * 448 + 2 * 160) + 160
    assert sum(p.numel() for p in model.parameters()) == expected == 1_916_640
    assert model.dtype == torch.float32


def test_the_tokenizer_keeps_every_text_and_its_chat_template_only_appends(folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in ("for i in range(3):\n    print(i)", "Größe 🦙 \x00 末", ""):
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    train, _ = demo_samples()
    lengths = []
    for sample in train[:300]:
        prompt = ids(tokenizer, sample["prompt"], add_generation_prompt=True)
        whole = ids(tokenizer, sample["prompt"] + sample["completion"])
        assert whole[: len(prompt)] == prompt
        assert whole[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id
        lengths.append(len(whole))
    assert sorted(lengths)[len(lengths) * 9 // 10] <= 128


def ids(tokenizer: Any, messages: list[dict[str, str]], **options: bool) -> list[int]:
    encoded: list[int] = tokenizer.apply_chat_template(messages, return_dict=False, **options)
    return encoded


def test_the_model_is_built_once_and_the_same_anywhere(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.random.get_rng_state()
    torch.manual_seed(5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    again = Path(demo_model())
    assert torch.equal(torch.random.get_rng_state(), torch.manual_seed(5).get_state())
    torch.random.set_rng_state(state)
    assert again.parent == tmp_path / "ftlab"
    assert again.name == Path(folder).name
    for name in ("model.safetensors", "tokenizer.json"):
        assert (again / name).read_bytes() == (Path(folder) / name).read_bytes()
    written = (again / "model.safetensors").stat().st_mtime_ns
    assert demo_model() == str(again)
    assert (again / "model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in again.parent.iterdir()] == [again.name]


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(demo_model_module, "_VOCABULARY", "many")
        with pytest.raises(TypeError):
            demo_model()
    assert list((tmp_path / "ftlab").iterdir()) == []
