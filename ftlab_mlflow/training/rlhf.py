"""`ftlab train rlhf`: a reward model is trained, then a policy against it, as child runs of one run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ftlab_mlflow.control.wire import new_id
from ftlab_mlflow.errors import ConfigError, FTLabError
from ftlab_mlflow.training.config import TrainConfig, config_of, read_file
from ftlab_mlflow.training.data import columns_of, load_data
from ftlab_mlflow.training.fields import shown
from ftlab_mlflow.training.methods import METHODS, Method
from ftlab_mlflow.training.rewards import load_functions
from ftlab_mlflow.training.run_log import RunLog
from ftlab_mlflow.training.train import Outcome, Training, sigterm_unwinds

logger = logging.getLogger("ftlab_mlflow")

_STAGES = ("reward", "policy")
_POLICY_METHODS = ("grpo", "rloo")


@dataclass(frozen=True)
class PipelineConfig:
    """What the stages are made from.

    Attributes:
        stages: By name, in order: ``reward``, ``policy``. name: Of the parent run, or None.
    """

    stages: Mapping[str, TrainConfig]
    name: str | None

    def as_yaml(self) -> str:
        """A config file that asks for the same pipeline. No secrets."""
        sections = {stage: config.as_dict() for stage, config in self.stages.items()}
        live = [section.pop("live") for section in sections.values()][-1]
        del sections["policy"]["reward_model_name_or_path"]
        sections["policy"]["method"] = self.stages["policy"].method.name
        return yaml.safe_dump({**sections, "live": live}, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class PipelineOutcome:
    """How a pipeline ended.

    Attributes:
        run_id: Of the parent run. stages: How each stage that was begun has ended, by name.
    """

    run_id: str
    stages: Mapping[str, Outcome]

    @property
    def last(self) -> Outcome:
        """Of the last stage that was begun."""
        return list(self.stages.values())[-1]

    @property
    def exit_code(self) -> int:
        """0, or 128 and the number of a signal."""
        return self.last.exit_code

    @property
    def summary(self) -> str:
        """One line for a person."""
        return f"Stage {list(self.stages)[-1]}: {self.last.summary}"

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON has it."""
        stages = {name: outcome.to_dict() for name, outcome in self.stages.items()}
        return {"run_id": self.run_id, "state": self.last.state, "stages": stages}


def load_pipeline(
    path: str | None,
    options: Sequence[str],
    *,
    method: str | None = None,
    output_dir: str | None = None,
    run_name: str | None = None,
) -> PipelineConfig:
    """Reads and checks everything, for both stages.

    Args:
        path: A YAML file with sections ``reward:`` and ``policy:``; the keys around them are for both.
        options: ``--reward.KEY VALUE`` and ``--policy.KEY VALUE`` for a stage, ``--KEY VALUE`` for both.
        method, output_dir, run_name: Override ``policy: {method: ...}`` and the keys of the file.

    Raises:
        ConfigError: Something is wrong; the text names the stage, the key and what is allowed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "rlhf runs in one process; on several, run `ftlab train reward`, then `ftlab train grpo` with "
            "--reward_model_name_or_path"
        )
    if any(word.partition("=")[0].endswith(("--resume", ".resume")) for word in options):
        raise ConfigError(
            "rlhf has no --resume: a stage goes on with `ftlab train reward --resume RUN` or "
            "`ftlab train grpo --resume RUN` (rloo where that trains the policy)"
        )
    file = read_file(path)
    sections = {stage: _section(file, stage, path) for stage in _STAGES}
    in_file = sections["policy"].pop("method", None)
    chosen = method or in_file or _POLICY_METHODS[0]
    if chosen not in _POLICY_METHODS:
        raise ConfigError(f"policy.method must be one of {', '.join(_POLICY_METHODS)}, got {shown(chosen)}")
    file_dir, file_name = file.pop("output_dir", None), file.pop("run_name", None)
    folder = output_dir or file_dir or f"outputs/{new_id()[-8:]}"
    words = _by_stage(options)

    def stage(name: str, kind: Method, **made: Any) -> TrainConfig:
        values = {**file, "output_dir": f"{folder}/{name}", **sections[name], **made}
        try:
            return config_of(kind, values, path, [*words[""], *words[name]])
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error

    reward = stage("reward", METHODS["reward"])
    model = reward.training.output_dir
    policy = stage("policy", METHODS[chosen], reward_model_name_or_path=model)
    if sections["policy"].get("reward_model_name_or_path", model) != model or (
        policy.script.reward_model_name_or_path != model
    ):
        raise ConfigError(
            "policy: reward_model_name_or_path: rlhf trains the reward model itself; with one that is there, "
            f"use `ftlab train {chosen}`"
        )
    if policy.settings.tracking_uri != reward.settings.tracking_uri:
        raise ConfigError("tracking_uri: both stages need the same")
    return PipelineConfig({"reward": reward, "policy": policy}, run_name or file_name)


class Pipeline:
    """The stages, one after the other.

    Attributes:
        log: The parent run, once it has begun. title: What trains now, for a text.
    """

    def __init__(self, config: PipelineConfig) -> None:
        self._config = config
        self.title = "the pipeline"
        self.log: RunLog | None = None

    def run(self) -> PipelineOutcome:
        """Trains stage after stage; one that fails or is stopped is the last.

        The parent run ends as its last stage does: FINISHED, KILLED or FAILED.

        Raises:
            ConfigError, StoreError: As of `Training.run`.
        """
        policy = self._config.stages["policy"]
        # A mistake in what only the policy needs is better said before the reward model has trained.
        load_functions(policy, columns_of(load_data(policy).train))
        with sigterm_unwinds():
            self.log = log = RunLog(policy.settings.tracking_uri, self._config.name)
            try:
                log.write_config(self._config.as_yaml())
                outcomes = self._train_stages(log)
            except BaseException as error:
                stopped = isinstance(error, KeyboardInterrupt | SystemExit)
                log.end("stopped" if stopped else "failed")
                raise
            outcome = PipelineOutcome(log.run_id, outcomes)
            log.end(outcome.last.state)
        return outcome

    def _train_stages(self, log: RunLog) -> dict[str, Outcome]:
        from accelerate.utils.memory import clear_device_cache

        outcomes: dict[str, Outcome] = {}
        for number, (stage, config) in enumerate(self._config.stages.items(), 1):
            logger.info(
                "Stage %d of %d of run %s: %s (%s)",
                *(number, len(self._config.stages), log.run_id, stage, config.method.name),
            )
            config.training.run_name = config.training.run_name or f"{log.name}-{stage}"
            self.title = f"stage {stage}"
            try:
                outcomes[stage] = Training(config, log).run()
            except FTLabError as error:
                error.args = (f"{stage}: {error}",)
                raise
            if outcomes[stage].state != "finished":
                break
            if number < len(self._config.stages):
                logger.info("%s", outcomes[stage].summary)
            clear_device_cache(garbage_collection=True)
        return outcomes


def _section(file: dict[str, Any], stage: str, path: str | None) -> dict[str, Any]:
    section = file.pop(stage, None) or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: {stage} must be a mapping of keys to values, got {shown(section)}")
    return dict(section)


def _by_stage(options: Sequence[str]) -> dict[str, list[str]]:
    """The options of each stage, without its name, and under an empty name those for both."""
    found: dict[str, list[str]] = {name: [] for name in ("", *_STAGES)}
    stage = ""
    for word in options:
        if word.startswith("--"):
            before, dot, after = word[2:].partition(".")
            stage = before if dot and before in _STAGES else ""
            word = f"--{after}" if stage else word
        found[stage].append(word)
    return found
