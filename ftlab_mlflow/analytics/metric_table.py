"""What the metrics mean that transformers, TRL, MLflow and this package log, and which charts show them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal

from ftlab_mlflow.control.tags import LIVE_METRIC_PREFIX
from ftlab_mlflow.settings import metric_directions

Better = Literal["lower", "higher"]


class Group(StrEnum):
    """Kinds of metrics, the ones to look at first before the others."""

    LOSS = "Loss"
    LEARNING_RATE = "Learning rate"
    REWARDS = "Rewards"
    MARGINS = "Margins"
    ACCURACY = "Accuracy"
    KL = "KL divergence"
    GRADIENT = "Gradient"
    ENTROPY = "Entropy"
    LOG_PROBABILITIES = "Log-probabilities"
    LENGTHS = "Lengths"
    POLICY = "Policy update"
    THROUGHPUT = "Throughput"
    MEMORY = "Memory"
    LIVE = "Live values"
    OTHER = "Other"
    SYSTEM = "System"
    PROGRESS = "Progress"


_GROUPS = tuple(Group)


@dataclass(frozen=True)
class Rule:
    """What is known of the metrics whose whole name matches a pattern.

    Attributes:
        pattern: Of the name without ``eval_`` and the like.
        title: May refer to the pattern's groups.
        better: Which way is progress; None where neither is, or that depends.
        unit: As `units.format_value` takes it.
        chart: Title of the chart; the metric's own if empty.
        log: Whether a logarithmic axis makes sense: positive, over orders of magnitude.
        charted: False for what a chart shows nothing of: counters, sums at the end.
    """

    pattern: str
    group: Group
    title: str
    better: Better | None = None
    unit: str = ""
    chart: str = ""
    log: bool = False
    charted: bool = True


_CHOSEN = "chosen and rejected"
_OF = "(min|mean|max)"


def _gpu(name: str, title: str, unit: str) -> Rule:
    """One of MLflow's numbers of each GPU of the machine."""
    pattern = rf"system/gpu_(\d+)_{name}"
    return Rule(pattern, Group.SYSTEM, rf"GPU \1 {title}", unit=unit, chart=f"GPU {title}")


RULES = (
    Rule("loss", Group.LOSS, "Loss", "lower", log=True),
    Rule("nll_loss", Group.LOSS, "NLL loss", "lower", log=True),
    Rule("perplexity|ppl", Group.LOSS, "Perplexity", "lower", log=True),
    Rule("aux_loss", Group.LOSS, "Router balance loss", "lower"),
    Rule("policy_loss", Group.LOSS, "Policy loss"),
    Rule("learning_rate|lr", Group.LEARNING_RATE, "Learning rate", log=True),
    # GRPO and RLOO: the rewards that are trained for. The reward trainer's have no scale of their own.
    Rule("reward", Group.REWARDS, "Reward", "higher"),
    Rule("rewards/(.+)/mean", Group.REWARDS, r"Reward \1", "higher", chart="Reward functions"),
    Rule("reward_std", Group.REWARDS, "Reward spread", chart="Reward spread"),
    Rule("rewards/(.+)/std", Group.REWARDS, r"Reward \1 spread", chart="Reward spread"),
    Rule("frac_reward_zero_std", Group.REWARDS, "Groups without spread", "lower"),
    Rule(f"{_OF}_reward", Group.REWARDS, r"Reward, \1", chart="Rewards"),
    # DPO, ORPO and KTO: both may fall while training goes well, for what counts is the margin between them.
    Rule("rewards/(chosen|rejected)", Group.REWARDS, r"Reward of \1", chart=f"Rewards of {_CHOSEN}"),
    Rule("rewards/margins", Group.MARGINS, "Reward margin", "higher"),
    Rule("margin", Group.MARGINS, "Margin", "higher"),
    Rule("log_odds_chosen", Group.MARGINS, "Log odds of chosen", "higher", chart="Log odds"),
    Rule("log_odds_ratio", Group.MARGINS, "Log odds ratio", "higher", chart="Log odds"),
    Rule("rewards/accuracies", Group.ACCURACY, "Reward accuracy", "higher"),
    Rule("accuracy", Group.ACCURACY, "Accuracy", "higher"),
    Rule("mean_token_accuracy", Group.ACCURACY, "Token accuracy", "higher"),
    Rule("f1|bleu|rouge.*|exact_match", Group.ACCURACY, r"\g<0>", "higher"),
    Rule("kl", Group.KL, "KL to the reference"),
    Rule("grad_norm", Group.GRADIENT, "Gradient norm", log=True),
    Rule("nonfinite_steps", Group.GRADIENT, "Steps with NaN or infinity", "lower", "steps"),
    Rule("entropy", Group.ENTROPY, "Entropy"),
    Rule("entropy_coef", Group.ENTROPY, "Entropy coefficient"),
    Rule(
        "logps/(.+)", Group.LOG_PROBABILITIES, r"Log-probability of \1", chart=f"Log-probability of {_CHOSEN}"
    ),
    Rule("logits/(.+)", Group.LOG_PROBABILITIES, r"Logits of \1", chart=f"Logits of {_CHOSEN}"),
    Rule(
        f"completions/{_OF}_length",
        Group.LENGTHS,
        r"Completion length, \1",
        None,
        "tokens",
        "Completion length",
    ),
    Rule(
        f"completions/{_OF}_terminated_length",
        Group.LENGTHS,
        r"Terminated completion length, \1",
        unit="tokens",
        chart="Terminated completion length",
    ),
    Rule("completions/clipped_ratio", Group.LENGTHS, "Truncated completions", "lower"),
    Rule("clip_ratio/region_mean", Group.POLICY, "Clip ratio", chart="Clip ratio"),
    Rule("clip_ratio/(low|high)_mean", Group.POLICY, r"Clip ratio, \1", chart="Clip ratio"),
    Rule("clip_ratio/(low_min|high_max)", Group.POLICY, r"Clip ratio, \1", chart="Clip ratio, extremes"),
    Rule("(cispo|vespo)(.+)", Group.POLICY, r"\g<0>"),
    Rule(f"sampling/(.+)/{_OF}", Group.POLICY, r"\1, \2", chart="Sampling against training"),
    Rule("tools/failure_frequency", Group.POLICY, "Tool failures", "lower"),
    Rule("tools/call_frequency", Group.POLICY, "Tool calls a completion"),
    Rule("tokens_per_second", Group.THROUGHPUT, "Tokens per second", "higher", "tokens/s"),
    Rule("samples_per_second", Group.THROUGHPUT, "Samples per second", "higher", "samples/s"),
    Rule("step_time_s", Group.THROUGHPUT, "Time a step", "lower", "s"),
    Rule("step_time", Group.THROUGHPUT, "Time a step, as TRL measures it", "lower", "s"),
    Rule("eta_s", Group.THROUGHPUT, "Time left", unit="s", charted=False),
    Rule(
        r"gpu_(\d+)_peak_memory_mb", Group.MEMORY, r"GPU \1 peak memory", unit="MB", chart="GPU peak memory"
    ),
    Rule(f"{LIVE_METRIC_PREFIX}(.+)", Group.LIVE, r"\1, as set live"),
    _gpu("utilization_percentage", "utilization", "%"),
    _gpu("memory_usage_percentage", "memory, share in use", "%"),
    _gpu("memory_usage_megabytes", "memory in use", "MB"),
    _gpu("memory_usage_gigabytes", "memory in use", "GB"),
    _gpu("power_usage_watts", "power", "W"),
    _gpu("power_usage_percentage", "power, share", "%"),
    Rule("system/cpu_utilization_percentage", Group.SYSTEM, "CPU utilization", unit="%"),
    Rule("system/system_memory_usage_percentage", Group.SYSTEM, "Memory, share in use", unit="%"),
    Rule("system/system_memory_usage_megabytes", Group.SYSTEM, "Memory in use", unit="MB"),
    Rule(
        "system/network_(receive|transmit)_megabytes", Group.SYSTEM, r"Network \1", unit="MB", chart="Network"
    ),
    Rule("system/disk_usage_percentage", Group.SYSTEM, "Disk, share in use", unit="%"),
    Rule("system/disk_usage_megabytes", Group.SYSTEM, "Disk in use", unit="MB", chart="Disk"),
    Rule("system/disk_available_megabytes", Group.SYSTEM, "Disk free", unit="MB", chart="Disk"),
    Rule("system/(.+)", Group.SYSTEM, r"\1"),
    Rule(
        "(train|eval|test)_(?:.+_)?(samples|steps|tokens)_per_second",
        Group.PROGRESS,
        r"Overall \2 per second, \1",
        "higher",
        r"\2/s",
        charted=False,
    ),
    Rule("(train|eval|test)_(?:.+_)?runtime", Group.PROGRESS, r"Time, \1", unit="s", charted=False),
    Rule("num_tokens|num_input_tokens_seen", Group.PROGRESS, "Tokens seen", unit="tokens", charted=False),
    Rule("best_eval_step", Group.PROGRESS, "Step of the best evaluation", charted=False),
    Rule("epoch|step|global_step|total_flos", Group.PROGRESS, r"\g<0>", charted=False),
)
"""The names that TRL's trainers, transformers, docs/metrics.md and MLflow's system metrics have."""

_LOOSE = (
    Rule(r"\w+_loss", Group.LOSS, r"\g<0>", "lower"),
    Rule(r"\w+_accuracy", Group.ACCURACY, r"\g<0>", "higher"),
)
"""Tried last: names that tell what they are."""

_UNKNOWN = Rule("(?s:.*)", Group.OTHER, r"\g<0>")
_ORDER = {rule: place for place, rule in enumerate((*RULES, *_LOOSE, _UNKNOWN))}
_SPLIT = re.compile(r"(?:(train)|(test)|eval|val|valid|validation)[_/](.+)")


@dataclass(frozen=True)
class Metric:
    """A metric's name, understood.

    Attributes:
        base: The name without what tells training from evaluation: counterparts have the same.
        title: For people. Of an unknown metric the name as it is.
        is_eval: Whether it is of an evaluation.
        dataset: Which evaluation set, where there are several; else empty.
        better, unit, chart, log, charted: As in its `Rule`; `chart` is never empty.
        order: What sorts metrics by importance.
    """

    key: str
    base: str
    group: Group
    title: str
    better: Better | None
    unit: str
    is_eval: bool
    dataset: str
    chart: str
    log: bool
    charted: bool
    order: tuple[int, int]


@dataclass(frozen=True)
class Chart:
    """What one chart shows.

    Attributes:
        title: No two charts of a run have the same.
        keys: Metrics in a good order: the most telling first, each before its evaluations.
        log: Whether a logarithmic axis makes sense.
        has_steps: False where the metrics' steps are no optimizer steps but MLflow's count of samples of the
            machine: those have their place on an axis of time only.
    """

    title: str
    group: Group
    keys: tuple[str, ...]
    unit: str
    log: bool
    has_steps: bool


def describe(key: str, method: str | None = None) -> Metric:
    """What a metric of this name is.

    Args:
        method: What the run is trained with, as in `Status.method`. The loss of GRPO and RLOO has no better:
            it is there for its gradient, and is near the same value however good the policy is.

    Raises:
        ConfigError: The user's own directions are malformed (`settings.metric_directions`).
    """
    known = _described(key, method)
    for name, way in metric_directions():
        if fnmatchcase(key, name) or fnmatchcase(known.base, name):
            return replace(known, better=None if way == "none" else way)
    return known


@lru_cache(maxsize=4096)
def _described(key: str, method: str | None) -> Metric:
    if key.startswith("best_eval_") and key != "best_eval_step":
        of = _described(key.removeprefix("best_"), method)
        return replace(of, key=key, base=key, title=f"Best {_lower(of.title)}", charted=False)
    base, rule, is_eval, dataset = _parsed(key)
    match = re.fullmatch(rule.pattern, base)
    assert match is not None
    title = match.expand(rule.title)
    inner = title if rule.title.startswith("\\") else _lower(title)
    has_way = not (base == "loss" and method in ("grpo", "rloo"))
    return Metric(
        key=key,
        base=base,
        group=rule.group,
        title=(f"Eval {inner}" if is_eval and base != key else title) + (f" ({dataset})" if dataset else ""),
        better=rule.better if has_way else None,
        unit=match.expand(rule.unit),
        is_eval=is_eval,
        dataset=dataset,
        chart=rule.chart or title,
        log=rule.log and has_way,
        charted=rule.charted,
        order=(_GROUPS.index(rule.group), _ORDER[rule]),
    )


def charts(keys: Iterable[str]) -> list[Chart]:
    """The charts to draw of a run that has these metrics, the most important first.

    Training and evaluation share a chart. Left out are counters and sums at the end: ``train_loss`` beside
    ``loss``.
    """
    names = set(keys)
    method = "grpo" if "reward" in names else None  # or rloo: they alone log it
    by_chart: dict[str, list[Metric]] = {}
    for metric in sorted((describe(key, method) for key in names), key=_place):
        is_sum = metric.key != metric.base and metric.base in names and not metric.is_eval
        if metric.charted and not is_sum:
            by_chart.setdefault(metric.chart, []).append(metric)
    drawn = [_chart(title, metrics) for title, metrics in by_chart.items()]
    return sorted(drawn, key=lambda chart: chart.group is not Group.REWARDS) if method else drawn


def _chart(title: str, metrics: list[Metric]) -> Chart:
    first = metrics[0]
    return Chart(
        title=title,
        group=first.group,
        keys=tuple(metric.key for metric in metrics),
        unit=first.unit,
        log=all(metric.log for metric in metrics),
        has_steps=first.group is not Group.SYSTEM,
    )


def _parsed(key: str) -> tuple[str, Rule, bool, str]:
    """The base name, its rule, whether it is an evaluation's and of which set."""
    split = _SPLIT.fullmatch(key)
    is_eval = split is not None and split[1] is None
    if rule := _rule(key, RULES):
        return key, rule, is_eval, ""
    if split is None:
        return key, _rule(key, _LOOSE) or _UNKNOWN, False, ""
    rest, dataset = split[3], split[2] or ""
    if rule := _rule(rest, RULES):
        return rest, rule, is_eval, dataset
    if not is_eval:
        return key, _rule(key, _LOOSE) or _UNKNOWN, False, ""
    for gap in re.finditer("[_/]", rest):
        base = rest[gap.end() :]
        if (rule := _rule(base, RULES)) and rule.charted:
            return base, rule, True, rest[: gap.start()]
    return rest, _rule(rest, _LOOSE) or _UNKNOWN, True, dataset


def _rule(name: str, rules: tuple[Rule, ...]) -> Rule | None:
    return next((rule for rule in rules if re.fullmatch(rule.pattern, name)), None)


def _place(metric: Metric) -> tuple[object, ...]:
    """Where it stands among all metrics; numbers in names by their size."""
    parts = re.split(r"(\d+)", metric.base)
    numbered = [int(part) if place % 2 else part for place, part in enumerate(parts)]
    return *metric.order, numbered, metric.is_eval, metric.dataset, metric.key


def _lower(title: str) -> str:
    """A title inside of another one: its first letter small, unless it begins an abbreviation."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]
