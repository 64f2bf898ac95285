"""What may go wrong in every training: its loss, its gradient, its speed, its process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ftlab_mlflow.analytics.effects import Slope, slope
from ftlab_mlflow.analytics.evidence import OWN, PREFERENCES, Change, Evidence, Finding, Rule, Verdict
from ftlab_mlflow.analytics.series import Series
from ftlab_mlflow.analytics.trends import FEWEST, Course, outliers
from ftlab_mlflow.control.view import age

_NO_LOSS = "the loss says nothing where a reward is trained for"
_LOWER_RATE = (Change("learning_rate", factor=0.3),)
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
_FP16_SKIPS, _FP16_SHARE = 20, 0.01
_SILENT_S, _SILENT_GAPS = 600, 10


def few(metric: str, run: Evidence) -> str:
    """Why a course of a metric cannot be told."""
    there = run.series.get(metric)
    return f"{metric} has {0 if there is None else len(there.values)} values, {FEWEST} are needed"


def _loss(run: Evidence) -> Course | str:
    if run.is_policy:
        return _NO_LOSS
    return run.course("loss") or few("loss", run)


# --- the loss ----------------------------------------------------------------------------------------


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
        changes=_LOWER_RATE,
    )


def divergence(run: Evidence) -> Verdict:
    """The loss has lost half of what it had gained, or has risen by a fifth from its best."""
    course = _loss(run)
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
        changes=_LOWER_RATE,
    )


def _onset(course: Course, best: int, level: float) -> int:
    """Where the block begins from which all lie above a level."""
    below = np.flatnonzero(course.medians <= level)
    after = max(best, int(below[-1]) if len(below) else 0) + 1
    return int(course.begins[min(after, len(course.begins) - 1)])


def loss_spikes(run: Evidence) -> Verdict:
    """Single values of the loss far above those around them."""
    course = _loss(run)
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
class _Fall:
    """How the loss moves over some values.

    Attributes:
        least, most: Of the 95 % interval of its fall from the first value to the last.
    """

    slope: Slope
    least: float
    most: float


def _fall(series: Series) -> _Fall | None:
    found = slope(series)
    if found is None:
        return None
    span = float(series.steps[-1] - series.steps[0]) / 100
    return _Fall(found, (-found.value - found.margin) * span, (-found.value + found.margin) * span)


def underfitting(run: Evidence) -> Verdict:
    """The loss is where it began."""
    course = _loss(run)
    if isinstance(course, str):
        return course
    if run.is_warming_up:
        return "the learning rate is still rising"
    if run.method in PREFERENCES and _rises(run.course("rewards/margins")):
        return None  # its loss is near its start where margins are small
    fall = _fall(course.series)
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


def _rises(course: Course | None) -> bool:
    return course is not None and course.last - course.first > course.margin


def plateau(run: Evidence) -> Verdict:
    """The loss fell, and does no more, though the learning rate is still high."""
    course = _loss(run)
    if isinstance(course, str):
        return course
    series = course.series
    if run.peak_rate:
        rates = np.array([run.rate_at(step) for step in series.steps])
        series = series.taken(rates >= 0.3 * run.peak_rate)
    half = series.taken(slice(len(series.values) // 2, None))
    fall = _fall(half) if len(half.values) >= FEWEST else None
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


# --- the learning rate -------------------------------------------------------------------------------


def rate_too_high(run: Evidence) -> Verdict:
    """The loss went up, or away, at a time when the learning rate was at least half of its highest."""
    course = _loss(run)
    if not run.peak_rate:
        return "no learning rate was logged"
    signs: list[tuple[str, int]] = []
    for rule in (nonfinite, divergence):
        found = rule(run)
        if isinstance(found, Finding) and found.step is not None:
            signs.append((found.kind, found.step))
    if isinstance(course, Course) and len(course.medians) > 2:
        pairs = np.minimum(course.medians[1:-1], course.medians[2:])
        top = int(np.argmax(pairs))
        if pairs[top] - course.first > max(course.margin, 0.2 * abs(course.first)):
            signs.append(("above its start", int(course.ends[top + 1])))
    high = [(sign, step) for sign, step in signs if (run.rate_at(step) or 0.0) >= 0.5 * run.peak_rate]
    if not high:
        return course if isinstance(course, str) and not signs else None
    sign, step = min(high, key=lambda each: each[1])
    raised = [mark for mark in run.changes_of(["learning_rate", "lr_schedule"]) if mark.step <= step]
    return Finding(
        kind="rate_too_high",
        severity="problem",
        summary=f"At a learning rate of {run.rate_at(step):.3g} the loss went wrong ({sign}, step {step})",
        step=step,
        numbers={
            "rate": run.rate_at(step),
            "highest_rate": run.peak_rate,
            "signs": dict(signs),
            "last_change_before": raised[-1].text if raised else None,
        },
        threshold="at least half of the highest rate of the run",
        source=OWN,
        advice="Lower the learning rate to about a third, with a longer warm-up in the next run.",
        changes=_LOWER_RATE,
    )


_ADAM_PATH = 1e-4


def rate_too_low(run: Evidence) -> Verdict:
    """The loss falls slowly on a straight line, or does not, and no weight can have moved."""
    course = _loss(run)
    if isinstance(course, str):
        return course
    if run.is_warming_up:
        return "the learning rate is still rising"
    if run.method in PREFERENCES and _rises(run.course("rewards/margins")):
        return None
    path = _path(run, int(course.ends[-1]))
    whole = _fall(course.series)
    moved = whole is None or whole.least > 0.02 * abs(course.first)
    is_still = not moved and path is not None and path < _ADAM_PATH
    first, second = (course.series.taken(part) for part in _halves(course.series))
    falls = [_fall(first), _fall(second)]
    is_straight = False
    if falls[0] and falls[1] and falls[0].least > 0 and falls[1].least > 0:
        share = falls[1].slope.value / falls[0].slope.value
        is_straight = share > 0.7 and course.first - course.last < 0.04 * abs(course.first)
    if not is_still and not is_straight:
        return None
    return Finding(
        kind="rate_too_low",
        severity="warning",
        summary=f"The loss moved from {course.first:.4g} to {course.last:.4g} in {course.ends[-1]} steps"
        + (", on a straight line" if is_straight else ", and the learning rate moves nothing"),
        step=int(course.ends[-1]),
        numbers={
            "first": course.first,
            "last": course.last,
            "sum_of_rates": path,
            "highest_rate": run.peak_rate,
        },
        threshold=f"rates of all steps below {_ADAM_PATH:g} in sum with a loss that stays, or less "
        "than 4 % in a "
        "fall that does not slow down",
        source="Kingma & Ba, Adam (2015), section 2.1: a step moves a weight by about the rate at most; "
        + OWN,
        advice="Raise the learning rate, three times at first.",
        changes=(Change("learning_rate", factor=3.0),),
    )


def _halves(series: Series) -> tuple[slice, slice]:
    middle = len(series.values) // 2
    return slice(0, middle), slice(middle, None)


def _path(run: Evidence, last: int) -> float | None:
    """The sum of the learning rates of all steps; None unless the optimizer is of Adam's kind."""
    rates = run.rates
    if rates is None or "adam" not in run.params.get("optim", "adamw").lower():
        return None
    steps = np.concatenate(([0], rates.steps[rates.steps < last], [last])).astype(np.float64)
    values = np.interp(steps, rates.steps, rates.values)
    return float(np.sum(np.diff(steps) * (values[1:] + values[:-1]) / 2))


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
                changes=(Change("max_grad_norm", value=float(f"{before:.2g}")), *_LOWER_RATE),
            )
    return None


def gradient_vanishing(run: Evidence) -> Verdict:
    """The gradient is gone, the loss is not."""
    course, loss = run.course("grad_norm"), _loss(run)
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


RULES: Sequence[tuple[str, Rule]] = (
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
