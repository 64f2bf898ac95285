"""Charts as data: what is in them, how big they get, that Plotly draws them."""

from __future__ import annotations

import json
import math

import plotly.graph_objects as go
import pytest
from run_samples import Runs

from ftlab_mlflow.analytics import call_tool
from ftlab_mlflow.analytics.chart import Chart
from ftlab_mlflow.errors import AnalyticsError


def test_lines_hold_what_was_logged(runs: Runs) -> None:
    uri = runs.client.tracking_uri
    one = runs.plain("<b>one</b>", loss=[3.0, math.nan, 1.0])
    two = runs.plain("two", loss=[2.0], eval_loss=[2.5])
    answer = call_tool("plot_metrics", {"runs": [one, "two"], "metrics": ["loss", "eval_loss"]}, uri)
    chart = Chart.model_validate(json.loads(json.dumps(answer["chart"])))
    assert [(line.run_id, line.metric, line.points) for line in chart.lines] == [
        (one, "loss", [(1, 3.0), (2, "NaN"), (3, 1.0)]),
        (two, "loss", [(1, 2.0)]),
        (two, "eval_loss", [(1, 2.5)]),
    ]
    assert answer["omitted"] == {"line of a run that never logged the metric": 1}
    assert chart.title == "Loss, Eval loss"
    figure = go.Figure(chart.figure())
    assert list(figure.data[0].y) == [3.0, None, 1.0]
    assert figure.data[0].name == "&lt;b&gt;one&lt;/b&gt;, Loss"


def test_many_long_lines_keep_their_size_and_their_extremes(runs: Runs) -> None:
    values = [math.sin(step / 100) for step in range(3000)]
    values[1500] = 9.0
    ids = [runs.plain(f"run {number}", loss=values) for number in range(5)]
    answer = call_tool(
        "plot_metrics", {"runs": ids, "metrics": ["loss"], "x": "hours"}, runs.client.tracking_uri
    )
    assert len(json.dumps(answer)) <= 12_000
    for line in answer["chart"]["lines"]:
        assert 10 <= len(line["points"]) <= answer["max_points"] < 200
        assert max(value for _, value in line["points"]) == 9.0
        assert line["total"] == 3000


def test_a_metric_of_no_run_is_an_error(runs: Runs) -> None:
    runs.plain("one", loss=[1.0])
    with pytest.raises(AnalyticsError, match="none of these runs has logged 'los'; the only one is loss"):
        call_tool("plot_metrics", {"runs": ["one"], "metrics": ["los"]}, runs.client.tracking_uri)
