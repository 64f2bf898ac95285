"""The fine-tuning methods: a table of TRL's classes and of what each needs from its data. Cheap to import."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

_DEMO = "ftlab_mlflow.training."
_PREFERENCES = _DEMO + "demo_sums:preferences"
_PAIRS = (("prompt", "chosen", "rejected"), ("chosen", "rejected"))


@dataclass(frozen=True)
class Method:
    """One way to fine-tune. Classes and functions are named ``module:name`` and loaded when they are needed.

    Attributes:
        name: As in ``ftlab train <name>``. help: One sentence for a person.
        trl: What TRL's classes of it begin with: ``trl:SFT`` is for ``SFTTrainer`` and ``SFTConfig``.
        script: TRL's arguments of its script around the trainer.
        columns: What a dataset must have: all columns of one of these groups. ``{text}`` is the column
            that ``dataset_text_field`` names.
        demo: A function that returns the training and the test samples of its demo.
        demo_defaults: What its demo sets besides, or other than, `config.DEMO_DEFAULTS`.
        defaults: In place of defaults of TRL's that do not fit this method.
        is_rewarded: Whether it learns from rewards for what the model writes.
    """

    name: str
    help: str
    trl: str
    columns: tuple[tuple[str, ...], ...]
    demo: str
    script: str = "trl:ScriptArguments"
    demo_defaults: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    is_rewarded: bool = False

    def trainer_class(self) -> Any:
        """TRL's trainer class. Imports TRL."""
        return _load(self.trl + "Trainer")

    def config_class(self) -> Any:
        """TRL's dataclass of training arguments. Imports TRL."""
        return _load(self.trl + "Config")

    def script_class(self) -> Any:
        """TRL's dataclass of what its script takes besides: data, reward functions. Imports TRL."""
        return _load(self.script)

    def demo_samples(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Training and test samples of the demo. The same at every call."""
        train, test = _load(self.demo)()
        return train, test


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    with warnings.catch_warnings():
        # ORPO lives there, and whoever asks for it has no other choice.
        warnings.filterwarnings("ignore", "You are importing from 'trl.experimental'")
        return getattr(import_module(module), name)


_REWARDED_DEMO: Mapping[str, Any] = {
    "max_steps": 160,
    "per_device_train_batch_size": 32,
    "max_completion_length": 3,
}
"""Many short answers: a model that knows nothing is rarely rewarded."""


def _rewarded(name: str, help: str, demo_defaults: Mapping[str, Any] | None = None) -> Method:
    return Method(
        name=name,
        help=help,
        trl=f"trl:{name.upper()}",
        script=f"trl.scripts.{name}:{name.upper()}ScriptArguments",
        columns=(("prompt",),),
        demo=_DEMO + "demo_sums:prompts",
        demo_defaults={**_REWARDED_DEMO, **(demo_defaults or {})},
        is_rewarded=True,
    )


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="sft",
            help="Supervised fine-tuning: the model learns to write the completions it is shown.",
            trl="trl:SFT",
            # `conversations` is the older name of `messages`; `input_ids` is data that is tokenized already.
            columns=(
                ("messages",),
                ("conversations",),
                ("prompt", "completion"),
                ("{text}",),
                ("input_ids",),
            ),
            demo=_DEMO + "demo_data:demo_samples",
        ),
        Method(
            name="dpo",
            help="Direct preference optimization: from pairs of a better and a worse answer.",
            trl="trl:DPO",
            columns=_PAIRS,
            demo=_PREFERENCES,
        ),
        Method(
            name="orpo",
            help="Odds-ratio preference optimization: pairs as for dpo, without a reference model.",
            trl="trl.experimental.orpo:ORPO",
            columns=_PAIRS,
            demo=_PREFERENCES,
        ),
        Method(
            name="kto",
            help="Kahneman-Tversky optimization: from single answers that are good or bad.",
            trl="trl:KTO",
            columns=(("prompt", "completion", "label"), *_PAIRS),
            demo=_DEMO + "demo_sums:verdicts",
        ),
        Method(
            name="reward",
            help="A reward model: it learns to tell the better answer; grpo and rloo train against it.",
            trl="trl:Reward",
            columns=(*_PAIRS, ("chosen_ids", "rejected_ids")),
            demo=_PREFERENCES,
            defaults={"lora_task_type": "SEQ_CLS"},
        ),
        _rewarded(
            "grpo",
            "Group relative policy optimization: the model's own answers, rewarded, compared in groups.",
        ),
        _rewarded(
            "rloo",
            "REINFORCE leave-one-out: the model's own answers, rewarded, each against the others' mean.",
            # As GRPO has them by default; its first rewards are too small for TRL's defaults of RLOO.
            {"beta": 0.0, "normalize_advantages": True},
        ),
    )
}
"""Every method by name."""
