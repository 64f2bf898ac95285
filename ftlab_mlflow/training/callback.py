"""`LiveControl` and `attach`: live control for a transformers `Trainer`, and so for every TRL trainer."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from accelerate.utils.memory import should_reduce_batch_size
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from ftlab_mlflow.control.messages import State, Update
from ftlab_mlflow.control.store import RunStore
from ftlab_mlflow.errors import ConfigError
from ftlab_mlflow.training.batching import LiveBatches
from ftlab_mlflow.training.live_trainer import LiveTrainer, why_not_these_ranks
from ftlab_mlflow.training.session import NOTHING_GIVEN, Given
from ftlab_mlflow.training.tunables import Limits, check_limits
from ftlab_mlflow.training.wiring import Listening, ended_by

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
        check_limits(limits or {})
        self._listening = Listening(poll_interval, rank_sync_steps, store, run_id)
        self._limits = dict(limits or {})
        self.batches: LiveBatches | None = None
        self._given = NOTHING_GIVEN
        self._trainer: Trainer | None = None
        self._live: LiveTrainer | None = None

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
            "poll_interval": self._listening.poll_interval,
            "limits": self._limits,
            "rank_sync_steps": self._listening.rank_sync_steps,
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
        self._live = LiveTrainer(trainer, self._listening, self._limits, self.batches, self._given)
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
