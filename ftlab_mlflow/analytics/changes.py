"""What was changed while runs trained, and what their loss did before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftlab_mlflow.analytics import scope
from ftlab_mlflow.analytics.answer import Answer, listed, shown
from ftlab_mlflow.analytics.columns import Wanted
from ftlab_mlflow.analytics.effects import Effect, Slope, of_changes
from ftlab_mlflow.analytics.queries import Limit, Offset
from ftlab_mlflow.analytics.reader import RunReader
from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.markers import Marker, markers
from ftlab_mlflow.errors import AnalyticsError


def live_changes(
    run: str | None = None,
    experiment: str | None = None,
    limit: Limit = 20,
    offset: Offset = 0,
    *,
    tracking_uri: str | None = None,
) -> Answer:
    """Every applied request of a run, or of all runs of an experiment, with what the training loss did.

    Args:
        run: Id, unique prefix of one, or name; or
        experiment: Name or id.
        limit: Rows to give at most. offset: Rows to pass over.
        tracking_uri: MLflow's tracking URI; None is MLflow's own setting.

    Returns:
        Rows of ``run_id, name, step, change, by, via, reason, slope_before, slope_after, effect``, the newest
        run first, its requests in the order of application; slopes are changes of the loss in 100 steps with
        a 95 % interval (``value`` ± ``margin``), or null where there are too few values; ``effect`` is then
        "cannot tell".

    Raises:
        AnalyticsError: Neither or both of the two; no such run or experiment.
        StoreError: As the tracking store does.
    """
    if (run is None) == (experiment is None):
        raise AnalyticsError("say either a run or an experiment")
    store = scope.reader(tracking_uri)
    names: dict[str, str]
    read: Mapping[str, str] = {}
    if run is not None:
        record = scope.record(store, run)
        names, of = {record.data.run_id: record.data.label}, {record.data.run_id: record.data.tags}
    else:
        assert experiment is not None
        runs = store.runs_of([scope.experiment_id(store, experiment)])
        names, of = {head.run_id: head.label for head in runs.columns(Wanted()).heads}, runs.requests()
        read = runs.policy
    marks = {run_id: markers(Ledger.read(of[run_id]).entries) for run_id in names if run_id in of}
    every = [(run_id, mark) for run_id, some in marks.items() for mark in some]
    asked = {run_id: marks[run_id] for run_id, _ in every[offset : offset + limit]}
    effects = _effects(store, asked)
    rows = [_row(run_id, names[run_id], mark, effects.get((run_id, mark.id))) for run_id, mark in every]
    arguments = {"run": run} if run is not None else {"experiment": experiment}
    without = sum(not marks.get(run_id) for run_id in names)
    policy = {
        "effect": "slope of the training loss per 100 steps, up to the next change; it describes and does "
        "not explain: a loss that bends by itself falls slower later on",
        "not finite": "NaN and infinity are in no slope",
        "runs": "of every status; requests that were rejected or withdrawn are left out",
        **read,
    }
    return listed(
        rows,
        arguments={**arguments, "limit": limit},
        offset=offset,
        limit=limit,
        omitted={"run without an applied request": without} if run is None else {},
        policy=policy,
    )


def _effects(store: RunReader, marks: Mapping[str, tuple[Marker, ...]]) -> dict[tuple[str, str], Effect]:
    """By run and request."""
    losses = store.whole(list(marks), "loss") if marks else {}
    return {
        (run_id, mark.id): effect
        for run_id, loss in losses.items()
        for mark, effect in of_changes(loss, marks[run_id])
    }


def _row(run_id: str, name: str, mark: Marker, effect: Effect | None) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "name": name,
        "step": mark.step,
        "change": mark.text,
        "by": mark.by,
        "via": mark.via,
        "reason": mark.reason,
        "slope_before": _slope(effect.before if effect else None),
        "slope_after": _slope(effect.after if effect else None),
        "effect": effect.verdict if effect else "cannot tell",
    }


def _slope(found: Slope | None) -> dict[str, float | str | None] | None:
    return (
        None if found is None else {"value": shown(float(found.value)), "margin": shown(float(found.margin))}
    )
