"""What a session asks of its training loop, done by a transformers `Trainer`."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from transformers import Trainer


class TrainerHost:
    """Checkpoints, evaluations and the end, on request. Called in the training thread, at a boundary."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    @property
    def can_evaluate(self) -> bool:
        """Whether there is something to evaluate on."""
        return self._trainer.eval_dataset is not None

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
        """Evaluates without stepping a scheduler that waits for the training's own evaluations."""
        model = self._trainer.model
        was_training = model.training
        with self._flags_kept():
            try:
                metrics: Mapping[str, float] = self._trainer.evaluate()
            finally:
                # TRL sorts what the step still has to log by the mode that the model is in.
                model.train(was_training)
        return metrics

    def stop(self) -> None:
        """Makes this step the last one."""
        control = self._trainer.control
        control.should_training_stop = True
        control.should_evaluate = control.should_save = False

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
