"""What pages call loads no training framework and no Streamlit."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import ftlab_mlflow.analytics
import ftlab_mlflow.app_store

HEAVY = {"torch", "transformers", "trl", "streamlit"}


def test_analytics_and_the_app_database_load_no_framework() -> None:
    modules = [
        f"{package.__name__}.{module.name}"
        for package in (ftlab_mlflow.analytics, ftlab_mlflow.app_store)
        for module in pkgutil.iter_modules(package.__path__)
        if not module.ispkg
    ]
    assert len(modules) >= 8
    code = f"import sys, {', '.join(modules)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(printed.split())
    assert "sqlalchemy" in loaded
    assert not HEAVY & loaded
