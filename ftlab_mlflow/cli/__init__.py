"""The `ftlab` command: parse, call the library, print. One file a group of verbs, loaded when it is used.

Exit codes: 0 done, 1 rejected or failed, 2 wrong usage, 3 timed out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

import click

from ftlab_mlflow import __version__


class Verb(NamedTuple):
    """Where a verb is defined, and what ``ftlab --help`` says about it without loading it."""

    module: str
    name: str
    help: str


VERBS = {
    "train": Verb("train", "train", "Train a model under live control."),
    "runs": Verb("look", "runs", "List live runs, newest first."),
    "status": Verb("look", "status", "Show one run: state, progress, parameters, pending requests."),
    "watch": Verb("watch", "watch", "Follow one run until it ends."),
    "history": Verb("look", "history", "List the requests of a run with their answers."),
    "preview": Verb("preview", "preview", "Show what a new learning rate would do. Sends nothing."),
    "set": Verb("change", "set_", "Change parameters of a run while it trains."),
    "pause": Verb("change", "pause", "Hold a training at its next step."),
    "resume": Verb("change", "resume", "Let a paused training go on."),
    "stop": Verb("change", "stop", "End a training at its next step, after a checkpoint."),
    "checkpoint": Verb("change", "checkpoint", "Write a checkpoint now."),
    "evaluate": Verb("change", "evaluate", "Evaluate now."),
    "rollback": Verb("change", "rollback", "Go back to a checkpoint, with what was asked for since."),
    "cancel": Verb("change", "cancel", "Withdraw a request that is still pending."),
    "tools": Verb("tools", "tools", "Ask what the runs say: rank, search, compare, compute."),
    "chat": Verb("chat", "chat", "Ask a language model what the runs say."),
    "chats": Verb("chats", "chats", "List, rename, export and delete what was asked before."),
    "usage": Verb("chats", "usage", "Show the tokens and the cost of answers."),
    "models": Verb("models", "models", "List the models that can be asked, with their prices."),
    "demo": Verb("demo", "demo", "Train a small model and change it while it trains."),
    "doctor": Verb("doctor", "doctor", "Check that everything that is needed is here."),
    "dashboard": Verb("dashboard", "dashboard", "Open the dashboard in a browser."),
}
"""Every verb, in the order of ``ftlab --help``."""


class _Verbs(click.Group):
    """A group that imports a verb's module only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        verb = VERBS[cmd_name]
        command: click.Command = getattr(import_module(f"{__name__}.{verb.module}"), verb.name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


@click.group(
    cls=_Verbs, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="ftlab")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Train a model, and change the training while it runs.

    RUN is a run id, a unique prefix of one, a run name, or "latest": the newest live run.

    Exit codes: 0 done, 1 rejected or failed, 2 wrong usage, 3 timed out.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code. Errors are printed, never raised."""
    try:
        code = cli.main(list(arguments), prog_name="ftlab", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has gone (`ftlab runs | head -1`): 1, as click itself has it.
        # Python must not try again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from ftlab_mlflow.cli.failure import report

        return report(error, as_json="--json" in arguments)
    return code if isinstance(code, int) else 0


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character must not turn an answer into an error.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:]))
