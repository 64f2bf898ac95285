"""``python -m ftlab_mlflow.cli`` is ``ftlab``."""

from ftlab_mlflow.cli import main

main()
