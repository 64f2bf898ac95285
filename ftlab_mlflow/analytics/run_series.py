"""What the table of runs computes from series, kept by run: read again only when a run has logged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from ftlab_mlflow.analytics.reader import RunReader, RunRecord
from ftlab_mlflow.analytics.series import Series, joined, reduce, unsettled_from
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.messages import Status
from ftlab_mlflow.control.store import NOT_ENDED
from ftlab_mlflow.errors import MessageError

_T = TypeVar("_T")


class FromSeries(Generic[_T]):
    """What is computed from a metric's series, by run; read again when the run has logged or ended since.

    While a run goes on, only what it has logged since is read.

    Args:
        metrics: Names; the first that a run has counts.
        points: How many values of the series are needed.
        reread_s: Seconds before a run that goes on is read again.
    """

    def __init__(
        self,
        reader: RunReader,
        metrics: tuple[str, ...],
        points: int,
        reread_s: float,
        compute: Callable[[Series], _T],
    ) -> None:
        self._reader = reader
        self._metrics = metrics
        self._points = points
        self._reread_s = reread_s
        self._compute = compute
        self._found: dict[str, _Found[_T]] = {}

    def of(self, run_id: str) -> _T | None:
        """The value as it was read last, or None."""
        found = self._found.get(run_id)
        return found.value if found else None

    def due(self, records: Iterable[RunRecord]) -> list[RunRecord]:
        """The runs whose value is to be read."""
        return [record for record in records if self._metric(record) and self._is_due(record)]

    def read(self, records: Sequence[RunRecord]) -> None:
        """Reads the values of these runs."""
        for metric in self._metrics:
            chosen = {record.data.run_id: record for record in records if self._metric(record) == metric}
            whole = []
            for run_id, record in chosen.items():
                continued = self._continued(record, metric)
                if continued is None:
                    whole.append(run_id)
                else:
                    self._keep(record, reduce(continued, self._points))
            all_series = self._reader.series(whole, metric, points=self._points) if whole else {}
            for run_id, series in all_series.items():
                self._keep(chosen[run_id], series)

    def _continued(self, record: RunRecord, metric: str) -> Series | None:
        """With what a run that goes on has logged since; None where the series is to be read again."""
        run_id = record.data.run_id
        found = self._found.get(run_id)
        if found is None or found.going != metric or record.data.status not in NOT_ENDED:
            return None
        if _step_again(record, found.series) is not None:
            return None
        after = unsettled_from(found.series) - 1
        later = self._reader.series([run_id], metric, points=self._points, after=after)
        return joined(found.series, later[run_id]) if later else found.series

    def _keep(self, record: RunRecord, series: Series) -> None:
        self._found[record.data.run_id] = _Found(
            logged=self._logged(record, series),
            going=self._metric(record) if record.data.status in NOT_ENDED else None,
            read_at=time.monotonic(),
            series=series,
            value=self._compute(series),
        )

    def forget(self, run_ids: Iterable[str]) -> None:
        """These runs are no more."""
        for run_id in run_ids:
            self._found.pop(run_id, None)

    def _metric(self, record: RunRecord) -> str | None:
        return next((metric for metric in self._metrics if metric in record.data.metrics), None)

    def _is_due(self, record: RunRecord) -> bool:
        found = self._found.get(record.data.run_id)
        if found is None:
            return True
        may = record.data.status not in NOT_ENDED or time.monotonic() - found.read_at >= self._reread_s
        return may and found.logged != self._logged(record, found.series)

    def _logged(self, record: RunRecord, series: Series) -> str:
        """Changes when the run logs the metric, also behind what it has logged before, ends or goes on."""
        metric, data = self._metric(record) or "", record.data
        last = f"{metric} {data.metrics.get(metric)} {data.logged_at.get(metric)}"
        return f"{data.status} {data.ended} {last} {_step_again(record, series)}"


def _step_again(record: RunRecord, series: Series) -> int | None:
    """The trainer's step, if it lies before what is logged, as after a rollback; None if it does not.

    MLflow keeps as a metric's last value that of the highest step: steps that come again do not change it.
    """
    if record.data.status not in NOT_ENDED or tags.STATUS not in record.data.tags:
        return None
    with suppress(MessageError):
        step = Status.decode(record.data.tags[tags.STATUS]).step
        return step if step < series.steps[-1] else None
    return None


@dataclass(frozen=True)
class _Found(Generic[_T]):
    """What was read of a run.

    Attributes:
        logged: What it had logged then. going: The metric, if the run went on then. series: Reduced.
    """

    logged: str
    going: str | None
    read_at: float
    series: Series
    value: _T


def finite(series: Series) -> tuple[float, ...]:
    values = series.values[np.isfinite(series.values)]
    return tuple(values.tolist())


def smallest(series: Series) -> float | None:
    return min(finite(series), default=None)
