"""The seam to MLflow's run data in bulk: all runs as light records, metrics of many runs, reduced."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ftlab_mlflow.analytics.columns import Keys, RunColumns, RunHead, Wanted
from ftlab_mlflow.analytics.series import Series
from ftlab_mlflow.control.store import RunData
from ftlab_mlflow.control.tags import ACK_PREFIX, UPDATE_PREFIX

LARGEST = sys.float_info.max
"""What MLflow stores for infinity, and the negative of it for minus infinity."""
EXACT = 10_000
"""Values of a series that statements are computed from: of a longer one only its shape is read."""
PARENT = "mlflow.parentRunId"
"""MLflow's tag of a nested run: the id of the run that it is in."""
REQUEST_TAGS = (UPDATE_PREFIX, ACK_PREFIX)


@dataclass(frozen=True)
class RunRecord:
    """One run as a table of runs shows it.

    Attributes:
        data: As the tracking store has it, with the last (not the best) value of each metric, NaN and
            infinity as such. A page leaves out tags of requests and answers (``ftlab.update.*``,
            ``ftlab.ack.*``).
        experiment: The experiment's name.
        params: MLflow's params, all of them text.
    """

    data: RunData
    experiment: str
    params: Mapping[str, str]


@dataclass(frozen=True)
class RunPage:
    """Some runs, newest first, and what gets the next ones (None at the end)."""

    records: tuple[RunRecord, ...]
    next: str | None


class RunsOf(Protocol):
    """The runs of some experiments, to ask about more than once: a slow store is read once for it."""

    @property
    def policy(self) -> Mapping[str, str]:
        """What to say of how they were read: empty where they are as they are now."""

    def columns(self, wanted: Wanted) -> RunColumns:
        """All of them, with the columns that are wanted."""

    def keys(self) -> Keys:
        """The names of metrics, params and tags that they have, requests and answers left out."""

    def requests(self) -> dict[str, dict[str, str]]:
        """The tags of requests and answers (``ftlab.update.*``, ``ftlab.ack.*``) of those that have any."""


class RunReader(Protocol):
    """Bulk reads of a tracking store. Every call may be made from any thread.

    Raises `StoreUnavailable` when the store does not answer and may later, `RunNotFound`, `StoreError`.
    """

    tracking_uri: str

    def experiments(self) -> dict[str, str]:
        """Names of the experiments that are not deleted, by id."""

    def page(
        self,
        token: str | None = None,
        *,
        limit: int = 200,
        experiments: Sequence[str] | None = None,
        active: bool = False,
        params: Sequence[str] | None = None,
    ) -> RunPage:
        """Runs that are not deleted, newest first (by start, then by id).

        Runs that start between two pages move none of the others from one page to another.

        Args:
            token: `RunPage.next` of the page before.
            experiments: Ids; None is all that are not deleted.
            active: Only runs that have not ended (RUNNING or SCHEDULED).
            params: Only these params (a reader that cannot choose them gives more).
        """

    def record(self, run_id: str) -> RunRecord:
        """One run whole: all tags and params. A deleted one is not found."""

    def runs_of(self, experiments: Sequence[str]) -> RunsOf:
        """All runs of these experiments (ids) that are not deleted."""

    def named(self, name: str) -> list[RunHead]:
        """The runs of this name, or whose id begins so, that are not deleted; newest first."""

    def children(self, run_id: str) -> list[RunHead]:
        """The nested runs of a run that are not deleted; newest first."""

    def whole(self, run_ids: Sequence[str], key: str) -> dict[str, Series]:
        """All values of a metric of several runs; a run that never logged it is left out.

        It takes 2 s a million values in SQL, and 50 s over HTTP.
        """

    def series(
        self, run_ids: Sequence[str], key: str, *, points: int = 1000, after: int | None = None
    ) -> dict[str, Series]:
        """A metric of several runs; a run that never logged it is left out.

        Args:
            points: About how many values a run to return at most; longer series keep the smallest and the
                largest finite value of each piece, every first and last value, and say so in `Series.total`.
                A tracking server samples what is longer than `rest_reader.WHOLE` evenly, so that an extreme
                between two samples is not seen, and does not say how many values there are: `total` is then
                a number that is surely reached.
            after: Only steps above this one.
        """


def open_reader(tracking_uri: str | None = None) -> RunReader:
    """The fastest reader for a tracking store.

    Args:
        tracking_uri: None is MLflow's own setting.

    Raises:
        StoreUnavailable, StoreError: MLflow cannot open this tracking URI.
        MissingExtra, ConfigError: The database's driver is not installed.
    """
    from ftlab_mlflow.control.mlflow_store import MlflowRunStore

    uri = MlflowRunStore(tracking_uri).tracking_uri  # which makes the tables of a new database
    if uri.startswith(("http://", "https://")):
        from ftlab_mlflow.analytics.rest_reader import RestReader

        return RestReader(uri)
    from ftlab_mlflow.analytics.search_reader import ClientReader
    from ftlab_mlflow.analytics.sql_reader import SqlReader

    return SqlReader.of_known_tables(uri) or ClientReader(uri)


def told(value: float) -> float:
    """A metric's value as it was logged: MLflow keeps infinity as the largest float."""
    return value * math.inf if abs(value) >= LARGEST else value


def series_of(points: Iterable[tuple[int, float, int]], total: int | None = None) -> Series:
    """Values from (step, value as MLflow keeps it, time in ms), by step and then by time."""
    columns = list(zip(*points, strict=True)) or [(), (), ()]
    steps, times = np.array(columns[0], dtype=np.int64), np.array(columns[2], dtype=np.int64)
    values = np.array(columns[1], dtype=np.float64)
    values[np.abs(values) >= LARGEST] *= np.inf
    stored = np.where(
        np.isnan(values), 0.0, values
    )  # NaN is kept as 0, which decides between values of a moment
    order = np.lexsort((stored, times, steps))
    return Series(steps[order], values[order], times[order], len(steps) if total is None else total)
