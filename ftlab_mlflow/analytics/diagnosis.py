"""What is wrong with a run: each finding with its numbers, its threshold and where that comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ftlab_mlflow.analytics import scope
from ftlab_mlflow.analytics.answer import Answer, listed, shown
from ftlab_mlflow.analytics.evidence import PREFERENCES, Change, Evidence, Finding, Rule
from ftlab_mlflow.analytics.loss_symptoms import (
    divergence,
    loss_spikes,
    nonfinite,
    overfitting,
    plateau,
    underfitting,
)
from ftlab_mlflow.analytics.method_symptoms import PREFERENCE_RULES, REWARD_RULES
from ftlab_mlflow.analytics.metric_table import describe
from ftlab_mlflow.analytics.queries import Limit, Offset
from ftlab_mlflow.analytics.rate_symptoms import rate_too_high, rate_too_low
from ftlab_mlflow.analytics.reader import RunReader, RunRecord
from ftlab_mlflow.analytics.run_rows import method_of
from ftlab_mlflow.analytics.run_symptoms import (
    gradient_explosion,
    gradient_vanishing,
    process,
    throughput_drop,
)
from ftlab_mlflow.analytics.series import Series, courses, latest
from ftlab_mlflow.control.markers import markers, turns
from ftlab_mlflow.control.messages import Update
from ftlab_mlflow.control.view import RunView, why_closed
from ftlab_mlflow.control.wire import Scalar, utc_now

_SIGNS = {
    "loss", "epoch", "learning_rate", "grad_norm", "nonfinite_steps",
    "tokens_per_second", "samples_per_second",
    "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected",
    "reward", "reward_std", "frac_reward_zero_std", "kl",
    "completions/mean_length", "completions/clipped_ratio",
}  # fmt: skip
"""The metrics that the rules look at, beside losses of evaluations."""
_RULES: Sequence[tuple[str, Rule]] = (
    ("failed, lost or stalled", process),
    ("NaN or infinity", nonfinite),
    ("divergence", divergence),
    ("loss spikes", loss_spikes),
    ("overfitting", overfitting),
    ("underfitting", underfitting),
    ("plateau", plateau),
    ("learning rate too high", rate_too_high),
    ("learning rate too low", rate_too_low),
    ("exploding gradient", gradient_explosion),
    ("vanishing gradient", gradient_vanishing),
    ("throughput", throughput_drop),
)
"""What is looked for, in words, and how."""
_ORDER = ("problem", "warning", "note")


def diagnose_run(
    run: str, limit: Limit = 20, offset: Offset = 0, *, tracking_uri: str | None = None
) -> Answer:
    """What is wrong with a run.

    Looked for are divergence, NaN, loss spikes, plateau, overfitting, underfitting, gradients that explode or
    vanish, a learning rate too high or too low, throughput, a failed, lost or stalled process; for DPO, ORPO
    and KTO margins, accuracy and likelihood displacement; for GRPO and RLOO reward collapse, groups without
    spread, KL divergence, growing and cut completions.

    Args:
        run: Id, unique prefix of one, or name.
        limit: Findings to give at most. offset: Findings to pass over.
        tracking_uri: MLflow's tracking URI; None is MLflow's own setting.

    Returns:
        Rows, problems first: ``kind, severity`` (problem or warning), ``summary, step, numbers, threshold,
        source`` (of the threshold), ``advice``, and ``live``: new values by parameter, ``from`` and ``to``,
        that the run would take now (`propose_update` checks others), empty where it takes none. ``run_id,
        name, method, state, step`` of the run; ``clear``: what was looked for and is not there;
        ``not_judged``: what cannot be told, and why. No rows mean no more than ``clear`` says.

    Raises:
        AnalyticsError: No such run.
        StoreError: As the tracking store does.
    """
    store = scope.reader(tracking_uri)
    record = scope.record(store, run)
    evidence = gathered(store, record)
    findings, clear, not_judged = diagnosed(evidence)
    view = evidence.view
    return listed(
        [_document(finding, view) for finding in findings],
        arguments={"run": run, "limit": limit},
        offset=offset,
        limit=limit,
        omitted={"rule that cannot be judged": len(not_judged)},
        run_id=record.data.run_id,
        name=record.data.label,
        method=evidence.method,
        state=view.state,
        step=view.status.step if view.status else None,
        clear=clear,
        not_judged=not_judged,
        policy={
            "values": "all that were logged; of a step that was logged twice the last; what rollbacks took "
            "back is left out; NaN and infinity are counted as such and are in no median",
            "course": "medians of twenty pieces; a difference counts from 4.5 standard errors on",
        },
    )


def gathered(store: RunReader, record: RunRecord) -> Evidence:
    """What there is to be looked at of a run."""
    view = RunView.of(record.data)
    marks = markers(view.entries)
    metrics = [key for key in record.data.metrics if key in _SIGNS or _is_eval_loss(key)]
    series: dict[str, Series] = {}
    for metric in metrics:
        found = store.whole([record.data.run_id], metric).get(record.data.run_id)
        if found is not None:
            series[metric] = latest(courses(found, turns(marks))[0])
    return Evidence(view, record.params, method_of(view), series, marks)


def _is_eval_loss(key: str) -> bool:
    metric = describe(key)
    return metric.is_eval and metric.base == "loss"


def diagnosed(run: Evidence) -> tuple[list[Finding], list[str], dict[str, str]]:
    """The findings, the worst first; what is not there; what cannot be told, and why."""
    findings: list[Finding] = []
    clear: list[str] = []
    not_judged: dict[str, str] = {}
    for name, rule in _rules(run):
        verdict = rule(run)
        if isinstance(verdict, Finding):
            findings.append(verdict)
        elif verdict is None:
            clear.append(name)
        else:
            not_judged[name] = verdict
    findings.sort(key=lambda finding: _ORDER.index(finding.severity))
    return findings, clear, not_judged


def _rules(run: Evidence) -> Sequence[tuple[str, Rule]]:
    if run.is_policy:
        return (*_RULES, *REWARD_RULES)
    is_preference = run.method in PREFERENCES or (run.method is None and "rewards/margins" in run.series)
    return (*_RULES, *PREFERENCE_RULES) if is_preference else _RULES


def _document(finding: Finding, view: RunView) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "severity": finding.severity,
        "summary": finding.summary,
        "step": finding.step,
        "numbers": _plain(finding.numbers),
        "threshold": finding.threshold,
        "source": finding.source,
        "advice": finding.advice,
        "live": _live(finding.changes, view),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return shown(value) if isinstance(value, float) else value


def _live(changes: Sequence[Change], view: RunView) -> dict[str, dict[str, Scalar]]:
    """The changes that the run would take now, from the value last asked for."""
    found: dict[str, dict[str, Scalar]] = {}
    if view.surface is None or why_closed(view):
        return found
    for change in changes:
        param = view.surface.params.get(change.parameter)
        if param is None:
            continue
        now, new = param.asked, change.value
        if change.factor is not None:
            if isinstance(now, bool) or not isinstance(now, int | float):
                continue
            new = now * change.factor
            new = round(new) if param.type == "int" else float(f"{new:.3g}")
        assert new is not None
        if new != now and view.surface.problems(Update(at=utc_now(), set={change.parameter: new})) is None:
            found[change.parameter] = {"from": now, "to": new}
    return found
