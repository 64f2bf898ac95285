"""Questions that cannot be answered, and conversations of two questions."""

# ruff: noqa: E501 - a question is a line
from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from checking import Abstain, All, Names, Value, Winner
from facts import Call, Fact, Script, Talk, Turn, listing, n, one
from facts_groups import GPU, HIGHER, LOWER
from facts_runs import SWEEP
from oracle import Oracle


def facts(oracles: Mapping[str, Oracle]) -> list[Fact]:
    sweeps, trainings, costs = oracles["sweeps"], oracles["trainings"], oracles["costs"]
    return [*_unanswerable(sweeps, trainings, costs), *_several_turns(sweeps, trainings, costs)]


# --- unanswerable ------------------------------------------------------------------------------------


def _unanswerable(sweeps: Oracle, trainings: Oracle, costs: Oracle) -> list[Fact]:
    def fact(
        id: str, store: str, asked: tuple[str, str, str], missing: str, script: Script, **more: Any
    ) -> Fact:
        return Fact(id, "unanswerable", store, (Turn(asked, Abstain(missing, **more), script),))

    if costs.dollars(costs.id("heron")) is not None or "bleu" in set(sweeps.points["key"]):
        raise ValueError("what cannot be answered can be")
    return [
        fact(
            "a metric that the run has not", "sweeps",
            (
                "What BLEU score did `jade-12` reach?",
                "Give the final `bleu` of jade-12.",
                "jade-12: bleu?",
            ),
            r"bleu",
            one("metric_history", {"run": "jade-12", "metrics": ["bleu"]}, _said("`bleu` is not known")),
        ),
        fact(
            "a ranking by a metric of no run", "sweeps",
            (
                f"Which run of `{SWEEP}` has the best BLEU score?",
                f"Rank {SWEEP} by bleu: who wins?",
                f"{SWEEP}: highest bleu?",
            ),
            r"bleu",
            one("rank_runs", {"experiment": SWEEP, "metric": "bleu", "mode": "max"}, _said("`bleu` cannot be ranked")),
        ),
        fact(
            "a cost without a price", "costs",
            (
                "How many dollars did `heron` cost?",
                "What did the run heron cost in USD?",
                "heron: cost?",
            ),
            r"\bcost|\bprice",
            one("cost_summary", {"experiment": GPU}, _no_price("heron")),
            never=r"\$\s?0\b|\b0(?:\.0+)? ?(?:\$|USD|dollars)|\bfree\b|\bnothing\b",
        ),
        fact(
            "accelerators that nobody wrote down", "costs",
            (
                "How many GPU hours did `plover` use?",
                "plover's accelerator hours, please.",
                "plover: GPU-hours?",
            ),
            r"accelerator|gpu",
            one("cost_summary", {"experiment": GPU}, lambda _: "The accelerator hours of `plover` are not known: its accelerators were not recorded."),
        ),
        fact(
            "a metric that this run never logged", "sweeps",
            (
                "What was the last eval_loss of `onyx-16`?",
                "onyx-16's final evaluation loss?",
                "eval_loss of onyx-16 at the end?",
            ),
            r"eval_?\s?loss|evaluation loss",
            one("get_run", {"run": "onyx-16"}, lambda r: f"`{r['name']}` has never logged eval_loss." if "eval_loss" not in r["metrics"] else "It has."),
        ),
        fact(
            "a run that is not there", "sweeps",
            (
                "What learning rate did the run `zephyr-31` use?",
                "zephyr-31: learning_rate?",
                "Look up the learning rate of run zephyr-31.",
            ),
            r"zephyr-31|\b(?:such|that|this) (?:a )?run\b|\brun (?:named|called|by)\b",
            one("get_run", {"run": "zephyr-31"}, lambda _: "There is no run `zephyr-31`, so its learning rate is not known."),
            may_name=frozenset(sweeps.runs["name"]),
        ),
        fact(
            "an experiment that is not there", "sweeps",
            (
                "Which run of the experiment `giant-sweep` has the lowest eval_loss?",
                "giant-sweep: best run by eval_loss?",
                "Who leads the experiment giant-sweep in eval_loss?",
            ),
            r"giant-sweep|\b(?:such|that|this) (?:an )?experiment\b|\bexperiment (?:named|called|by)\b",
            one("rank_runs", {"experiment": "giant-sweep", "metric": "eval_loss"}, lambda _: "There is no experiment `giant-sweep`."),
        ),
        fact(
            "a change with too few values after it", "trainings",
            (
                "Did the loss of `strait` fall faster after its live change than before?",
                "strait: what did its live change do to the slope of the loss?",
                "Effect of the live change of strait on its loss?",
            ),
            r"\bfew\b|\bvalues?\b|\beffect\b|\bslope\b|\bsteps?\b|\bafter\b",
            one("live_changes", {"run": "strait"}, lambda r: f"The effect cannot be told ({r['rows'][0]['effect']}): there are too few values after the change."),
            never=r"\bno (?:clear |significant |real |measurable )?(?:change|effect|difference)\b",
        ),
        fact(
            "a reason that nobody gave", "trainings",
            (
                "Why was the learning rate of `strait` changed while it trained?",
                "What reason was given for the live change of strait?",
                "strait: reason of its live change?",
            ),
            r"\breason|\bwhy\b",
            one("live_changes", {"run": "strait"}, lambda r: r["rows"][0]["reason"] or "No reason was recorded for it."),
        ),
    ]  # fmt: skip


def _said(what: str) -> Any:
    return lambda found: f"{what}: no run has logged it." if "error" in found else "It has been logged."


def _no_price(name: str) -> Any:
    def say(found: Any) -> str:
        row = next(row for row in found["rows"] if row["name"] == name)
        return (
            f"The cost of `{name}` is not known: no price was configured for its accelerator."
            if row["cost"] is None
            else n(row["cost"])
        )

    return say


# --- several turns -----------------------------------------------------------------------------------


def _several_turns(sweeps: Oracle, trainings: Oracle, costs: Oracle) -> list[Fact]:
    def fact(id: str, store: str, first: Turn, second: Turn) -> Fact:
        return Fact(id, "several turns", store, (first, second), "multi_step")

    done = sweeps.of(SWEEP, "FINISHED")
    last, rate = sweeps.finite("eval_loss", done), sweeps.number("learning_rate")
    best = last.idxmin()
    failed = sweeps.of(SWEEP, "FAILED")
    of_failed = sweeps.finite("eval_loss", failed)
    means = last.groupby(rate[last.index]).mean()
    dear = max(
        (run for run in costs.of(GPU) if costs.dollars(run)), key=lambda run: costs.dollars(run) or 0.0
    )
    evals = trainings.series("bookworm", "eval_loss")
    up, down = "dune-6", "tundra-21"

    def name_of(o: Oracle, run: Any) -> Names:
        return Names((frozenset(o.names([run])),))

    ranked = {"experiment": SWEEP, "metric": "eval_loss"}
    by_rate = ranked | {"group_by": ["params.learning_rate"]}
    return [
        fact(
            "the best run, then its rate", "sweeps",
            Turn(
                (
                    f"Which finished run leads `{SWEEP}` by final eval_loss?",
                    f"Who's best in {SWEEP}, by last eval_loss of the finished runs?",
                    f"{SWEEP}: top finished run (final eval_loss)?",
                ),
                name_of(sweeps, best),
                one("rank_runs", ranked, lambda r: f"`{r['rows'][0]['name']}`."),
            ),
            Turn(
                ("And what was its learning rate?", "Which learning rate did it use?", "Its lr?"),
                Value(rate[best]),
                _of_the_run("rank_runs", lambda r: f"`{r['name']}` used {r['params']['learning_rate']}."),
            ),
        ),
        fact(
            "the failed runs, then the best of them", "sweeps",
            Turn(
                (
                    f"List the runs of `{SWEEP}` that failed.",
                    f"What failed in {SWEEP}?",
                    f"{SWEEP}: names of the failed runs, please.",
                ),
                Names((frozenset(sweeps.names(failed)),), is_all=True),
                one(
                    "search_runs",
                    {"experiment": SWEEP, "where": [{"field": "status", "op": "=", "value": "FAILED"}]},
                    lambda r: listing(row["name"] for row in r["rows"]),
                ),
            ),
            Turn(
                (
                    "Which of them had the lowest last eval_loss?",
                    "Of those, whose eval_loss was lowest at the end?",
                    "The one with the smallest last eval_loss among these?",
                ),
                name_of(sweeps, of_failed.idxmin()),
                _best_of_them,
            ),
        ),
        fact(
            "a mean, then that of another group", "sweeps",
            Turn(
                (
                    f"Mean final eval_loss of the finished runs of `{SWEEP}` with learning rate 3e-5, please.",
                    f"What do finished runs in {SWEEP} with learning_rate 0.00003 average in last eval_loss?",
                    f"{SWEEP}, lr 3e-5 (finished): average last eval_loss?",
                ),
                Value(means[3e-5]),
                one("aggregate", by_rate, lambda r: n(_mean(r, 3e-5))),
            ),
            Turn(
                ("And with 3e-4?", "Now the same for 0.0003.", "Same thing, lr 3e-4?"),
                Value(means[3e-4], traps=(means[3e-5],)),
                _another_mean,
            ),
        ),
        fact(
            "a last value, then the lowest", "trainings",
            Turn(
                (
                    "What eval_loss did `bookworm` end with?",
                    "bookworm's last eval_loss?",
                    "Final evaluation loss of the run bookworm, please.",
                ),
                Value(evals.iloc[-1], traps=(evals.min(),)),
                one("get_run", {"run": "bookworm"}, lambda r: n(r["metrics"]["eval_loss"]["last"])),
            ),
            Turn(
                (
                    "How low was it at its lowest?",
                    "And the smallest value it ever had?",
                    "What was its minimum?",
                ),
                Value(evals.min(), traps=(evals.iloc[-1],)),
                _its_lowest,
            ),
        ),
        fact(
            "the dearest run, then its tokens", "costs",
            Turn(
                (
                    f"Which run of `{GPU}` cost most?",
                    f"Most expensive single run in {GPU}?",
                    f"{GPU}: the run with the highest cost?",
                ),
                name_of(costs, dear),
                one("cost_summary", {"experiment": GPU}, lambda r: f"`{_dearest(r)['name']}`."),
            ),
            Turn(
                ("How many tokens did it train on?", "And its tokens?", "Number of tokens of that run?"),
                Value(costs.last("num_tokens")[dear]),
                _tokens_of_it,
            ),
        ),
        fact(
            "which is lower, then by how much", "sweeps",
            Turn(
                (
                    f"Which ended with the lower eval_loss, `{up}` or `{down}`?",
                    f"{up} against {down}: lower final eval_loss?",
                    f"Lower last eval_loss: {up} or {down}?",
                ),
                Winner(down, LOWER, HIGHER),
                one("compare_runs", {"runs": [up, down], "metrics": ["eval_loss"]}, _lower_of_two),
            ),
            Turn(
                ("By how much?", "What's the difference between the two?", "And the gap?"),
                All((Value(abs(last[sweeps.id(up)] - last[sweeps.id(down)]), digits=2, is_signed=False),)),
                _by_how_much,
            ),
        ),
    ]  # fmt: skip


def _before(talk: Talk, tool: str) -> Any:
    return next(done.result for done in reversed(talk.done) if done.name == tool)


def _of_the_run(tool: str, say: Any) -> Script:
    def script(talk: Talk) -> Generator[Call, Any, str]:
        found = yield Call("get_run", {"run": _before(talk, tool)["rows"][0]["run_id"]})
        return str(say(found))

    return script


def _best_of_them(talk: Talk) -> Generator[Call, Any, str]:
    names = [row["name"] for row in _before(talk, "search_runs")["rows"]]
    found = yield Call("compare_runs", {"runs": names, "metrics": ["eval_loss"]})
    return _lower_of_two(found)


def _lower_of_two(found: Any) -> str:
    values = found["metrics"]["eval_loss"]
    best = min(values, key=lambda run: values[run]["last"])
    return f"`{found['runs'][best]['name']}`, with a last eval_loss of {n(values[best]['last'])}."


def _mean(found: Any, rate: float) -> float:
    return float(next(row["mean"] for row in found["rows"] if row["group"]["params.learning_rate"] == rate))


def _another_mean(talk: Talk) -> Generator[Call, Any, str]:
    yield from ()  # nothing to call: it is in what came before
    return n(_mean(_before(talk, "aggregate"), 3e-4))


def _its_lowest(talk: Talk) -> Generator[Call, Any, str]:
    run = _before(talk, "get_run")["run_id"]
    found = yield Call("metric_history", {"run": run, "metrics": ["eval_loss"]})
    step, value = found["series"]["eval_loss"]["min"]
    return f"{n(value)}, at step {step}."


def _dearest(found: Any) -> Any:
    return max((row for row in found["rows"] if row["cost"] is not None), key=lambda row: row["cost"])


def _tokens_of_it(talk: Talk) -> Generator[Call, Any, str]:
    name = _dearest(_before(talk, "cost_summary"))["name"]
    found = yield Call("cost_summary", {"experiment": GPU})
    return n(next(row["tokens"] for row in found["rows"] if row["name"] == name)) + " tokens."


def _by_how_much(talk: Talk) -> Generator[Call, Any, str]:
    values = _before(talk, "compare_runs")["metrics"]["eval_loss"]
    high, low = sorted((each["last"] for each in values.values()), reverse=True)
    made = yield Call("calculate", {"expression": "a - b", "numbers": {"a": high, "b": low}})
    return f"By {n(made['value'])}."
