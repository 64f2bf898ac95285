"""`dashboard`: opens the Streamlit app."""

from __future__ import annotations

from importlib.util import find_spec

import click

from ftlab_mlflow.cli.options import common
from ftlab_mlflow.errors import FTLabError, MissingExtra


@click.command()
@common
def dashboard(tracking_uri: str | None, as_json: bool) -> None:
    """Open the dashboard in a browser (comes with a later release)."""
    if find_spec("streamlit") is None:
        raise MissingExtra("streamlit", "app")
    raise FTLabError("the dashboard comes with a later release; until then use `ftlab watch` or `mlflow ui`")
