"""`LiveControl` and `attach`: live control for a transformers `Trainer`, and so for every TRL trainer."""

from __future__ import annotations

import functools
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from accelerate.utils.memory import should_reduce_batch_size
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.messages import State, Status
from ftlab_mlflow.control.store import RunStore
from ftlab_mlflow.control.tags import STATUS
from ftlab_mlflow.control.wire import new_id, utc_now
from ftlab_mlflow.errors import ConfigError, MessageError
from ftlab_mlflow.training.listener import Listener
from ftlab_mlflow.training.mlflow_run import RUN_STATUS, TrainingRun
from ftlab_mlflow.training.schedule import LiveSchedule
from ftlab_mlflow.training.session import Session
from ftlab_mlflow.training.signals import StopSignals
from ftlab_mlflow.training.trainer_host import TrainerHost
from ftlab_mlflow.training.tunables import Limits, Trainee, build_tunables, check_limits

logger = logging.getLogger("ftlab_mlflow")


def attach(
    trainer: Trainer,
    poll_interval: float = 1.0,
    limits: Limits | None = None,
) -> LiveControl:
    """Adds live control to a `Trainer` or TRL trainer, before ``trainer.train()``.

    Args:
        trainer: Any transformers ``Trainer``.
        poll_interval: Seconds between two looks at the run's tags; more where the tracking store is slow.
        limits: Narrower (min, max) by parameter, such as ``{"learning_rate": (0, 1e-3)}``.

    Returns:
        The callback that was added; its `run_id` is known once training has begun.

    Raises:
        ConfigError: An argument makes no sense, or the trainer has live control already.
    """
    if any(isinstance(callback, LiveControl) for callback in trainer.callback_handler.callbacks):
        raise ConfigError("this trainer has live control already: attach it once")
    control = LiveControl(poll_interval, limits)
    trainer.add_callback(control)
    control.bind(trainer)
    return control


class LiveControl(TrainerCallback, ExportableState):
    """Lets other processes change a training while it trains, through tags on its MLflow run.

    Works alone in ``callbacks=[LiveControl()]``. It uses the MLflow run that is active when training begins
    (``report_to="mlflow"`` or ``mlflow.start_run()``), or starts one.

    Args:
        poll_interval, limits: As for `attach`.
        store, run_id: Another `RunStore` to use, and a run in it; both or neither.

    Raises:
        ConfigError: An argument makes no sense.
    """

    def __init__(
        self,
        poll_interval: float = 1.0,
        limits: Limits | None = None,
        *,
        store: RunStore | None = None,
        run_id: str | None = None,
    ) -> None:
        if isinstance(poll_interval, bool) or not 0 < poll_interval < float("inf"):
            raise ConfigError(f"poll_interval must be seconds above 0, got {poll_interval!r}")
        if (store is None) != (run_id is None):
            raise ConfigError("store and run_id go together: give both or neither")
        check_limits(limits or {})
        self._poll_interval = poll_interval
        self._limits = dict(limits or {})
        self._store_and_run = (store, run_id) if store is not None and run_id is not None else None
        self._trainer: Trainer | None = None
        self._live: _Live | None = None

    @property
    def run_id(self) -> str | None:
        """The MLflow run that this training listens on; None before it has begun."""
        return self._live.run_id if self._live else None

    @property
    def outcome(self) -> State | None:
        """The state that the training is in or has ended in; None before it has begun."""
        return self._live.session.state if self._live else None

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
        args = {"poll_interval": self._poll_interval, "limits": self._limits}
        return {"args": args, "attributes": {"saved": self._live.saved() if self._live else {}}}

    # --- transformers' events --------------------------------------------------------------------

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bind(_calling_trainer(self))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = _calling_trainer(self)
        original = _bound_control(trainer, self)
        original.bind(trainer, is_training=True)
        if original is not self:
            # transformers made this object anew from a checkpoint (restore_callback_states_from_checkpoint):
            # it is the one that `attach` returned, under another name.
            self.__dict__ = original.__dict__
        # A checkpoint that was written without live control has no place for its state.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if args.world_size > 1:
            logger.warning("Live control is off: it does not work on several ranks yet")
            return
        if self._live is not None:
            self._live.abandon()  # transformers began anew with a smaller batch (auto_find_batch_size)
        store, run_id = self._store_and_run or (None, None)
        self._live = _Live(trainer, store, run_id, self._poll_interval, self._limits)
        self._live.begin()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._live is not None:
            self._live.session.running()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._live is not None:
            try:
                self._live.session.boundary(state.global_step)
            except Exception:  # a fault of ours must never end somebody's training
                logger.exception("Live control failed at step %d; training goes on", state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._live is not None and self._live.session.state == "stopping":
            # The default flow saves and evaluates here; a stop says itself whether it saves.
            control.should_evaluate = control.should_save = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._live is not None:
            stopping = self._live.session.state == "stopping"
            self._live.end("stopped" if stopping else "finished")

    # --- the end of training, seen from outside of it ---------------------------------------------

    def _failed(self, error: BaseException) -> None:
        if self._live is not None and self._live.is_open and not self._is_tried_again(error):
            stopped = isinstance(error, KeyboardInterrupt)
            text = f"{type(error).__name__}: {error}".encode(errors="replace").decode()
            self._live.end("stopped" if stopped else "failed", None if stopped else text)

    def _is_tried_again(self, error: BaseException) -> bool:
        """Whether transformers begins anew with a smaller batch."""
        return (
            self._trainer is not None
            and self._trainer.args.auto_find_batch_size
            and isinstance(error, Exception)
            and should_reduce_batch_size(error)
        )

    def _raise_signal(self) -> None:
        if self._live is not None and not self._live.is_open:
            self._live.signals.raise_received()


_NOT_DRIVEN = {
    "deepspeed": "live control does not drive DeepSpeed's optimizer yet",
    "layerwise": "a layer-wise optimizer has no parameter groups of its own",
}


class _Live:
    """One training under live control: session, listener, MLflow run and signals, wired together."""

    def __init__(
        self,
        trainer: Trainer,
        store: RunStore | None,
        run_id: str | None,
        poll_interval: float,
        limits: Limits,
    ) -> None:
        self._trainer = trainer
        self._run: TrainingRun | None = None
        if store is None or run_id is None:
            callbacks = trainer.callback_handler.callbacks
            self._run = TrainingRun(callbacks, trainer.args.run_name)
            store, run_id = self._run.store, self._run.run_id
        self.run_id = run_id
        self._error: str | None = None
        self._session_id = new_id()
        self._host = TrainerHost(trainer)
        self._schedule = self._lay_schedule()
        self._listener = Listener(store, run_id, self._heartbeat, poll_interval)
        try:
            self.session = self._new_session(limits)
        except ConfigError:
            if self._run:
                self._run.end("failed", reachable=True)
            raise
        self.signals = StopSignals(lambda: self.session.interrupt(self._stop_by_signal))
        self.is_open = True

    def _new_session(self, limits: Limits) -> Session:
        tunables, unsupported = build_tunables(self._trainee(), limits)
        commands = ["pause", "resume", "stop", "checkpoint", "evaluate", "cancel"]
        if not self._host.can_evaluate:
            commands.remove("evaluate")
            unsupported["evaluate"] = "there is no evaluation data"
        return Session(
            id=self._session_id,
            tunables=tunables,
            unsupported=unsupported,
            commands=tuple(commands),
            host=self._host,
            outbox=self._listener,
            describe=self._describe,
        )

    def begin(self) -> None:
        """Reads the run's history, brings it into force, and starts to listen."""
        run_tags = self._listener.read_first()
        ledger = None if run_tags is None else Ledger.read(run_tags)
        step = self._trainer.state.global_step
        saved = self._saved_before()
        if ledger and ledger.last_ack_at and step == 0 and _is_finished(run_tags):
            # Not resumed: the next training of the same run, which was told nothing yet.
            saved = {"last_ack_at": ledger.last_ack_at.isoformat()}
        self.session.begin(step, saved, ledger)
        self._listener.start(self.session, self.session.surface().params, run_tags)
        self.signals.install()
        self.session.boundary(step)

    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds of this training."""
        return {"run_id": self.run_id, **self.session.saved_state()}

    def end(self, state: State, error: str | None = None) -> None:
        """Answers what is open, delivers it, and gives everything back."""
        self.is_open = False
        self._error = error
        self.signals.remove()
        self.session.end(state)
        owned = self._run is None or self._run.owner == "training"
        status = RUN_STATUS[state] if owned or state != "finished" else None
        delivered = self._listener.close(status)
        if self._schedule:
            self._schedule.detach()
        if self._run:
            self._run.end(state, reachable=delivered)

    def abandon(self) -> None:
        """Gives everything back without an end: another training takes over the run."""
        self.is_open = False
        self.signals.remove()
        self._listener.close(None, last_look=False)
        if self._schedule:
            self._schedule.detach()

    def _saved_before(self) -> Mapping[str, Any]:
        stored = self._trainer.state.stateful_callbacks.get(LiveControl.__name__) or {}
        if isinstance(stored, list):
            stored = stored[0]
        saved = dict(stored.get("attributes", {}).get("saved") or {})
        if saved and saved["step"] != self._trainer.state.global_step:
            return {}  # of no checkpoint, but of an earlier training of this very object
        if saved and saved["run_id"] != self.run_id:
            # A checkpoint of another run: its values go on here, its answers belong there.
            saved = {key: saved[key] for key in ("values", "asked")}
        return saved

    def _lay_schedule(self) -> LiveSchedule | None:
        trainer = self._trainer
        rates = [group.get("lr") for group in trainer.optimizer.param_groups]
        if self._no_optimizer() or any(rate is None for rate in rates):
            return None
        return LiveSchedule(trainer.optimizer, trainer.lr_scheduler)

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
        )

    def _stop_by_signal(self) -> None:
        received = self.signals.received
        assert received is not None
        logger.warning("%s: stopping at step %d", received.name, self.session.step)
        if self._trainer.args.save_strategy != "no":
            try:
                logger.warning("Checkpoint: %s", self._host.checkpoint())
            except Exception:  # the process was asked to end: it ends, with or without a checkpoint
                logger.exception("No checkpoint could be written")
        self.session.stop_now()

    def _heartbeat(self) -> str:
        return self._describe(self.session.state)

    def _describe(self, state: State) -> str:
        trainer_state = self._trainer.state
        return Status(
            state=state,
            step=trainer_state.global_step,
            max_steps=trainer_state.max_steps,
            epoch=round(trainer_state.epoch or 0.0, 4),
            at=utc_now(),
            every_s=round(self._listener.heartbeat_s, 1),
            session=self._session_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            method=type(self._trainer).__name__.removesuffix("Trainer").lower() or "trainer",
            error=self._error,
        ).encode()


def _is_finished(run_tags: Mapping[str, str] | None) -> bool:
    """Whether the training before this one, on the same run, came to its end."""
    try:
        return Status.decode((run_tags or {}).get(STATUS, "")).state == "finished"
    except MessageError:
        return False


def _bound_control(trainer: Trainer, fallback: LiveControl) -> LiveControl:
    """The `LiveControl` that hears the trainer's exceptions; `fallback` becomes it if there is none."""
    bound: LiveControl = trainer.__dict__.setdefault("_ftlab_control", fallback)
    return bound


def _calling_trainer(callback: TrainerCallback) -> Trainer:
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
    raise ConfigError("LiveControl must be called by the Trainer that it was given to")
