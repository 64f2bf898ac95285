"""Answers about single runs as Markdown for people."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ftlab_mlflow.analytics import units
from ftlab_mlflow.analytics.metric_table import describe
from ftlab_mlflow.chat.cells import (
    LONG,
    Right,
    block,
    bullets,
    code,
    figure,
    figures,
    joined,
    metric_figures,
    moment,
    param,
    plain,
    short_ids,
    sparkline,
    status,
    table,
    text,
)
from ftlab_mlflow.chat.render_parts import Values, about, direction, pairs, rest, sentences
from ftlab_mlflow.chat.slash_words import line
from ftlab_mlflow.control.wire import Scalar, shown_value

_POINTS = 20
"""Values of a reduced series that are written out."""
_NAMES = 60
"""Characters of all names up to which they head columns."""
_WIDTH = 24
"""Characters of a course in a table: with the figures it has to fit into a terminal."""
_SIGNS = {"problem": "✗", "warning": "⚠"}


def title(what: str, answer: Values) -> str:
    """What is said, and of which run."""
    return f"**{what} {text(answer['name'])}** ({plain(answer['run_id'])})"


def run(arguments: Values, answer: Values) -> str:
    """Of `get_run`."""
    start, end = answer["start_time"], answer["end_time"]
    took = None if start is None or end is None else end - start
    of = "" if answer["max_steps"] is None else f" of {answer['max_steps']:,}"
    requests = ", ".join(f"{count:,} {plain(name)}" for name, count in answer["requests"].items())
    facts: Sequence[tuple[str, Any, Callable[[Any], str]]] = [
        ("experiment", answer["experiment"], text),
        ("status", answer["status"], status),
        ("state", answer["state"], text),
        ("started (UTC)", start, moment),
        ("took", took, units.duration),
        ("step", answer["step"], lambda step: f"{step:,}{of}"),
        ("method", answer["method"], text),
        ("model", answer["model"], text),
        ("parent", answer["parent"], text),
        ("live requests", requests, str),
    ]
    metrics = [
        (plain(name), metric_figures([one["last"]], name)[0], f"{one['step']:,}")
        for name, one in answer["metrics"].items()
    ]
    parts = {
        "metrics": table(("metric", Right("last value"), Right("at step")), metrics),
        "params": _names("param", answer["params"]),
        "tags": _names("tag", answer["tags"]),
        "children": table(
            ("nested run", "id", "status"),
            [
                (text(one["name"]), plain(run_id), status(one["status"]))
                for run_id, one in answer["children"].items()
            ],
        ),
    }
    return joined(
        title("Run", answer),
        table(("", ""), [(name, shown(value)) for name, value, shown in facts if value not in (None, "")]),
        *(part for name, part in parts.items() if answer[name]),
        sentences("The last value is of the highest step; it is not the best.", rest("get_run", answer)),
    )


def _names(heading: str, values: Mapping[str, str]) -> str:
    return table((heading, "value"), [(plain(name), text(value)) for name, value in values.items()])


def comparison(arguments: Values, answer: Values) -> str:
    """Of `compare_runs`."""
    runs = answer["runs"]
    names = [text(one["name"]) for one in runs.values()]
    are_heads = len(set(names)) == len(names) and sum(map(len, names)) <= _NAMES
    heads = names if are_heads else [chr(ord("A") + place) for place in range(len(runs))]
    legend = [
        (*(() if are_heads else (head,)), name, plain(run_id), status(one["status"]))
        for head, name, (run_id, one) in zip(heads, names, runs.items(), strict=True)
    ]
    params = [
        (plain(name), *(text(values.get(run_id), 60) for run_id in runs))
        for name, values in answer["params"].items()
    ]
    metrics = [
        row
        for metric, outcomes in answer["metrics"].items()
        for row in _outcome_rows(metric, outcomes, list(runs))
    ]
    return joined(
        f"**{len(runs)} runs compared**",
        table((*(() if are_heads else ("",)), "run", "id", "status"), legend),
        table(("param that differs", *heads), params) if params else "No param differs.",
        table(("metric", "value", *map(Right, heads)), metrics) if metrics else "No metric to compare.",
        sentences(
            "min and max are of finite values; the last one is of the highest step.",
            rest("compare_runs", answer),
        ),
    )


def _outcome_rows(metric: str, outcomes: Values, runs: Sequence[str]) -> list[tuple[str, ...]]:
    """The last value, and the best one, or both extremes where it is not known which way is better."""
    better = describe(metric).better
    extremes = {"lower": ("min",), "higher": ("max",), None: ("min", "max")}[better]
    rows = []
    for which in ("last", *extremes):
        values = metric_figures([outcomes.get(run_id, {}).get(which) for run_id in runs], metric)
        said = f"{which} ({better} is better)" if better and which != "last" else which
        rows.append((plain(metric), said, *values))
    return rows


def history(arguments: Values, answer: Values) -> str:
    """Of `metric_history`."""
    is_whole = arguments.get("offset") is not None
    parts = [_series(metric, one, is_whole) for metric, one in answer["series"].items()]
    return joined(title("History of", answer), *parts, rest("metric_history", answer))


def _series(metric: str, one: Values, is_whole: bool) -> str:
    points = one["points"]
    some = points if is_whole else _evenly(points)
    unit = describe(metric).unit
    low, high = one["min"], one["max"]
    facts = [
        (f"{one['total']:,} values", ""),
        ("first", figure(one["first"], unit)),
        ("min", f"{figure(low[1], unit)} (step {low[0]:,})" if low else units.NOTHING),
        ("max", f"{figure(high[1], unit)} (step {high[0]:,})" if high else units.NOTHING),
        ("last", figure(one["last"], unit)),
    ]
    gaps = f", NaN: {one['nan']:,}, infinite: {one['inf']:,}" if one["nan"] or one["inf"] else ""
    shown = figures([value for _, value in some], unit)
    rows = [(f"{step:,}", value) for (step, _), value in zip(some, shown, strict=True)]
    few = f" ({len(some):,} of {len(points):,} points)" if len(some) < len(points) else ""
    return joined(
        f"**{plain(metric)}** ({direction(metric)}): "
        + ", ".join(f"{name} {value}".strip() for name, value in facts)
        + gaps,
        sparkline([value for _, value in points]),
        table((Right("step"), Right(plain(metric) + few)), rows) if rows else "No value in this range.",
    )


def _evenly(points: Sequence[Any]) -> Sequence[Any]:
    """Some of them, with the first and the last."""
    if len(points) <= _POINTS:
        return points
    return [points[round(at * (len(points) - 1) / (_POINTS - 1))] for at in range(_POINTS)]


def plot(arguments: Values, answer: Values) -> str:
    """Of `plot_metrics`, where nothing can be drawn: each line in a few characters."""
    chart = answer["chart"]
    is_log = chart["log_y"]
    cells = []
    for one in chart["lines"]:
        values = [value for _, value in one["points"]]
        finite = [value for value in values if not isinstance(value, str)]
        first, low, last = metric_figures([values[0], min(finite, default=None), values[-1]], one["metric"])
        cells.append(
            (
                plain(one["label"]),
                f"{one['total']:,}",
                first,
                low,
                last,
                sparkline(values, _WIDTH, log=is_log),
            )
        )
    unit = "steps" if chart["x"] == "step" else "hours since the start"
    at = [x for one in chart["lines"] for x, _ in one["points"]]
    reach = f"{units.number(min(at, default=None))} to {units.number(max(at, default=None))}"
    marks = [f"at {units.number(mark['x'])}: {plain(mark['text'])}" for mark in chart["marks"]]
    headings = ("line", *map(Right, ("values", "first", "min", "last")), "course" + " (log)" * is_log)
    return joined(
        f"**{plain(chart['title'])}** ({unit} {reach})",
        table(headings, cells),
        joined("Live changes:", bullets(marks)) if marks else "",
        rest("plot_metrics", answer),
    )


def diagnosis(arguments: Values, answer: Values) -> str:
    """Of `diagnose_run`."""
    state = pairs(
        (
            ("method", text(answer["method"])),
            ("state", text(answer["state"])),
            ("step", units.count(answer["step"])),
        )
    )
    rows = answer["rows"]
    clear = ", ".join(map(plain, answer["clear"]))
    unclear = [
        f"cannot be judged: {plain(rule)}: {plain(why, LONG)}" for rule, why in answer["not_judged"].items()
    ]
    return joined(
        f"{title('Diagnosis of', answer)}: {state}",
        *(_finding(row, answer["run_id"]) for row in rows),
        "" if answer["total"] else "Nothing was found among what could be judged.",
        f"Looked for and not there: {clear}." if clear else "",
        bullets(unclear),
        rest("diagnose_run", {**answer, "omitted": {}}),
    )


def _finding(row: Values, run_id: str) -> str:
    where = "" if row["step"] is None else f", step {row['step']:,}"
    facts = [
        f"Advice: {plain(row['advice'], LONG)}",
        f"Threshold: {plain(row['threshold'], LONG)} ({plain(row['source'], LONG)})",
    ]
    if live := row["live"]:
        changes = ", ".join(
            f"{plain(n)} {param(new['from'])} → {param(new['to'])}" for n, new in live.items()
        )
        typed = line("propose_update", {"run": run_id, "values": {n: new["to"] for n, new in live.items()}})
        command = code(typed) if typed else None
        facts.append(f"The run would take now: {changes}" + (f", by {command}" if command else ""))
    sign = _SIGNS.get(row["severity"], "•")
    head = f"**{sign} {plain(row['severity'])}: {plain(row['kind'])}**{where}. {plain(row['summary'], LONG)}"
    return joined(head, bullets(facts))


def changes(arguments: Values, answer: Values) -> str:
    """Of `live_changes`."""
    rows = answer["rows"]
    ids = short_ids(row["run_id"] for row in rows)
    cells = [
        (
            text(row["name"]),
            ids[row["run_id"]],
            f"{row['step']:,}",
            plain(row["change"]),
            text(row["by"]) + (f" via {plain(row['via'])}" if row["via"] else ""),
            text(row["reason"]),
            f"{_slope(row['slope_before'])} → {_slope(row['slope_after'])}",
            plain(row["effect"]),
        )
        for row in rows
    ]
    headings = ("run", "id", Right("step"), "change", "by", "reason", "loss per 100 steps", "the loss then")
    run = arguments.get("run")
    whose = about(arguments["experiment"]) if run is None else plain(rows[0]["name"] if rows else run)
    return joined(
        f"**Live changes of {whose}**",
        table(headings, cells) if cells else "None was applied.",
        sentences("What the loss did is not why it did it." if cells else "", rest("live_changes", answer)),
    )


def _slope(one: Values | None) -> str:
    return "?" if one is None else f"{figure(one['value'])} ± {figure(one['margin'])}"


def calculation(arguments: Values, answer: Values) -> str:
    """Of `calculate`."""
    expression = " ".join(answer["expression"].split())
    numbers = ", ".join(
        f"{plain(n)} = {number:.10g}" for n, number in (arguments.get("numbers") or {}).items()
    )
    return f"{code(expression) or 'The result'} = **{answer['value']:,.10g}**" + (
        f" ({numbers})" if numbers else ""
    )


def proposal(arguments: Values, answer: Values) -> str:
    """Of `propose_update`: what would be changed, and how a person sends it."""
    cells = [
        (plain(name), _value(one["from"]), _value(one["to"]), plain(answer["problems"].get(name, ""), LONG))
        for name, one in answer["changes"].items()
    ]
    is_allowed = answer["is_allowed"]
    rows = [row[:3] for row in cells] if is_allowed else cells
    headings = ("parameter", "asked for now", "proposed")
    command = send_command(answer) if is_allowed else None
    return joined(
        f"{title('Proposal for', answer)}: nothing has been sent",
        table(headings if is_allowed else (*headings, "problem"), rows),
        f"Reason: {plain(answer['reason'], LONG)}" if answer["reason"] else "",
        "" if is_allowed else "✗ The run would reject it.",
        joined("To send it:", block(command)) if command else "",
    )


def _value(value: Scalar | None) -> str:
    return units.NOTHING if value is None else plain(shown_value(value))


def send_command(answer: Values) -> str | None:
    """The shell command that sends a proposal; None where a shell cannot be told some of its texts.

    It is sent only if the values are still those that the proposal was made from.
    """
    changed = answer["changes"].items()
    old = [_assigned(name, one["from"]) for name, one in changed if one["from"] is not None]
    reason = " ".join((answer["reason"] or "").split())
    places = [answer["run_id"], *(_assigned(name, one["to"]) for name, one in changed)]
    if not all(each.isprintable() for each in (*places, *old, reason)):
        return None
    if any("=" in name or name != name.strip() for name in answer["changes"]):
        return None
    options = [word for each in old for word in ("--expect", each)]
    options += ["--reason", reason] if reason else []
    # Behind the dashes nothing is an option, whatever a trainer calls its parameters.
    is_dashed = any(each.startswith("-") for each in places)
    words = [*options, "--", *places] if is_dashed else [*places, *options]
    return shlex.join(["ftlab", "set", *words])


def _assigned(name: str, value: Scalar) -> str:
    return f"{name}={str(value).lower() if isinstance(value, bool) else value}"
