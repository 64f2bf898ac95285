"""What may go wrong in trainings of one kind: from preferences (DPO, ORPO, KTO), of rewards (GRPO, RLOO)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ftlab_mlflow.analytics.evidence import OWN, Change, Evidence, Finding, Rule, Verdict
from ftlab_mlflow.analytics.loss_symptoms import few
from ftlab_mlflow.analytics.trends import Course

_RATE = Change("learning_rate", factor=0.3)

# --- preferences -------------------------------------------------------------------------------------


def no_margin(run: Evidence) -> Verdict:
    """Chosen answers are not preferred to rejected ones, or ever less."""
    course = run.course("rewards/margins")
    if course is None:
        return few("rewards/margins", run)
    half = course.share(0.5, 1)
    best = float(course.medians.max())
    numbers = {"first": course.first, "best": best, "last": course.last, "second_half": half}
    if half <= 0 and course.last - course.first <= course.margin:
        return Finding(
            kind="no_margin",
            severity="problem",
            summary=f"The reward margin is {half:.3g} in the second half: chosen answers are not preferred",
            step=int(course.ends[-1]),
            numbers=numbers,
            threshold="a margin of 0 or less in the second half, and none that rises",
            source="Rafailov et al., Direct Preference Optimization (2023): the margin is what is "
            "trained for",
            advice="See whether chosen and rejected are swapped or alike; raise the learning rate if "
            "nothing moves.",
            changes=(Change("learning_rate", factor=3.0),),
        )
    if best > 0 and best - course.last > max(course.margin, 0.5 * best):
        place = int(np.argmax(course.medians))
        return Finding(
            kind="margin_falls",
            severity="problem",
            summary=f"The reward margin fell from {best:.3g} (step {course.ends[place]}) to "
            f"{course.last:.3g}",
            step=int(course.ends[place]),
            numbers=numbers,
            threshold="half of the best margin is lost",
            source=OWN,
            advice="Go back to the best checkpoint with a lower learning rate.",
            changes=(_RATE,),
        )
    return None


def no_accuracy(run: Evidence) -> Verdict:
    """Which answer is the better one is guessed."""
    course = run.course("rewards/accuracies")
    if course is None:
        return few("rewards/accuracies", run)
    values = course.series.values
    late = float(np.mean(values[round(0.7 * len(values)) :]))
    if late >= 0.55 or course.last - course.first > course.margin > 0:
        return None
    return Finding(
        kind="no_accuracy",
        severity="problem",
        summary=f"The chosen answer wins in {late:.0%} of the pairs: about as often as by chance",
        step=int(course.ends[-1]),
        numbers={"first": course.first, "last_third": late},
        threshold="less than 55 % in the last 30 % of the steps",
        source="chance is 50 %; " + OWN,
        advice="Look at the pairs: are they swapped, alike, or cut off before they differ? Else "
        "raise the rate.",
        changes=(Change("learning_rate", factor=3.0),),
    )


def likelihood_displacement(run: Evidence) -> Verdict:
    """The chosen answers themselves become less likely."""
    course = run.course("logps/chosen")
    if course is None:
        return few("logps/chosen", run)
    fall = course.first - course.last
    needed = max(course.margin, 0.1 * abs(course.first))
    if fall <= needed:
        return None
    rejected = run.course("logps/rejected")
    return Finding(
        kind="likelihood_displacement",
        severity="warning",
        summary=f"The log-probability of chosen answers fell from {course.first:.4g} to {course.last:.4g}",
        step=int(course.ends[-1]),
        numbers={
            "first": course.first,
            "last": course.last,
            "rejected_first": rejected and rejected.first,
            "rejected_last": rejected and rejected.last,
        },
        threshold=f"a fall of more than {needed:.3g}: a tenth, and noise",
        source="Razin et al., Unintentional Unalignment: Likelihood Displacement in DPO (2024); the tenth is "
        + OWN,
        advice="Raise beta, lower the learning rate, add an SFT term (rpo_alpha), or drop pairs that "
        "are alike.",
        changes=(Change("beta", factor=2.0), Change("learning_rate", factor=0.5)),
    )


# --- rewards -----------------------------------------------------------------------------------------


def reward_collapse(run: Evidence) -> Verdict:
    """The reward has lost half of what it had gained, or falls from the start."""
    course = run.course("reward")
    if course is None:
        return few("reward", run)
    best = int(np.argmax(course.medians[:-1]))
    high = float(course.medians[best])
    spread = run.course("reward_std")
    scale = float(np.median(spread.medians)) if spread else 0.0
    needed = max(course.margin, 0.5 * (high - course.first), 0.5 * scale, 0.1 * abs(high))
    falls = Course.of(replace(course.series, values=-course.series.values))
    if falls is None or high + falls.ending <= needed:
        return None
    return Finding(
        kind="reward_collapse",
        severity="problem",
        summary=f"The reward fell from {high:.4g} (step {course.ends[best]}) to {course.now:.4g}",
        step=int(course.ends[best]),
        numbers={
            "first": course.first,
            "best": high,
            "best_step": int(course.ends[best]),
            "last": course.now,
        },
        threshold=f"a fall of more than {needed:.3g}: half of the gain, half of the spread in a "
        "group, and noise",
        source=OWN,
        advice="Go back to the best checkpoint; lower the learning rate or raise beta.",
        changes=(_RATE, Change("beta", factor=2.0)),
    )


def no_spread(run: Evidence) -> Verdict:
    """Groups whose completions all have the same reward teach nothing."""
    course = run.course("frac_reward_zero_std")
    if course is None:
        return few("frac_reward_zero_std", run)
    late, reward = course.share(0.8, 1), run.course("reward")
    if late < 0.5:
        return None
    is_best = reward is not None and reward.last - reward.first > reward.margin
    is_solved = is_best and reward is not None and reward.last >= 0.98 * float(reward.medians.max())
    return Finding(
        kind="zero_variance_groups",
        severity="note" if is_solved else "warning",
        summary=f"{late:.0%} of the groups have completions that are all worth the same: they give no "
        "gradient",
        step=int(course.ends[-1]),
        numbers={"share": late, "first": course.first, "reward": reward and reward.last},
        threshold="half of the groups in the last fifth of the steps",
        source="Yu et al., DAPO (2025), section 3.2, on groups without a gradient; the half is " + OWN,
        advice="Harder or easier prompts, more completions a group, a finer reward, a higher temperature.",
        changes=(Change("temperature", factor=1.25),),
    )


def kl_blow_up(run: Evidence) -> Verdict:
    """The policy has left its reference."""
    course = run.course("kl")
    if course is None:
        return few("kl", run)
    before, now = course.share(0.1, 0.5), course.share(0.9, 1)
    is_far, is_sudden = now >= 1.0, now >= 0.2 and now >= 10 * before
    if not is_far and not is_sudden:
        return None
    return Finding(
        kind="kl_blow_up",
        severity="problem",
        summary=f"The KL divergence from the reference is {now:.3g} nats a token, it was {before:.3g}",
        step=int(course.ends[-1]),
        numbers={"before": before, "now": now},
        threshold="1 nat a token, or 0.2 and ten times the median of the first half",
        source=OWN,
        advice="Raise beta, or lower the learning rate; look at completions: the reward may be gamed.",
        changes=(Change("beta", factor=3.0), _RATE),
    )


def longer(run: Evidence) -> Verdict:
    """Completions grow without end."""
    course = run.course("completions/mean_length")
    if course is None:
        return few("completions/mean_length", run)
    before, now = course.first, course.share(0.8, 1)
    if now < 2 * before or now - before <= course.margin:
        return None
    reward = run.course("reward")
    return Finding(
        kind="length_growth",
        severity="warning",
        summary=f"Completions have grown from {before:.4g} to {now:.4g} tokens",
        step=int(course.ends[-1]),
        numbers={
            "before": before,
            "now": now,
            "reward_first": reward and reward.first,
            "reward_last": reward and reward.last,
        },
        threshold="twice the length at the start",
        source="Liu et al., Understanding R1-Zero-Like Training (2025), on the length bias of GRPO; "
        "the factor is " + OWN,
        advice="See whether the reward pays for length; use loss_type dr_grpo in the next run; raise beta.",
        changes=(Change("beta", factor=2.0),),
    )


def clipped(run: Evidence) -> Verdict:
    """Completions are cut before they end."""
    course = run.course("completions/clipped_ratio")
    if course is None:
        return few("completions/clipped_ratio", run)
    late = course.share(0.8, 1)
    if late < 0.5:
        return None
    return Finding(
        kind="length_clipping",
        severity="warning",
        summary=f"{late:.0%} of the completions are cut at max_completion_length",
        step=int(course.ends[-1]),
        numbers={"share": late, "first": course.first},
        threshold="half of the completions in the last fifth of the steps",
        source="Yu et al., DAPO (2025), section 3.4, on the noise of cut completions; the half is " + OWN,
        advice="Allow longer completions, or reward short ones.",
        changes=(Change("max_completion_length", factor=2.0),),
    )


PREFERENCE_RULES: Sequence[tuple[str, Rule]] = (
    ("reward margins", no_margin),
    ("reward accuracy", no_accuracy),
    ("likelihood displacement", likelihood_displacement),
)
REWARD_RULES: Sequence[tuple[str, Rule]] = (
    ("reward collapse", reward_collapse),
    ("groups without spread", no_spread),
    ("KL divergence", kl_blow_up),
    ("growing completions", longer),
    ("cut completions", clipped),
)
