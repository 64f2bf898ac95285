"""What a session asks of its training loop, done by a transformers `Trainer`."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from ftlab_mlflow.control.wire import shown
from ftlab_mlflow.errors import CheckpointError
from ftlab_mlflow.training.batch_tunables import UNSEEN
from ftlab_mlflow.training.batching import LiveBatches, saved_control
from ftlab_mlflow.training.checkpoints import holds_only_model, problem, set_aside, step_of
from ftlab_mlflow.training.host import WentBack

_STATE = (
    "global_step",
    "epoch",
    "log_history",
    "best_metric",
    "best_global_step",
    "best_model_checkpoint",
    "total_flos",
    "num_input_tokens_seen",
)
"""What a trainer's state says of the steps that are done."""


class TrainerHost:
    """Checkpoints, evaluations and the end, on request. Called in the training thread, at a boundary."""

    def __init__(self, trainer: Trainer, batches: LiveBatches | None) -> None:
        self._trainer = trainer
        self._batches = batches

    @property
    def can_evaluate(self) -> bool:
        """Whether there is something to evaluate on."""
        return self._trainer.eval_dataset is not None

    @property
    def no_rollback(self) -> str | None:
        """Why the training cannot go back to a checkpoint; None if it can."""
        trainer = self._trainer
        if self._batches is None:
            return UNSEEN
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            return "a sharded model is loaded only when training begins"
        if getattr(trainer.args, "sync_ref_model", False):
            return "a reference model that follows the policy is in no checkpoint"
        return self._batches.no_batches

    def checkpoint(self) -> str:
        """Writes a checkpoint as the trainer itself would; one that fails half-way is removed."""
        trainer = self._trainer
        trial = getattr(trainer, "_trial", None)
        folder = Path(trainer._get_output_dir(trial), f"checkpoint-{trainer.state.global_step}")
        existed = folder.exists()
        try:
            with self._flags_kept():
                trainer._save_checkpoint(trainer.model, trial)
                trainer.control = trainer.callback_handler.on_save(
                    trainer.args, trainer.state, trainer.control
                )
        except BaseException:
            if not existed:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        return str(folder.resolve())

    def evaluate(self) -> Mapping[str, float]:
        """Evaluates; schedulers and early stopping count only the training's own evaluations."""
        model = self._trainer.model
        was_training = model.training
        with self._flags_kept(), self._early_stopping_away():
            try:
                metrics: Mapping[str, float] = self._trainer.evaluate()
            finally:
                # TRL sorts what the step still has to log by the mode that the model is in.
                model.train(was_training)
        return metrics

    def rollback(self, checkpoint: str | None) -> WentBack:
        """Brings weights, optimizer, scheduler, random state and data back to a checkpoint of this run.

        Args:
            checkpoint: The name of its directory; None is the last whole one.

        Raises:
            CheckpointError: There is none, or it is not whole, of another run, or holds only the model.
        """
        trainer, batches = self._trainer, self._batches
        assert batches is not None
        path = self._checkpoint_to_load(checkpoint)
        state = TrainerState.load_from_json(str(path / TRAINER_STATE_NAME))
        saved = saved_control(state)
        counters = self._stopping_counters(state)
        trainer._load_from_checkpoint(str(path))
        trainer._load_optimizer_and_scheduler(str(path))
        trainer._load_scaler(str(path))
        for name in _STATE:
            setattr(trainer.state, name, getattr(state, name))
        trainer.current_flos = 0
        for callback, counter in counters:
            callback.early_stopping_patience_counter = counter
        batches.go_back(str(path), saved["batches"])
        if trainer.args.should_save:
            set_aside(path.parent, state.global_step)
        return WentBack(str(path.resolve()), saved, state.global_step)

    def _checkpoint_to_load(self, name: str | None) -> Path:
        folder = Path(self._trainer._get_output_dir(getattr(self._trainer, "_trial", None)))
        there = sorted(folder.glob("checkpoint-*"), key=lambda path: step_of(path) or 0, reverse=True)
        if name is None:
            path = next((path for path in there if self._problem(path) is None), None)
            if path is None:
                raise CheckpointError(f"there is no whole checkpoint of this training in {folder}")
            return path
        path = folder / name
        if Path(name).name != name:
            raise CheckpointError(f"name a folder, such as checkpoint-500, not a path; got {shown(name)}")
        if reason := self._problem(path):
            names = ", ".join(path.name for path in there) or "none"
            raise CheckpointError(f"{shown(name)} cannot be loaded: {reason}; there are: {names}")
        return path

    def _problem(self, path: Path) -> str | None:
        """Why the training cannot go back to a checkpoint."""
        if not path.is_dir():
            return "there is no such folder"
        if reason := problem(path):
            return reason
        if holds_only_model(path):
            return "it holds only the model (save_only_model)"
        state = TrainerState.load_from_json(str(path / TRAINER_STATE_NAME))
        batches = saved_control(state).get("batches")
        if batches is None:
            return "it was written without live control, or by an older version"
        assert self._batches is not None
        if batches.get("training") != self._batches.training or state.global_step > self._batches.loop.step:
            return "it is of another training"
        return None

    def _stopping_counters(self, state: TrainerState) -> list[tuple[EarlyStoppingCallback, int]]:
        """How long each early stopping had waited at a checkpoint."""
        callbacks = self._trainer.callback_handler.callbacks
        stoppers = [callback for callback in callbacks if isinstance(callback, EarlyStoppingCallback)]
        found = []
        for kind in {type(callback) for callback in stoppers}:
            mine = [callback for callback in stoppers if type(callback) is kind]
            stored = state.stateful_callbacks.get(kind.__name__, [])
            # Of several, transformers adds all states to those before, at every checkpoint.
            stored = stored[-len(mine) :] if isinstance(stored, list) else [stored]
            for callback, its in zip(mine, stored, strict=False):
                found.append((callback, its["attributes"]["early_stopping_patience_counter"]))
        return found

    def stop(self) -> None:
        """Makes this step the last one."""
        control = self._trainer.control
        control.should_training_stop = True
        control.should_evaluate = control.should_save = False

    @contextlib.contextmanager
    def _early_stopping_away(self) -> Iterator[None]:
        handler = self._trainer.callback_handler
        callbacks = handler.callbacks
        handler.callbacks = [c for c in callbacks if not isinstance(c, EarlyStoppingCallback)]
        try:
            yield
        finally:
            handler.callbacks = callbacks

    @contextlib.contextmanager
    def _flags_kept(self) -> Iterator[None]:
        """What the training's own flow wants to do at this step stays wanted."""
        control = self._trainer.control
        wanted = (control.should_log, control.should_evaluate, control.should_save)
        try:
            yield
        finally:
            control = self._trainer.control
            control.should_log, control.should_evaluate, control.should_save = wanted
