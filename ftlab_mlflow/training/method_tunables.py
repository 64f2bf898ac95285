"""The parameters of TRL's methods and of early stopping: where a trainer reads each one while it trains.

Every place was found in the trainers of TRL 1.16 and transformers 5.23. A class that replaces one of the
functions which read them gets none of these parameters: what they would do there is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from types import CellType
from typing import Any

from ftlab_mlflow.control.surface import ParamType
from ftlab_mlflow.control.wire import is_finite
from ftlab_mlflow.training.tunable import Build, Trainee, Tunable

_ABOVE_ZERO = 1e-6
"""The bound of what must be above 0, because bounds are inclusive."""

_ONLINE = ("_compute_loss", "_prepare_inputs", "_generate_and_score_completions", "_generate_single_turn")
_READERS: Mapping[str, tuple[str, ...]] = {
    "DPOTrainer": ("_compute_loss",),
    "KTOTrainer": ("_compute_loss",),
    "ORPOTrainer": ("odds_ratio_loss",),
    "RewardTrainer": ("compute_loss",),
    "GRPOTrainer": _ONLINE,
    "RLOOTrainer": _ONLINE,
}
"""The functions of TRL's classes that read the parameters below."""

Place = tuple[Any, str]
"""Where a value is: an attribute of an object, or a key of a dict."""

Make = Callable[[Any], "Tunable | str"]
"""Makes a tunable for a trainer, or says why it has none."""


def _of_trl(name: str, makers: Mapping[str, Make]) -> Build:
    """The builder of a parameter that these classes of TRL have."""

    def build(trainee: Trainee) -> Tunable | str:
        trainer = trainee.trainer
        found = _base(trainer, "trl", makers)
        if found is None:
            return f"only {', '.join(makers)} of TRL have {name}"
        try:
            for reader in _READERS[found.__name__]:
                if getattr(type(trainer), reader) is not getattr(found, reader):
                    return f"{type(trainer).__name__} has its own {reader}, which may not use {name}"
            return makers[found.__name__](trainer)
        except AttributeError as error:  # TRL moves its attributes about
            return f"this version of TRL keeps {name} in an unknown place: {error}"

    return build


def _base(instance: Any, library: str, names: Container[str]) -> type | None:
    """The class of a library, of one of these names, that an object is an instance of."""
    kinds = type(instance).__mro__
    return next((k for k in kinds if k.__name__ in names and k.__module__.split(".")[0] == library), None)


def _number(
    name: str,
    help: str,
    places: list[Place],
    minimum: float,
    maximum: float | None = None,
    *,
    type: ParamType = "float",
    none_is: float | None = None,
    generates: Any = None,
) -> Tunable | str:
    """A number that stands in several places; the first of them is where the next step reads it.

    Args:
        none_is: What a None there means, if it means a number.
        generates: The trainer, if the value goes into how completions are made or scored. What is left of the
            completions made before is then dropped, so that the next step makes new ones of the same prompts.
    """

    def read() -> Any:
        value = _get(places[0])
        return none_is if value is None else value

    launch = read()
    if not is_finite(launch):
        return f"the training was launched with {name} {launch}, which is no number"
    buffer: list[Place] = [(generates, "_buffered_inputs")] if generates else []

    def apply(value: float) -> None:
        for place in places:
            _put(place, float(value) if type == "float" else value)
        for place in buffer:
            _put(place, None)

    def restore(values: list[Any]) -> None:
        for place, value in zip(places + buffer, values, strict=True):
            _put(place, value)

    return Tunable(
        name=name,
        type=type,
        help=help,
        read=read,
        apply=apply,
        capture=lambda: [_get(place) for place in places + buffer],
        restore=restore,
        asked=launch,
        min=min(minimum, launch),
        max=None if maximum is None else max(maximum, launch),
    )


def _get(place: Place) -> Any:
    owner, name = place
    return owner[name] if isinstance(owner, dict) else getattr(owner, name)


def _put(place: Place, value: Any) -> None:
    owner, name = place
    if isinstance(owner, dict):
        owner[name] = value
    else:
        setattr(owner, name, value)


# --- losses on given data ------------------------------------------------------------------------------


def _in_loss(name: str, help: str, minimum: float = 0.0) -> Make:
    """A value that the loss reads from the trainer; the arguments have it for whoever reads a checkpoint."""
    return lambda trainer: _number(name, help, [(trainer, name), (trainer.args, name)], minimum)


_LESS_DRIFT = "Strength of the pull towards the reference model."


def _dpo_beta(trainer: Any) -> Tunable | str:
    if set(trainer.loss_types) <= {"sft"}:
        return "loss_type sft does not use it"
    return _in_loss("beta", _LESS_DRIFT, _ABOVE_ZERO)(trainer)  # some losses divide by it


def _label_smoothing(trainer: Any) -> Tunable | str:
    used = set(trainer.loss_types) & {"robust", "exo_pair", "aot", "aot_unpaired"}
    if not used:
        return f"loss_type {', '.join(trainer.loss_types)} does not use it"
    # `exo_pair` takes its logarithm; `robust` divides by 1 - 2 * label_smoothing.
    return _number(
        "label_smoothing",
        "Share of preferences that are taken to be the wrong way round.",
        [(trainer, "label_smoothing"), (trainer.args, "label_smoothing")],
        _ABOVE_ZERO if "exo_pair" in used else 0,
        0.499999,
    )


def _center_rewards_coefficient(trainer: Any) -> Tunable | str:
    name = "center_rewards_coefficient"
    help = "Weight of the squared sum of both rewards; 0 is off."
    return _number(name, help, [(trainer.args, name)], 0, none_is=0.0)


# --- losses on generated completions -------------------------------------------------------------------


def _online_beta(trainer: Any) -> Tunable | str:
    if trainer.beta == 0:
        return "the training was launched with beta 0, so it has no reference model"
    # RLOO takes the penalty off the rewards when completions are scored; GRPO has no reference for those that
    # were made while it was 0.
    places = [(trainer, "beta"), (trainer.args, "beta")]
    return _number("beta", _LESS_DRIFT, places, 0, generates=trainer)


def _epsilon(trainer: Any) -> Tunable | str:
    if reason := _does_not_clip(trainer):
        return reason
    if _loss_type(trainer) == "cispo":
        return "loss_type cispo clips only above, at epsilon_high"
    args = trainer.args
    places: list[Place] = [(trainer, "epsilon_low"), (args, "epsilon")]
    if args.epsilon_high is None:  # TRL then takes epsilon for both
        both = [(trainer, "epsilon_high"), (args, "epsilon_high")]
        return _number("epsilon", "Clipping of the probability ratio; sets epsilon_high.", places + both, 0)
    return _number("epsilon", "Clipping of the probability ratio below 1.", places, 0)


def _epsilon_high(trainer: Any) -> Tunable | str:
    if reason := _does_not_clip(trainer):
        return reason
    places = [(trainer, "epsilon_high"), (trainer.args, "epsilon_high")]
    return _number("epsilon_high", "Clipping of the probability ratio above 1.", places, 0)


def _does_not_clip(trainer: Any) -> str | None:
    loss = _loss_type(trainer)
    return f"loss_type {loss} does not clip" if loss in ("sapo", "vespo") else None


def _loss_type(trainer: Any) -> str | None:
    return getattr(trainer, "loss_type", None)  # RLOO has only one


def _sampling(name: str, key: str, make: Callable[[Any, list[Place]], Tunable | str]) -> Make:
    """A parameter of generation: `key` is its name there."""

    def build(trainer: Any) -> Tunable | str:
        args = trainer.args
        if trainer.use_vllm:
            return "live control does not drive vLLM yet"
        if trainer.use_transformers_continuous_batching:
            return "live control does not drive continuous batching yet"
        if getattr(trainer, "rollout_func", None) is not None:
            return "rollout_func makes the completions"
        if key in (args.generation_kwargs or {}):
            return f"generation_kwargs sets {key}"
        # TRL lays the dict over the model's own config while it generates.
        config: list[Place] = [(trainer.generation_config, key), (trainer.generation_kwargs, key)]
        return make(trainer, [*config, (trainer, name), (args, name)])

    return build


_NEW_COMPLETIONS = "The next step makes new completions with it."


def _temperature(trainer: Any, places: list[Place]) -> Tunable | str:
    if not trainer.generation_config.do_sample:
        return "generation_kwargs turns sampling off"
    models = [model for model in (trainer.model, trainer.ref_model) if model is not None]
    cells = [list(_temperature_cells(model)) for model in models]
    if not all(cells):
        return "this version of TRL does not keep the temperature of its loss where it is known to be"
    places += [(cell, "cell_contents") for found in cells for cell in found]
    help = f"Divides the logits, in sampling and in the loss. {_NEW_COMPLETIONS}"
    # Logits of some tens divided by less leave the range of half precision.
    return _number("temperature", help, places, 0.01, generates=trainer)


def _temperature_cells(model: Any) -> Iterator[CellType]:
    """Where TRL's `add_fused_lm_head` keeps the temperature that the loss divides by: only in a closure."""
    for module in model.modules():
        forward = vars(module).get("forward")
        while forward is not None:
            function = getattr(forward, "__func__", forward)
            code = getattr(function, "__code__", None)
            if code is not None and code.co_name == "_fused_forward" and "temperature" in code.co_freevars:
                yield function.__closure__[code.co_freevars.index("temperature")]
            forward = getattr(function, "__wrapped__", None)  # accelerate's mixed precision is around it


def _top_p(trainer: Any, places: list[Place]) -> Tunable | str:
    if not trainer.generation_config.do_sample:
        return "generation_kwargs turns sampling off"
    help = f"Only the likeliest tokens with this sum of probabilities are sampled. {_NEW_COMPLETIONS}"
    return _number("top_p", help, places, _ABOVE_ZERO, 1, generates=trainer)


def _max_completion_length(trainer: Any, places: list[Place]) -> Tunable | str:
    longest = getattr(trainer.model.config.get_text_config(), "max_position_embeddings", None)
    help = f"Most tokens of a completion. {_NEW_COMPLETIONS}"
    return _number("max_completion_length", help, places, 1, longest, type="int", generates=trainer)


# --- any trainer ---------------------------------------------------------------------------------------


def _neftune_noise_alpha(trainee: Trainee) -> Tunable | str:
    name, trainer = "neftune_noise_alpha", trainee.trainer
    # transformers' hook reads it from the embeddings; the trainer's own only says that there is a hook.
    modules = trainer.model.modules() if trainer is not None else ()
    hooked: list[Place] = [(module, name) for module in modules if name in vars(module)]
    if not hooked:
        return "the training was launched without NEFTune"
    places = [*hooked, (trainer, name), (trainee.args, name)]
    return _number(name, "Size of the noise on the embeddings; 0 is none.", places, 0)


def _early_stopping(name: str, help: str, minimum: int, type: ParamType) -> Build:
    def build(trainee: Trainee) -> Tunable | str:
        callbacks = trainee.trainer.callback_handler.callbacks if trainee.trainer is not None else []
        places: list[Place] = [
            (callback, name)
            for callback in callbacks
            if _base(callback, "transformers", ("EarlyStoppingCallback",))
        ]
        if not places:
            return "the training was launched without early stopping"
        return _number(name, help, places, minimum, type=type)

    return build


def _both(make: Make) -> dict[str, Make]:
    return {"GRPOTrainer": make, "RLOOTrainer": make}


METHOD_TABLE: Mapping[str, Build] = {
    "beta": _of_trl(
        "beta",
        {
            "DPOTrainer": _dpo_beta,
            "KTOTrainer": _in_loss("beta", _LESS_DRIFT),
            "ORPOTrainer": _in_loss("beta", "Weight of the odds ratio in the loss."),
            **_both(_online_beta),
        },
    ),
    "label_smoothing": _of_trl("label_smoothing", {"DPOTrainer": _label_smoothing}),
    "desirable_weight": _of_trl(
        "desirable_weight", {"KTOTrainer": _in_loss("desirable_weight", "Weight of the desirable samples.")}
    ),
    "undesirable_weight": _of_trl(
        "undesirable_weight",
        {"KTOTrainer": _in_loss("undesirable_weight", "Weight of the undesirable samples.")},
    ),
    "center_rewards_coefficient": _of_trl(
        "center_rewards_coefficient", {"RewardTrainer": _center_rewards_coefficient}
    ),
    "epsilon": _of_trl("epsilon", _both(_epsilon)),
    "epsilon_high": _of_trl("epsilon_high", _both(_epsilon_high)),
    "temperature": _of_trl("temperature", _both(_sampling("temperature", "temperature", _temperature))),
    "top_p": _of_trl("top_p", _both(_sampling("top_p", "top_p", _top_p))),
    "max_completion_length": _of_trl(
        "max_completion_length",
        _both(_sampling("max_completion_length", "max_new_tokens", _max_completion_length)),
    ),
    "neftune_noise_alpha": _neftune_noise_alpha,
    "early_stopping_patience": _early_stopping(
        "early_stopping_patience", "Evaluations without improvement until training stops.", 1, "int"
    ),
    "early_stopping_threshold": _early_stopping(
        "early_stopping_threshold", "What counts as an improvement: more than this.", 0, "float"
    ),
}
"""Every parameter of a method by name, in the order in which a request's parameters are applied."""
