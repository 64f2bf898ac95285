"""Words of a command line, ``--key value``, as values by key; `Field.check` gives them their types."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ftlab_mlflow.errors import ConfigError
from ftlab_mlflow.settings import Settings
from ftlab_mlflow.training.fields import Field, field_named, shown

ALIASES = {"model": "model_name_or_path", "data": "dataset_name"}
"""Shorter names on the command line (and in a file)."""


def read_options(words: Sequence[str], known: Mapping[str, Field]) -> dict[str, Any]:
    """Options by key: text, a list of texts where a field takes several, or a flag's true or false.

    Args:
        words: As a shell gives them. known: The fields that can be given; all settings can be, too.

    Raises:
        ConfigError: A word belongs to no option, an option is unknown, or it has too few or too many values.
    """
    settings = {name: Field(name, str, ()) for name in Settings.model_fields}
    allowed = {**known, **settings, **{short: known[name] for short, name in ALIASES.items()}}
    options: dict[str, Any] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"{shown(word)} belongs to no option; options are --key value")
        written, equals, inline = word[2:].partition("=")
        key = written.replace("-", "_")
        if key not in allowed and key.removeprefix("no_") in allowed and allowed[key[3:]].is_flag:
            options[key[3:]] = False
            continue
        field = field_named(allowed, key, f"--{written}")
        values = [inline] if equals else []
        while not equals and left and not left[0].startswith("--"):
            values.append(left.pop(0))
        options[key] = _option_value(field, values, written)
    return options


def _option_value(field: Field, values: list[str], written: str) -> Any:
    if field.is_nested:
        raise ConfigError(f"--{written} can only be given in the config file")
    if field.is_list and not (len(values) == 1 and str in field.members):
        # `mlflow run -P` gives several values as one word.
        return [part for value in values for part in re.split(r"[\s,]+", value) if part] or ""
    if len(values) > 1:
        raise ConfigError(f"--{written} takes one value; {shown(values[1])} belongs to no option")
    if not values and not field.is_flag:
        raise ConfigError(f"--{written} needs a value")
    return values[0] if values else True
