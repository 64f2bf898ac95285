"""Questions about groups of runs, about runs beside each other, and about what they have cost."""

# ruff: noqa: E501 - a question is a line
from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import pandas as pd
from checking import All, Names, Value, Winner, Words
from facts import Call, Category, Fact, Need, Script, Talk, Turn, n, one
from facts_runs import PREFS, SWEEP
from oracle import Oracle

GPU = "gpu-runs"
LOWER = r"\blowe[rs]|\bsmalle[rs]|\bless\b|\bbette[rs]|\bbest\b"
HIGHER = r"\bhighe[rs]|\blarge[rs]|\bmore\b|\bworse\b|\bworst\b"


def facts(oracles: Mapping[str, Oracle]) -> list[Fact]:
    sweeps = oracles["sweeps"]
    return [*_aggregates(sweeps), *_comparisons(sweeps), *_costs(oracles["costs"])]


def _fact(
    id: str, category: Category, store: str, asked: tuple[str, str, str], expected: Any, script: Script,
    need: Need = "lookup",
) -> Fact:  # fmt: skip
    return Fact(id, category, store, (Turn(asked, expected, script),), need)


def _group(found: Any, value: Any) -> Any:
    return next(row for row in found["rows"] if value in row["group"].values())


# --- aggregates --------------------------------------------------------------------------------------


def _aggregates(o: Oracle) -> list[Fact]:
    done = o.of(SWEEP, "FINISHED")
    last, rate = o.finite("eval_loss", done), o.number("learning_rate")
    by_rate = last.groupby(rate[last.index])
    means = by_rate.mean().sort_values()
    lora = last.groupby(o.number("lora_r")[last.index])
    dataset = o.tags["dataset"]
    accuracy = o.finite("eval_accuracy", done)
    of_dataset = accuracy.groupby(dataset[accuracy.index]).mean().sort_values()
    counts = last.groupby(dataset[last.index]).count()
    margins = o.finite("rewards/margins", o.of(PREFS, "FINISHED"))
    of_beta = margins.groupby(o.number("beta")[margins.index]).mean()
    every = o.finite("eval_loss", o.of(SWEEP))
    with_failed = every[rate[every.index] == 1e-4].mean()

    def by(field: str, metric: str = "eval_loss", experiment: str = SWEEP) -> dict[str, Any]:
        return {"experiment": experiment, "metric": metric, "group_by": [field]}

    return [
        _fact(
            "mean of a group", "aggregate", "sweeps",
            (
                f"What is the mean final eval_loss of the finished runs of `{SWEEP}` with a learning rate of 1e-4?",
                f"Average the last eval_loss over finished runs in {SWEEP} whose learning_rate is 0.0001.",
                f"{SWEEP}, lr 1e-4, finished runs: mean last eval_loss?",
            ),
            Value(means[1e-4], traps=(with_failed,)),
            one("aggregate", by("params.learning_rate"), lambda r: f"The mean is {n(_group(r, 1e-4)['mean'])}, of {_group(r, 1e-4)['n']} runs."),
        ),
        _fact(
            "best group", "aggregate", "sweeps",
            (
                f"Which learning rate gives the lowest mean final eval_loss in `{SWEEP}` (finished runs), and what is that mean?",
                f"In {SWEEP}, group the finished runs by learning_rate: which group has the smallest average last eval_loss? Give the average too.",
                f"{SWEEP}: best lr by mean last eval_loss of finished runs, with the mean",
            ),
            All((Value(means.index[0], traps=tuple(map(float, means.index[1:]))), Value(means.iloc[0]))),
            one("aggregate", by("params.learning_rate"), _lowest),
        ),
        _fact(
            "spread of a group", "aggregate", "sweeps",
            (
                f"What is the sample standard deviation of the final eval_loss among finished runs of `{SWEEP}` with lora_r 16?",
                f"How much does the last eval_loss scatter (sample standard deviation) over finished {SWEEP} runs with lora_r = 16?",
                f"{SWEEP}, lora_r 16, finished: sample std of last eval_loss?",
            ),
            Value(lora.std()[16], traps=(lora.std(ddof=0)[16],)),
            one("aggregate", by("params.lora_r"), lambda r: f"It is {n(_group(r, 16)['std'])}."),
        ),
        _fact(
            "size of a group", "aggregate", "sweeps",
            (
                f"How many finished runs of `{SWEEP}` tagged dataset = code have a finite final eval_loss?",
                f"In {SWEEP}: the number of finished runs with tag dataset `code` whose last eval_loss is a finite number?",
                f"{SWEEP}, dataset code, finished, finite last eval_loss: n = ?",
            ),
            Value(int(counts["code"]), exact=True),
            one("aggregate", by("tags.dataset"), lambda r: f"{_group(r, 'code')['n']} runs."),
        ),
        _fact(
            "best tag by accuracy", "aggregate", "sweeps",
            (
                f"By the tag dataset, which group of finished runs of `{SWEEP}` has the highest mean final eval_accuracy?",
                f"On which dataset (tag) are the finished runs of {SWEEP} most accurate on average (eval_accuracy)?",
                f"{SWEEP}: dataset tag with the top mean last eval_accuracy?",
            ),
            Words(rf"\b{of_dataset.index[-1]}\b", "|".join(rf"\b{name}\b" for name in of_dataset.index[:-1])),
            one(
                "aggregate",
                by("tags.dataset", "eval_accuracy"),
                lambda r: "`{}` is highest.".format(max(r["rows"], key=lambda row: row["mean"])["group"]["tags.dataset"]),
            ),
        ),
        _fact(
            "mean of a large group", "aggregate", "sweeps",
            (
                f"What is the mean final rewards/margins of the finished runs of `{PREFS}` with beta 0.1?",
                f"Average last rewards/margins in {PREFS} for beta = 0.1, finished runs only?",
                f"{PREFS}, beta 0.1: mean final reward margin (finished)?",
            ),
            Value(of_beta[0.1], traps=(margins.mean(),)),
            one(
                "aggregate",
                by("params.beta", "rewards/margins", PREFS),
                lambda r: f"It is {n(_group(r, 0.1)['mean'])}, of {_group(r, 0.1)['n']} runs.",
            ),
        ),
        _fact(
            "difference of two groups", "aggregate", "sweeps",
            (
                f"By how much does the mean final eval_loss of finished runs in `{SWEEP}` with learning rate 1e-5 exceed that with 1e-4?",
                f"{SWEEP}: mean last eval_loss at lr 0.00001 minus that at lr 0.0001 (finished runs)?",
                f"How far apart are the mean last eval_loss values of the 1e-5 and the 1e-4 group in {SWEEP}, finished runs only?",
            ),
            Value(abs(means[1e-5] - means[1e-4]), digits=2, is_signed=False),
            _difference_of_groups(by("params.learning_rate"), 1e-5, 1e-4),
            "multi_step",
        ),
    ]  # fmt: skip


def _lowest(found: Any) -> str:
    best = min(found["rows"], key=lambda row: row["mean"])
    return f"{best['group']['params.learning_rate']:g} is best: the mean is {n(best['mean'])}."


def _difference_of_groups(arguments: dict[str, Any], high: float, low: float) -> Script:
    def script(_: Talk) -> Generator[Call, Any, str]:
        found = yield Call("aggregate", arguments)
        numbers = {"a": _group(found, high)["mean"], "b": _group(found, low)["mean"]}
        made = yield Call("calculate", {"expression": "a - b", "numbers": numbers})
        return f"By {n(made['value'])}."

    return script


# --- comparisons -------------------------------------------------------------------------------------


def _comparisons(o: Oracle) -> list[Fact]:
    done = o.of(SWEEP, "FINISHED")
    last, least = o.finite("eval_loss", done), o.least("eval_loss", done)
    # One that was better for a while, and ended worse.
    up, down = "quartz-18", "pearl-17"
    if not (least[o.id(up)] < least[o.id(down)] and last[o.id(up)] > last[o.id(down)]):
        raise ValueError(f"{up} and {down} are no trap any more")
    three = ("jade-12", "tundra-21", "vale-23")
    lowest = o.names([least[[o.id(name) for name in three]].idxmin()])[0]
    mine, its = (o.params.loc[o.id(name)].fillna("") for name in (down, "kelp-13"))
    params = [key for key in o.params if mine[key] != its[key]]
    same_rate = o.number("learning_rate")[[o.id(down), o.id("kelp-13")]].nunique() == 1
    differ = frozenset(key for key in params if not (key == "learning_rate" and same_rate))
    minutes = o.runs["minutes"]
    longer = max(("fjord-8", "slate-20"), key=lambda name: minutes[o.id(name)])
    first, end = o.series("grove-9", "loss").iloc[[0, -1]]
    return [
        _fact(
            "which ended lower", "compare", "sweeps",
            (
                f"Which of `{up}` and `{down}` ended with the lower eval_loss?",
                f"Compare {up} with {down}: whose final eval_loss is smaller?",
                f"{up} or {down}: lower last eval_loss?",
            ),
            Winner(down, LOWER, HIGHER),
            one("compare_runs", {"runs": [up, down], "metrics": ["eval_loss"]}, _lower("last")),
        ),
        _fact(
            "which was lower at any time", "compare", "sweeps",
            (
                f"Which of `{up}` and `{down}` ever reached the lower eval_loss, and what was it?",
                f"Looking at the whole training, which one got a smaller eval_loss at some point, {up} or {down}? Value too.",
                f"{up} vs {down}: smallest eval_loss at any step, which run and how small?",
            ),
            All((Winner(up, LOWER, HIGHER), Value(least[o.id(up)]))),
            one("compare_runs", {"runs": [up, down], "metrics": ["eval_loss"]}, _lower("min")),
        ),
        _fact(
            "by how much", "compare", "sweeps",
            (
                f"By how much is the final eval_loss of `{up}` higher than that of `{down}`?",
                f"Difference of the last eval_loss between {up} and {down}?",
                f"last eval_loss of {up} minus {down} = ?",
            ),
            Value(abs(last[o.id(up)] - last[o.id(down)]), digits=2, is_signed=False),
            _difference([up, down], "a - b"),
            "multi_step",
        ),
        _fact(
            "params that differ", "compare", "sweeps",
            (
                f"Which parameters differ in value between `{down}` and `kelp-13`?",
                f"What is different in the params of {down} and kelp-13? Numbers that are equal but written differently do not count.",
                f"{down} vs kelp-13: params with different values?",
            ),
            Names((differ,), is_all=True, of=frozenset(o.params.columns)),
            one("compare_runs", {"runs": [down, "kelp-13"], "metrics": ["eval_loss"]}, lambda r: "These differ: " + ", ".join(f"`{key}`" for key in r["params"])),
        ),
        _fact(
            "best of three at any time", "compare", "sweeps",
            (
                "Which of `jade-12`, `tundra-21` and `vale-23` got to the lowest eval_loss at any time?",
                "Among jade-12, tundra-21, vale-23: whose smallest eval_loss is the smallest?",
                "jade-12 / tundra-21 / vale-23: lowest eval_loss ever, which run?",
            ),
            Winner(lowest, LOWER, HIGHER),
            one("compare_runs", {"runs": list(three), "metrics": ["eval_loss"]}, _lower("min")),
        ),
        _fact(
            "which took longer", "compare", "sweeps",
            (
                "Which run took longer from start to end, `fjord-8` or `slate-20`, and how many minutes did it take?",
                "fjord-8 and slate-20: which has the longer wall time, in minutes?",
                "Longer run of fjord-8 and slate-20, with its duration in minutes?",
            ),
            All((Winner(longer, r"\blonge[rs]|\bslower\b|\bmore time\b", r"\bshorte[rs]|\bfaster\b"), Value(minutes[o.id(longer)], unit="min"))),
            _longer("fjord-8", "slate-20"),
            "multi_step",
        ),
        _fact(
            "fall in percent", "compare", "sweeps",
            (
                "By what percentage did the training loss of `grove-9` fall from its first logged value to its last?",
                "grove-9: relative drop of `loss` from first to last value, in percent?",
                "How many percent lower is the last training loss of grove-9 compared with the first one logged?",
            ),
            Value((first - end) / first * 100, is_signed=False),
            _fall_in_percent("grove-9", "loss"),
            "multi_step",
        ),
    ]  # fmt: skip


def _lower(which: str) -> Any:
    def say(found: Any) -> str:
        values = found["metrics"]["eval_loss"]
        best = min(values, key=lambda run: values[run][which])
        return f"`{found['runs'][best]['name']}`: {n(values[best][which])} ({which})."

    return say


def _difference(runs: list[str], expression: str) -> Script:
    def script(_: Talk) -> Generator[Call, Any, str]:
        found = yield Call("compare_runs", {"runs": runs, "metrics": ["eval_loss"]})
        values = found["metrics"]["eval_loss"]
        by_name = {found["runs"][run]["name"]: values[run]["last"] for run in values}
        numbers = dict(zip("ab", (by_name[name] for name in runs), strict=True))
        made = yield Call("calculate", {"expression": expression, "numbers": numbers})
        return f"By {n(made['value'])}."

    return script


def _longer(*names: str) -> Script:
    def script(_: Talk) -> Generator[Call, Any, str]:
        minutes = {}
        for name in names:
            run = yield Call("get_run", {"run": name})
            numbers = {"end": run["end_time"], "start": run["start_time"]}
            made = yield Call("calculate", {"expression": "(end - start) / 60", "numbers": numbers})
            minutes[name] = made["value"]
        longest = max(minutes, key=lambda name: minutes[name])
        return f"`{longest}`, which took {n(minutes[longest])} minutes."

    return script


def _fall_in_percent(run: str, metric: str) -> Script:
    def script(_: Talk) -> Generator[Call, Any, str]:
        found = yield Call("metric_history", {"run": run, "metrics": [metric], "max_points": 10})
        series = found["series"][metric]
        numbers = {"first": series["first"], "last": series["last"]}
        made = yield Call("calculate", {"expression": "(first - last) / first * 100", "numbers": numbers})
        return f"By {n(made['value'])} %: from {n(series['first'])} to {n(series['last'])}."

    return script


# --- costs -------------------------------------------------------------------------------------------


def _costs(o: Oracle) -> list[Fact]:
    ids = o.of(GPU)
    dollars = pd.Series({run: o.dollars(run) for run in ids}, dtype=float).dropna().sort_values()
    outer = o.outermost(ids)
    total = dollars[[run for run in outer if run in dollars.index]].sum()
    hours = sum(o.runs.loc[outer, "minutes"]) / 60
    team = o.tags["team"]
    red = dollars[[run for run in outer if team[run] == "red" and run in dollars.index]].sum()
    every = {"experiment": GPU}
    return [
        _fact(
            "hours of an experiment", "cost", "costs",
            (
                f"How many hours of wall time did the runs of `{GPU}` take in total, nested runs not counted twice?",
                f"Total wall time of {GPU} in hours (a stage inside a pipeline is part of the pipeline)?",
                f"{GPU}: sum of wall time in hours, without double counting of nested runs?",
            ),
            Value(hours, unit="h", traps=(sum(o.runs.loc[ids, "minutes"]) / 60,)),
            _in_hours(lambda r: r["totals"]["wall_s"]),
            "multi_step",
        ),
        _fact(
            "money of an experiment", "cost", "costs",
            (
                f"What did the runs of `{GPU}` cost altogether, as far as it is known?",
                f"Sum of the known costs of {GPU}, please.",
                f"{GPU}: total known cost in USD?",
            ),
            Value(total, traps=(dollars.sum(),)),
            one(
                "cost_summary",
                every,
                lambda r: f"{n(r['totals']['cost'])} {r['currency']}; of {r['totals']['unknown']['cost']} runs it is not known.",
            ),
        ),
        _fact(
            "accelerator hours of a run", "cost", "costs",
            (
                "How many accelerator hours did `osprey` use, all its GPUs together?",
                "GPU hours of the run osprey (sum over its accelerators)?",
                "osprey: total GPU-hours?",
            ),
            Value(o.gpu_hours(o.id("osprey")) or 0.0, unit="h", traps=(o.runs.loc[o.id("osprey"), "minutes"] / 60,)),
            _in_hours(lambda r: _row(r, "osprey")["gpu_s"]),
            "multi_step",
        ),
        _fact(
            "most expensive run", "cost", "costs",
            (
                f"Which run of `{GPU}` was the most expensive, and what did it cost?",
                f"The priciest run in {GPU}: name and cost?",
                f"{GPU}: highest cost of a single run, which and how much?",
            ),
            All((Names((frozenset(o.names(dollars.index[-1:])),)), Value(dollars.iloc[-1]))),
            one("cost_summary", every, _priciest),
        ),
        _fact(
            "tokens of a run", "cost", "costs",
            (
                "How many tokens did `kestrel` train on?",
                "kestrel's number of training tokens?",
                "Tokens seen by run kestrel in total?",
            ),
            Value(o.last("num_tokens")[o.id("kestrel")]),
            one("cost_summary", every, lambda r: f"`kestrel` saw {n(_row(r, 'kestrel')['tokens'])} tokens."),
        ),
        _fact(
            "cost of a group", "cost", "costs",
            (
                f"What have the runs of team red (tag `team`) cost in `{GPU}`, as far as it is known?",
                f"In {GPU}, known cost of the runs tagged team = red?",
                f"{GPU}, team red: known cost?",
            ),
            Value(red),
            one("cost_summary", every | {"group_by": ["tags.team"]}, lambda r: f"{n(_group(r, 'red')['cost'])} {r['currency']}."),
        ),
    ]  # fmt: skip


def _row(found: Any, name: str) -> Any:
    return next(row for row in found["rows"] if row["name"] == name)


def _priciest(found: Any) -> str:
    best = max((row for row in found["rows"] if row["cost"] is not None), key=lambda row: row["cost"])
    return f"`{best['name']}`, with {n(best['cost'])} {found['currency']}."


def _in_hours(seconds: Any) -> Script:
    def script(_: Talk) -> Generator[Call, Any, str]:
        found = yield Call("cost_summary", {"experiment": GPU})
        made = yield Call("calculate", {"expression": "s / 3600", "numbers": {"s": seconds(found)}})
        return f"{n(made['value'])} hours."

    return script
