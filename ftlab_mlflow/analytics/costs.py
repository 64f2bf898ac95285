"""What runs have cost: time, time of accelerators, tokens; money where prices were configured."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from ftlab_mlflow.analytics import conditions, scope
from ftlab_mlflow.analytics.answer import Answer, listed
from ftlab_mlflow.analytics.columns import Agg, RunColumns, RunHead, Wanted
from ftlab_mlflow.analytics.queries import GroupField, Limit, Offset, group_of, group_order
from ftlab_mlflow.analytics.reader import PARENT
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.messages import Status
from ftlab_mlflow.control.store import NOT_ENDED
from ftlab_mlflow.control.wire import utc_now
from ftlab_mlflow.errors import MessageError
from ftlab_mlflow.settings import currency, gpu_prices

TOKENS = ("num_tokens", "num_input_tokens_seen")
"""Metrics that count the tokens of a training: TRL's, then transformers'. The first that a run has counts."""


@dataclass(frozen=True)
class Cost:
    """What one run has cost; None where it is not known.

    Attributes:
        wall_s: Seconds from its start to its end, pauses and restarts included; of a run that goes on to its
            trainer's last sign.
        gpu_s: That for each of its accelerators.
        money: In the configured currency.
        why_no_money: Where it is None.
    """

    wall_s: float | None
    gpu_s: float | None
    tokens: float | None
    money: float | None
    why_no_money: str = ""


def cost_summary(
    experiment: str,
    group_by: Annotated[list[GroupField], Field(max_length=5)] = [],  # noqa: B006
    limit: Limit = 20,
    offset: Offset = 0,
    *,
    tracking_uri: str | None = None,
) -> Answer:
    """What the runs of an experiment have cost: wall time, accelerator time, tokens, and money where a price
    was configured.

    Args:
        experiment: Name or id.
        group_by: ``params.x``, ``tags.x`` or ``status``; nothing is a row for each run.
        limit: Rows to give at most. offset: Rows to pass over.
        tracking_uri: MLflow's tracking URI; None is MLflow's own setting.

    Returns:
        Rows of ``runs, wall_s, gpu_s, tokens, cost`` and ``run_id, name, status`` or ``group``, the longest
        wall time first; ``totals`` of all of them; ``currency``. A sum is of the runs where the number is
        known, ``unknown`` counts the others; null is a number that no run has.

    Raises:
        AnalyticsError: No such experiment.
        ConfigError: The configured prices are malformed.
        StoreError: As the tracking store does.
    """
    runs = scope.runs_of(experiment, tracking_uri)
    needed = conditions.wanted(set(group_by))
    metrics: frozenset[tuple[str, Agg]] = frozenset((key, "last") for key in TOKENS)
    own = frozenset({tags.STATUS, tags.ACCELERATORS, PARENT})
    columns = runs.columns(Wanted(metrics, needed.params, needed.tags | own))
    prices, now = gpu_prices(), utc_now()
    costs = {head.run_id: _cost(head, columns, prices, now) for head in columns.heads}
    summed = _of_parents(costs, columns.tags[PARENT])
    rows: list[dict[str, Any]]
    if group_by:
        groups: dict[tuple[Any, ...], list[Cost]] = defaultdict(list)
        for head in columns.heads:
            groups[group_of(group_by, head, columns)].append(summed[head.run_id])
        rows = [
            {"group": dict(zip(group_by, group, strict=True))} | _sum(groups[group])
            for group in sorted(groups, key=group_order)
        ]
    else:
        rows = [
            {"run_id": head.run_id, "name": head.label, "status": head.status} | _sum([costs[head.run_id]])
            for head in columns.heads
        ]
    rows.sort(key=lambda row: -(row["wall_s"] or 0.0))
    policy = {
        "wall_s": "start to end, pauses included; of a run that goes on to its trainer's last sign",
        "gpu_s": "wall time of each accelerator of the machine (tag ftlab.accelerators), used or not",
        "cost": "accelerator hours at FTLAB_GPU_PRICES; nothing else is counted",
        "runs": "of every status; deleted ones are left out",
        "nested runs": "in sums their time and cost are those of the run that they are in",
        **runs.policy,
    }
    arguments = {"experiment": experiment, "group_by": group_by, "limit": limit}
    reasons = Counter(cost.why_no_money for cost in costs.values() if cost.why_no_money)
    return listed(
        rows,
        arguments=arguments,
        offset=offset,
        limit=limit,
        totals=_sum(summed.values()),
        currency=currency(),
        no_cost_because=dict(reasons),
        policy=policy,
    )


def _cost(head: RunHead, columns: RunColumns, prices: dict[str, float], now: datetime) -> Cost:
    wall = _wall(head, columns.tags[tags.STATUS].get(head.run_id), now)
    counts = (columns.metrics[key, "last"].get(head.run_id) for key in TOKENS)
    tokens = next((count.value for count in counts if count and math.isfinite(count.value)), None)
    said = columns.tags[tags.ACCELERATORS].get(head.run_id)
    if said is None or wall is None:
        what = "accelerators" if said is None else "time"
        return Cost(wall, None, tokens, None, f"not known: its {what}")
    names = [] if said == "none" else [name.strip() for name in said.split(",")]
    if missing := sorted({name for name in names if name not in prices}):
        return Cost(wall, wall * len(names), tokens, None, f"no price of {missing[0]}")
    if not names:
        return Cost(wall, 0.0, tokens, None, "it had no accelerator")
    money = sum(prices[name] for name in names) * wall / 3600
    return Cost(wall, wall * len(names), tokens, money)


def _of_parents(costs: Mapping[str, Cost], parents: Mapping[str, str]) -> dict[str, Cost]:
    """What is summed: a nested run does not count again for what is known of the run that it is in."""

    def own(cost: Cost, above: Cost) -> Cost:
        def less(mine: float | None, its: float | None) -> float | None:
            return mine if its is None else 0.0

        return replace(
            cost,
            wall_s=less(cost.wall_s, above.wall_s),
            gpu_s=less(cost.gpu_s, above.gpu_s),
            money=less(cost.money, above.money),
        )

    return {
        run_id: own(cost, costs[parents[run_id]]) if parents.get(run_id) in costs else cost
        for run_id, cost in costs.items()
    }


def _wall(head: RunHead, status: str | None, now: datetime) -> float | None:
    """Seconds; None where a run says that it goes on and gives no sign."""
    if not head.started:
        return None
    if head.status not in NOT_ENDED:
        if head.ended is None or head.ended < head.started:
            return None
        return (head.ended - head.started) / 1000
    if status is None:
        return None
    with suppress(MessageError):
        return max(0.0, min(now, Status.decode(status).at).timestamp() - head.started / 1000)
    return None


def _sum(costs: Iterable[Cost]) -> dict[str, Any]:
    costs = list(costs)
    row: dict[str, Any] = {"runs": len(costs)}
    unknown = {}
    for name, values in (
        ("wall_s", [cost.wall_s for cost in costs]),
        ("gpu_s", [cost.gpu_s for cost in costs]),
        ("tokens", [cost.tokens for cost in costs]),
        ("cost", [cost.money for cost in costs]),
    ):
        row[name] = _known_sum(values)
        if count := values.count(None):
            unknown[name] = count
    return row | {"unknown": unknown}


def _known_sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
