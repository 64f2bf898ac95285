"""`tools`: the analytics functions by name, as a language model sees them."""

from __future__ import annotations

import json

import click

from ftlab_mlflow.cli.options import common
from ftlab_mlflow.cli.output import emit
from ftlab_mlflow.errors import ConfigError


@click.group()
def tools() -> None:
    """Ask what the runs say: list the functions, call one of them."""


@tools.command("list")
@common
def list_(tracking_uri: str | None, as_json: bool) -> None:
    """List the functions; with --json also what they take, as JSON Schema."""
    from ftlab_mlflow.analytics.tools import TOOLS

    del tracking_uri
    if as_json:
        emit(
            {
                "tools": [
                    {"name": tool.name, "description": tool.description, "arguments": tool.schema}
                    for tool in TOOLS.values()
                ]
            }
        )
        return
    width = max(map(len, TOOLS))
    for tool in TOOLS.values():
        click.echo(f"{tool.name:<{width}}  {' '.join(tool.description.split('Args:')[0].split())}")


@tools.command()
@click.argument("name")
@click.option("--json", "arguments", default="{}", metavar="OBJECT", help="Its arguments as a JSON object.")
@click.option("--tracking-uri", metavar="URI", help="Where the runs are.  [default: MLflow's own setting]")
def call(name: str, arguments: str, tracking_uri: str | None) -> None:
    """Call a function and print its answer as JSON."""
    from ftlab_mlflow.analytics.tools import call_tool

    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--json is no JSON: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"--json must be an object such as {{}}, got {arguments[:60]}")
    emit(call_tool(name, given, tracking_uri))
