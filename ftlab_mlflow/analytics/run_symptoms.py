"""What may go wrong beside the loss: the gradient, the speed, the process."""

from __future__ import annotations

import numpy as np

from ftlab_mlflow.analytics.evidence import OWN, Change, Evidence, Finding, Verdict
from ftlab_mlflow.analytics.loss_symptoms import LOWER_RATE, few, loss_course
from ftlab_mlflow.analytics.trends import Course
from ftlab_mlflow.control.view import age

_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
_SILENT_S, _SILENT_GAPS = 600, 10


# --- the gradient ------------------------------------------------------------------------------------


def gradient_explosion(run: Evidence) -> Verdict:
    """The gradient's norm is ten times what it was."""
    course = run.course("grad_norm")
    if course is None:
        return few("grad_norm", run)
    for place in range(2, len(course.medians)):
        before = float(np.median(course.medians[:place]))
        now = float(course.medians[place])
        if before > 0 and now > 10 * before and now - before > course.margin:
            return Finding(
                kind="gradient_explosion",
                severity="problem",
                summary=f"The gradient's norm rose from {before:.3g} to {now:.3g} at step "
                f"{course.begins[place]}",
                step=int(course.begins[place]),
                numbers={"before": before, "now": now, "last": course.last},
                threshold="ten times the median of before",
                source="Pascanu, Mikolov & Bengio, On the difficulty of training recurrent neural "
                "networks (2013): "
                "clip at half to ten times the mean norm",
                advice="Clip the gradient at about its norm of before, and lower the learning rate.",
                changes=(Change("max_grad_norm", value=float(f"{before:.2g}")), *LOWER_RATE),
            )
    return None


def gradient_vanishing(run: Evidence) -> Verdict:
    """The gradient is gone, the loss is not."""
    course, loss = run.course("grad_norm"), loss_course(run)
    if isinstance(loss, str):
        return loss
    if course is None:
        return few("grad_norm", run)
    before, now = course.share(0, 0.2), course.share(0.8, 1)
    if not (before > 0 and now < 1e-3 * before and loss.last > 0.1 * abs(loss.first)):
        return None
    return Finding(
        kind="gradient_vanishing",
        severity="problem",
        summary=f"The gradient's norm fell from {before:.3g} to {now:.3g}, the loss is {loss.last:.4g}",
        step=int(course.ends[-1]),
        numbers={"before": before, "now": now, "loss": loss.last},
        threshold="a thousandth of what it was, with more than a tenth of the first loss left",
        source=OWN,
        advice="Look at the weights: weight decay, saturation and frozen layers do this. A resume "
        "does not help.",
        changes=(Change("weight_decay", value=0.0),),
    )


# --- the process -------------------------------------------------------------------------------------


def throughput_drop(run: Evidence) -> Verdict:
    """It has become slower, and was not told to do something else."""
    metric = next((each for each in ("tokens_per_second", "samples_per_second") if each in run.series), None)
    if metric is None:
        return "no tokens_per_second or samples_per_second was logged"
    since = max((mark.step for mark in run.changes_of(_BATCH)), default=0)
    whole = run.series[metric]
    course = Course.of(whole.taken(whole.steps > since))
    if course is None:
        return few(metric, run) if not since else f"too few values of {metric} since the batch was changed"
    before = max(course.share(0, 0.2), course.share(0.05, 0.5))
    slow = course.medians < 0.7 * before
    if not slow[-2:].all() or before - course.last <= course.margin:
        return None
    place = len(slow) - int(np.argmin(slow[::-1])) if not slow.all() else 0
    return Finding(
        kind="throughput_drop",
        severity="warning",
        summary=f"{metric} fell from {before:.4g} to {course.last:.4g}",
        step=int(course.begins[place]),
        numbers={"metric": metric, "before": before, "now": course.last},
        threshold="less than 70 % of the median of the first half, or fifth",
        source=OWN,
        advice="Look at the machine: system metrics, other processes, the data's storage, longer sequences.",
    )


def process(run: Evidence) -> Verdict:
    """It failed, its trainer is gone, or it is silent."""
    view = run.view
    if view.state == "failed":
        error = view.status.error if view.status else None
        step = view.status.step if view.status else None
        return _of_process("failed", f"The training failed: {error or 'no reason is known'}", step, {})
    if view.state == "lost":
        assert view.status is not None
        silent = view.heartbeat_age_s
        text = f"No sign of its trainer for {age(silent)}; one is due every {age(view.status.every_s)}"
        return _of_process("lost", text, view.status.step, {"silent_s": silent}, "three heartbeats missed")
    if view.state != "running":
        return None
    if not run.series:
        return "nothing was logged yet"
    times = np.unique(np.concatenate([each.times for each in run.series.values()]))
    if len(times) < 3:
        return "too few values were logged to tell whether it is silent"
    gap = float(np.median(np.diff(times))) / 1000
    silent = view.now.timestamp() - float(times[-1]) / 1000
    needed = max(_SILENT_S, _SILENT_GAPS * gap)
    if silent <= needed:
        return None
    return _of_process(
        "stalled",
        f"It says that it runs, and has logged nothing for {age(silent)}",
        view.status.step if view.status else None,
        {"silent_s": silent, "usual_gap_s": gap},
        f"silent for {age(needed)}: {_SILENT_GAPS} usual gaps, and ten minutes",
    )


def _of_process(
    kind: str, summary: str, step: int | None, numbers: dict[str, float | None], threshold: str = ""
) -> Finding:
    return Finding(
        kind=kind,
        severity="problem",
        summary=summary,
        step=step,
        numbers=numbers,
        threshold=threshold or "the status of the run",
        source="docs/protocol.md" if kind != "stalled" else OWN,
        advice="Look at its process and its log, then resume it from its last checkpoint: --resume.",
    )
