"""One training of a `Trainer` under live control, on one rank: its parameters, commands and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from accelerate.utils import DistributedType
from transformers import Trainer
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from ftlab_mlflow.control.messages import State
from ftlab_mlflow.errors import ConfigError
from ftlab_mlflow.training.batching import LiveBatches, saved_control
from ftlab_mlflow.training.follower import Follower
from ftlab_mlflow.training.mlflow_run import TrainingRun
from ftlab_mlflow.training.ranks import Agreement
from ftlab_mlflow.training.schedule import LiveSchedule
from ftlab_mlflow.training.session import Given
from ftlab_mlflow.training.trainer_host import TrainerHost
from ftlab_mlflow.training.tunable import Trainee, Tunable
from ftlab_mlflow.training.tunables import Limits, build_tunables
from ftlab_mlflow.training.wiring import Listening, LiveTraining, Progress, Target

_DRIVEN = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.DEEPSPEED)


class LiveTrainer:
    """One training on one rank: its trainer, and what drives it.

    Args:
        trainer: In training. listening, limits, batches, given: As `LiveControl` has them.

    Attributes:
        training: The session with all around it, or what follows it on another rank.

    Raises:
        ConfigError: The training cannot begin so.
    """

    training: LiveTraining | Follower

    def __init__(
        self,
        trainer: Trainer,
        listening: Listening,
        limits: Limits,
        batches: LiveBatches | None,
        given: Given,
    ) -> None:
        self._trainer = trainer
        self._limits = limits
        self._given = given
        self._batches = batches
        self._launched: list[tuple[Tunable, Any]] = []
        self._host = TrainerHost(trainer, batches)
        self._schedule = self._lay_schedule()
        if batches:
            batches.begin(self._schedule)
        elif saved_control(trainer.state).get("batches", {}).get("touched"):
            raise ConfigError(
                "the batches or steps of this checkpoint were changed while it trained: only attach(trainer) "
                "goes on at the right sample, LiveControl alone in callbacks=[…] does not see the data"
            )
        agreement: Agreement | None = None
        if trainer.args.world_size > 1:
            agreement = Agreement(listening.rank_sync_steps, trainer.args.ddp_timeout)
            if trainer.args.process_index > 0:
                self.training = Follower(self._tunables()[0], self._host, agreement)
                return
        target = listening.target(
            lambda: TrainingRun(trainer.callback_handler.callbacks, trainer.args.run_name)
        )
        try:
            self.training = self._under_control(target, listening.poll_interval, agreement)
        except ConfigError:
            if target.run:
                target.run.end("failed", reachable=True)
            raise

    def _tunables(self) -> tuple[dict[str, Tunable], dict[str, str]]:
        tunables, unsupported = build_tunables(self._trainee(), self._limits)
        self._launched = [(tunable, tunable.capture()) for tunable in tunables.values()]
        return tunables, unsupported

    def _under_control(
        self, target: Target, poll_interval: float, agreement: Agreement | None
    ) -> LiveTraining:
        trainer = self._trainer
        tunables, unsupported = self._tunables()
        commands = ["pause", "resume", "stop", "checkpoint", "evaluate", "rollback", "cancel"]
        if not self._host.can_evaluate:
            commands.remove("evaluate")
            unsupported["evaluate"] = "there is no evaluation data"
        if reason := self._host.no_rollback:
            commands.remove("rollback")
            unsupported["rollback"] = reason
        return LiveTraining(
            target,
            poll_interval,
            tunables=tunables,
            unsupported=unsupported,
            commands=tuple(commands),
            host=self._host,
            progress=self._progress,
            method=type(trainer).__name__.removesuffix("Trainer").lower() or "trainer",
            saves_on_signal=trainer.args.save_strategy != "no",
            agreement=agreement,
            given=self._given,
        )

    def _progress(self) -> Progress:
        state = self._trainer.state
        return Progress(state.global_step, state.max_steps, state.epoch or 0.0)

    def begin(self) -> None:
        """Brings the run's history into force, and starts to listen."""
        self.training.begin(self._trainer.state.global_step, self._saved_before())

    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds of this training."""
        batches = {"batches": self._batches.state()} if self._batches else {}
        return {**self.training.saved(), **batches, "ranks": self._trainer.args.world_size}

    def end(self, state: State, error: str | None = None) -> None:
        """Answers what is open, delivers it, and gives everything back."""
        self.training.end(state, error)
        if self._schedule:
            self._schedule.detach()

    def abandon(self) -> None:
        """Gives everything back without an end: another training takes over the run."""
        self.training.abandon()
        if self._schedule:
            self._schedule.detach()

    def give_back(self) -> None:
        """Puts back everything that was changed while this training, which has ended, was running."""
        for tunable, captured in self._launched:
            tunable.restore(captured)
        if self._batches:
            self._batches.give_back()

    def _saved_before(self) -> Mapping[str, Any]:
        saved = saved_control(self._trainer.state)
        if saved.get("step") != self._trainer.state.global_step:
            return {}  # of no checkpoint, but of an earlier training of this very object; or of a follower
        return saved

    def _lay_schedule(self) -> LiveSchedule | None:
        trainer = self._trainer
        rates = [group.get("lr") for group in trainer.optimizer.param_groups]
        if self._no_optimizer() or any(rate is None for rate in rates):
            return None
        total, warmup = (self._batches.schedule_total, self._batches.warmup) if self._batches else (0, 0)
        return LiveSchedule(trainer.optimizer, trainer.lr_scheduler, total, warmup)

    def _no_optimizer(self) -> str | None:
        trainer = self._trainer
        if trainer.is_deepspeed_enabled:
            return "live control does not drive DeepSpeed's optimizer yet"
        plain = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        if isinstance(plain, LayerWiseDummyOptimizer):
            return "a layer-wise optimizer has no parameter groups of its own"
        return None

    def _trainee(self) -> Trainee:
        trainer = self._trainer
        names = set(trainer.get_decay_parameter_names(trainer.model))
        meant = {id(p) for name, p in trainer.model.named_parameters() if name in names}
        return Trainee(
            args=trainer.args,
            state=trainer.state,
            optimizer=trainer.optimizer,
            schedule=self._schedule,
            decays=lambda parameter: id(parameter) in meant,
            evaluates=self._host.can_evaluate,
            no_optimizer=self._no_optimizer(),
            trainer=trainer,
            batches=self._batches,
            steps=lambda: (trainer.state.global_step, trainer.state.max_steps),
        )


def why_not_these_ranks(trainer: Trainer) -> str | None:
    """Why a training on several ranks cannot be driven, or None."""
    kind = trainer.accelerator.distributed_type
    if not dist.is_gloo_available():
        return "this torch has no gloo, over which the ranks agree"
    if kind not in _DRIVEN:
        return f"it is not known to work with {kind.value} on several ranks"
    if trainer.get_tp_size() * trainer.get_cp_size() * trainer.get_sp_size() > 1:
        return "it is not known to work where ranks share one sample (tensor, context or sequence parallel)"
    return None
