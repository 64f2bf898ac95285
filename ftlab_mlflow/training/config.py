"""From a TRL config file and command-line options to checked arguments, before any model is loaded."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ftlab_mlflow.errors import ConfigError
from ftlab_mlflow.settings import Settings
from ftlab_mlflow.training import early_stopping
from ftlab_mlflow.training.early_stopping import EarlyStopping
from ftlab_mlflow.training.fields import Field, field_named, fields_of, shown
from ftlab_mlflow.training.methods import Method
from ftlab_mlflow.training.options import ALIASES, read_options

if TYPE_CHECKING:
    from ftlab_mlflow.training.resuming import Resumption

Resume = Callable[[Settings, Mapping[str, Any]], "Resumption"]
"""Finds the run that goes on, from the settings and what else was given."""

DEMO = "demo"
"""The model and the data that need no network."""

DEMO_DEFAULTS: Mapping[str, Any] = {
    "max_steps": 240,
    "max_length": 128,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 32,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "logging_steps": 10,
    "eval_strategy": "steps",
    "eval_steps": 80,
    "save_strategy": "steps",
    "save_steps": 120,
    "save_total_limit": 2,
    "gradient_checkpointing": False,
}
"""For the demo model without a config file: about a minute on two CPU cores, with a loss that falls.
A method takes those that it has, and has its own besides (`Method.demo_defaults`)."""

DEMO_REWARD = "ftlab_mlflow.training.demo_sums:sum_reward"
"""The reward function for the demo's prompts."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training is made from. The middle four are TRL's own dataclasses.

    Attributes:
        given: What was asked for, by key, without the two sections: with TRL's defaults it is all of it.
        defaulted: Keys of `given` that nobody asked for: defaults of the demo and of this machine.
        explicit: What was given on the command line, by key; of a run that goes on, also what a file given
            now says otherwise than the launch.
        resumed: The run that goes on, or None.
    """

    method: Method
    script: Any
    training: Any
    model: Any
    mixture: Any
    early_stopping: EarlyStopping
    settings: Settings
    given: Mapping[str, Any]
    defaulted: frozenset[str]
    explicit: Mapping[str, Any]
    resumed: Resumption | None = None

    def as_yaml(self, **resolved: Any) -> str:
        """A config file that asks for the same training. No secrets, so no `env:` section and no token.

        Args:
            resolved: Values that were decided later, such as ``output_dir``.
        """
        return yaml.safe_dump(self.as_dict(**resolved), sort_keys=False, allow_unicode=True)

    def as_dict(self, **resolved: Any) -> dict[str, Any]:
        """What `as_yaml` writes."""
        values = _without_secrets({**self.given, **resolved})
        values.pop("resume_from_checkpoint", None)  # it asks for this training, not for the rest of it
        live = self.settings.model_dump(include={"poll_interval", "rank_sync_steps", "limits"}, mode="json")
        return {**values, "live": live}


def load_config(
    method: Method, path: str | None, options: Sequence[str], resume: Resume | None = None
) -> TrainConfig:
    """Reads and checks everything.

    Args:
        path: A YAML file as TRL takes it, with an optional section ``live:``; None or empty for none.
            Its section ``env:`` is put into the environment, before TRL and torch are imported.
        options: Command-line words, ``--key value ...``; they override the file.
        resume: Finds the run that goes on. What it was launched with is overridden by file and options.

    Raises:
        ConfigError: Something is wrong; the text names the key, the file or the option and what is allowed.
    """
    return config_of(method, read_file(path), path, options, resume)


def read_file(path: str | None) -> dict[str, Any]:
    """What a config file says, without its section ``env:``, which is put into the environment.

    Raises:
        ConfigError: There is no such file, or it is no YAML mapping.
    """
    file = _read_yaml(path) if path else {}
    _apply_environment(file.pop("env", None), path)
    return file


def config_of(
    method: Method,
    file: Mapping[str, Any],
    path: str | None,
    options: Sequence[str],
    resume: Resume | None = None,
) -> TrainConfig:
    """Checks what `read_file` found, and the options. As `load_config`."""
    file = dict(file)
    live = file.pop("live", None) or {}
    if not isinstance(live, dict):
        raise ConfigError(f"{path}: live must be a mapping, got {shown(live)}")
    from trl import ModelConfig
    from trl.scripts.utils import DatasetMixtureConfig

    types = (
        method.script_class(),
        method.config_class(),
        ModelConfig,
        DatasetMixtureConfig,
        EarlyStopping,
    )
    known = fields_of(types)
    words = read_options(options, known)
    own = {name: words.pop(name) for name in list(words) if name in Settings.model_fields}
    settings = Settings.resolve(_parsed(own), live, str(path))
    resumed = resume(settings, {**file, **words}) if resume else None
    launch = dict(resumed.config) if resumed else {}
    if resumed:
        settings = Settings.resolve(_parsed(own), {**launch.pop("live", {}), **live}, str(path))
    values: dict[str, Any] = {}
    explicit: dict[str, Any] = {}
    for source, label in ((launch, "config.yaml: {}"), (file, f"{path}: {{}}"), (words, "--{}")):
        for key, value in source.items():
            name = ALIASES.get(key, key)
            field = field_named(known, name, label.format(key))
            if value == "":
                continue
            checked = field.check(value, label.format(key))
            if source is words or (source is file and resumed and checked != values.get(name)):
                explicit[name] = checked
            if source is launch or not resumed or name not in resumed.live:
                values[name] = checked
    asked = set(values)
    if resumed:
        values["resume_from_checkpoint"] = resumed.checkpoint
    _add_demo(values, method, known, has_file=bool(path or resumed))
    _require(values, method, path)
    if method.is_rewarded:
        _fit_generations(values, asked, method)
    early_stopping.complete(values, f"{path}: " if path else "")
    for name, value in method.defaults.items():
        values.setdefault(name, value)
    _add_machine_defaults(values)
    script, training, model, mixture, stopping = (_build(t, values, path) for t in types)
    defaulted = frozenset(set(values) - asked)
    return TrainConfig(
        method, script, training, model, mixture, stopping, settings, values, defaulted, explicit, resumed
    )


def _without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_secrets(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in ("hub_token", "token")
    }


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"--config: there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config: {path} is no YAML: {_yaml_problem(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config: {path} must hold a YAML mapping (key: value), got {shown(content)}")
    return content


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{problem} (line {mark.line + 1})" if mark else str(problem)


def _apply_environment(section: Any, path: str | None) -> None:
    if section is None:
        return
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: env must be a mapping of names to values, got {shown(section)}")
    for name, value in section.items():
        if isinstance(value, dict | list) or not str(name) or "=" in str(name):
            raise ConfigError(f"{path}: env.{name} must be one plain value, got {shown(value)}")
        os.environ[str(name)] = str(value)


def _parsed(own: Mapping[str, Any]) -> dict[str, Any]:
    """Limits on the command line are YAML (or JSON)."""
    try:
        return {k: yaml.safe_load(v) if k == "limits" else v for k, v in own.items()}
    except yaml.YAMLError as error:
        raise ConfigError(f"--limits is no YAML: {_yaml_problem(error)}") from error


def _add_demo(values: dict[str, Any], method: Method, known: Mapping[str, Field], *, has_file: bool) -> None:
    names_data = values.get("dataset_name") or values.get("datasets")
    if not has_file and not values.get("model_name_or_path") and not names_data:
        values["model_name_or_path"] = DEMO
    is_demo = values.get("model_name_or_path") == DEMO
    if is_demo and not names_data:
        values["dataset_name"] = DEMO
    if method.is_rewarded and values.get("dataset_name") == DEMO and not _rewards(values):
        values["reward_funcs"] = [DEMO_REWARD]
    if has_file or not is_demo:
        return
    for name, value in {**DEMO_DEFAULTS, **method.demo_defaults}.items():
        if name == "max_steps" and "num_train_epochs" in values:
            continue  # it would win over the epochs that were asked for
        if name in known:
            values.setdefault(name, value)


def _fit_generations(values: dict[str, Any], asked: set[str], method: Method) -> None:
    """Where nobody said how large a batch is, it holds whole groups of answers, as TRL wants it.

    Raises: ConfigError: the batch that was asked for does not.
    """
    sizes: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(method.config_class())}
    sizes |= values
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    rounds = sizes["steps_per_generation"] or sizes["gradient_accumulation_steps"]
    group = sizes["num_generations"]
    batches = {"per_device_eval_batch_size": (sizes["num_generations_eval"] or group, ranks)}
    if not sizes["generation_batch_size"]:
        batches["per_device_train_batch_size"] = (group, ranks * rounds)
    for name, (answers, times) in batches.items():
        if answers < 2 or sizes[name] * times % answers == 0:
            continue  # TRL says why one answer is too few
        fits = next(size for size in itertools.count(sizes[name]) if size * times % answers == 0)
        if name not in asked:
            values[name] = fits
        elif name == "per_device_train_batch_size":
            text = f"{sizes[name]} holds no whole groups of num_generations ({answers}); {fits} would"
            raise ConfigError(f"{name}: {text}")


def _rewards(values: Mapping[str, Any]) -> Any:
    return values.get("reward_funcs") or values.get("reward_model_name_or_path")


def _require(values: dict[str, Any], method: Method, path: str | None) -> None:
    """Raises: ConfigError: model, data or reward are missing, or a local path to them does not exist."""
    where = f"{path}: " if path else ""
    for name, short, kinds in (
        ("model_name_or_path", "model", "a folder, a model on the Hugging Face hub, or 'demo'"),
        ("dataset_name", "data", "a file, a folder, a dataset on the Hugging Face hub, or 'demo'"),
    ):
        value = values.get(name)
        if not value and not (name == "dataset_name" and values.get("datasets")):
            raise ConfigError(f"{where}{name} is missing: --{short} takes {kinds}")
        if value and is_path(value) and not Path(value).expanduser().exists():
            raise ConfigError(f"{where}{name}: there is no file or folder {value}")
    if method.is_rewarded and not _rewards(values):
        raise ConfigError(
            f"{where}reward_funcs is missing: --reward_funcs takes functions, module:function, and "
            "--reward_model_name_or_path a reward model"
        )
    _require_checkpoint(values, where)


def _require_checkpoint(values: dict[str, Any], where: str) -> None:
    from ftlab_mlflow.training.checkpoints import last_whole

    asked = values.get("resume_from_checkpoint")
    if asked is True:
        folder = values.get("output_dir")
        found = last_whole(folder) if folder else None
        if found is None:
            where += "resume_from_checkpoint: there is no whole checkpoint in output_dir"
            raise ConfigError(f"{where} ({folder or 'which is not given'})")
        values["resume_from_checkpoint"] = str(found)
    elif asked and not Path(asked).is_dir():
        raise ConfigError(f"{where}resume_from_checkpoint: there is no folder {asked}")


def is_path(name: str) -> bool:
    """Whether a name can only mean a place on this machine, never one on the hub (``owner/name``)."""
    is_file = Path(name).suffix in (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".yaml")
    return is_file or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or name.endswith("/")


def _add_machine_defaults(values: dict[str, Any]) -> None:
    """TRL's own defaults need a GPU that has bfloat16; what was not asked for follows this machine."""
    import torch

    has_accelerator = torch.accelerator.is_available() and not values.get("use_cpu")
    if (
        not values.get("fp16")
        and values.get("bf16") is None
        and not (has_accelerator and torch.cuda.is_available() and torch.cuda.is_bf16_supported())
    ):
        values["bf16"] = False
    if not has_accelerator:
        values.setdefault("dataloader_pin_memory", False)
    report_to = values.get("report_to", [])
    listed = [report_to] if isinstance(report_to, str) else list(report_to or [])
    if "all" not in listed and "mlflow" not in listed:
        values["report_to"] = [name for name in listed if name != "none"] + ["mlflow"]


def _build(dataclass_type: Any, values: Mapping[str, Any], path: str | None) -> Any:
    # A copy, because the classes fill in what they are given.
    own = copy.deepcopy({name: values[name] for name in fields_of([dataclass_type]) if name in values})
    try:
        with _expected_warnings_off():
            return dataclass_type(**own)
    except (ValueError, TypeError, AttributeError, ImportError, OSError, NotImplementedError) as error:
        # A value; one of another kind (parallelism_config); a key inside of a mapping (accelerator_config); a
        # package that it needs (deepspeed); a file that it names; a GPU on which accelerate wants two
        # environment variables.
        text = first_words(error)
        raise ConfigError(f"{path}: {text}" if path else text) from error


def first_words(error: BaseException) -> str:
    """What an error of another library says, on one line and not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"


@contextmanager
def _expected_warnings_off() -> Iterator[None]:
    """TRL's own default is a name that transformers calls deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`gradient_checkpointing", category=FutureWarning)
        yield
