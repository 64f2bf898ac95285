"""From a config to a finished run: data, model, TRL's trainer with live control, and a truthful end."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.integrations import MLflowCallback
from transformers.trainer_utils import get_last_checkpoint

from ftlab_mlflow.control.client import user_name
from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.messages import State, Update
from ftlab_mlflow.control.tags import UPDATE_PREFIX
from ftlab_mlflow.control.wire import new_id, shown_value, utc_now
from ftlab_mlflow.errors import ConfigError, StoreError
from ftlab_mlflow.training.callback import attach
from ftlab_mlflow.training.config import DEMO, TrainConfig, first_words
from ftlab_mlflow.training.data import Data, load_data
from ftlab_mlflow.training.demo_model import demo_model
from ftlab_mlflow.training.run_log import ParameterLog, RunLog
from ftlab_mlflow.training.tunables import TABLE, check_limits

logger = logging.getLogger("ftlab_mlflow")


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        state: ``finished`` or ``stopped``. step: Optimizer steps done.
        metrics: Last logged value by name. output_dir: Where the model and the checkpoints are.
        saved: The folder with the newest weights, or None.
        signal: The signal that stopped it, or None.
    """

    run_id: str
    state: State
    step: int
    metrics: dict[str, float]
    output_dir: str
    saved: str | None
    signal: signal.Signals | None

    @property
    def exit_code(self) -> int:
        """0, or 128 and the number of the signal, as a shell reports it."""
        return 128 + self.signal if self.signal else 0


class Training:
    """One training from its config.

    Attributes:
        log: The MLflow run, once it has begun.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self.log: RunLog | None = None

    def run(self) -> Outcome:
        """Trains.

        Whatever ends the training, the MLflow run ends with it: FINISHED, KILLED (stopped by a request,
        Ctrl-C or SIGTERM) or FAILED.

        Raises:
            ConfigError: Data or model cannot be used.
            StoreError: The tracking store does not answer at the beginning.
        """
        config = self._config
        check_limits(config.settings.limits)
        data = load_data(config)
        if config.training.process_index:
            return self._train(data)  # the first process alone speaks to MLflow
        self.log = RunLog(config.settings.tracking_uri, config.training.run_name)
        try:
            if "output_dir" not in config.given:
                config.training.output_dir = f"outputs/{self.log.run_id[:8]}"
            outcome = self._train(data)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            self.log.end("stopped" if stopped else "failed")
            raise
        self.log.end(outcome.state)
        return outcome

    def _train(self, data: Data) -> Outcome:
        config, settings, args = self._config, self._config.settings, self._config.training
        with _sigterm_unwinds():
            trainer = self._trainer(data)
            control = attach(trainer, settings.poll_interval, settings.limits)
            if self.log is not None:
                self._announce(self.log, trainer)
                if args.resume_from_checkpoint:
                    self._ask_explicit(self.log)
        received: signal.Signals | None = None
        try:
            trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        except KeyboardInterrupt:
            received = signal.SIGINT
        except SystemExit as error:
            if error.code != 128 + signal.SIGTERM:
                raise
            received = signal.SIGTERM
        # On several ranks live control is off and knows no outcome.
        state: State = "stopped" if received else control.outcome or "finished"
        saved: str | None = None
        if received is None and self._wants_model(state):
            with _sigterm_unwinds():
                trainer.save_model(args.output_dir)
                saved = args.output_dir
                if args.push_to_hub:
                    trainer.push_to_hub(dataset_name=config.script.dataset_name)
        elif Path(args.output_dir).is_dir():
            saved = get_last_checkpoint(args.output_dir)
        trainer.end()
        run_id = self.log.run_id if self.log else ""
        step, metrics = trainer.state.global_step, _last_metrics(trainer)
        return Outcome(run_id, state, step, metrics, args.output_dir, saved, received)

    def _trainer(self, data: Data) -> Any:
        """TRL's trainer, made as TRL's own script makes it."""
        from trl import get_peft_config, get_quantization_config

        config, args, model = self._config, self._config.training, self._config.model
        name = demo_model() if model.model_name_or_path == DEMO else model.model_name_or_path
        args.model_init_kwargs = {
            "revision": model.model_revision,
            "trust_remote_code": args.trust_remote_code,
            "attn_implementation": model.attn_implementation,
            "dtype": model.dtype,
            **(args.model_init_kwargs or {}),
        }
        try:
            trainer = config.method.trainer_class()(
                model=name,
                args=args,
                train_dataset=data.train,
                eval_dataset=data.test,
                quantization_config=get_quantization_config(model),
                peft_config=get_peft_config(model),
            )
        except (OSError, ValueError, ImportError) as error:
            named = model.model_name_or_path
            raise ConfigError(f"{named} cannot be trained: {first_words(error)}") from error
        trainer.remove_callback(MLflowCallback)
        trainer.add_callback(ParameterLog)
        return trainer

    def _ask_explicit(self, log: RunLog) -> None:
        """A value on the command line of a resume is a new request: it wins over what the run was told."""
        for name in TABLE:
            if name in self._config.explicit:
                update = Update(
                    at=utc_now(),
                    set={name: self._config.explicit[name]},
                    by=user_name(),
                    via="cli",
                    reason="given on resume",
                )
                log.store.write(log.run_id, {UPDATE_PREFIX + new_id(): update.encode()})

    def _announce(self, log: RunLog, trainer: Any) -> None:
        log.write_config(
            self._config.as_yaml(
                output_dir=trainer.args.output_dir, run_name=trainer.args.run_name or log.name
            )
        )
        logger.info(
            "Run %s (%s) on %s; change it with: ftlab set %s learning_rate=%s",
            log.run_id,
            log.name,
            log.store.shown_uri,
            log.run_id[:8],
            shown_value(trainer.args.learning_rate / 2),
        )
        total = sum(p.numel() for p in trainer.model.parameters())
        trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        samples = (
            f"{len(trainer.train_dataset):,}" if hasattr(trainer.train_dataset, "__len__") else "streamed"
        )
        logger.info("%s parameters, %s of them trained; %s samples", f"{total:,}", f"{trained:,}", samples)

    def _wants_model(self, state: State) -> bool:
        """A finished model is kept, and one that was stopped, unless the request said not to save."""
        if state == "finished" or self.log is None:
            return True
        try:
            ledger = Ledger.read(self.log.store.get(self.log.run_id).tags)
        except StoreError:
            return True
        done = [e.update for e in ledger.entries if e.update and e.ack and e.ack.status == "applied"]
        stops = [update for update in done if update.command == "stop"]
        return bool(stops[-1].args.get("save", True)) if stops else True


def _last_metrics(trainer: Any) -> dict[str, float]:
    """The last value of everything that was logged, as JSON can hold it."""
    last: dict[str, float] = {}
    for entry in trainer.state.log_history:
        last |= {k: v for k, v in entry.items() if isinstance(v, int | float) and math.isfinite(v)}
    last.pop("step", None)
    return last


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM becomes an exception that ends the run; while training, live control handles the signal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
