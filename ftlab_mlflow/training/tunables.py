"""Every parameter that can be changed while training: how to read it, check it, apply it and undo it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ftlab_mlflow.control.surface import ParamType
from ftlab_mlflow.control.wire import Scalar, is_finite
from ftlab_mlflow.errors import ConfigError
from ftlab_mlflow.training.batch_tunables import BATCH_TABLE
from ftlab_mlflow.training.method_tunables import METHOD_TABLE
from ftlab_mlflow.training.tunable import Build, Trainee, Tunable


def _learning_rate(trainee: Trainee) -> Tunable | str:
    schedule = trainee.schedule
    if schedule is None:
        return "this optimizer sets its own learning rate"
    steps = trainee.steps
    return Tunable(
        name="learning_rate",
        type="float",
        help="Rate of the next step, and ceiling of the schedule from then on.",
        read=lambda: schedule.rate,
        apply=schedule.ask,
        capture=schedule.capture,
        restore=schedule.restore,
        asked=schedule.launch_rate,
        min=0,
        max=max(1, schedule.launch_rate),
        save=schedule.state,
        load=schedule.load,
        plan=(lambda: schedule.plan(*steps())) if steps else None,
    )


def _lr_schedule(trainee: Trainee) -> Tunable | str:
    schedule = trainee.schedule
    if schedule is None:
        return "this optimizer sets its own learning rate"
    return Tunable(
        name="lr_schedule",
        type="enum",
        help="keep: the rate follows the schedule. hold: it stays where it is.",
        read=lambda: schedule.mode,
        apply=schedule.set_mode,
        capture=schedule.capture,
        restore=schedule.restore,
        asked="keep",
        choices=("keep", "hold"),
        save=schedule.state,
        load=schedule.load,
    )


def _weight_decay(trainee: Trainee) -> Tunable | str:
    optimizer = trainee.optimizer
    groups = optimizer.param_groups
    if not all(is_finite(group.get("weight_decay")) for group in groups):
        return "this optimizer has no weight decay"
    meant = [
        i
        for i, group in enumerate(groups)
        if group["weight_decay"] > 0 or all(trainee.decays(p) for p in group["params"])
    ]
    if not meant:
        return "no parameter group holds only weights: a decay would also act on biases and norms"
    launch = max(float(groups[i]["weight_decay"]) for i in meant)
    shares = {i: groups[i]["weight_decay"] / launch if launch else 1.0 for i in meant}

    def apply(value: float) -> None:
        for i, share in shares.items():
            optimizer.param_groups[i]["weight_decay"] = value * share

    def capture() -> list[Any]:
        return [group["weight_decay"] for group in optimizer.param_groups]

    def restore(values: list[Any]) -> None:
        for group, value in zip(optimizer.param_groups, values, strict=True):
            group["weight_decay"] = value

    return Tunable(
        name="weight_decay",
        type="float",
        help="Decay of the weights; biases and norms stay without.",
        read=lambda: max(float(optimizer.param_groups[i]["weight_decay"]) for i in meant),
        apply=apply,
        capture=capture,
        restore=restore,
        asked=launch,
        min=0,
        max=max(10, launch),
    )


def _beta(index: int) -> Build:
    def build(trainee: Trainee) -> Tunable | str:
        optimizer = trainee.optimizer
        name = f"adam_beta{index + 1}"
        for group in optimizer.param_groups:
            betas = group.get("betas")
            if not isinstance(betas, tuple | list) or len(betas) <= index:
                return f"this optimizer has no {name}"
            if not all(is_finite(beta) for beta in betas):
                return f"this optimizer keeps {name} in a tensor"
        if index == 0 and trainee.schedule is not None and trainee.schedule.cycles_momentum:
            return "the scheduler sets adam_beta1 at every step"

        def capture() -> list[Any]:
            return [group["betas"] for group in optimizer.param_groups]

        def restore(values: list[Any]) -> None:
            for group, value in zip(optimizer.param_groups, values, strict=True):
                group["betas"] = value

        def apply(value: float) -> None:
            for group in optimizer.param_groups:
                betas = group["betas"]
                group["betas"] = type(betas)((*betas[:index], value, *betas[index + 1 :]))

        return Tunable(
            name=name,
            type="float",
            help="Decay of the running mean of the gradient" + ("." if index == 0 else "'s square."),
            read=lambda: float(optimizer.param_groups[0]["betas"][index]),
            apply=apply,
            capture=capture,
            restore=restore,
            asked=float(optimizer.param_groups[0]["betas"][index]),
            min=0,
            max=0.999999,
        )

    return build


def _adam_epsilon(trainee: Trainee) -> Tunable | str:
    optimizer = trainee.optimizer
    for group in optimizer.param_groups:
        if "betas" not in group or not is_finite(group.get("eps")):
            return "this optimizer has no adam_epsilon"

    def apply(value: float) -> None:
        for group in optimizer.param_groups:
            group["eps"] = value

    def restore(values: list[float]) -> None:
        for group, value in zip(optimizer.param_groups, values, strict=True):
            group["eps"] = value

    return Tunable(
        name="adam_epsilon",
        type="float",
        help="Added to the root of the squared gradient's mean.",
        read=lambda: float(optimizer.param_groups[0]["eps"]),
        apply=apply,
        capture=lambda: [group["eps"] for group in optimizer.param_groups],
        restore=restore,
        asked=float(optimizer.param_groups[0]["eps"]),
        min=1e-20,
        max=1,
    )


def _max_grad_norm(trainee: Trainee) -> Tunable | str:
    if not is_finite(trainee.args.max_grad_norm):
        return f"the training was launched with max_grad_norm {trainee.args.max_grad_norm}, which is no bound"
    # Trainer._run_epoch reads it from the arguments at every optimizer step; 0 turns clipping off.
    return _attribute(
        trainee.args, "max_grad_norm", "float", "Gradients are clipped to this norm; 0 is off.", 0
    )


def _interval(name: str, strategy: str, help: str) -> Build:
    def build(trainee: Trainee) -> Tunable | str:
        chosen = str(getattr(trainee.args, strategy).value)
        if chosen != "steps":
            return f"{strategy} is {chosen!r}, not 'steps'"
        if name == "eval_steps" and not trainee.evaluates:
            return "there is no evaluation data"

        def check(proposed: Mapping[str, Scalar]) -> str | None:
            return _best_model_problem(trainee, proposed)

        # The training loop reads it from its state, not from its arguments.
        tunable = _attribute(trainee.state, name, "int", help, 1)
        return replace(tunable, check=check) if name != "logging_steps" else tunable

    return build


def _best_model_problem(trainee: Trainee, proposed: Mapping[str, Scalar]) -> str | None:
    """transformers can only load the best model at the end if every checkpoint was evaluated."""
    args, state = trainee.args, trainee.state
    if not args.load_best_model_at_end or args.save_strategy.value != "steps":
        return None
    every_save = proposed.get("save_steps", state.save_steps)
    every_eval = proposed.get("eval_steps", state.eval_steps)
    if args.eval_strategy.value != "steps" or int(every_save) % int(every_eval) == 0:
        return None
    return (
        "with load_best_model_at_end save_steps must be a multiple of eval_steps, "
        f"got {every_save} and {every_eval}"
    )


def _attribute(owner: Any, name: str, type: ParamType, help: str, minimum: float) -> Tunable:
    return Tunable(
        name=name,
        type=type,
        help=help,
        read=lambda: getattr(owner, name),
        apply=lambda value: setattr(owner, name, value),
        capture=lambda: getattr(owner, name),
        restore=lambda value: setattr(owner, name, value),
        asked=getattr(owner, name),
        min=minimum,
    )


TABLE: Mapping[str, Build] = {
    "learning_rate": _learning_rate,
    "lr_schedule": _lr_schedule,
    "weight_decay": _weight_decay,
    "adam_beta1": _beta(0),
    "adam_beta2": _beta(1),
    "adam_epsilon": _adam_epsilon,
    "max_grad_norm": _max_grad_norm,
    "logging_steps": _interval("logging_steps", "logging_strategy", "Steps between two log lines."),
    "eval_steps": _interval("eval_steps", "eval_strategy", "Steps between two evaluations."),
    "save_steps": _interval("save_steps", "save_strategy", "Steps between two checkpoints."),
    **BATCH_TABLE,
    **METHOD_TABLE,
}
"""Every parameter by name. A request's parameters are applied in this order."""

OPTIMIZER_PARAMETERS = frozenset(TABLE) - {
    *("logging_steps", "eval_steps", "save_steps"),
    *BATCH_TABLE,
    *METHOD_TABLE,
}
"""Those that live in the optimizer and in how it is stepped."""

Limits = Mapping[str, tuple[float | None, float | None]]
"""Narrower (min, max) by parameter; None leaves a bound as it is."""


def build_tunables(
    trainee: Trainee, limits: Limits, table: Mapping[str, Build] = TABLE
) -> tuple[dict[str, Tunable], dict[str, str]]:
    """The tunables of a training, and why it lacks the others, by name.

    Raises:
        ConfigError: A limit is no range, or wider than the bounds of the parameter.
    """
    found: dict[str, Tunable] = {}
    missing: dict[str, str] = {}
    for name, build in table.items():
        reason = trainee.no_optimizer if name in OPTIMIZER_PARAMETERS else None
        built = reason or build(trainee)
        if isinstance(built, str):
            missing[name] = built
        else:
            found[name] = _narrowed(built, limits[name], name in BATCH_TABLE) if name in limits else built
    return found, missing


def check_limits(limits: Limits, table: Mapping[str, Build] = TABLE) -> None:
    """Raises: ConfigError: a limit names no parameter with bounds, or is no range."""
    for name, bounds in limits.items():
        if name not in table or name == "lr_schedule":
            known = ", ".join(n for n in table if n != "lr_schedule")
            raise ConfigError(f"limits: {name!r} is no parameter with bounds; there are {known}")
        is_pair = isinstance(bounds, tuple | list) and len(bounds) == 2
        if not is_pair or not all(b is None or is_finite(b) for b in bounds):
            raise ConfigError(f"limits: {name} must be a pair (min, max), got {bounds!r}")
        low, high = bounds
        if low is not None and high is not None and low > high:
            raise ConfigError(f"limits: {name} has a minimum {low:g} above its maximum {high:g}")


def _narrowed(tunable: Tunable, bounds: tuple[float | None, float | None], by_data: bool) -> Tunable:
    low, high = bounds
    if by_data:  # its own bounds are known only once the data are there
        low = None if low is None or tunable.min is None else max(low, tunable.min)
        high = None if high is None else min(high, tunable.max or high)
        bounds = (low, high)
    given = [bound for bound in bounds if bound is not None]
    too_low = tunable.min is not None and any(bound < tunable.min for bound in given)
    too_high = tunable.max is not None and any(bound > tunable.max for bound in given)
    if too_low or too_high:
        upper = "" if tunable.max is None else f" to {tunable.max:g}"
        raise ConfigError(
            f"limits: {tunable.name} can be narrowed within {tunable.min:g}{upper}, got {bounds}"
        )
    return replace(
        tunable,
        min=tunable.min if low is None else low,
        max=tunable.max if high is None else high,
    )
