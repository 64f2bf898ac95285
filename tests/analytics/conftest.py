"""Runs, and a table of them, for the tests of what is read in bulk."""

from __future__ import annotations

import pytest
from run_samples import Counting, Runs

from ftlab_mlflow.analytics.reader import open_reader
from ftlab_mlflow.analytics.run_table import RunTable


@pytest.fixture
def runs(tracking_uri: str) -> Runs:
    return Runs(tracking_uri)


@pytest.fixture
def reader(tracking_uri: str) -> Counting:
    return Counting(open_reader(tracking_uri))


@pytest.fixture
def table(reader: Counting) -> RunTable:
    """A table that reads at every refresh, and sweeps at every one."""
    return RunTable(reader, fresh_s=0, sweep_s=0, patience_s=60)
