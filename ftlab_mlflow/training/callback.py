"""`LiveControl` and `attach`: live control for a transformers `Trainer`, and so for every TRL trainer."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from accelerate.utils import DistributedType
from accelerate.utils.memory import should_reduce_batch_size
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from ftlab_mlflow.control.messages import State, Update
from ftlab_mlflow.control.store import RunStore
from ftlab_mlflow.errors import ConfigError
from ftlab_mlflow.training.batching import LiveBatches, saved_control
from ftlab_mlflow.training.mlflow_run import TrainingRun
from ftlab_mlflow.training.ranks import Agreement, Following
from ftlab_mlflow.training.schedule import LiveSchedule
from ftlab_mlflow.training.session import NOTHING_GIVEN, Given
from ftlab_mlflow.training.trainer_host import TrainerHost
from ftlab_mlflow.training.tunable import Trainee, Tunable
from ftlab_mlflow.training.tunables import Limits, build_tunables, check_limits
from ftlab_mlflow.training.wiring import LiveTraining, Progress, Target, ended_by

logger = logging.getLogger("ftlab_mlflow")


def attach(
    trainer: Trainer,
    poll_interval: float = 1.0,
    limits: Limits | None = None,
    *,
    rank_sync_steps: int = 10,
    store: RunStore | None = None,
    run_id: str | None = None,
) -> LiveControl:
    """Adds live control to a `Trainer` or TRL trainer, before ``trainer.train()``.

    Args:
        trainer: Any transformers ``Trainer``.
        poll_interval: Seconds between two looks at the run's tags; more where the tracking store is slow.
        limits: Narrower (min, max) by parameter, such as ``{"learning_rate": (0, 1e-3)}``.
        rank_sync_steps: On several ranks: steps between two agreements at most; fewer where steps are slow.
        store, run_id: Another `RunStore` to use, and a run in it; both or neither.

    Returns:
        The callback that was added; its `run_id` is known once training has begun.

    Raises:
        ConfigError: An argument makes no sense, or the trainer has live control already.
    """
    if any(isinstance(callback, LiveControl) for callback in trainer.callback_handler.callbacks):
        raise ConfigError("this trainer has live control already: attach it once")
    control = LiveControl(poll_interval, limits, rank_sync_steps=rank_sync_steps, store=store, run_id=run_id)
    trainer.add_callback(control)
    control.bind(trainer)
    control.batches = LiveBatches(trainer)
    return control


class LiveControl(TrainerCallback, ExportableState):
    """Lets other processes change a training while it trains, through tags on its MLflow run.

    Works alone in ``callbacks=[LiveControl()]``. It uses the MLflow run that is active when training begins
    (``report_to="mlflow"`` or ``mlflow.start_run()``), or starts one.

    Args:
        poll_interval, limits, rank_sync_steps, store, run_id: As for `attach`.

    Raises:
        ConfigError: An argument makes no sense.
    """

    def __init__(
        self,
        poll_interval: float = 1.0,
        limits: Limits | None = None,
        *,
        rank_sync_steps: int = 10,
        store: RunStore | None = None,
        run_id: str | None = None,
    ) -> None:
        if type(rank_sync_steps) is not int or rank_sync_steps < 1:
            raise ConfigError(f"rank_sync_steps must be a whole number from 1, got {rank_sync_steps!r}")
        if isinstance(poll_interval, bool) or not 0 < poll_interval < float("inf"):
            raise ConfigError(f"poll_interval must be seconds above 0, got {poll_interval!r}")
        if (store is None) != (run_id is None):
            raise ConfigError("store and run_id go together: give both or neither")
        check_limits(limits or {})
        self._poll_interval = poll_interval
        self._limits = dict(limits or {})
        self._rank_sync_steps = rank_sync_steps
        self._store_and_run = (store, run_id) if store is not None and run_id is not None else None
        self.batches: LiveBatches | None = None
        self._given = NOTHING_GIVEN
        self._trainer: Trainer | None = None
        self._live: _Live | None = None

    @property
    def run_id(self) -> str | None:
        """The MLflow run that this training listens on; None before it has begun, and on every rank but 0."""
        return self._live.training.run_id if self._live else None

    @property
    def outcome(self) -> State | None:
        """The state that the training is in or has ended in; None before it has begun."""
        return self._live.training.state if self._live else None

    @property
    def paused_s(self) -> float:
        """Seconds that this training has waited in pauses."""
        return self._live.training.paused_s if self._live else 0.0

    def ask_first(self, updates: Sequence[Update], *, must_fit: bool) -> None:
        """Requests that the training begins with, after what it was told before. Call it on every rank.

        Args:
            must_fit: ``train()`` raises `ConfigError` before the first step if one of them is refused.
        """
        self._given = Given(tuple(updates), must_fit)

    def bind(self, trainer: Trainer, *, is_training: bool = False) -> None:
        """Remembers the trainer, and hears of the exceptions that end its training."""
        if _bound_control(trainer, self) is not self or self._trainer is trainer:
            return
        self._trainer = trainer
        # `Trainer.add_callback` tells the callback nothing: when it first hears of its trainer, `train` has
        # been called already, and only the parts of it that are still to come can be heard.
        for name in ("_run_epoch", "_finalize_training") if is_training else ("train",):
            setattr(trainer, name, self._heard(getattr(trainer, name)))

    def _heard(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def heard(*args: Any, **kwargs: Any) -> Any:
            if self._live is not None and not self._live.training.is_open:
                self._live.give_back()  # the next training begins as launched
            try:
                result = method(*args, **kwargs)
            except BaseException as error:
                self._failed(error)
                raise
            self._raise_signal()
            return result

        return heard

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of this callback (transformers' `ExportableState`)."""
        args = {
            "poll_interval": self._poll_interval,
            "limits": self._limits,
            "rank_sync_steps": self._rank_sync_steps,
        }
        return {"args": args, "attributes": {"saved": self._live.saved() if self._live else {}}}

    # --- transformers' events --------------------------------------------------------------------

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bind(calling_trainer(self))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = calling_trainer(self)
        original = _bound_control(trainer, self)
        original.bind(trainer, is_training=True)
        if original is not self:
            # transformers made this object anew from a checkpoint (restore_callback_states_from_checkpoint):
            # it is the one that `attach` returned, under another name.
            self.__dict__ = original.__dict__
        # A checkpoint that was written without live control has no place for its state.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if args.world_size > 1 and (reason := why_not_these_ranks(trainer)):
            if self._given.must_fit and self._given.updates:
                raise ConfigError(f"values given for a training that goes on need live control: {reason}")
            logger.warning("Live control is off: %s", reason)
            return
        if self._live is not None:
            self._live.abandon()  # transformers began anew with a smaller batch (auto_find_batch_size)
        store, run_id = self._store_and_run or (None, None)
        self._live = _Live(
            trainer,
            store,
            run_id,
            self._poll_interval,
            self._limits,
            self.batches,
            self._rank_sync_steps,
            self._given,
        )
        try:
            self._live.begin()
        except ConfigError as error:
            self._failed(error)  # nobody else hears of it where this callback was added to the trainer
            raise
        self._given = NOTHING_GIVEN  # asked for once

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._live is not None:
            self._live.training.running()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._live is not None:
            self._live.training.boundary(state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._live is not None and self._live.training.state == "stopping":
            # The default flow saves and evaluates here; a stop says itself whether it saves.
            control.should_evaluate = control.should_save = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._live is not None:
            stopping = self._live.training.state == "stopping"
            self._live.end("stopped" if stopping else "finished")

    # --- the end of training, seen from outside of it ---------------------------------------------

    def _failed(self, error: BaseException) -> None:
        if self._live is not None and self._live.training.is_open and not self._is_tried_again(error):
            self._live.end(*ended_by(error))

    def _is_tried_again(self, error: BaseException) -> bool:
        """Whether transformers begins anew with a smaller batch."""
        return (
            self._trainer is not None
            and self._trainer.args.auto_find_batch_size
            and isinstance(error, Exception)
            and should_reduce_batch_size(error)
        )

    def _raise_signal(self) -> None:
        if self._live is not None and not self._live.training.is_open:
            self._live.training.signals.raise_received()


_DRIVEN = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.DEEPSPEED)
_NOT_DRIVEN = {
    "deepspeed": "live control does not drive DeepSpeed's optimizer yet",
    "layerwise": "a layer-wise optimizer has no parameter groups of its own",
}


class _Live:
    """One training on one rank: its trainer, and what drives it.

    Attributes:
        training: The session with all around it, or what follows it on another rank.
    """

    training: LiveTraining | Following

    def __init__(
        self,
        trainer: Trainer,
        store: RunStore | None,
        run_id: str | None,
        poll_interval: float,
        limits: Limits,
        batches: LiveBatches | None,
        rank_sync_steps: int,
        given: Given,
    ) -> None:
        self._trainer = trainer
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
            agreement = Agreement(rank_sync_steps, trainer.args.ddp_timeout)
            if trainer.args.process_index > 0:
                self.training = Following(self._tunables(limits)[0], self._host, agreement)
                return
        if store is not None and run_id is not None:
            target = Target(store, run_id)
        else:
            run = TrainingRun(trainer.callback_handler.callbacks, trainer.args.run_name)
            target = Target(run.store, run.run_id, run)
        try:
            self.training = self._under_control(target, poll_interval, limits, agreement)
        except ConfigError:
            if target.run:
                target.run.end("failed", reachable=True)
            raise

    def _tunables(self, limits: Limits) -> tuple[dict[str, Tunable], dict[str, str]]:
        tunables, unsupported = build_tunables(self._trainee(), limits)
        self._launched = [(tunable, tunable.capture()) for tunable in tunables.values()]
        return tunables, unsupported

    def _under_control(
        self, target: Target, poll_interval: float, limits: Limits, agreement: Agreement | None
    ) -> LiveTraining:
        trainer = self._trainer
        tunables, unsupported = self._tunables(limits)
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
            return _NOT_DRIVEN["deepspeed"]
        plain = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        return _NOT_DRIVEN["layerwise"] if isinstance(plain, LayerWiseDummyOptimizer) else None

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
        )


def _bound_control(trainer: Trainer, fallback: LiveControl) -> LiveControl:
    """The `LiveControl` that hears the trainer's exceptions; `fallback` becomes it if there is none."""
    bound: LiveControl = trainer.__dict__.setdefault("_ftlab_control", fallback)
    return bound


def calling_trainer(callback: TrainerCallback) -> Trainer:
    """The trainer whose event is being handled.

    transformers hands a callback everything but the trainer, and without it a paused training could neither
    evaluate nor save. It is the caller's caller, so it is on the stack.
    """
    frame = sys._getframe(1)
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, Trainer) and callback in candidate.callback_handler.callbacks:
            return candidate
        frame = frame.f_back  # type: ignore[assignment]
    raise ConfigError(f"{type(callback).__name__} must be called by the Trainer that it was given to")


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
