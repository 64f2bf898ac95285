"""Questions about the course of single trainings: their values, live changes, and what is wrong with them."""

# ruff: noqa: E501 - a question is a line
from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
from checking import All, Names, Value, Words
from facts import Call, Category, Fact, Need, Script, Talk, Turn, n, one
from facts_runs import PREFS
from oracle import Oracle

_YES = r"\byes\b|\boverfit"
_NO = r"\bno\b|n(?:o|')t (?:show |have )?(?:any )?(?:signs? of )?overfit"
DOCTOR = "doctor"
ILLS = {
    "overfitting": r"\boverfit",
    "nonfinite": r"\bNaN\b|not finite|non-?finite|infinit",
    "divergence": r"\bdiverge",
    "loss_spikes": r"\bspike",
    "throughput_drop": r"\bthroughput\b|\bslow|tokens_per_second|tokens per second",
    "failed": r"out of memory|\bOOM\b|OutOfMemory",
    "lost": r"\blost\b|no sign|heartbeat|silent|gone|stopped reporting",
}
"""What is wrong, in the words by which answers call it."""


def facts(oracles: Mapping[str, Oracle]) -> list[Fact]:
    return [*_trends(oracles["trainings"], oracles["sweeps"]), *_diagnoses(oracles["trainings"])]


def _fact(
    id: str, category: Category, store: str, asked: tuple[str, str, str], expected: Any, script: Script,
    need: Need = "lookup",
) -> Fact:  # fmt: skip
    return Fact(id, category, store, (Turn(asked, expected, script),), need)


# --- trends ------------------------------------------------------------------------------------------


def _trends(o: Oracle, sweeps: Oracle) -> list[Fact]:
    evals = o.series("bookworm", "eval_loss")
    canal = o.series("canal", "loss")
    norms = o.series("sparrow", "grad_norm")
    before, after = (o.slope("harbor", "loss", *span) for span in ((100, 200), (200, 300)))
    margins = sweeps.finite("rewards/margins", sweeps.of(PREFS, "FINISHED"))
    rates = sweeps.number("learning_rate")[margins.index]
    if not (after < 2 * before < 0 and margins.corr(rates, method="spearman") > 0.7):
        raise ValueError("the stores have lost their trends")
    return [
        _fact(
            "step of the lowest value", "trend", "trainings",
            (
                "At which step was the eval_loss of `bookworm` lowest?",
                "bookworm: step of its minimum eval_loss?",
                "When (optimizer step) did bookworm have its best eval_loss?",
            ),
            Value(int(evals.idxmin()), exact=True, traps=(int(evals.index[-1]),)),
            one(
                "metric_history",
                {"run": "bookworm", "metrics": ["eval_loss"]},
                lambda r: f"At step {r['series']['eval_loss']['min'][0]}.",
            ),
        ),
        _fact(
            "value at a step", "trend", "trainings",
            (
                "What was the training loss of `canal` at step 123?",
                "canal: value of `loss` logged for step 123?",
                "Look up loss at step 123 in run canal.",
            ),
            Value(canal[123], digits=4, traps=(canal.iloc[-1],)),
            one(
                "metric_history",
                {"run": "canal", "metrics": ["loss"], "from_step": 123, "to_step": 123},
                lambda r: f"It was {n(r['series']['loss']['last'])}.",
            ),
        ),
        _fact(
            "what a change did", "trend", "trainings",
            (
                "After the live change of `harbor`, did its training loss fall faster, slower, or about as before?",
                "Did harbor's loss drop faster or slower once its learning rate had been changed while it trained?",
                "harbor: effect of the live change on how fast the loss falls (faster / slower / none)?",
            ),
            Words(r"\bfaster\b|\bmore (?:quickly|steeply)\b|\bsteeper\b", r"\bslower\b|no clear change|about as before|\bunchanged\b"),
            one("live_changes", {"run": "harbor"}, lambda r: f"It {r['rows'][0]['effect']}."),
        ),
        _fact(
            "slopes around a change", "trend", "trainings",
            (
                "How fast did the loss of `harbor` fall per 100 steps before its live change, and how fast after it?",
                "harbor: slope of the training loss (per 100 steps) before and after the change that was applied while it trained?",
                "Loss slopes per 100 steps of harbor, before vs after its live change?",
            ),
            All((Value(before, rel=0.15, is_signed=False), Value(after, rel=0.15, is_signed=False))),
            one(
                "live_changes",
                {"run": "harbor"},
                lambda r: f"{n(r['rows'][0]['slope_before']['value'])} before, {n(r['rows'][0]['slope_after']['value'])} after.",
            ),
        ),
        _fact(
            "from first to last", "trend", "trainings",
            (
                "How far did the training loss of `canal` fall in all, from its first logged value to its last?",
                "canal: first minus last value of loss?",
                "Total drop of loss over the run canal?",
            ),
            Value(canal.iloc[0] - canal.iloc[-1], digits=2, is_signed=False),
            _drop("canal", "loss"),
            "multi_step",
        ),
        _fact(
            "largest value and its step", "trend", "trainings",
            (
                "What was the largest grad_norm of `sparrow`, and at which step?",
                "sparrow: maximum of grad_norm and the step it came at?",
                "When did grad_norm peak in sparrow, and how high?",
            ),
            All((Value(norms.max()), Value(int(norms.idxmax()), exact=True))),
            one(
                "metric_history",
                {"run": "sparrow", "metrics": ["grad_norm"]},
                lambda r: "{}, at step {}.".format(n(r["series"]["grad_norm"]["max"][1]), r["series"]["grad_norm"]["max"][0]),
            ),
        ),
        _fact(
            "param and metric", "trend", "sweeps",
            (
                f"In `{PREFS}`, does the final rewards/margins rise or fall with the learning rate, or is there no clear relation?",
                f"How does the last rewards/margins in {PREFS} go with learning_rate over the finished runs: up, down, neither?",
                f"{PREFS}: direction of the relation between learning_rate and final rewards/margins?",
            ),
            Words(r"\brises?\b|\bincreas|\bpositiv|\bgrows?\b|\bup\b", r"\bfalls?\b|\bdecreas|\bnegativ|no clear relation"),
            one(
                "param_effects",
                {"experiment": PREFS, "metric": "rewards/margins"},
                lambda r: "It {verdict} with the learning rate: Spearman's correlation is {correlation:.3f} ({n} runs).".format(
                    **next(row for row in r["rows"] if row["param"] == "learning_rate")
                ),
            ),
        ),
    ]  # fmt: skip


def _drop(run: str, metric: str) -> Script:
    def script(_: Talk) -> Generator[Call, Any, str]:
        found = yield Call("metric_history", {"run": run, "metrics": [metric], "max_points": 10})
        series = found["series"][metric]
        numbers = {"first": series["first"], "last": series["last"]}
        made = yield Call("calculate", {"expression": "first - last", "numbers": numbers})
        return f"By {n(made['value'])}."

    return script


# --- diagnoses ---------------------------------------------------------------------------------------


def _diagnoses(o: Oracle) -> list[Fact]:
    loss = o.series("blackout", "loss")
    since = int(loss.index[~np.isfinite(loss)][0])
    spiky = o.series("kangaroo", "loss")
    best = int(o.series("bookworm", "eval_loss").idxmin())
    nan_runs = {
        str(o.runs.loc[run, "name"])
        for run, values in o.points[o.points["key"] == "loss"].groupby("run")["value"]
        if o.runs.loc[run, "experiment"] == DOCTOR and not np.isfinite(values).all()
    }
    return [
        _fact(
            "overfitting", "diagnosis", "trainings",
            (
                "What is wrong with `bookworm`, and from which step on?",
                "Diagnose bookworm: the main problem, and the step at which it was still at its best.",
                "bookworm looks odd. What's the problem and since which step?",
            ),
            All((_is("overfitting"), Value(best, exact=True))),
            _diagnosis("bookworm"),
        ),
        _fact(
            "NaN since", "diagnosis", "trainings",
            (
                "Since which step is the training loss of `blackout` NaN?",
                "blackout's loss became NaN. At what step did that begin?",
                "First step with a NaN loss in blackout?",
            ),
            Value(since, exact=True),
            _diagnosis("blackout"),
        ),
        _fact(
            "highest spike", "diagnosis", "trainings",
            (
                "At which step did the loss of `kangaroo` spike highest, and how high was it?",
                "kangaroo has spikes in its loss: step and value of the highest one?",
                "Worst loss spike of kangaroo: where and how high?",
            ),
            All((Value(int(spiky.idxmax()), exact=True), Value(spiky.max()))),
            _diagnosis("kangaroo"),
        ),
        _fact(
            "healthy", "diagnosis", "trainings",
            (
                "Does `sparrow` overfit? Answer yes or no first.",
                "Yes or no: is sparrow overfitting?",
                "Is overfitting visible in sparrow (yes/no)?",
            ),
            Words(_NO, _YES),
            one(
                "diagnose_run",
                {"run": "sparrow"},
                lambda r: "No." if "overfitting" in r["clear"] else "Yes, or it cannot be judged.",
            ),
        ),
        _fact(
            "why it failed", "diagnosis", "trainings",
            (
                "Why did `mammoth` fail?",
                "What error ended the run mammoth?",
                "mammoth: reason of the failure?",
            ),
            Words(ILLS["failed"]),
            _diagnosis("mammoth"),
        ),
        _fact(
            "divergence", "diagnosis", "trainings",
            (
                "What happened to the training loss of `runaway`?",
                "Diagnose the run runaway.",
                "runaway: what went wrong?",
            ),
            _is("divergence", also=r"\bris(?:en|es|ing)\b|\brose\b|\bgr[eo]w"),
            _diagnosis("runaway"),
        ),
        _fact(
            "slower", "diagnosis", "trainings",
            (
                "Is anything wrong with `tortoise`? What?",
                "Diagnose tortoise in a sentence.",
                "tortoise: which problem does it have?",
            ),
            _is("throughput_drop"),
            _diagnosis("tortoise"),
        ),
        _fact(
            "which run has NaN", "diagnosis", "trainings",
            (
                f"Which run of the experiment `{DOCTOR}` has a training loss that became NaN?",
                f"In {DOCTOR}, whose loss is NaN at the end?",
                f"{DOCTOR}: run(s) with a NaN training loss?",
            ),
            Names((frozenset(nan_runs),), is_all=True),
            _nan_runs(),
            "multi_step",
        ),
    ]  # fmt: skip


def _is(ill: str, also: str = r"(?!)") -> Words:
    others = "|".join(pattern for kind, pattern in ILLS.items() if kind != ill)
    return Words(f"{ILLS[ill]}|{also}", others)


def _diagnosis(run: str) -> Script:
    return one(
        "diagnose_run",
        {"run": run},
        lambda r: "\n".join(
            f"- {row['kind'].replace('_', ' ')}: {row['summary']} (step {row['step']})" for row in r["rows"]
        ),
    )


def _nan_runs() -> Script:
    def script(_: Talk) -> Generator[Call, Any, str]:
        found = yield Call("search_runs", {"experiment": DOCTOR, "order_by": "metrics.loss", "limit": 50})
        bad = [row["name"] for row in found["rows"] if row["metrics.loss"] in ("NaN", "inf", "-inf")]
        for name in bad:
            yield Call("diagnose_run", {"run": name})
        return "The loss became NaN in " + ", ".join(f"`{name}`" for name in bad) + "."

    return script
