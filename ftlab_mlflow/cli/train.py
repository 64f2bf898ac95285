"""`ftlab train`: from a config file to a finished run, in this process."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ftlab_mlflow.cli.failure import report
from ftlab_mlflow.cli.opening import open_store
from ftlab_mlflow.cli.output import emit
from ftlab_mlflow.errors import FTLabError
from ftlab_mlflow.training.methods import METHODS, Method

if TYPE_CHECKING:
    from ftlab_mlflow.settings import Settings
    from ftlab_mlflow.training.resuming import Resumption
    from ftlab_mlflow.training.rlhf import Pipeline, PipelineOutcome
    from ftlab_mlflow.training.train import Outcome, Training

logger = logging.getLogger("ftlab_mlflow")

_NOISY = ("alembic", "httpx", "mlflow")
"""Loggers of other libraries that report every small thing they do."""
_HELP = """Every key of TRL's config file is an option too (--learning_rate 1e-4) and overrides the file.
Shorter names: --model (model_name_or_path) and --data (dataset_name: a JSONL, CSV or Parquet file, a folder,
or a name on the Hugging Face hub). --model demo and --data demo need no network; they are used if neither is
given.
{more}
Ours: --tracking_uri, --poll_interval (seconds), --rank_sync_steps, --limits '{{learning_rate: [0, 0.001]}}'.

Exit codes: 0 finished, or stopped by request; 1 failed; 2 wrong usage; 130 or 143 after Ctrl-C or SIGTERM."""
_REWARDS = """
What rewards an answer: --reward_funcs module:function ... (called as TRL calls it, found in this folder too)
and --reward_model_name_or_path (what `ftlab train reward` made).
"""
_RLHF = "The whole pipeline: a reward model is trained, then a policy against it."
_STAGES = """
An option for one stage alone: --reward.max_steps 100, --policy.data prompts.jsonl; any other is for both.
The file has sections reward: and policy: for the same. Both stages are child runs and are changed like any
other run; one that fails or is stopped is the last.
"""


@click.group()
def train() -> None:
    """Train a model under live control."""


def _command(method: Method) -> click.Command:
    @click.command(
        method.name,
        help=f"{method.help}\n\n{_HELP.format(more=_REWARDS if method.is_rewarded else '')}",
        short_help=method.help,
        context_settings={"ignore_unknown_options": True},
    )
    @click.option(
        "--config", metavar="FILE", help="A YAML file as TRL takes it, with an optional section live:."
    )
    @click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object at the end, and nothing else."
    )
    @click.option(
        "--resume",
        metavar="[RUN]",
        is_flag=False,
        flag_value="",
        help="Go on with a run from its last whole checkpoint; without RUN the newest that did not finish.",
    )
    @click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[--KEY VALUE]...")
    @click.pass_context
    def command(
        context: click.Context,
        config: str | None,
        as_json: bool,
        resume: str | None,
        options: tuple[str, ...],
    ) -> None:
        _execute(context, lambda: _training(method, config, options, resume), as_json=as_json)

    return command


def _training(
    method: Method, path: str | None, options: tuple[str, ...], resumed: str | None = None
) -> Training:
    from ftlab_mlflow.training.config import load_config

    def resume(settings: Settings, given: Mapping[str, Any]) -> Resumption:
        from ftlab_mlflow.training.resuming import decided_by_first, find_resumption

        return decided_by_first(
            lambda: find_resumption(open_store(settings.tracking_uri), method.name, resumed, given)
        )

    config = load_config(method, path, options, None if resumed is None else resume)
    from ftlab_mlflow.training.train import Training

    return Training(config)


@click.command(
    "rlhf",
    help=f"{_RLHF}\n\n{_HELP.format(more=_STAGES)}",
    short_help=_RLHF,
    context_settings={
        "ignore_unknown_options": True,
        "token_normalize_func": lambda name: name.replace("-", "_"),  # as all our keys: --output-dir too
    },
)
@click.option("--config", metavar="FILE", help="A YAML file with sections reward:, policy: and live:.")
@click.option("--policy.method", "method", metavar="grpo|rloo", help="How the policy is trained (grpo).")
@click.option(
    "--output_dir", metavar="FOLDER", help="Both models go into it, into folders reward and policy."
)
@click.option("--run_name", metavar="NAME", help="Of the parent run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, and nothing else.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[--KEY VALUE]...")
@click.pass_context
def _rlhf(
    context: click.Context,
    /,
    config: str | None,
    as_json: bool,
    options: tuple[str, ...],
    **own: str | None,
) -> None:
    def pipeline() -> Pipeline:
        from ftlab_mlflow.training.rlhf import Pipeline, load_pipeline

        return Pipeline(load_pipeline(config, options, **own))

    _execute(context, pipeline, as_json=as_json)


def _execute(context: click.Context, make: Callable[[], Training | Pipeline], *, as_json: bool) -> NoReturn:
    """Trains, prints how it went, and ends with the exit code for it."""
    with _terminal(quiet_stdout=as_json):
        training = make()
        try:
            outcome = _run(training)
        except FTLabError as error:
            if _is_stuck(training):
                _leave(report(error, as_json=as_json))
            raise
    if as_json:
        emit(outcome.to_dict())
    if _is_stuck(training):
        _leave(outcome.exit_code)
    context.exit(outcome.exit_code)


def _run(training: Training | Pipeline) -> Outcome | PipelineOutcome:
    try:
        outcome = training.run()
    except FTLabError:
        raise
    except Exception as error:
        # Mostly what a person must see in full: out of memory, a sample that does not fit, ...
        traceback.print_exc()
        text = (str(error).strip().splitlines() or [""])[0]
        raise FTLabError(f"{training.title} failed: {type(error).__name__}: {text}") from error
    logger.info("%s", outcome.summary)
    return outcome


def _is_stuck(training: Training | Pipeline) -> bool:
    """Whether MLflow would hold up the end of the process, with requests that are each tried for minutes."""
    return training.log is not None and training.log.undelivered


def _leave(code: int) -> NoReturn:
    """Ends the process without a wait for the threads of other libraries."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _AboveProgressBar(logging.Handler):
    """Log lines on stderr that leave a progress bar whole."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


@contextlib.contextmanager
def _terminal(*, quiet_stdout: bool) -> Iterator[None]:
    """Shows our log lines, not other libraries' small talk; `quiet_stdout` keeps stdout for one document."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    handler = _AboveProgressBar()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(sys.stderr) if quiet_stdout else contextlib.nullcontext():
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


for _method in METHODS.values():
    train.add_command(_command(_method))
train.add_command(_rlhf)
