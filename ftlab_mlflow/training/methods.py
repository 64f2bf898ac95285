"""The fine-tuning methods: a table of TRL's classes and of what each needs from its data. Cheap to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Attributes:
        name: As in ``ftlab train <name>``. help: One sentence for a person.
        trainer, config: TRL's classes, as ``module:name``.
        columns: What a dataset must have: all columns of one of these groups. ``{text}`` is the column
            that ``dataset_text_field`` names.
    """

    name: str
    help: str
    trainer: str
    config: str
    columns: tuple[tuple[str, ...], ...]

    def trainer_class(self) -> Any:
        """TRL's trainer class. Imports TRL."""
        return _load(self.trainer)

    def config_class(self) -> Any:
        """TRL's dataclass of training arguments. Imports TRL."""
        return _load(self.config)


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="sft",
            help="Supervised fine-tuning: the model learns to write the completions it is shown.",
            trainer="trl:SFTTrainer",
            config="trl:SFTConfig",
            # `conversations` is the older name of `messages`; `input_ids` is data that is tokenized already.
            columns=(
                ("messages",),
                ("conversations",),
                ("prompt", "completion"),
                ("{text}",),
                ("input_ids",),
            ),
        ),
    )
}
"""Every method by name."""
