"""Questions that one search answers: look-ups, rankings, filters."""

# ruff: noqa: E501 - a question is a line
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from checking import All, Names, Value, Words
from facts import PICKED_EXPERIMENT, PICKED_RUN, Fact, Turn, listing, n, one
from oracle import Oracle

SWEEP, PREFS = "tiny-sweep", "prefs"


def facts(oracles: Mapping[str, Oracle]) -> list[Fact]:
    sweeps, trainings, costs = oracles["sweeps"], oracles["trainings"], oracles["costs"]
    return [*_look_ups(sweeps, trainings, costs), *_ranks(sweeps), *_filters(sweeps, costs)]


def _fact(
    id: str, category: Any, store: str, asked: tuple[str, str, str], expected: Any, script: Any, **more: Any
) -> Fact:
    return Fact(id, category, store, (Turn(asked, expected, script),), **more)


def _last(metric: str) -> Any:
    return lambda found: (
        f"`{found['name']}` ended with a {metric} of {n(found['metrics'][metric]['last'])} (its last value)."
    )


def _where(field: str, op: str, value: Any = None) -> dict[str, Any]:
    return {"field": field, "op": op} | ({} if value is None else {"value": value})


# --- look-ups ----------------------------------------------------------------------------------------


def _look_ups(o: Oracle, trainings: Oracle, costs: Oracle) -> list[Fact]:
    finished = o.of(SWEEP, "FINISHED")
    overfit = "dune-6"
    retries = o.last("eval_loss", o.runs.index[o.runs["name"] == "retry"])
    requests = trainings.requests("lagoon")
    applied = requests[requests["status"] == "applied"]
    return [
        _fact(
            "final eval_loss of a run that overfits", "look-up", "sweeps",
            (
                f"What eval_loss did run `{overfit}` end with?",
                f"Give me the final evaluation loss of {overfit}.",
                f"{overfit}: last eval_loss?",
            ),
            Value(o.last("eval_loss")[o.id(overfit)], traps=(o.least("eval_loss", finished)[o.id(overfit)],)),
            one("get_run", {"run": overfit}, _last("eval_loss")),
        ),
        _fact(
            "learning rate of a run", "look-up", "sweeps",
            (
                "Which learning rate was `jade-12` trained with?",
                "What's the learning_rate of the run jade-12?",
                "jade-12, which lr?",
            ),
            Value(o.number("learning_rate")[o.id("jade-12")]),
            one("get_run", {"run": "jade-12"}, lambda r: f"`{r['name']}` has learning_rate {r['params']['learning_rate']}."),
        ),
        _fact(
            "status of a failed run", "look-up", "sweeps",
            (
                "Did run `maple-15` finish, fail, or is it still running?",
                "What is the MLflow status of maple-15?",
                "maple-15: what became of it?",
            ),
            Words(r"\bfail", r"\bfinished\b|\bcomplet|\bis (?:still )?running|\bkilled"),
            one("get_run", {"run": "maple-15"}, lambda r: f"`{r['name']}` {'failed' if r['status'] == 'FAILED' else r['status']}."),
        ),
        _fact(
            "runs of an experiment", "look-up", "sweeps",
            (
                f"How many runs does the experiment `{SWEEP}` have in all?",
                f"Count the runs in {SWEEP}, whatever their status.",
                f"{SWEEP}: number of runs?",
            ),
            Value(len(o.of(SWEEP)), exact=True, traps=(len(finished), len(o.of(SWEEP)) + 1)),
            one("describe_experiment", {"experiment": SWEEP}, lambda r: f"`{SWEEP}` has {r['runs']} runs."),
        ),
        _fact(
            "dataset of a run, picked on the page", "look-up", "sweeps",
            (
                "Which dataset was this run trained on, according to its tags?",
                "What does the tag `dataset` of the run say?",
                "The run's dataset tag, please.",
            ),
            Words(rf"\b{o.tags.loc[o.id('reed-19'), 'dataset']}\b", r"\bwiki\b|\bcode\b|\bchat\b"),
            one("get_run", {"run": PICKED_RUN}, lambda r: f"`{r['name']}` was trained on {r['tags']['dataset']}."),
            runs=("reed-19",),
        ),
        _fact(
            "applied changes of a run", "look-up", "trainings",
            (
                "How many live changes were applied to `lagoon` while it trained?",
                "Of the requests to lagoon, how many took effect?",
                "lagoon: number of applied changes?",
            ),
            Value(len(applied), exact=True, traps=(len(requests),)),
            one("live_changes", {"run": "lagoon"}, lambda r: f"{r['total']} changes were applied to `lagoon`."),
        ),
        _fact(
            "who changed a run and why", "look-up", "trainings",
            (
                "Who changed the learning rate of `harbor` while it trained, and what reason was given?",
                "harbor's rate was raised during training: by whom and why?",
                "harbor: author and reason of the live change?",
            ),
            All((Words(r"\bada\b", r"\bgrace\b|\blinus\b|\bbarbara\b"), Words(r"stalled"))),
            one("live_changes", {"run": "harbor"}, lambda r: "It was {by}; the reason given: \"{reason}\".".format(**r["rows"][0])),
        ),
        _fact(
            "a name of two runs", "look-up", "sweeps",
            (
                f"What is the final eval_loss of the run named `retry` in {SWEEP}?",
                "Give the last eval_loss of retry; if several runs go by that name, of each of them.",
                "retry: eval_loss at the end?",
            ),
            All(tuple(Value(value) for value in retries)),
            one(
                "search_runs",
                {"experiment": SWEEP, "where": [_where("name", "=", "retry")], "order_by": "metrics.eval_loss"},
                lambda r: f"{r['total']} runs go by `retry`; their last eval_loss: "
                + " and ".join(n(row["metrics.eval_loss"]) for row in r["rows"]),
            ),
        ),
    ]  # fmt: skip


# --- ranks -------------------------------------------------------------------------------------------


def _best(tool_arguments: Mapping[str, Any]) -> Any:
    def say(found: Any) -> str:
        row = found["rows"][0]
        return f"`{row['name']}`, with {n(row['value'])}. Left out: {found['omitted'] or 'nothing'}."

    return one("rank_runs", tool_arguments, say)


def _ranks(o: Oracle) -> list[Fact]:
    finished = o.of(SWEEP, "FINISHED")
    last, least = o.finite("eval_loss", finished).sort_values(), o.least("eval_loss", finished).sort_values()
    every = o.finite("eval_loss", o.of(SWEEP)).sort_values()
    accuracy = o.finite("eval_accuracy", finished).sort_values()
    smooth = o.mean_of_last("loss", 10, finished).sort_values()
    margins = o.finite("rewards/margins", o.of(PREFS, "FINISHED")).sort_values()
    top = o.names(last.index[:3])
    middle = o.names(last.index)[6]
    groups = (frozenset(top[:1]), frozenset(top[1:]))
    if last.iloc[1] != last.iloc[2]:
        raise ValueError("the store has lost its tie at the second place")

    def first(series: Any, trap: Any = None) -> All:
        traps = () if trap is None else (float(trap),)
        return All((Names((frozenset(o.names(series.index[:1])),)), Value(series.iloc[0], traps=traps)))

    asked = {"experiment": SWEEP, "metric": "eval_loss"}
    return [
        _fact(
            "best at the end", "rank", "sweeps",
            (
                f"Which finished run of `{SWEEP}` has the lowest eval_loss at the end, and how low is it?",
                f"Best run in {SWEEP} by final eval_loss (finished ones only)? Name and value.",
                f"{SWEEP}: winner by last eval_loss among finished runs, with its value",
            ),
            first(last, every.iloc[0]),
            _best(asked),
        ),
        _fact(
            "best at any time", "rank", "sweeps",
            (
                f"Which finished run of `{SWEEP}` reached the lowest eval_loss at any point of its training, and what was it?",
                f"In {SWEEP}, whose eval_loss dipped lowest at some step (finished runs)? Give the value too.",
                f"{SWEEP}: smallest eval_loss ever seen in a finished run: which run, how small?",
            ),
            first(least, last.iloc[0]),
            _best(asked | {"agg": "min"}),
        ),
        _fact(
            "first three with a tie", "rank", "sweeps",
            (
                f"List the three best finished runs of `{SWEEP}` by final eval_loss, best first.",
                f"Top 3 of {SWEEP} by last eval_loss, finished runs, in order?",
                f"{SWEEP}: podium by final eval_loss (only finished runs)",
            ),
            Names(groups),
            one("rank_runs", asked | {"limit": 3}, lambda r: "\n".join(f"{row['rank']}. `{row['name']}`: {n(row['value'])}" for row in r["rows"])),
        ),
        _fact(
            "highest accuracy", "rank", "sweeps",
            (
                f"Which finished run of `{SWEEP}` has the highest eval_accuracy, and what is it?",
                f"Best eval_accuracy among the finished runs in {SWEEP}: who and how much?",
                f"{SWEEP}: most accurate finished run by eval_accuracy, with the number",
            ),
            first(accuracy.iloc[::-1]),
            _best({"experiment": SWEEP, "metric": "eval_accuracy"}),
        ),
        _fact(
            "worst at the end", "rank", "sweeps",
            (
                f"Which finished run of `{SWEEP}` ended with the worst finite eval_loss, and how high was it?",
                f"The highest (finite) final eval_loss among finished runs of {SWEEP}: which run, what value?",
                f"{SWEEP}: loser by last eval_loss among finished runs, NaN and infinity aside, with value",
            ),
            first(last.iloc[::-1]),
            _best(asked | {"mode": "max"}),
        ),
        _fact(
            "the rank of a run", "rank", "sweeps",
            (
                f"If the finished runs of `{SWEEP}` are ranked by final eval_loss, lowest first, which rank does `{middle}` have?",
                f"What place does {middle} take among the finished runs of {SWEEP} by last eval_loss?",
                f"{SWEEP}: rank of {middle} by final eval_loss (finished runs)?",
            ),
            Value(int((last < last.iloc[6]).sum()) + 1, exact=True),
            one(
                "rank_runs",
                asked | {"limit": 100},
                lambda r: next(f"`{row['name']}` has rank {row['rank']}." for row in r["rows"] if row["name"] == middle),
            ),
        ),
        _fact(
            "best of any status", "rank", "sweeps",
            (
                f"Counting failed, killed and running ones too, which run of `{SWEEP}` has the lowest last eval_loss, and how low?",
                f"Regardless of status, whose last logged eval_loss is smallest in {SWEEP}? Value too.",
                f"{SWEEP}: lowest last eval_loss over all statuses, run and value",
            ),
            first(every, last.iloc[0]),
            _best(asked | {"statuses": ["FINISHED", "FAILED", "RUNNING", "KILLED"]}),
        ),
        _fact(
            "highest margin of many", "rank", "sweeps",
            (
                f"Which finished run of `{PREFS}` has the highest final rewards/margins, and how high?",
                f"Top run in {PREFS} by last rewards/margins among finished ones, with its margin?",
                f"{PREFS}: largest final reward margin (finished runs): who, how large?",
            ),
            first(margins.iloc[::-1]),
            _best({"experiment": PREFS, "metric": "rewards/margins"}),
        ),
        _fact(
            "best smoothed training loss", "rank", "sweeps",
            (
                f"Which finished run of `{SWEEP}` has the lowest training loss averaged over its last 10 values, and what is that mean?",
                f"By the mean of the last ten logged values of `loss`, which finished run of {SWEEP} is lowest? Give the mean.",
                f"{SWEEP}: lowest loss, mean of last 10 values, finished runs: run and value",
            ),
            first(smooth),
            _best({"experiment": SWEEP, "metric": "loss", "agg": "mean_of_last_10"}),
        ),
    ]  # fmt: skip


# --- filters -----------------------------------------------------------------------------------------


def _total(found: Any) -> str:
    return f"{found['total']} runs."


def _named(found: Any) -> str:
    return f"{found['total']}: {listing(row['name'] for row in found['rows'])}."


def _filters(o: Oracle, costs: Oracle) -> list[Fact]:
    ids, rate = o.of(SWEEP), o.number("learning_rate")
    high = [run for run in ids if rate[run] >= 1e-4]
    lora = [run for run in ids if rate[run] == 1e-4 and o.params.loc[run, "lora_r"] == "32"]
    silent = sorted(set(ids) - set(o.last("eval_loss", ids).index))
    long = [run for run in o.of(SWEEP, "FINISHED") if o.runs.loc[run, "minutes"] > 30]
    wiki = [
        run
        for run, v in o.finite("eval_loss", o.of(SWEEP, "FINISHED")).items()
        if v < 1.76 and o.tags.loc[run, "dataset"] == "wiki"
    ]
    decay = o.number("weight_decay")[o.of(PREFS)]
    owned = [run for run in ids if isinstance(o.tags.loc[run, "owner"], str)]

    def names(runs: Any) -> Names:
        return Names((frozenset(o.names(runs)),), is_all=True)

    def search(*where: dict[str, Any], say: Any = _named, experiment: Any = SWEEP) -> Any:
        return one("search_runs", {"experiment": experiment, "where": list(where), "limit": 50}, say)

    return [
        _fact(
            "numbers written in several ways", "filter", "sweeps",
            (
                f"How many runs of `{SWEEP}`, of any status, have a learning rate of at least 1e-4?",
                f"Count the runs in {SWEEP} with learning_rate >= 0.0001, failed and running ones included.",
                f"{SWEEP}, lr ≥ 1e-4: how many runs (all statuses)?",
            ),
            Value(len(high), exact=True),
            search(_where("params.learning_rate", ">=", 1e-4), say=_total),
        ),
        _fact(
            "failed runs", "filter", "sweeps",
            (
                f"Which runs of `{SWEEP}` failed?",
                f"Name all failed runs in {SWEEP}.",
                f"{SWEEP}: runs with status FAILED?",
            ),
            names(o.of(SWEEP, "FAILED")),
            search(_where("status", "=", "FAILED")),
        ),
        _fact(
            "two params at once", "filter", "sweeps",
            (
                f"Which runs of `{SWEEP}` (any status) used lora_r 32 together with a learning rate of 1e-4?",
                f"In {SWEEP}, name the runs with learning_rate = 1e-4 and lora_r = 32, whatever their status.",
                f"{SWEEP}: lora_r=32 and lr=0.0001, all statuses: which runs?",
            ),
            names(lora),
            search(_where("params.learning_rate", "=", 1e-4), _where("params.lora_r", "=", 32)),
        ),
        _fact(
            "more than a page", "filter", "sweeps",
            (
                f"How many runs of `{PREFS}`, of any status, have a weight_decay greater than 0.01?",
                f"Count runs in {PREFS} whose weight_decay exceeds 0.01 (all statuses).",
                f"{PREFS}: weight_decay > 0.01, how many?",
            ),
            Value(int((decay > 0.01).sum()), exact=True, traps=(20, 50)),
            search(_where("params.weight_decay", ">", 0.01), say=_total, experiment=PREFS),
        ),
        _fact(
            "runs without a metric", "filter", "sweeps",
            (
                f"Which runs of `{SWEEP}` have not logged eval_loss at all?",
                f"Name the runs in {SWEEP} in which eval_loss is missing.",
                f"{SWEEP}: runs lacking the metric eval_loss?",
            ),
            names(silent),
            search(_where("metrics.eval_loss", "missing")),
        ),
        _fact(
            "long runs", "filter", "sweeps",
            (
                f"How many finished runs of `{SWEEP}` took longer than 30 minutes?",
                f"Count the finished runs in {SWEEP} with a duration above half an hour.",
                f"{SWEEP}: finished runs over 30 min, how many?",
            ),
            Value(len(long), exact=True),
            search(_where("duration_s", ">", 1800), _where("status", "=", "FINISHED"), say=_total),
        ),
        _fact(
            "a tag and a metric", "filter", "sweeps",
            (
                f"Which finished runs of `{SWEEP}` with the tag dataset = wiki ended with an eval_loss below 1.76?",
                f"In {SWEEP}: finished, tagged dataset wiki, final eval_loss under 1.76. Which ones?",
                f"{SWEEP}: wiki runs (tag dataset) that finished with last eval_loss < 1.76",
            ),
            names(wiki),
            search(_where("tags.dataset", "=", "wiki"), _where("metrics.eval_loss", "<", 1.76), _where("status", "=", "FINISHED")),
        ),
        _fact(
            "runs with a tag, picked on the page", "filter", "sweeps",
            (
                "How many runs of this experiment have a tag `owner`?",
                "In the chosen experiment, count the runs that carry an owner tag (any value, any status).",
                "Number of runs here with the tag owner set?",
            ),
            Value(len(owned), exact=True, traps=(len(owned) + 1,)),
            search(_where("tags.owner", "exists"), say=_total, experiment=PICKED_EXPERIMENT),
            experiment=SWEEP,
        ),
    ]  # fmt: skip
