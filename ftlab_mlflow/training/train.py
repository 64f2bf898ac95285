"""From a config to a finished run: data, model, TRL's trainer with live control, and a truthful end."""

from __future__ import annotations

import inspect
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.integrations import MLflowCallback
from transformers.trainer_utils import get_last_checkpoint

from ftlab_mlflow.control.client import user_name
from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.messages import State, Update
from ftlab_mlflow.control.wire import shown_value, utc_now
from ftlab_mlflow.errors import ConfigError, StoreError
from ftlab_mlflow.training.callback import attach
from ftlab_mlflow.training.checkpoints import set_aside, step_of
from ftlab_mlflow.training.config import DEMO, TrainConfig, first_words
from ftlab_mlflow.training.data import Data, columns_of, load_data
from ftlab_mlflow.training.demo_model import demo_model
from ftlab_mlflow.training.resuming import Resumption
from ftlab_mlflow.training.rewards import Reward, load_rewards
from ftlab_mlflow.training.run_log import ParameterLog, RunLog, default_output_dir
from ftlab_mlflow.training.run_numbers import RunNumbers
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

    @property
    def summary(self) -> str:
        """One line for a person."""
        loss = f", loss {self.metrics['loss']:.4g}" if "loss" in self.metrics else ""
        kept = f"the model is in {self.saved}" if self.saved else "no model was saved"
        return f"{self.state.capitalize()} at step {self.step}{loss}; {kept}"

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON has it."""
        return {
            "run_id": self.run_id,
            "state": self.state,
            "step": self.step,
            "metrics": self.metrics,
            "output_dir": self.output_dir,
            "saved": self.saved,
        }


class Training:
    """One training from its config.

    Args:
        parent: The run of which its own run is to be a child.

    Attributes:
        log: The MLflow run, once it has begun. title: What trains, for a text.
    """

    title = "the training"

    def __init__(self, config: TrainConfig, parent: RunLog | None = None) -> None:
        self._config = config
        self._parent = parent
        self.log: RunLog | None = None

    def run(self) -> Outcome:
        """Trains.

        Whatever ends the training, the MLflow run ends with it: FINISHED, KILLED (stopped by a request,
        Ctrl-C or SIGTERM) or FAILED.

        Raises:
            ConfigError: Data, rewards or model cannot be used.
            StoreError: The tracking store does not answer at the beginning.
        """
        config = self._config
        check_limits(config.settings.limits)
        data = load_data(config)
        rewards = load_rewards(config, columns_of(data.train)) if config.method.is_rewarded else []
        if config.training.process_index:
            return self._train(data, rewards)  # the first process alone speaks to MLflow
        resumed_id = config.resumed.run_id if config.resumed else None
        self.log = RunLog(config.settings.tracking_uri, config.training.run_name, self._parent, resumed_id)
        try:
            if "output_dir" not in config.given:
                config.training.output_dir = default_output_dir(self.log.run_id)
            if config.resumed:
                self._go_on_from(config.resumed)
            outcome = self._train(data, rewards)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            self.log.end("stopped" if stopped else "failed")
            raise
        self.log.end(outcome.state)
        return outcome

    def _train(self, data: Data, rewards: list[Reward]) -> Outcome:
        config, settings, args = self._config, self._config.settings, self._config.training
        _agree(args)
        received: signal.Signals | None = None
        with ExitStack() as until_live_control:
            until_live_control.enter_context(sigterm_unwinds())
            trainer = self._trainer(data, rewards)
            trainer.add_callback(_AtTrainBegin(until_live_control.close))
            control = attach(
                trainer, settings.poll_interval, settings.limits, rank_sync_steps=settings.rank_sync_steps
            )
            if args.resume_from_checkpoint:
                control.ask_first(self._explicit(), must_fit=config.resumed is not None)
            if self.log is not None:
                self._announce(self.log, trainer)
                trainer.add_callback(_OnceLive(partial(self._describe, self.log, trainer)))
            try:
                trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
            except KeyboardInterrupt:
                received = signal.SIGINT
            except SystemExit as error:
                if error.code != 128 + signal.SIGTERM:
                    raise
                received = signal.SIGTERM
        # Live control knows no outcome where it is off: with several ranks that it does not drive.
        state: State = "stopped" if received else control.outcome or "finished"
        saved: str | None = None
        if received is None and self._wants_model(state):
            with sigterm_unwinds():
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

    def _trainer(self, data: Data, rewards: list[Reward]) -> Any:
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
        trainer_class = config.method.trainer_class()
        extra: dict[str, Any] = {"reward_funcs": rewards} if config.method.is_rewarded else {}
        quantization = get_quantization_config(model)
        if "quantization_config" in inspect.signature(trainer_class).parameters:
            extra["quantization_config"] = quantization
        elif quantization is not None:
            args.model_init_kwargs["quantization_config"] = quantization
        try:
            trainer = trainer_class(
                model=name,
                args=args,
                train_dataset=data.train,
                eval_dataset=data.test,
                peft_config=get_peft_config(model),
                **extra,
            )
        except (OSError, ValueError, ImportError) as error:
            named = model.model_name_or_path
            raise ConfigError(f"{named} cannot be trained: {first_words(error)}") from error
        trainer.remove_callback(MLflowCallback)
        trainer.add_callback(ParameterLog)
        trainer.add_callback(RunNumbers())
        stopping = config.early_stopping
        if stopping.early_stopping_patience is not None:
            trainer.add_callback(EarlyStoppingCallback(**asdict(stopping)))
        return trainer

    def _go_on_from(self, resumed: Resumption) -> None:
        """Says what goes on, and clears the way for the checkpoints to come."""
        logger.info("Run %s goes on from %s", resumed.run_id, resumed.checkpoint)
        folder = self._config.training.output_dir
        for path in set_aside(folder, step_of(resumed.checkpoint) or 0):
            logger.warning("A later checkpoint, which the run does not go on from, is now %s", path)

    def _explicit(self) -> list[Update]:
        """A value on the command line of a resume is a new request: it wins over what the run was told."""
        explicit = self._config.explicit
        names = self._config.resumed.live if self._config.resumed else TABLE
        return [
            Update(
                at=utc_now(), set={name: explicit[name]}, by=user_name(), via="cli", reason="given on resume"
            )
            for name in names
            if name in explicit
        ]

    def _describe(self, log: RunLog, trainer: Any) -> None:
        """Says which values win, and writes with the run what it is made from."""
        if self._config.resumed:
            for line in self._config.resumed.told(self._config.explicit):
                logger.info("%s", line)
        log.write_config(
            self._config.as_yaml(
                output_dir=os.path.abspath(trainer.args.output_dir),
                run_name=trainer.args.run_name or log.name,
            )
        )

    def _announce(self, log: RunLog, trainer: Any) -> None:
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


def _agree(args: Any) -> None:
    """The first process has the run, and from it the folders: the others take them from it."""
    if args.world_size > 1:
        folders = [args.output_dir, args.resume_from_checkpoint]
        broadcast_object_list(folders)
        args.output_dir, args.resume_from_checkpoint = folders


def _last_metrics(trainer: Any) -> dict[str, float]:
    """The last value of everything that was logged, as JSON can hold it."""
    last: dict[str, float] = {}
    for entry in trainer.state.log_history:
        last |= {k: v for k, v in entry.items() if isinstance(v, int | float) and math.isfinite(v)}
    last.pop("step", None)
    return last


class _AtTrainBegin(TrainerCallback):
    """Calls something when training begins."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._call()


class _OnceLive(_AtTrainBegin):
    """Comes after live control, which may refuse what was given."""


@contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """SIGTERM becomes ``SystemExit``, which ends the run; while training, live control handles the signal."""
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
