"""Answers about experiments and many runs as Markdown for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftlab_mlflow.analytics import units
from ftlab_mlflow.chat.cells import (
    Right,
    counts,
    figure,
    joined,
    metric_figures,
    moment,
    money,
    param,
    plain,
    short_ids,
    status,
    table,
    text,
)
from ftlab_mlflow.chat.render_parts import Values, about, counted, direction, rest, sentences

_FIELDS = ("params.", "tags.", "metrics.")
"""Of a search: fields that are no columns of every run."""


def experiments(arguments: Values, answer: Values) -> str:
    """Of `list_experiments`."""
    headings = ("experiment", "id", Right("runs"), "by status", "first start (UTC)", "last start (UTC)")
    rows = [
        (
            text(row["name"]),
            plain(row["experiment_id"]),
            f"{row['runs']:,}",
            counts(row["by_status"]),
            moment(row["first_start"]),
            moment(row["last_start"]),
        )
        for row in answer["rows"]
    ]
    return joined("**Experiments**", table(headings, rows), rest("list_experiments", answer))


def experiment(arguments: Values, answer: Values) -> str:
    """Of `describe_experiment`."""
    total = answer["total"]
    of = answer["runs"]
    params = [
        (plain(name), f"{one['runs']:,}", f"{one['distinct']:,}", _most_frequent(one["values"]), _range(one))
        for name, one in answer["params"].items()
    ]
    metrics = [
        (plain(name), plain(one["title"]), f"{one['runs']:,}", one["better"] or units.NOTHING)
        for name, one in answer["metrics"].items()
    ]
    heads = ("param", Right("runs"), Right("distinct"), "most frequent (runs)", "range")
    tags = ", ".join(f"{plain(key)} ({count:,})" for key, count in answer["tags"].items())
    kinds = [
        f"{title}: {', '.join(f'{plain(name)} ({count:,})' for name, count in answer[key].items())}."
        for key, title in (("methods", "Methods"), ("models", "Base models"))
        if answer[key]
    ]
    return joined(
        f"**Experiment {plain(arguments['experiment'])}** (id {plain(answer['experiment_id'])}): "
        f"{of:,} runs, {counts(answer['by_status'])}",
        sentences(*kinds),
        f"{total['metrics']:,} metrics",
        table(("metric", "what it is", Right("runs"), "better"), metrics) if metrics else "",
        f"{total['params']:,} params that differ, {answer['constant_params']:,} that are the same in all",
        table(heads, params) if params else "",
        f"{total['tags']:,} tags: {tags}" if tags else "",
        rest("describe_experiment", answer),
    )


def _most_frequent(values: Values) -> str:
    return ", ".join(f"{plain(value, 40)} ({count:,})" for value, count in values.items())


def _range(one: Values) -> str:
    return f"{figure(one['min'])} to {figure(one['max'])}" if "min" in one else units.NOTHING


def search(arguments: Values, answer: Values) -> str:
    """Of `search_runs`."""
    rows = answer["rows"]
    ids = short_ids(row["run_id"] for row in rows)
    asked = [one["field"] for one in arguments.get("where") or ()]
    asked += [order] if (order := arguments.get("order_by")) else []
    fields = [field for field in dict.fromkeys(asked) if field.startswith(_FIELDS)]
    columns = {field: _column(field, [row[field] for row in rows]) for field in fields}
    headings = ["run", "id", "status", "started (UTC)", Right("took")]
    headings += [Right(plain(field)) if field.startswith("metrics.") else plain(field) for field in fields]
    cells = [
        [
            text(row["name"]),
            ids[row["run_id"]],
            status(row["status"]),
            moment(row["start_time"]),
            units.duration(_between(row["start_time"], row["end_time"])),
            *(columns[field][place] for field in fields),
        ]
        for place, row in enumerate(rows)
    ]
    where = "; ".join(map(_condition, arguments.get("where") or ()))
    way = "largest first" if arguments.get("descending") else "smallest first"
    return joined(
        f"**Runs of {about(arguments['experiment'])}**"
        + (f" where {where}" if where else "")
        + (f", by {plain(order)}, {way}" if order else ", newest first"),
        table(headings, cells) if cells else "No run fits.",
        rest("search_runs", answer),
    )


def _column(field: str, values: Sequence[Any]) -> list[str]:
    if field.startswith("metrics."):
        return metric_figures(values, field.removeprefix("metrics."))
    return [text(value) for value in values]


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start


def _condition(one: Values) -> str:
    value = one.get("value")
    said = ", ".join(map(plain, value)) if isinstance(value, list) else "" if value is None else plain(value)
    return f"{plain(one['field'])} {plain(one['op']).replace('_', ' ')} {said}".rstrip()


def ranking(arguments: Values, answer: Values) -> str:
    """Of `rank_runs`."""
    metric, rows = arguments["metric"], answer["rows"]
    ids = short_ids(row["run_id"] for row in rows)
    values = metric_figures([row["value"] for row in rows], metric)
    cells = [
        (
            str(row["rank"]),
            text(row["name"]),
            ids[row["run_id"]],
            status(row["status"]),
            value,
            f"{row['step']:,}",
        )
        for row, value in zip(rows, values, strict=True)
    ]
    headings = (Right("rank"), "run", "id", "status", Right(plain(metric)), Right("step"))
    return joined(
        f"**Best runs of {about(arguments['experiment'])} by {plain(metric)}** (best is "
        f"{plain(answer['policy']['best'])})",
        table(headings, cells) if cells else "No run counts.",
        sentences(counted(arguments), rest("rank_runs", answer)),
    )


def groups(arguments: Values, answer: Values) -> str:
    """Of `aggregate`."""
    metric, rows, fields = arguments["metric"], answer["rows"], arguments["group_by"]
    ids = short_ids(row["best_run_id"] for row in rows if row["best_run_id"])
    numbers = {
        name: metric_figures([row[name] for row in rows], metric) for name in ("mean", "std", "min", "max")
    }
    cells = [
        (
            *(param(row["group"][field]) for field in fields),
            f"{row['n']:,}",
            *(numbers[name][place] for name in numbers),
            ids.get(row["best_run_id"], units.NOTHING),
        )
        for place, row in enumerate(rows)
    ]
    headings = (
        *map(plain, fields),
        Right("runs"),
        *map(Right, ("mean", "std. dev.", "min", "max")),
        "best run",
    )
    return joined(
        f"**{plain(metric)} by {', '.join(map(plain, fields))}**, {about(arguments['experiment'])} "
        f"({direction(metric)})",
        table(headings, cells) if cells else "No run counts.",
        sentences(counted(arguments), rest("aggregate", answer)),
    )


def effects(arguments: Values, answer: Values) -> str:
    """Of `param_effects`."""
    metric = arguments["metric"]
    cells = [
        (
            plain(row["param"]),
            f"{row['n']:,}",
            _signed(row["correlation"]),
            units.NOTHING if row["low"] is None else f"{_signed(row['low'])} to {_signed(row['high'])}",
            plain(row["verdict"]),
        )
        for row in answer["rows"]
    ]
    headings = ("param", Right("runs"), Right("rank correlation"), "95 % interval", "the metric then")
    return joined(
        f"**Which params go with {plain(metric)}**, {about(arguments['experiment'])} ({direction(metric)})",
        table(headings, cells) if cells else "No numeric param varies among the runs that count.",
        sentences(
            counted(arguments), rest("param_effects", answer), "A relation among these runs is not a cause."
        ),
    )


def _signed(value: float | None) -> str:
    return units.NOTHING if value is None else f"{value:+.2f}"


def costs(arguments: Values, answer: Values) -> str:
    """Of `cost_summary`."""
    rows, fields = answer["rows"], arguments.get("group_by") or []
    currency = answer["currency"]
    ids = short_ids(row["run_id"] for row in rows if "run_id" in row)
    heads: Sequence[str] = [*map(plain, fields), Right("runs")] if fields else ["run", "id", "status"]
    total = ["**all**", *[""] * (len(heads) - 1)]
    if fields:
        total[-1] = f"{answer['totals']['runs']:,}"
    cells = [
        [
            *([param(row["group"][f]) for f in fields] + [f"{row['runs']:,}"] if fields else _run(row, ids)),
            *_amounts(row, currency),
        ]
        for row in rows
    ]
    cells.append([*total, *_amounts(answer["totals"], currency)])
    headings = [*heads, *map(Right, ("wall time", "accelerator time", "tokens", "cost"))]
    reasons = ", ".join(f"{plain(why)} ({count:,})" for why, count in answer["no_cost_because"].items())
    return joined(
        f"**What {about(arguments['experiment'])} has cost** ({answer['totals']['runs']:,} runs)",
        table(headings, cells),
        sentences(f"Runs without a cost: {reasons}." if reasons else "", rest("cost_summary", answer)),
    )


def _run(row: Values, ids: Values) -> list[str]:
    return [text(row["name"]), ids[row["run_id"]], status(row["status"])]


def _amounts(row: Values, currency: str) -> list[str]:
    """The four sums of a row; what some of its runs do not say is counted beside them."""
    shown = {
        "wall_s": units.duration(row["wall_s"]),
        "gpu_s": units.duration(row["gpu_s"]),
        "tokens": units.count(row["tokens"]),
        "cost": money(row["cost"], currency),
    }
    unknown = row["unknown"]
    return [
        "unknown"
        if row[name] is None
        else f"{amount} ({unknown[name]:,} unknown)"
        if name in unknown
        else amount
        for name, amount in shown.items()
    ]
