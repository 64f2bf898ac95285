"""Fixtures of the dashboard's tests without a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st
from app_pages import Runs


@pytest.fixture
def dashboard(tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The dashboard's process as it starts, over an empty MLflow database: its tracking URI."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.setenv("FTLAB_DATABASE_URL", f"sqlite:///{tmp_path}/app.db")
    st.cache_resource.clear()
    yield tracking_uri
    st.cache_resource.clear()


@pytest.fixture
def runs(dashboard: str) -> Runs:
    """Writes runs that the dashboard shows."""
    return Runs(dashboard)
