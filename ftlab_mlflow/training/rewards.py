"""What rewards a model's answers in GRPO and RLOO: functions and models that the config names."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ftlab_mlflow.errors import ConfigError
from ftlab_mlflow.training.config import TrainConfig, first_words, is_path
from ftlab_mlflow.training.fields import shown

_OF_TRL = ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward")
_PUNISHMENT = "get_soft_overlong_punishment"
_OWN_COLUMNS = ("prompt", "completion", "completion_ids")
_KEYWORDS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""What TRL calls a reward function with, besides the dataset's columns."""

Reward = Callable[..., Any] | str
"""A function as TRL calls it, or the name or folder of a reward model."""


def load_rewards(config: TrainConfig, columns: Iterable[str]) -> list[Reward]:
    """The rewards of the config in TRL's order: the model, then the functions.

    Args:
        columns: Of the dataset: a function gets them as keywords.

    Raises:
        ConfigError: A function cannot be imported or called, or the folder of a model does not exist.
    """
    model = config.script.reward_model_name_or_path
    if model and is_path(model) and not Path(model).expanduser().exists():
        raise ConfigError(f"reward_model_name_or_path: there is no folder {model}")
    return [*([model] if model else []), *load_functions(config, columns)]


def load_functions(config: TrainConfig, columns: Iterable[str]) -> list[Callable[..., Any]]:
    """The reward functions alone, as `load_rewards`."""
    functions = []
    for name in config.script.reward_funcs or []:
        functions.append(_from_trl(name) or _imported(name))
        _check_signature(functions[-1], name, columns)
    return functions


def _from_trl(name: str) -> Callable[..., Any] | None:
    """One of the functions that TRL's own script knows by name."""
    if name not in (*_OF_TRL, _PUNISHMENT):
        return None
    from trl import rewards

    function: Callable[..., Any] = getattr(rewards, name)
    # As in TRL's script.
    return function(max_completion_len=1280, soft_punish_cache=256) if name == _PUNISHMENT else function


def _imported(name: str) -> Callable[..., Any]:
    module_name, separator, function_name = name.rpartition(":" if ":" in name else ".")
    if not separator or not module_name or not function_name:
        known = ", ".join((*_OF_TRL, _PUNISHMENT))
        raise ConfigError(f"reward_funcs: {shown(name)} is neither module:function nor one of {known}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a module of the user's raises
        if isinstance(error, ModuleNotFoundError) and error.name == module_name.split(".")[0]:
            text = f"there is no module {module_name}, neither in {here} nor installed"
        else:
            text = f"{module_name} cannot be imported: {type(error).__name__}: {first_words(error)}"
        raise ConfigError(f"reward_funcs: {text}") from error
    function: Any = getattr(module, function_name, None)
    if function is None:
        raise ConfigError(f"reward_funcs: {module_name} has no function {function_name}")
    if not callable(function):
        raise ConfigError(f"reward_funcs: {name} is no function, but {shown(function)}")
    return function  # type: ignore[no-any-return]


def _check_signature(function: Callable[..., Any], name: str, columns: Iterable[str]) -> None:
    given = dict.fromkeys((*_KEYWORDS, *(c for c in columns if c not in _OWN_COLUMNS)))
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # of a function that is not written in Python nothing is known
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ConfigError(
            f"reward_funcs: {name} cannot be called: {error}; it is given the keywords {', '.join(given)}: "
            "take **kwargs for those it does not need"
        ) from error
