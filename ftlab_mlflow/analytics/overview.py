"""An experiment as a whole: what can be asked about it, and which parameters go with which results."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri

from ftlab_mlflow.analytics import conditions, scope
from ftlab_mlflow.analytics.answer import Answer, listed, shortened
from ftlab_mlflow.analytics.columns import Agg, RunColumns, Value, Wanted
from ftlab_mlflow.analytics.metric_table import describe
from ftlab_mlflow.analytics.queries import Limit, Offset, Skip, Statuses, counting, measured
from ftlab_mlflow.analytics.reader import PARENT
from ftlab_mlflow.analytics.run_rows import MODEL_PARAMS, NOT_OF_PEOPLE, method_in, model_of
from ftlab_mlflow.control.tags import COMMAND_LINE, STATUS

FEWEST = 8
"""Runs below which nothing is said about a correlation."""
_VALUES = 8
"""Values of a param that an overview names."""
_OF_METHOD = frozenset({STATUS, COMMAND_LINE, PARENT})
_LONGEST = 100
"""Characters of such a value; those that begin alike are counted together then."""


def describe_experiment(
    experiment: str, skip: Skip | None = None, *, tracking_uri: str | None = None
) -> Answer:
    """What can be asked about an experiment: params that vary, metrics, tags, methods, models.

    Args:
        experiment: Name or id.
        skip: Names of each part to pass over, such as ``{"params": 40}``.
        tracking_uri: MLflow's tracking URI; None is MLflow's own setting.

    Returns:
        ``experiment_id, runs, by_status``; ``params``: of those that are not the same in all runs, how many
        ``runs`` have it, how many ``distinct`` values, the most frequent ``values`` with their counts, and
        ``min`` and ``max`` where all are numbers; ``constant_params``: how many others there are;
        ``metrics``: ``runs`` that logged it, ``better`` (lower, higher or null) and ``title``; ``tags``: runs
        by key; ``methods`` and ``models``: runs by training method and by base model, where they are known.
        ``total`` counts the names of ``params``, ``metrics`` and ``tags``. Where it would be too long, the
        rarest ones are left out and counted in ``omitted``; ``next`` gets them.

    Raises:
        AnalyticsError: No such experiment; no such part.
        StoreError: As the tracking store does.
    """
    store = scope.reader(tracking_uri)
    id = scope.experiment_id(store, experiment)
    runs = store.runs_of([id])
    keys = runs.keys()
    heads = runs.columns(Wanted()).heads
    vary = [name for name, n in keys.params.items() if keys.distinct[name] > 1 or n < len(heads)]
    models = [name for name in MODEL_PARAMS if name in keys.params]
    columns = runs.columns(Wanted(params=frozenset([*vary, *models]), tags=_OF_METHOD))
    spreads = {name: _spread(columns.params[name]) for name in _frequent(vary, keys.params)}
    params = {name: one for name, one in spreads.items() if one["distinct"] > 1 or one["runs"] < len(heads)}
    metrics = {
        name: {"runs": keys.metrics[name], "better": describe(name).better, "title": describe(name).title}
        for name in scope.by_importance(keys.metrics)
    }
    people = {key: n for key, n in keys.tags.items() if not key.startswith(NOT_OF_PEOPLE)}
    tags = {key: people[key] for key in _frequent(people, people)}
    answer: Answer = {
        "experiment_id": id,
        "runs": len(heads),
        "by_status": dict(sorted(Counter(head.status for head in heads).items())),
        "params": params,
        "constant_params": len(keys.params) - len(params),
        "metrics": metrics,
        "tags": tags,
        "methods": dict(_methods(columns).most_common(_VALUES)),
        "models": dict(_models(columns, models).most_common(_VALUES)),
        "policy": {
            "runs": "of every status, nested ones too; deleted ones are left out",
            "params": "those that differ, numbers compared as numbers",
            "metrics": "those that any run has logged, NaN and infinity too",
            **runs.policy,
        },
    }
    return shortened(answer, ("params", "metrics", "tags"), arguments={"experiment": experiment}, skip=skip)


def _frequent(names: Sequence[str] | Mapping[str, int], counts: Mapping[str, int]) -> list[str]:
    return sorted(names, key=lambda name: (-counts[name], name))


def _models(columns: RunColumns, names: Sequence[str]) -> Counter[str]:
    """Runs by base model."""
    of_run = (
        {name: columns.params[name][head.run_id] for name in names if head.run_id in columns.params[name]}
        for head in columns.heads
    )
    return Counter(model for params in of_run if (model := model_of(params)))


def _methods(columns: RunColumns) -> Counter[str]:
    """Runs by training method."""
    of_run = (
        {tag: columns.tags[tag][head.run_id] for tag in _OF_METHOD if head.run_id in columns.tags[tag]}
        for head in columns.heads
    )
    return Counter(method for tags_of in of_run if (method := method_in(tags_of)))


def _spread(texts: Mapping[str, str]) -> dict[str, Any]:
    counts = Counter(texts.values())
    frequent: dict[str, int] = {}
    for text, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_VALUES]:
        short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
        frequent[short] = frequent.get(short, 0) + n
    numbers = [conditions.number_of(text) for text in counts]
    spread: dict[str, Any] = {
        "runs": len(texts),
        "distinct": len(counts),
        "values": frequent,
    }
    known = [float(number) for number in numbers if number is not None]
    if len(known) == len(counts):
        spread |= {"distinct": len(set(numbers)), "min": min(known), "max": max(known)}
    return spread


def param_effects(
    experiment: str,
    metric: str,
    agg: Agg = "last",
    statuses: Statuses = ["FINISHED"],  # noqa: B006
    limit: Limit = 20,
    offset: Offset = 0,
    *,
    tracking_uri: str | None = None,
) -> Answer:
    """Which numeric parameters go with a metric: the rank correlation of each one that varies.

    Args:
        experiment: Name or id.
        metric: Its name, as logged.
        agg: Which value of each run counts: ``last``, finite ``min`` or ``max``, or ``mean_of_last_K``.
        statuses: Only runs of these statuses.
        limit: Rows to give at most. offset: Rows to pass over.
        tracking_uri: MLflow's tracking URI; None is MLflow's own setting.

    Returns:
        Rows of ``param, n, correlation, low, high, verdict``, the strongest first: Spearman's correlation of
        ``n`` runs with its 95 % interval, and ``rises``, ``falls``, ``no clear relation`` or ``too few runs``
        (then the numbers are null). Params that are no numbers in all runs are counted in ``omitted``.

        The interval is Fisher's z with the variance of Bonett & Wright, "Sample size requirements for
        estimating Pearson, Kendall and Spearman correlations", Psychometrika 65 (2000): (1 + r²/2) / (n - 3).
        It is of each parameter by itself; with twenty of them one is clear by chance.

    Raises:
        AnalyticsError: No such experiment; no run has logged the metric.
        StoreError: As the tracking store does.
    """
    runs = scope.runs_of(experiment, tracking_uri)
    keys = runs.keys()
    scope.check_metric(metric, keys.metrics)
    vary = frozenset(name for name in keys.params if keys.distinct[name] > 1)
    columns, found, omitted = measured(runs, metric, agg, statuses, Wanted(params=vary))
    values = {head.run_id: value for head, value in found}
    rows = []
    for name in sorted(vary):
        texts = {run_id: text for run_id, text in columns.params[name].items() if run_id in values}
        numbers = {run_id: conditions.number_of(text) for run_id, text in texts.items()}
        if None in numbers.values():
            omitted["param that is no number"] += 1
        elif len(set(numbers.values())) < 2:
            omitted["param that is the same in all these runs"] += 1
        else:
            exact = {run_id: float(number) for run_id, number in numbers.items() if number is not None}
            rows.append({"param": name} | _correlation(exact, values))
    rows.sort(key=lambda row: (-abs(row["correlation"] or 0.0), row["param"]))
    arguments = {
        "experiment": experiment,
        "metric": metric,
        "agg": agg,
        "statuses": statuses,
        "limit": limit,
    }
    policy = {
        **counting(agg, statuses),
        **runs.policy,
        "correlation": "Spearman's, low and high being its 95 % interval",
        "meaning": "a relation among these runs, not a cause: parameters may have been changed together",
    }
    return listed(rows, arguments=arguments, offset=offset, limit=limit, omitted=omitted, policy=policy)


def _correlation(numbers: Mapping[str, float], values: Mapping[str, Value]) -> dict[str, Any]:
    n = len(numbers)
    nothing = {"n": n, "correlation": None, "low": None, "high": None}
    if n < FEWEST:
        return nothing | {"verdict": "too few runs"}
    param = pd.Series(list(numbers.values())).rank().to_numpy()
    result = pd.Series([values[run_id].value for run_id in numbers]).rank().to_numpy()
    if param.std() == 0 or result.std() == 0:
        return nothing | {"verdict": "no clear relation"}
    r = float(np.corrcoef(param, result)[0, 1])
    imperfect = 1 - 12 / (n * (n * n - 1))  # of an order with one pair of neighbours exchanged
    z = math.atanh(max(-imperfect, min(imperfect, r)))
    margin = float(ndtri(0.975)) * math.sqrt((1 + r * r / 2) / (n - 3))
    low, high = min(r, math.tanh(z - margin)), max(r, math.tanh(z + margin))
    verdict = "rises" if low > 0 else "falls" if high < 0 else "no clear relation"
    return {"n": n, "correlation": r, "low": low, "high": high, "verdict": verdict}
