"""`LiveLoop`: live control for a plain PyTorch loop, with values of the loop's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from ftlab_mlflow.control.messages import State
from ftlab_mlflow.control.store import RunStore
from ftlab_mlflow.control.surface import Surface
from ftlab_mlflow.control.wire import shown
from ftlab_mlflow.errors import ConfigError, MessageError
from ftlab_mlflow.training.follower import Follower
from ftlab_mlflow.training.loop_schedule import lay_schedule, plain_optimizer, plain_scheduler
from ftlab_mlflow.training.mlflow_run import TrainingRun
from ftlab_mlflow.training.own_values import LiveValue, T, own_tunable
from ftlab_mlflow.training.ranks import Agreement
from ftlab_mlflow.training.schedule import LiveSchedule
from ftlab_mlflow.training.tunable import Trainee, Tunable
from ftlab_mlflow.training.tunables import TABLE, Limits, build_tunables, check_limits
from ftlab_mlflow.training.wiring import Listening, LiveTraining, Progress, ended_by

LOOP_TABLE = {
    name: TABLE[name]
    for name in (
        "learning_rate",
        "lr_schedule",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
    )
}
"""What a loop's optimizer and scheduler offer by themselves."""

_RANK_TIMEOUT_S = 1800.0
"""A rank that does not answer for so long is given up, as in torch's own groups."""

_STATE_KEYS = {"run_id", "step", "values", "asked", "changed", "last_ack_at", "unconfirmed"}

Evaluate = Callable[[], Mapping[str, float]]
"""Evaluates and returns the metrics, for the answer."""
Checkpoint = Callable[[], "str | os.PathLike[str]"]
"""Writes a checkpoint and returns its path, for the answer."""


class LiveLoop:
    """Lets other processes change a training loop while it runs, through tags on its MLflow run.

    ::

        live = LiveLoop(optimizer, scheduler, max_steps=1000)
        mix = live.tunable("mix_ratio", 0.5, min=0, max=1)
        with live:
            for batch in loader:
                loss = compute_loss(model, batch, mix.value)
                ...
                if live.step():
                    break

    It uses the active MLflow run; without one it goes on in the run of the state that was loaded, or starts
    one. The run ends as the ``with`` block does: finished, stopped (`step` said so, or Ctrl-C), failed.

    On several ranks every rank has a `LiveLoop` that is declared alike: all change at the same step, and the
    functions are called on all of them.

    `stop` is a flag that `step` returns. `evaluate` and `checkpoint` are functions, because an answer is
    written when the thing has happened, and because they are also called while the loop is paused: they are
    offered if they are given.

    Args:
        optimizer: A torch optimizer, also as ``accelerate`` or Fabric prepared it.
        scheduler: A torch scheduler of this optimizer. None if the rate is constant, or if the loop writes
            it into the optimizer's groups itself.
        max_steps: Optimizer steps that the loop will take in all; only shown, with the rates until then.
        evaluate, checkpoint: Called at a step boundary, on request. A stop, Ctrl-C and SIGTERM write a
            checkpoint before the loop ends.
        method: What the status calls this training.
        run_name: Of a run that is started here.
        limits: Narrower (min, max) of the optimizer's parameters, such as ``{"learning_rate": (0, 1e-3)}``.
        poll_interval: Seconds between two looks at the run's tags; more where the tracking store is slow.
        rank_sync_steps: On several ranks: steps between two agreements at most; fewer where steps are slow.
        store, run_id: Another `RunStore` to use, and a run in it; both or neither.

    Attributes:
        epoch: Passes over the data done, for the status; the loop may set it.

    Raises:
        ConfigError: An argument makes no sense.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scheduler: Any = None,
        *,
        max_steps: int,
        evaluate: Evaluate | None = None,
        checkpoint: Checkpoint | None = None,
        method: str = "loop",
        run_name: str | None = None,
        limits: Limits | None = None,
        poll_interval: float = 1.0,
        rank_sync_steps: int = 10,
        store: RunStore | None = None,
        run_id: str | None = None,
    ) -> None:
        if type(max_steps) is not int or max_steps < 1:
            raise ConfigError(f"max_steps must be a whole number from 1, got {shown(max_steps)}")
        self._listening = Listening(poll_interval, rank_sync_steps, store, run_id)
        check_limits(limits or {}, LOOP_TABLE)
        self._optimizer = plain_optimizer(optimizer)
        self._scheduler = plain_scheduler(scheduler, self._optimizer)
        self._max_steps = max_steps
        self._host = _LoopHost({"evaluate": evaluate, "checkpoint": checkpoint})
        self._method = method
        self._run_name = run_name
        self._limits = dict(limits or {})
        self._own: dict[str, Tunable] = {}
        self._saved: Mapping[str, Any] = {}
        self._steps_done = self._served = 0
        self._live: LiveTraining | Follower | None = None
        self._schedule: LiveSchedule | None = None
        self._counter: torch.utils.hooks.RemovableHandle | None = None
        self.epoch = 0.0

    # --- before the loop -------------------------------------------------------------------------

    def tunable(
        self,
        name: str,
        default: T,
        *,
        min: float | None = None,
        max: float | None = None,
        choices: Sequence[str] = (),
        help: str = "",
    ) -> LiveValue[T]:
        """Declares a value of the loop's own, before the loop begins.

        Args:
            name: Letters, digits and ``_``.
            default: Its value until it is changed; a float, an int, a bool, or one of `choices`.
            min, max: Bounds of a number, both included.
            choices: All values that a text can have.
            help: One sentence for the person who changes it.

        Returns:
            What holds the value: read its `value` where it is needed, at every step.

        Raises:
            ConfigError: The loop has begun, the name is taken, or the default does not fit.
        """
        self._refuse_if_begun("declare tunables")
        held = LiveValue(default)
        made = own_tunable(name, held, min, max, tuple(choices), help)
        if name in self._own or name in LOOP_TABLE:
            raise ConfigError(f"{name} is taken: this loop has {', '.join([*LOOP_TABLE, *self._own])}")
        self._own[name] = made
        return held

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint, after the optimizer's and the scheduler's were loaded.

        Raises:
            ConfigError: The loop has begun, or this is no state of a `LiveLoop`.
        """
        self._refuse_if_begun("load a state")
        if lacking := sorted(_STATE_KEYS - set(state)):
            raise ConfigError(f"this is no state of a LiveLoop: it lacks {', '.join(lacking)}")
        self._saved = dict(state)
        self._steps_done = self._served = state["step"]

    def start(self) -> None:
        """Begins to listen, with all that the run was told before in force. ``with`` does it.

        Raises:
            ConfigError: It has begun already, or its tunables do not fit into a tag.
        """
        self._refuse_if_begun("start it again")
        self._schedule = lay_schedule(self._optimizer, self._scheduler)
        try:
            self._live = self._under_control()
        except BaseException:
            self._detach()
            raise
        try:
            self._live.begin(self._steps_done, self._saved)
            self._counter = self._optimizer.register_step_post_hook(self._optimizer_stepped)
            self._live.running()
        except BaseException as error:
            self.finish(error)
            raise

    # --- in the loop -----------------------------------------------------------------------------

    def step(self) -> bool:
        """Applies what was asked for, and waits here while the loop is paused.

        Call it after ``optimizer.step()`` and ``scheduler.step()``. Where the optimizer has not stepped since
        the last call (gradients are accumulated, or a scaler skipped the step) it does nothing.

        Returns:
            Whether to leave the loop, as `should_stop`.

        Raises:
            ConfigError: The loop is not inside of ``with``.
        """
        live = self._live
        if live is None or not live.is_open:
            raise ConfigError("step() belongs inside of `with live:`, or between start() and finish()")
        if self._steps_done > self._served:
            self._served = self._steps_done
            live.boundary(self._steps_done)
        return self._host.should_stop

    @property
    def should_stop(self) -> bool:
        """Whether the loop was told to stop; its checkpoint is written by then."""
        return self._host.should_stop

    @property
    def steps_done(self) -> int:
        """Optimizer steps done, with those before the checkpoint that was loaded."""
        return self._steps_done

    @property
    def run_id(self) -> str | None:
        """The MLflow run that this loop listens on; None before it has begun."""
        return self._live.run_id if self._live else None

    @property
    def outcome(self) -> State | None:
        """The state that the loop is in or has ended in; None before it has begun."""
        return self._live.state if self._live else None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of this loop must hold, as JSON values.

        Raises:
            ConfigError: The loop has not begun.
        """
        if self._live is None:
            raise ConfigError("the loop has no state before it has begun")
        # It may be taken between the optimizer's step and the boundary.
        return {**self._live.saved(), "step": self._steps_done}

    # --- after the loop --------------------------------------------------------------------------

    def finish(self, error: BaseException | None = None) -> None:
        """Ends the run truthfully and gives everything back. ``with`` does it; a second call does nothing.

        Args:
            error: What ended the loop.

        Raises:
            KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM stopped the loop: the program ends now.
        """
        live = self._live
        if live is None or not live.is_open:
            return
        if error is not None:
            live.end(*ended_by(error))
        else:
            live.end("stopped" if self.should_stop else "finished")
        self._detach()
        if error is None:
            live.signals.raise_received()

    def __enter__(self) -> LiveLoop:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(error)

    # --- inside ----------------------------------------------------------------------------------

    def _refuse_if_begun(self, what: str) -> None:
        if self._live is not None:
            raise ConfigError(f"the loop has begun: too late to {what}")

    def _under_control(self) -> LiveTraining | Follower:
        tunables, commands, unsupported = self._offer()
        agreement = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            agreement = Agreement(self._listening.rank_sync_steps, _RANK_TIMEOUT_S)
            if dist.get_rank() > 0:
                return Follower(tunables, self._host, agreement)
        target = self._listening.target(lambda: TrainingRun([], self._run_name, self._saved.get("run_id")))
        return LiveTraining(
            target,
            self._listening.poll_interval,
            tunables=tunables,
            unsupported=unsupported,
            commands=commands,
            host=self._host,
            progress=lambda: Progress(self._steps_done, self._max_steps, self.epoch),
            method=self._method,
            saves_on_signal="checkpoint" in commands,
            agreement=agreement,
        )

    def _offer(self) -> tuple[dict[str, Tunable], tuple[str, ...], dict[str, str]]:
        """Tunables, commands, and why others are not there."""
        trainee = Trainee(
            args=None,
            state=None,
            optimizer=self._optimizer,
            schedule=self._schedule,
            decays=lambda parameter: parameter.ndim >= 2,  # biases and norms are vectors
            evaluates=False,
            steps=lambda: (self._steps_done, self._max_steps),
        )
        built, unsupported = build_tunables(trainee, self._limits, LOOP_TABLE)
        commands = ["pause", "resume", "stop", "cancel"]
        for command in ("checkpoint", "evaluate", "rollback"):
            if self._host.can(command):
                commands.append(command)
            else:
                unsupported[command] = f"this loop has no function for {command}"
        tunables = built | self._own
        try:
            Surface({name: t.param(t.asked) for name, t in tunables.items()}, tuple(commands)).encode()
        except MessageError as error:
            raise ConfigError(f"too many tunables or choices for one tag: {error}") from error
        return tunables, tuple(commands), unsupported

    def _optimizer_stepped(self, *_: object) -> None:
        self._steps_done += 1

    def _detach(self) -> None:
        if self._counter:
            self._counter.remove()
        if self._schedule:
            self._schedule.detach()


class _LoopHost:
    """What a session asks of a loop, done by the functions that the loop was given."""

    rollback: None = None

    def __init__(self, functions: Mapping[str, Callable[[], Any] | None]) -> None:
        self._functions = functions
        self.should_stop = False

    def can(self, command: str) -> bool:
        """Whether there is a function for it."""
        return self._functions.get(command) is not None

    def _do(self, command: str) -> Any:
        function = self._functions.get(command)
        assert function is not None, f"{command} is not offered"
        return function()

    def checkpoint(self) -> str:
        return os.fsdecode(self._do("checkpoint"))

    def evaluate(self) -> Mapping[str, float]:
        return {name: float(value) for name, value in self._do("evaluate").items()}

    def stop(self) -> None:
        self.should_stop = True
