"""What may go wrong with a loss: NaN, divergence, spikes, plateau, overfitting, underfitting."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ftlab_mlflow.analytics.effects import Slope, slope
from ftlab_mlflow.analytics.evidence import OWN, PREFERENCES, Change, Evidence, Finding, Verdict
from ftlab_mlflow.analytics.series import Series
from ftlab_mlflow.analytics.trends import FEWEST, Course, outliers

_NO_LOSS = "the loss says nothing where a reward is trained for"
LOWER_RATE = (Change("learning_rate", factor=0.3),)
_FP16_SKIPS, _FP16_SHARE = 20, 0.01


def few(metric: str, run: Evidence) -> str:
    """Why a course of a metric cannot be told."""
    there = run.series.get(metric)
    return f"{metric} has {0 if there is None else len(there.values)} values, {FEWEST} are needed"


def loss_course(run: Evidence) -> Course | str:
    """The course of the training loss, or why it cannot be told."""
    if run.is_policy:
        return _NO_LOSS
    return run.course("loss") or few("loss", run)


def nonfinite(run: Evidence) -> Verdict:
    """NaN or infinity in what was logged, or in the steps between."""
    first: dict[str, int] = {}
    for metric in ("loss", *run.eval_losses, "grad_norm"):
        if metric in run.series:
            bad = np.flatnonzero(~np.isfinite(run.series[metric].values))
            if len(bad):
                first[metric] = int(run.series[metric].steps[bad[0]])
    counter = run.series.get("nonfinite_steps")
    counted = 0
    if counter is not None and len(
        places := np.flatnonzero(np.isfinite(counter.values) & (counter.values > 0))
    ):
        counted = int(counter.values[places].max())
        first["nonfinite_steps"] = int(counter.steps[places[0]])
    is_fp16 = run.params.get("fp16") == "True"
    last = max((int(each.steps[-1]) for each in run.series.values() if len(each.steps)), default=0)
    allowed = max(_FP16_SKIPS, _FP16_SHARE * last) if is_fp16 else 0
    is_bad = any(metric not in ("grad_norm", "nonfinite_steps") for metric in first)
    bad_norms = int(np.sum(~np.isfinite(run.series["grad_norm"].values))) if "grad_norm" in first else 0
    if not is_bad and max(counted, bad_norms) <= allowed:
        return None
    return Finding(
        kind="nonfinite",
        severity="problem",
        summary=f"NaN or infinity since step {min(first.values())}: {', '.join(sorted(first))}",
        step=min(first.values()),
        numbers={"first_step": first, "nonfinite_steps": counted},
        threshold=f"more than {allowed:g} steps" + (", as fp16 skips some" if is_fp16 else ""),
        source="docs/metrics.md; with fp16, PyTorch's GradScaler skips steps while it looks for its scale",
        advice="Go back to a checkpoint before that step with a lower learning rate; use bf16 in "
        "place of fp16.",
        changes=LOWER_RATE,
    )


def divergence(run: Evidence) -> Verdict:
    """The loss has lost half of what it had gained, or has risen by a fifth from its best."""
    course = loss_course(run)
    if isinstance(course, str):
        return course
    best = int(np.argmin(course.medians[:-1]))
    low, last = float(course.medians[best]), course.ending
    needed = max(course.margin, 0.5 * (course.first - low), 0.2 * abs(low))
    if last - low <= needed:
        return None
    step = _onset(course, best, low + needed / 2)
    return Finding(
        kind="divergence",
        severity="problem",
        summary=f"The loss has risen from {low:.4g} (step {course.ends[best]}) to {course.now:.4g}",
        step=step,
        numbers={
            "first": course.first,
            "best": low,
            "best_step": int(course.ends[best]),
            "last": course.now,
            "noise": course.noise,
        },
        threshold=f"a rise of more than {needed:.4g}: half of what was gained, a fifth of the best, "
        "and noise",
        source=OWN,
        advice="Go back to the best checkpoint and lower the learning rate, or stop the run.",
        changes=LOWER_RATE,
    )


def _onset(course: Course, best: int, level: float) -> int:
    """Where the block begins from which all lie above a level."""
    below = np.flatnonzero(course.medians <= level)
    after = max(best, int(below[-1]) if len(below) else 0) + 1
    return int(course.begins[min(after, len(course.begins) - 1)])


def loss_spikes(run: Evidence) -> Verdict:
    """Single values of the loss far above those around them."""
    course = loss_course(run)
    if isinstance(course, str):
        return course
    series = course.series
    places = outliers(series, errors=6, share=0.5)
    heights = series.values[places]
    places = places[(heights > 0.1 * abs(course.first)) & (places < len(series.values) - 1)]
    if not 0 < len(places) <= 0.05 * len(series.values):
        return None  # what comes in one of twenty steps is no exception
    top = places[int(np.argmax(series.values[places]))]
    return Finding(
        kind="loss_spikes",
        severity="warning",
        summary=f"{len(places)} spikes of the loss, the highest {series.values[top]:.4g} at step "
        f"{series.steps[top]}",
        step=int(series.steps[top]),
        numbers={
            "spikes": len(places),
            "steps": series.steps[places][:20].tolist(),
            "highest": float(series.values[top]),
            "rate": run.rate_at(float(series.steps[top])),
        },
        threshold="above the median of the 11 or 31 values around it by half, and by 6 standard "
        "deviations (of "
        "the logarithm, where all are positive), in one of 20 steps at most",
        source=OWN,
        advice="Look at the data of these steps; clip the gradient lower, or lower the learning rate.",
        changes=(Change("max_grad_norm", value=1.0), Change("learning_rate", factor=0.5)),
    )


@dataclass(frozen=True)
class Fall:
    """How the loss moves over some values.

    Attributes:
        least, most: Of the 95 % interval of its fall from the first value to the last.
    """

    slope: Slope
    least: float
    most: float


def fall_of(series: Series) -> Fall | None:
    """How the loss moves over these values; None of too few."""
    found = slope(series)
    if found is None:
        return None
    span = float(series.steps[-1] - series.steps[0]) / 100
    return Fall(found, (-found.value - found.margin) * span, (-found.value + found.margin) * span)


def underfitting(run: Evidence) -> Verdict:
    """The loss is where it began."""
    course = loss_course(run)
    if isinstance(course, str):
        return course
    if why := why_it_may_stay(run):
        return why
    fall = fall_of(course.series)
    needed = 0.02 * abs(course.first)
    if fall is None or not needed:
        return None
    if max(abs(fall.least), abs(fall.most)) > needed:
        is_unclear = fall.least < needed < fall.most
        return "the loss is too noisy to tell whether it has moved" if is_unclear else None
    return Finding(
        kind="underfitting",
        severity="warning",
        summary=f"The loss is still {course.last:.4g} after {course.ends[-1]} steps, it began at "
        f"{course.first:.4g}",
        step=int(course.ends[-1]),
        numbers={"first": course.first, "last": course.last, "fall": [fall.least, fall.most]},
        threshold=f"no fall, and surely less than {needed:.3g} (2 %) with 95 % confidence",
        source=OWN,
        advice="Raise the learning rate; see whether labels are masked away, and which weights are trained.",
        changes=(Change("learning_rate", factor=3.0),),
    )


def why_it_may_stay(run: Evidence) -> str | None:
    """Why a loss that stays where it began says nothing yet; None where it does."""
    if run.is_warming_up:
        return "the learning rate is still rising"
    margins = run.course("rewards/margins") if run.method in PREFERENCES else None
    if margins is not None and margins.last - margins.first > margins.margin:
        return "reward margins grow, and the loss of small ones is near its start"
    return None


def plateau(run: Evidence) -> Verdict:
    """The loss fell, and does no more, though the learning rate is still high."""
    course = loss_course(run)
    if isinstance(course, str):
        return course
    series = course.series
    if run.peak_rate:
        rates = np.array([run.rate_at(step) for step in series.steps])
        series = series.taken(rates >= 0.3 * run.peak_rate)
    half = series.taken(slice(len(series.values) // 2, None))
    fall = fall_of(half) if len(half.values) >= FEWEST else None
    if fall is None:
        return f"the loss has too few values at a high learning rate, {2 * FEWEST} are needed"
    now = float(np.median(half.values))
    gained = course.first - now
    needed = 0.02 * abs(now)
    if fall.least > 0:
        return None  # it falls, however slowly
    if fall.most > needed:
        return "the loss is too noisy to tell a slow fall from none"
    if _is_within_an_epoch(run, half):
        return "the loss stands still within an epoch; it often falls from one to the next"
    if gained <= max(0.02 * abs(course.first), 0.6 * course.margin) or abs(now) < 0.1 * abs(course.first):
        return None  # it never fell, or nearly all of it is gone
    begin, end = int(half.steps[0]), int(half.steps[-1])
    return Finding(
        kind="plateau",
        severity="warning",
        summary=f"The loss stays at {now:.4g} from step {begin} to step {end}",
        step=begin,
        numbers={
            "loss": now,
            "from_step": begin,
            "to_step": end,
            "fall": [fall.least, fall.most],
            "gained_before": gained,
        },
        threshold=f"no fall, and surely less than {needed:.3g} (2 %) with 95 % confidence, at 30 % of "
        "the highest "
        "learning rate or more",
        source=OWN,
        advice="Lower the learning rate once to see whether it falls then; else stop: it has learned "
        "what it can.",
        changes=(Change("learning_rate", factor=0.3),),
    )


def _is_within_an_epoch(run: Evidence, part: Series) -> bool:
    """Whether these values are of one epoch of several."""
    epochs = run.series.get("epoch")
    if epochs is None or not len(epochs.values) or float(epochs.values[-1]) <= 1:
        return False
    first, last = np.interp(part.steps[[0, -1]], epochs.steps, epochs.values)
    return bool(last - first <= 1.05)


def overfitting(run: Evidence) -> Verdict:
    """The loss of an evaluation rises while that of training falls."""
    why = "no evaluation loss was logged" if not run.eval_losses else None
    for metric in run.eval_losses:
        finite = run.series[metric].taken(np.isfinite(run.series[metric].values))
        if len(finite.values) < 4:
            why = f"{metric} has {len(finite.values)} values, 4 are needed"
            continue
        best = int(np.argmin(finite.values))
        low, last = float(finite.values[best]), float(finite.values[-1])
        if len(finite.values) - best <= 2:
            continue
        bends = np.abs(np.diff(finite.values, 2))
        noise = 1.4826 * float(np.median(bends)) / math.sqrt(6)
        scale = low if low > 0 else float(finite.values[0]) - low
        if float(finite.values[-2:].min()) - low <= max(0.05 * scale, 4 * noise):
            continue
        train = _train_around(run, int(finite.steps[best]), int(finite.steps[-1]))
        if train is None:
            why = "too few values of the training loss around the best evaluation"
            continue
        if train[1] >= train[0]:
            continue
        return Finding(
            kind="overfitting",
            severity="problem",
            summary=f"{metric} has risen from {low:.4g} (step {finite.steps[best]}) to {last:.4g}, while the "
            f"training loss fell from {train[0]:.4g} to {train[1]:.4g}",
            step=int(finite.steps[best]),
            numbers={
                "metric": metric,
                "best": low,
                "best_step": int(finite.steps[best]),
                "last": last,
                "generalization_loss_percent": 100 * (last / low - 1) if low > 0 else None,
                "noise": noise,
                "train_at_best": train[0],
                "train_now": train[1],
            },
            threshold="a generalization loss of more than 5 % (of the fall, where the best is not "
            "above 0) and of 4 "
            "times the noise in the last two evaluations",
            source="Prechelt, Early Stopping - But When? (1998), criterion GL with α = 5",
            advice=f"Stop, and use the checkpoint nearest to step {finite.steps[best]}; fewer epochs, "
            "more data, "
            "more weight decay.",
            changes=(Change("learning_rate", factor=0.3), Change("weight_decay", value=0.1)),
        )
    return why


def _train_around(run: Evidence, best: int, last: int) -> tuple[float, float] | None:
    """Medians of the training loss before the best evaluation and before the last one."""
    loss = run.series.get("loss")
    if loss is None:
        return None
    span = (last - best) / 2
    parts = [
        loss.values[(loss.steps > end - span) & (loss.steps <= end) & np.isfinite(loss.values)]
        for end in (best, last)
    ]
    if min(map(len, parts)) < 2:
        return None
    return float(np.median(parts[0])), float(np.median(parts[1]))
