"""Where samples come from: every local form gives the same samples, every mistake is named."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from ftlab_mlflow.errors import ConfigError
from ftlab_mlflow.training.config import TrainConfig, load_config
from ftlab_mlflow.training.data import Data, load_data
from ftlab_mlflow.training.methods import METHODS

ROWS = [{"prompt": f"What is {i}?", "completion": f"A number, “{i}”.\nNo more."} for i in range(40)]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))


def config(data: object, *options: str) -> TrainConfig:
    return load_config(METHODS["sft"], None, ("--model", "demo", "--data", str(data), *options))


def load(data: object, *options: str) -> Data:
    return load_data(config(data, *(options or ("--eval_strategy", "no"))))


def write_jsonl(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_json(path: Path) -> Path:
    path.write_text(json.dumps(ROWS))
    return path


def write_csv(path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def write_parquet(path: Path) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


def write_folder(path: Path) -> Path:
    path.mkdir()
    write_jsonl(path / "train.jsonl")
    return path


def write_saved(path: Path) -> Path:
    Dataset.from_list(ROWS).save_to_disk(path)
    return path


def write_saved_splits(path: Path) -> Path:
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:3])).save_to_disk(path)
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", write_jsonl),
        ("a.ndjson", write_jsonl),
        ("a.json", write_json),
        ("a.csv", write_csv),
        ("A.PARQUET", write_parquet),
        ("folder", write_folder),
        ("saved", write_saved),
        ("splits", write_saved_splits),
    ],
)
def test_every_local_form_gives_the_same_samples(
    tmp_path: Path, name: str, write: Callable[[Path], Path]
) -> None:
    data = load(write(tmp_path / name))
    assert data.train.to_list() == ROWS
    assert data.test is None


def test_the_test_split_of_a_folder_is_evaluated_on(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS[:30])
    write_jsonl(tmp_path / "test.jsonl", ROWS[30:])
    data = load(tmp_path, "--eval_strategy", "steps")
    assert data.train.to_list() == ROWS[:30]
    assert data.test is not None
    assert data.test.to_list() == ROWS[30:]


def test_a_validation_split_serves_where_there_is_no_test_split(tmp_path: Path) -> None:
    splits = DatasetDict(train=Dataset.from_list(ROWS[:30]), validation=Dataset.from_list(ROWS[30:]))
    splits.save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved", "--eval_strategy", "epoch")
    assert data.test is not None
    assert data.test.to_list() == ROWS[30:]


def test_without_a_test_split_a_part_is_held_out_by_the_seed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl")
    first = load(path, "--eval_strategy", "steps", "--seed", "1")
    again = load(path, "--eval_strategy", "steps", "--seed", "1")
    other = load(path, "--eval_strategy", "steps", "--seed", "2")
    assert first.test is not None
    assert again.test is not None
    assert other.test is not None
    assert len(first.test) == 2  # 5 % of 40
    held = first.test.to_list()
    assert held == again.test.to_list() != other.test.to_list()
    key = lambda row: row["prompt"]  # noqa: E731
    assert sorted(held + first.train.to_list(), key=key) == sorted(ROWS, key=key)
    few = load(write_jsonl(tmp_path / "b.jsonl", ROWS[:2]), "--eval_strategy", "steps")
    assert few.test is not None
    assert (len(few.train), len(few.test)) == (1, 1)


def test_a_mixture_is_loaded_as_trl_loads_it(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl")
    file = tmp_path / "sft.yaml"
    part = f"{{path: json, data_files: {path}}}"
    file.write_text(f"model_name_or_path: demo\nlearning_rate: 1e-4\ndatasets: [{part}, {part}]\n")
    assert load_data(load_config(METHODS["sft"], str(file), ())).train.to_list() == ROWS + ROWS


def test_the_demo_has_a_test_split() -> None:
    data = load("demo", "--eval_strategy", "steps")
    assert data.test is not None
    assert len(data.train) > 10 * len(data.test) > 0


def empty(path: Path) -> Path:
    path.write_text("")
    return path


def header_only(path: Path) -> Path:
    path.write_text("prompt,completion\n")
    return path


def broken(path: Path) -> Path:
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    return path


@pytest.mark.parametrize(
    ("name", "write", "error"),
    [
        ("a.jsonl", empty, r"a\.jsonl holds no samples: the file is empty$"),
        ("a.csv", header_only, r"a\.csv could not be read as data: .* no data!$"),
        ("a.jsonl", broken, r"a\.jsonl could not be read as data: "),
        ("a.parquet", broken, r"a\.parquet could not be read as data: "),
        ("a.xlsx", broken, r"a\.xlsx: a data file is one of \.jsonl, \.ndjson, \.json, \.csv, \.parquet; or"),
        ("a", Path.mkdir, r"a could not be read as data: "),
        (
            "a.jsonl",
            lambda path: write_jsonl(path, [{"question": "a", "answer": "b"}]),
            r"a\.jsonl has the columns question, answer; sft needs messages, or conversations, or "
            r"prompt \+ completion, or text, or input_ids$",
        ),
        (
            "a.jsonl",
            lambda path: write_jsonl(path, [{"prompt": "a"}]),
            r"a\.jsonl has the columns prompt; sft needs messages",
        ),
    ],
)
def test_data_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, write: Callable[[Path], Path], error: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(ConfigError, match=error) as raised:
        load(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match=r"has no split 'dev'; there are train$"):
        load(path, "--dataset_train_split", "dev")
    with pytest.raises(ConfigError, match=r"has no split 'dev'; there are train$"):
        load(path, "--eval_strategy", "steps", "--dataset_test_split", "dev")


def test_too_few_samples_to_hold_one_out(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS[:1])
    with pytest.raises(ConfigError, match="has one sample: too few"):
        load(path, "--eval_strategy", "steps")


def test_the_text_column_may_have_another_name(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"body": "a"}, {"body": "b"}])
    options = ("--eval_strategy", "no", "--dataset_text_field", "body")
    assert load(path, *options).train.to_list() == [{"body": "a"}, {"body": "b"}]


def test_a_name_that_is_no_file_was_taken_for_a_hub_name() -> None:
    reason = "there is no file or folder nobody/nothing-at-all, so it was looked for on the Hugging Face hub"
    with pytest.raises(ConfigError, match=f"^{reason}, which failed: "):
        load("nobody/nothing-at-all")
