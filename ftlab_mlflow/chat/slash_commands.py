"""The slash commands: how each is written, and the call that its words mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ftlab_mlflow.chat.slash_subject import LATEST, Subject
from ftlab_mlflow.chat.slash_words import (
    SHAPES,
    Arguments,
    WrongWords,
    conditions_in,
    groups_in,
    names_in,
    sorted_out,
    split,
)

_AGG = re.compile(r"last|min|max|mean_of_last_[1-9][0-9]{0,2}")
_REASON = re.compile(r"\s(?:--|because)(?:\s+|$)")


@dataclass(frozen=True)
class Call:
    """What a command means.

    Attributes:
        param: Of `param_effects`: the one parameter that was asked about.
    """

    arguments: Arguments
    param: str | None = None


@dataclass(frozen=True)
class Command:
    """A slash command.

    Attributes:
        usage: How it is written: words in capitals stand for something, those in brackets may be left out.
        tool: The function of the analytics that it calls.
        parse: From what stands behind its name to the call. It raises `WrongWords`, and what `Subject` does.
        details: More of how it is written, for its own help.
    """

    name: str
    usage: str
    help: str
    example: str
    tool: str
    parse: Callable[[str, Subject], Call]
    details: str = ""

    @property
    def options(self) -> tuple[str, ...]:
        """The words `name=value` that it takes."""
        return SHAPES[self.tool].options


def _experiments(text: str, subject: Subject) -> Call:
    words, given = sorted_out(split(text), "list_experiments")
    _no_more(words)
    return Call(given)


def _experiment(text: str, subject: Subject) -> Call:
    words, given = sorted_out(split(text), "describe_experiment")
    return Call({**given, "experiment": _experiment_in(words, given, subject)})


def _runs(text: str, subject: Subject) -> Call:
    words, given = sorted_out(split(text), "search_runs")
    where = conditions_in(words)
    return Call({**given, "experiment": subject.experiment(given.get("experiment")), "where": where})


def _rank(text: str, subject: Subject) -> Call:
    words, given = sorted_out(split(text), "rank_runs")
    metric, *left = _some(words, "which metric")
    return Call({"metric": metric, **_counted(left, given, subject)})


def _aggregate(text: str, subject: Subject) -> Call:
    words, given = sorted_out(split(text), "aggregate")
    metric, *left = _some(words, "which metric, and what to group by")
    fields, *left = _some(left, "what to group by")
    return Call({"metric": metric, "group_by": groups_in(fields), **_counted(left, given, subject)})


def _effects(text: str, subject: Subject) -> Call:
    words, given = sorted_out(split(text), "param_effects")
    metric, *left = _some(words, "which metric")
    param = None
    if left and not _AGG.fullmatch(left[0]):
        param, metric, *left = metric.removeprefix("params."), *left
    return Call({"metric": metric, **_counted(left, given, subject)}, param)


def _run(text: str, subject: Subject) -> Call:
    return _about_run(text, subject, "get_run")


def _diagnose(text: str, subject: Subject) -> Call:
    return _about_run(text, subject, "diagnose_run")


def _about_run(text: str, subject: Subject, tool: str) -> Call:
    words, given = sorted_out(split(text), tool)
    return Call({"run": subject.run(_one(words)), **given})


def _changes(text: str, subject: Subject) -> Call:
    words, given = sorted_out(split(text), "live_changes")
    word = _one(words)
    if word is not None and "experiment" in given:
        raise WrongWords("it takes either a run or an experiment")
    if word is None and ("experiment" in given or subject.only_run is None):
        return Call({**given, "experiment": subject.experiment(given.get("experiment"))})
    return Call({"run": subject.run(word), **given})


def _compare(text: str, subject: Subject) -> Call:
    words, given = sorted_out(split(text), "compare_runs")
    return Call({"runs": subject.runs(words, fewest=2), **given})


def _history(text: str, subject: Subject) -> Call:
    words, given = sorted_out(split(text), "metric_history")
    metrics, *left = _some(words, "which metric")
    return Call({"run": subject.run(_one(left)), "metrics": names_in(metrics), **given})


def _plot(text: str, subject: Subject) -> Call:
    words, given = sorted_out(split(text), "plot_metrics")
    metrics, *left = _some(words, "which metric")
    return Call({"runs": subject.runs(left), "metrics": names_in(metrics), **given})


def _cost(text: str, subject: Subject) -> Call:
    words, given = sorted_out(split(text), "cost_summary")
    return Call({**given, "experiment": _experiment_in(words, given, subject)})


def _calc(text: str, subject: Subject) -> Call:
    if not text.strip():
        raise WrongWords("there is nothing to calculate")
    return Call({"expression": text.strip()})


def _propose(text: str, subject: Subject) -> Call:
    words, reason = _with_reason(text)
    first: str | None = None
    if subject.only_run is None or not all("=" in word for word in words):
        first, *words = _some(words, "which run")
    run = subject.run(first)
    texts: dict[str, str] = {}
    for word in _some(words, "at least one NAME=VALUE"):
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise WrongWords(f"{word!r} is no NAME=VALUE")
        if name in texts:
            raise WrongWords(f"{name} is given twice")
        texts[name] = value
    given = {"reason": reason} if reason else {}
    return Call({"run": run, "values": subject.values(run, texts), **given})


def _with_reason(text: str) -> tuple[list[str], str]:
    """The words before the reason, and the reason as it was written, apostrophes and all."""
    for found in _REASON.finditer(text):
        try:
            return split(text[: found.start()]), text[found.end() :].strip()
        except WrongWords:
            continue  # it stands between quotes
    return split(text), ""


def _some(words: Sequence[str], what: str) -> Sequence[str]:
    if not words:
        raise WrongWords(f"say {what}")
    return words


def _one(words: Sequence[str]) -> str | None:
    """The only word; None where there is none."""
    _no_more(words[1:])
    return words[0] if words else None


def _no_more(words: Sequence[str]) -> None:
    if words:
        raise WrongWords(f"{words[0]!r} is one word too many")


def _counted(words: Sequence[str], given: Arguments, subject: Subject) -> Arguments:
    """[AGG] [EXPERIMENT], and the options."""
    agg: Arguments = {}
    if words and _AGG.fullmatch(words[0]) and "agg" not in given:
        agg, words = {"agg": words[0]}, words[1:]
    return {**given, **agg, "experiment": _experiment_in(words, given, subject)}


def _experiment_in(words: Sequence[str], given: Arguments, subject: Subject) -> str:
    if "experiment" in given:
        _no_more(words)
    return subject.experiment(_one(words) or given.get("experiment"))


_ALL = (
    Command(
        "experiments", "/experiments", "All experiments", "/experiments", "list_experiments", _experiments
    ),
    Command(
        "experiment",
        "/experiment [NAME]",
        "What can be asked about an experiment: params that vary, metrics, tags",
        "/experiment sweep",
        "describe_experiment",
        _experiment,
    ),
    Command(
        "runs",
        "/runs [CONDITION...]",
        "The runs that meet all conditions",
        "/runs params.learning_rate>1e-4 status=FINISHED order=metrics.eval_loss",
        "search_runs",
        _runs,
        "Conditions are of `params.NAME`, `tags.NAME`, `metrics.NAME` (the last value), `name`, `run_id`, "
        "`status`, `start_time`, `end_time` (such as `start_time>2026-11-21`, in UTC) and `duration_s`, with "
        "`=`, `!=`, `>`, `>=`, `<`, `<=`, `~` (contains), or as `name starts_with sft`, "
        "`status in FAILED,KILLED`, `tags.team exists`, `tags.team missing`.",
    ),
    Command(
        "rank",
        "/rank METRIC [AGG] [EXPERIMENT]",
        "The best runs by a metric: its last value, min, max or mean_of_last_10",
        "/rank eval_loss min",
        "rank_runs",
        _rank,
    ),
    Command(
        "compare",
        "/compare [RUN RUN...]",
        "Params that differ between runs, and how their metrics ended",
        f"/compare {LATEST} sft-3",
        "compare_runs",
        _compare,
    ),
    Command("run", "/run [RUN]", "One run whole", f"/run {LATEST}", "get_run", _run),
    Command(
        "history",
        "/history METRIC[,METRIC...] [RUN]",
        "The values of metrics of a run",
        f"/history loss {LATEST} from=100",
        "metric_history",
        _history,
    ),
    Command(
        "plot",
        "/plot METRIC[,METRIC...] [RUN...]",
        "A chart of metrics of runs",
        "/plot loss,eval_loss sft-3 sft-7 x=hours",
        "plot_metrics",
        _plot,
    ),
    Command(
        "diagnose",
        "/diagnose [RUN]",
        "What is wrong with a run",
        f"/diagnose {LATEST}",
        "diagnose_run",
        _diagnose,
    ),
    Command(
        "changes",
        "/changes [RUN]",
        "What was changed while a run trained, or the runs of an experiment, and what the loss did then",
        f"/changes {LATEST}",
        "live_changes",
        _changes,
    ),
    Command(
        "effects",
        "/effects [PARAM] METRIC [AGG] [EXPERIMENT]",
        "Which numeric params go with a metric, or how one of them does",
        "/effects learning_rate eval_loss",
        "param_effects",
        _effects,
    ),
    Command(
        "aggregate",
        "/aggregate METRIC BY[,BY...] [AGG] [EXPERIMENT]",
        "A metric by groups of runs: by a param, `tags.NAME` or `status`",
        "/aggregate eval_loss learning_rate",
        "aggregate",
        _aggregate,
    ),
    Command(
        "cost",
        "/cost [EXPERIMENT]",
        "Time, accelerator time, tokens and money of runs",
        "/cost sweep by=status",
        "cost_summary",
        _cost,
    ),
    Command("calc", "/calc EXPRESSION", "Arithmetic", "/calc (2.46 - 2.31) / 2.46 * 100", "calculate", _calc),
    Command(
        "propose",
        "/propose [RUN] NAME=VALUE... [-- REASON]",
        "Checks a live change against what the run takes; it sends nothing",
        f"/propose {LATEST} learning_rate=5e-5 -- the loss is noisy",
        "propose_update",
        _propose,
        "The reason stands behind `--` or `because`, and takes no quotes.",
    ),
)
COMMANDS: Mapping[str, Command] = {command.name: command for command in _ALL}
"""By name, without the slash, in the order in which help shows them."""
