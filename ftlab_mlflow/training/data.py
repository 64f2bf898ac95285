"""Where the samples come from: a file, a folder, a hub name, a mixture, or the demo."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ftlab_mlflow.errors import ConfigError
from ftlab_mlflow.training.config import DEMO, TrainConfig, first_words, is_path

logger = logging.getLogger("ftlab_mlflow")

_FORMATS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
_HELD_OUT = 0.05
"""Share of the training samples that is held out where an evaluation is wanted and no split was made."""
_ERRORS = (OSError, ValueError, RuntimeError, LookupError, ImportError)
"""What `datasets` and the hub's client raise, besides their own, for data that cannot be had or read."""


class Data(NamedTuple):
    """Samples to train on, and to evaluate on if an evaluation is wanted."""

    train: Any
    test: Any | None


def load_data(config: TrainConfig) -> Data:
    """Loads the samples and checks that the method can use them.

    If an evaluation is wanted and there is neither the named test split nor one called ``validation``, 5 % of
    the training samples (at least one) are held out, chosen by ``seed``.

    Raises:
        ConfigError: There are none, they cannot be read, or columns are missing.
    """
    splits = _load(config)
    name = "datasets" if config.mixture.datasets else str(config.script.dataset_name)
    train = _split(splits, config.script.dataset_train_split, name)
    _check(train, config, name)
    if config.training.eval_strategy.value == "no":
        return Data(train, None)
    test_split = config.script.dataset_test_split
    if test_split not in splits and "dataset_test_split" not in config.given:
        if "validation" not in splits:
            return _hold_out(train, config, name)
        test_split = "validation"
    test = _split(splits, test_split, name)
    _check(test, config, f"{name} ({test_split})")
    return Data(train, test)


def _load(config: TrainConfig) -> Any:
    script = config.script
    if config.mixture.datasets:
        from trl import get_dataset

        with _named("datasets: a dataset of the mixture could not be loaded"):
            return get_dataset(config.mixture)
    name: str = script.dataset_name
    if name == DEMO:
        from datasets import Dataset, DatasetDict

        train, test = config.method.demo_samples()
        return DatasetDict(train=Dataset.from_list(train), test=Dataset.from_list(test))
    path = Path(name).expanduser()
    if path.exists() or is_path(name):
        return _load_local(path, streaming=script.dataset_streaming)
    return _load_from_hub(name, script)


def _load_local(path: Path, *, streaming: bool) -> Any:
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    with _named(f"{path} could not be read as data"):
        if path.is_dir():
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                saved = load_from_disk(str(path))
                return DatasetDict(train=saved) if isinstance(saved, Dataset) else saved
            return load_dataset(str(path), streaming=streaming)
        kind = _FORMATS.get(path.suffix.lower())
        if kind is None:
            raise ConfigError(
                f"{path}: a data file is one of {', '.join(_FORMATS)}; or give a folder of such"
            )
        if path.stat().st_size == 0:
            raise ConfigError(f"{path} holds no samples: the file is empty")
        return load_dataset(kind, data_files={"train": str(path)}, streaming=streaming)


def _load_from_hub(name: str, script: Any) -> Any:
    from datasets import load_dataset

    reason = f"there is no file or folder {name}, so it was looked for on the Hugging Face hub"
    with _named(f"{reason}, which failed"):
        return load_dataset(name, name=script.dataset_config, streaming=script.dataset_streaming)


@contextmanager
def _named(what: str) -> Iterator[None]:
    from datasets.exceptions import DatasetGenerationError, DatasetsError

    try:
        yield
    except (DatasetsError, *_ERRORS) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None
        raise ConfigError(f"{what}: {first_words(cause or error)}") from error


def _split(splits: Any, name: str, source: str) -> Any:
    if name not in splits:
        raise ConfigError(f"{source} has no split {name!r}; there are {', '.join(splits)}")
    return splits[name]


def columns_of(dataset: Any) -> list[str]:
    """The names of its columns, also where it is streamed from a file that does not list them."""
    return dataset.column_names or list(next(iter(dataset), {}))


def _check(dataset: Any, config: TrainConfig, source: str) -> None:
    if hasattr(dataset, "__len__") and not len(dataset):
        raise ConfigError(f"{source} holds no samples")
    if (getattr(config.training, "dataset_kwargs", None) or {}).get("skip_prepare_dataset"):
        return
    present = columns_of(dataset)
    text = getattr(config.training, "dataset_text_field", "")
    groups = [[column.format(text=text) for column in group] for group in config.method.columns]
    if any(set(group) <= set(present) for group in groups):
        return
    wanted = ", or ".join(" + ".join(group) for group in groups)
    begun = [group for group in groups if set(group) & set(present)]
    missing = min(([c for c in group if c not in present] for group in begun), key=len, default=[])
    raise ConfigError(
        f"{source} has the columns {', '.join(present)}; {config.method.name} needs {wanted}"
        + (f"; missing: {', '.join(missing)}" if missing else "")
    )


def _hold_out(train: Any, config: TrainConfig, source: str) -> Data:
    if not hasattr(train, "__len__"):
        raise ConfigError(f"{source} is streamed and has no test split: name one with --dataset_test_split")
    if len(train) < 2:
        raise ConfigError(f"{source} has one sample: too few to hold one out; use --eval_strategy no")
    count = max(1, round(len(train) * _HELD_OUT))
    parts = train.train_test_split(test_size=count, seed=config.training.seed)
    logger.info("Held out %d of %d samples for evaluation (there is no test split)", count, len(train))
    return Data(parts["train"], parts["test"])
