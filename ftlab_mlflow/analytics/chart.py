"""Charts as data: what is drawn is described, checked, and drawn by whoever shows it."""

from __future__ import annotations

import html
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ftlab_mlflow.analytics import scope
from ftlab_mlflow.analytics.answer import Answer, clipped, shown, size
from ftlab_mlflow.analytics.comparison import labels
from ftlab_mlflow.analytics.metric_table import describe
from ftlab_mlflow.analytics.reader import EXACT
from ftlab_mlflow.analytics.run_queries import Metrics, Runs
from ftlab_mlflow.analytics.series import Series, reduce, seconds
from ftlab_mlflow.control.markers import Marker, markers
from ftlab_mlflow.control.view import RunView
from ftlab_mlflow.errors import AnalyticsError
from ftlab_mlflow.settings import answer_chars

Axis = Literal["step", "hours"]
_FEWEST, _ENDS = 10, 4
"""Points of a line, where an answer would be too long; and where it still is."""
_MARKS, _TEXT = 100, 100
"""Marks that a chart has; characters of their texts."""


class Line(BaseModel):
    """One metric of one run.

    Attributes:
        points: [x, value] in order; NaN and infinity as text.
        total: How many values there are; more than there are points where it was reduced.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    label: str
    metric: str
    points: list[tuple[float, float | Literal["NaN", "inf", "-inf"]]]
    total: int


class Mark(BaseModel):
    """An applied change of a run. x: Where on the axis."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    x: float
    text: str


class Chart(BaseModel):
    """A chart of lines over one axis. Texts come from runs: whoever draws them, escapes them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    x: Axis
    log_y: bool
    lines: list[Line]
    marks: list[Mark]

    def figure(self) -> dict[str, Any]:
        """The chart as Plotly's JSON has figures: ``plotly.graph_objects.Figure(chart.figure())``."""
        traces = [
            {
                "type": "scatter",
                "mode": "lines",
                "name": _escaped(line.label),
                "x": [x for x, _ in line.points],
                "y": [y if isinstance(y, float) else None for _, y in line.points],
                "connectgaps": False,
            }
            for line in self.lines
        ]
        upright = {"type": "line", "y0": 0, "y1": 1, "yref": "y domain", "line": {"dash": "dot", "width": 1}}
        layout = {
            "title": {"text": _escaped(self.title)},
            "xaxis": {"title": {"text": "optimizer step" if self.x == "step" else "hours since the start"}},
            "yaxis": {"type": "log" if self.log_y else "linear"},
            "shapes": [upright | {"x0": x, "x1": x} for x in sorted({mark.x for mark in self.marks})],
        }
        return {"data": traces, "layout": layout}


def plot_metrics(
    runs: Runs,
    metrics: Metrics,
    x: Axis = "step",
    log_y: bool = False,
    max_points: Annotated[int, Field(ge=_FEWEST, le=1000)] = 200,
    *,
    tracking_uri: str | None = None,
) -> Answer:
    """A chart of metrics of runs, as a description that the dashboard and notebooks draw; no code.

    Args:
        runs: Ids, unique prefixes of ids, or names; up to ten.
        metrics: Names, as logged.
        x: ``step``, or ``hours`` since each run's start.
        log_y: Whether values are on a logarithmic scale.
        max_points: Points of each line at most. Of more, each piece keeps its smallest and its largest.
        tracking_uri: MLflow's tracking URI; None is MLflow's own setting.

    Returns:
        ``chart``: ``title, x, log_y, lines`` (``run_id, label, metric, points, total``) and ``marks``, the
        applied changes; ``max_points``: what was kept, fewer than asked for where the answer would be too
        long; ``omitted``: lines that are not there because the run never logged the metric, points between
        those that are there, marks beyond the first 100, and metrics, which ``next`` gets.

    Raises:
        AnalyticsError: No such run, or none of them has logged any of the metrics.
        StoreError: As the tracking store does.
    """
    store = scope.reader(tracking_uri)
    records = scope.records(store, runs)
    names = dict(zip((record.data.run_id for record in records), labels(records), strict=True))
    starts = {r.data.run_id: int(r.data.started.timestamp() * 1000) if r.data.started else 0 for r in records}
    found: list[tuple[str, str, Series]] = []
    missing = 0
    for metric in dict.fromkeys(metrics):
        have = [record.data.run_id for record in records if metric in record.data.metrics]
        series = store.series(have, metric, points=EXACT) if have else {}
        found += [(run_id, metric, series[run_id]) for run_id in have if run_id in series]
        missing += len(records) - len(series)
    if not found:
        logged = {name for record in records for name in record.data.metrics}
        nearest = scope.nearest(metrics[0], logged)
        raise AnalyticsError(f"none of these runs has logged {metrics[0]!r}; {nearest}")
    marks = [
        Mark(run_id=run_id, x=_x(mark, starts[run_id], x), text=clipped(mark.text, _TEXT))
        for run_id, record in zip(names, records, strict=True)
        for mark in markers(RunView.of(record.data).entries)
    ]
    wanted = list(dict.fromkeys(metrics))
    shown_metrics, left_marks = wanted, marks[:_MARKS]
    while True:
        lines = [
            Line(
                run_id=run_id,
                label=clipped(names[run_id], _TEXT)
                + (f", {describe(metric).title}" if len(shown_metrics) > 1 else ""),
                metric=metric,
                points=_points(one, starts[run_id], x, max_points),
                total=one.total,
            )
            for run_id, metric, one in found
            if metric in shown_metrics
        ]
        titles = ", ".join(describe(metric).title for metric in shown_metrics)
        chart = Chart(title=titles, x=x, log_y=log_y, lines=lines, marks=left_marks)
        rest = wanted[len(shown_metrics) :]
        omitted = {
            "line of a run that never logged the metric": missing,
            "point between those of a line": sum(line.total - len(line.points) for line in lines),
            "mark": len(marks) - len(left_marks),
            "metric": len(rest),
        }
        answer: Answer = {
            "chart": chart.model_dump(mode="json"),
            "max_points": max_points,
            "total": {"metrics": len(wanted), "runs": len(records), "marks": len(marks)},
            "omitted": {reason: count for reason, count in omitted.items() if count},
            "next": {"runs": list(runs), "metrics": rest, "x": x, "log_y": log_y} if rest else None,
            "policy": {
                "points": "each piece keeps its smallest and its largest value; `metric_history` has all",
                "marks": "applied changes; `live_changes` has all",
                "not finite": "NaN and infinity as text; a line has a gap there",
                "runs": "of every status",
            },
        }
        if size(answer) <= answer_chars():
            return answer
        if max_points > _FEWEST:
            max_points = max(_FEWEST, max_points * 3 // 4)
        elif len(left_marks) > _FEWEST:
            left_marks = left_marks[: len(left_marks) * 3 // 4]
        elif len(shown_metrics) > 1:
            shown_metrics = shown_metrics[: len(shown_metrics) * 3 // 4]
        elif max_points > _ENDS:
            max_points, left_marks = _ENDS, []
        else:
            return answer


def _points(series: Series, start: int, x: Axis, count: int) -> list[tuple[float, Any]]:
    kept = reduce(series, count)
    if count < len(kept.values) <= _FEWEST:  # fewer than `reduce` gives: the ends and the extremes
        finite = np.where(np.isfinite(kept.values), kept.values, 0.0)
        places = {0, int(finite.argmin()), int(finite.argmax()), len(finite) - 1}
        kept = kept.taken(np.array(sorted(places)))
    at = kept.steps if x == "step" else seconds(kept, start) / 3600
    return [(float(place), shown(float(value))) for place, value in zip(at, kept.values, strict=True)]


def _x(mark: Marker, start: int, x: Axis) -> float:
    return float(mark.step) if x == "step" else (mark.time.timestamp() * 1000 - start) / 3_600_000


def _escaped(text: str) -> str:
    """Plotly reads some HTML in texts."""
    return html.escape(text, quote=False)
