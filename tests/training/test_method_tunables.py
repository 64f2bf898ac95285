"""The parameters of TRL's methods, live: against trainings that were launched with the value."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from training_tiny import weights
from training_trl import MethodLab, new_trainer, rows, save_tiny_model
from transformers import LlamaForCausalLM, TrainerCallback
from trl import GRPOTrainer

from ftlab_mlflow.training.method_tunables import METHOD_TABLE
from ftlab_mlflow.training.tunable import Tunable

pytestmark = pytest.mark.filterwarnings(
    # transformers, of TRL's own defaults.
    "ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning"
)
CHANGED_AT, STEPS = 2, 4
LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
REUSED = {
    "num_iterations": 2, "per_device_train_batch_size": 8, "num_generations": 4, "learning_rate": 0.002
}  # fmt: skip
"""Completions are used for two steps: in the second, the ratio that is clipped is a little off 1."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def tunable(trainer: Any, name: str) -> Tunable | str:
    trainee: Any = SimpleNamespace(trainer=trainer, args=trainer.args)
    return METHOD_TABLE[name](trainee)


# --- a live change is a launch with the new value ------------------------------------------------------

Case = tuple[str, str, Any, Any, dict[str, Any]]
CASES: dict[str, Case] = {
    "dpo beta": ("dpo", "beta", 0.1, 0.6, {}),
    "dpo beta, lora": ("dpo", "beta", 0.1, 0.6, {"peft_config": LORA}),
    "dpo beta, ipo and precomputed": (
        "dpo", "beta", 0.1, 0.6, {"loss_type": ["ipo"], "precompute_ref_log_probs": True}
    ),
    "dpo label_smoothing": ("dpo", "label_smoothing", 0.1, 0.4, {"loss_type": ["robust"]}),
    "orpo beta": ("orpo", "beta", 0.1, 1.5, {}),
    "kto beta": ("kto", "beta", 0.1, 0.6, {}),
    "kto desirable_weight": ("kto", "desirable_weight", 1.0, 0.25, {}),
    "kto undesirable_weight": ("kto", "undesirable_weight", 1.0, 3, {}),
    "reward center_rewards_coefficient": ("reward", "center_rewards_coefficient", 0.01, 0.8, {}),
    "reward center_rewards_coefficient, off before": (
        "reward", "center_rewards_coefficient", None, 0.8, {}
    ),
    "sft neftune_noise_alpha": ("sft", "neftune_noise_alpha", 1.0, 9.0, {}),
    "sft neftune_noise_alpha, lora": ("sft", "neftune_noise_alpha", 1.0, 9.0, {"peft_config": LORA}),
    "grpo beta": ("grpo", "beta", 0.2, 2.0, {}),
    "grpo epsilon": ("grpo", "epsilon", 0.2, 0.001, REUSED),
    "grpo epsilon_high": ("grpo", "epsilon_high", 0.2, 0.001, REUSED),
    "grpo temperature": ("grpo", "temperature", 1.0, 0.3, {}),
    "grpo temperature, lora": ("grpo", "temperature", 1.0, 0.3, {"peft_config": LORA}),
    "grpo temperature, half precision": ("grpo", "temperature", 1, 0.3, {"bf16": True}),
    "grpo top_p": ("grpo", "top_p", 1.0, 0.2, {}),
    "grpo max_completion_length": ("grpo", "max_completion_length", 6, 2, {"loss_type": "dr_grpo"}),
    "rloo beta": ("rloo", "beta", 0.2, 2.0, {}),
    "rloo epsilon": ("rloo", "epsilon", 0.2, 0.001, REUSED),
    "rloo epsilon_high": ("rloo", "epsilon_high", 0.2, 0.001, REUSED),
    "rloo temperature, to transformers' default": ("rloo", "temperature", 0.3, 1, {}),
    "rloo top_p, to transformers' default": ("rloo", "top_p", 0.2, 1, {}),
    "rloo max_completion_length": ("rloo", "max_completion_length", 6, 2, {}),
}  # fmt: skip


def _by_step(trainer: Any) -> dict[int, dict[str, Any]]:
    """Everything that was logged of a step, without the clock and the tokens since the process began."""
    found: dict[int, dict[str, Any]] = {}
    for log in trainer.state.log_history:
        if "loss" in log:
            found[log["step"]] = {k: v for k, v in log.items() if "time" not in k and k != "num_tokens"}
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_change_is_a_launch_with_the_new_value(case: str, model: str, tmp_path: Path) -> None:
    method, name, old, new, options = CASES[case]
    lab = MethodLab(tmp_path / "live")
    options = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": CHANGED_AT, **options}
    live = lab.start(method, model, **(options | {name: old}))
    lab.tell(CHANGED_AT, "a", set={name: new})
    live.train()
    ack = lab.ack("a")
    assert ack.status == "applied", ack
    assert (ack.step, ack.changes) == (CHANGED_AT, {name: (old or 0.0, new)})
    assert getattr(live.args, name) == new, "what a checkpoint shows"

    # An oracle that knows nothing of live control: launched with the new value, it goes on from the step.
    oracle = new_trainer(method, model, tmp_path / "oracle", **(options | {name: new}))
    oracle.train(resume_from_checkpoint=str(tmp_path / "live" / "out" / f"checkpoint-{CHANGED_AT}"))
    untouched = new_trainer(method, model, tmp_path / "untouched", **(options | {name: old}))
    untouched.train()
    mine, theirs, without = _by_step(live), _by_step(oracle), _by_step(untouched)
    assert mine.keys() == theirs.keys() == without.keys() == set(range(1, STEPS + 1))
    for step in mine:
        if step > CHANGED_AT:
            assert mine[step] == theirs[step], step
        else:
            assert mine[step] == without[step], step
    for a, b in zip(weights(live.model), weights(oracle.model), strict=True):
        assert torch.equal(a, b)
    # A ratio is clipped in the second step of a buffer, everything else acts in the first.
    acts_at = CHANGED_AT + (2 if options.get("num_iterations") else 1)
    assert mine[acts_at]["grad_norm"] != without[acts_at]["grad_norm"], "the value matters at all"


def test_neftune_of_any_trainer_and_an_evaluation_between(model: str, tmp_path: Path) -> None:
    lab = MethodLab(tmp_path)
    trainer = lab.start("dpo", model, neftune_noise_alpha=2.0, max_steps=3, eval_dataset=rows("dpo", 4))
    lab.tell(1, "a", set={"neftune_noise_alpha": 0})
    lab.tell(1, "b", command="evaluate")
    trainer.train()
    assert lab.ack("a").changes == {"neftune_noise_alpha": (2.0, 0.0)}
    assert lab.ack("b").status == "applied"


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_epsilon_is_both_bounds_until_the_upper_one_is_set(method: str, model: str, tmp_path: Path) -> None:
    lab = MethodLab(tmp_path)
    trainer = lab.start(method, model, max_steps=4, epsilon=0.2)
    lab.tell(1, "a", set={"epsilon": 0.3})
    lab.tell(2, "b", set={"epsilon_high": 0.5, "epsilon": 0.1})
    trainer.train()
    assert lab.ack("a").changes == {"epsilon": (0.2, 0.3)}
    assert lab.ack("b").changes == {"epsilon": (0.3, 0.1), "epsilon_high": (0.3, 0.5)}
    assert (trainer.epsilon_low, trainer.epsilon_high) == (0.1, 0.5)

    launched = new_trainer(method, model, tmp_path / "launched", epsilon=0.2, epsilon_high=0.4)
    found = tunable(launched, "epsilon")
    assert isinstance(found, Tunable)
    found.apply(0.1)
    assert (launched.epsilon_low, launched.epsilon_high) == (0.1, 0.4)


# --- a buffer of completions that lasts over several steps ---------------------------------------------

BUFFERED = {"steps_per_generation": 4, "max_steps": 5}


class _Weights(TrainerCallback):
    """Keeps the weights that a step began with, and the completions that it used."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.weights: dict[str, torch.Tensor] = {}
        self.buffer: list[dict[str, torch.Tensor]] = []
        self.trainer: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            self.weights = {k: v.clone() for k, v in kwargs["model"].state_dict().items()}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.buffer = self.trainer._buffered_inputs


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_temperature_in_the_middle_of_a_buffer_scores_what_it_sampled(
    method: str, model: str, tmp_path: Path
) -> None:
    """The log-probabilities that the next step's ratio starts from are computed again, in plain torch."""
    kept, lab, new = _Weights(2), MethodLab(tmp_path), 0.25
    kept.trainer = trainer = lab.start(method, model, kept, **BUFFERED)
    lab.tell(1, "a", set={"temperature": new})
    trainer.train()
    assert len(trainer.reward_funcs[0].seen) == 3, "at the start, after the change, and when 4 steps are over"

    policy = LlamaForCausalLM.from_pretrained(model)
    policy.load_state_dict(kept.weights)
    for part in kept.buffer:
        ids = torch.cat([part["prompt_ids"], part["completion_ids"]], dim=1)
        mask = torch.cat([part["prompt_mask"], part["completion_mask"]], dim=1)
        with torch.no_grad():
            logits = policy(input_ids=ids, attention_mask=mask).logits[:, part["prompt_ids"].size(1) - 1 : -1]
        all_logps = torch.log_softmax(logits / new, dim=-1)
        logps = all_logps.gather(2, part["completion_ids"].unsqueeze(2)).squeeze(2)
        used = part["completion_mask"].bool()
        if method == "grpo":
            torch.testing.assert_close(part["old_per_token_logps"][used], logps[used], rtol=1e-4, atol=1e-4)
        else:
            torch.testing.assert_close(part["old_logps"], (logps * used).sum(1), rtol=1e-4, atol=1e-4)
    # So the step after the change has a ratio of 1 everywhere: nothing of the old temperature is in it.
    assert _by_step(trainer)[2]["clip_ratio/region_mean"] == 0


@pytest.mark.parametrize("method", ["grpo", "rloo"])
@pytest.mark.parametrize(
    ("name", "new", "generations"),
    [("top_p", 1e-6, 3), ("max_completion_length", 2, 3), ("beta", 0.7, 3), ("epsilon", 0.01, 2)],
)
def test_what_is_left_of_a_buffer_is_dropped_where_it_was_made_with_the_old_value(
    method: str, name: str, new: float, generations: int, model: str, tmp_path: Path
) -> None:
    lab = MethodLab(tmp_path)
    trainer = lab.start(method, model, **BUFFERED)
    lab.tell(1, "a", set={name: new})
    trainer.train()
    assert lab.ack("a").status == "applied"
    first, *later = trainer.reward_funcs[0].seen
    assert len(later) == generations - 1
    assert any(a != b for a, b in _pairs(first)), "sampled"
    assert max(map(len, first)) > 2
    if name == "top_p":
        assert all(a == b for ids in later for a, b in _pairs(ids)), "the likeliest token only"
    if name == "max_completion_length":
        assert all(len(tokens) <= new for ids in later for tokens in ids)


def _pairs(completions: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    """The two completions of each prompt."""
    return list(zip(completions[::2], completions[1::2], strict=True))


def test_a_reference_for_completions_that_were_made_without_one(model: str, tmp_path: Path) -> None:
    """While beta is 0, GRPO computes no reference; back above 0, the next step needs one."""
    lab = MethodLab(tmp_path)
    trainer = lab.start("grpo", model, steps_per_generation=4, max_steps=4)
    lab.tell(1, "off", set={"beta": 0})
    lab.tell(2, "on", set={"beta": 0.4})
    trainer.train()
    assert lab.ack("on").changes == {"beta": (0.0, 0.4)}
    assert [("kl" in log) for log in _by_step(trainer).values()] == [True, False, True, True]


# --- undo, resume --------------------------------------------------------------------------------------

NEW: dict[str, dict[str, Any]] = {
    "sft": {"neftune_noise_alpha": 9.0},
    "dpo": {"beta": 0.6, "label_smoothing": 0.4},
    "orpo": {"beta": 1.5},
    "kto": {"beta": 0.6, "desirable_weight": 0.2, "undesirable_weight": 3.0},
    "reward": {"center_rewards_coefficient": 0.8},
    "grpo": {"beta": 2.0, "epsilon": 0.01, "epsilon_high": 0.02, "temperature": 0.3, "top_p": 0.2,
             "max_completion_length": 3},
    "rloo": {"beta": 2.0, "epsilon": 0.01, "epsilon_high": 0.02, "temperature": 0.3, "top_p": 0.2,
             "max_completion_length": 3},
}  # fmt: skip
LAUNCH: dict[str, dict[str, Any]] = {
    "sft": {"neftune_noise_alpha": 1.0},
    "dpo": {"loss_type": ["robust"]},
    "grpo": {"steps_per_generation": 2},
    "rloo": {"steps_per_generation": 2},
}


def test_every_parameter_of_a_method_is_tested() -> None:
    tested = {name for names in NEW.values() for name in names}
    assert tested == {name for name in METHOD_TABLE if not name.startswith("early_stopping")}


@pytest.mark.parametrize("method", NEW)
def test_a_change_that_is_undone_leaves_no_trace(method: str, model: str, tmp_path: Path) -> None:
    options = LAUNCH.get(method, {}) | {"max_steps": 3}
    lab = MethodLab(tmp_path / "undone")
    undone = lab.start(method, model, **options)

    def do_and_undo() -> None:
        found = {name: tunable(undone, name) for name in NEW[method]}
        for name, one in found.items():
            assert isinstance(one, Tunable), one
            before, captured = one.read(), one.capture()
            one.apply(NEW[method][name])
            assert one.read() == NEW[method][name]
            one.restore(captured)
            assert one.read() == before

    lab.script.at[1] = do_and_undo
    undone.train()
    untouched = new_trainer(method, model, tmp_path / "untouched", **options)
    untouched.train()
    assert _by_step(undone) == _by_step(untouched)
    for a, b in zip(weights(undone.model), weights(untouched.model), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", NEW)
def test_a_resumed_training_goes_on_with_what_it_was_told(method: str, model: str, tmp_path: Path) -> None:
    options = LAUNCH.get(method, {}) | {"max_steps": 6, "save_strategy": "steps", "save_steps": 4}
    lab = MethodLab(tmp_path)
    lab.start(method, model, **options)
    lab.tell(2, "a", set=NEW[method])
    lab.trainer.train()
    assert lab.ack("a").status == "applied"
    in_force = {name: param.value for name, param in lab.surface().params.items() if name in NEW[method]}
    assert in_force == NEW[method]

    again = MethodLab(tmp_path, run_id=lab.run_id, store=lab.store)
    again.start(method, model, **options)
    again.trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert {name: again.surface().params[name].value for name in NEW[method]} == in_force
    for a, b in zip(weights(lab.trainer.model), weights(again.trainer.model), strict=True):
        assert torch.equal(a, b)


# --- what is not offered, and bounds -------------------------------------------------------------------


class _OwnLoss(GRPOTrainer):
    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        return super()._compute_loss(model, inputs)


REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "other method": ("sft", {}, "beta", "only DPOTrainer, KTOTrainer"),
    "sft loss": ("dpo", {"loss_type": ["sft"]}, "beta", "loss_type sft does not use it"),
    "no smoothing": ("dpo", {}, "label_smoothing", "loss_type sigmoid does not use it"),
    "no reference": ("grpo", {"beta": 0.0}, "beta", "launched with beta 0"),
    "no reference, rloo": ("rloo", {"beta": 0.0}, "beta", "launched with beta 0"),
    "no clipping": ("grpo", {"loss_type": "sapo"}, "epsilon_high", "does not clip"),
    "clipped above": ("grpo", {"loss_type": "cispo"}, "epsilon", "only above"),
    "set elsewhere": ("grpo", {"generation_kwargs": {"top_p": 0.5}}, "top_p", "generation_kwargs sets top_p"),
    "greedy": ("rloo", {"generation_kwargs": {"do_sample": False}}, "top_p", "sampling off"),
    "own loss": ("grpo", {"trainer_class": _OwnLoss}, "epsilon", "_OwnLoss has its own _compute_loss"),
    "no neftune": ("sft", {}, "neftune_noise_alpha", "without NEFTune"),
    "no early stopping": ("sft", {}, "early_stopping_patience", "without early stopping"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_this_training_cannot_use_is_not_offered(case: str, model: str, tmp_path: Path) -> None:
    method, options, name, reason = REFUSED[case]
    found = tunable(new_trainer(method, model, tmp_path, **options), name)
    assert isinstance(found, str)
    assert reason in found


def test_completions_from_elsewhere_are_not_driven(model: str, tmp_path: Path) -> None:
    trainer = new_trainer("grpo", model, tmp_path)
    for attribute, value, reason in (
        ("rollout_func", len, "rollout_func"),
        ("use_transformers_continuous_batching", True, "continuous batching"),
        ("use_vllm", True, "vLLM"),
    ):
        setattr(trainer, attribute, value)
        for name in ("temperature", "top_p", "max_completion_length"):
            assert reason in str(tunable(trainer, name))
    assert isinstance(tunable(trainer, "epsilon"), Tunable)
    del trainer.model.forward  # as in a version of TRL without the fused head
    trainer.use_vllm = trainer.use_transformers_continuous_batching = False
    trainer.rollout_func = None
    assert "version of TRL" in str(tunable(trainer, "temperature"))
    del trainer.epsilon_high
    assert "version of TRL" in str(tunable(trainer, "epsilon_high"))


def test_a_request_for_it_is_told_why(model: str, tmp_path: Path) -> None:
    lab = MethodLab(tmp_path)
    trainer = lab.start("sft", model, max_steps=2)
    lab.tell(1, "a", set={"temperature": 0.5})
    trainer.train()
    ack = lab.ack("a")
    assert ack.code == "not_supported"
    assert ack.errors == {"temperature": "only GRPOTrainer, RLOOTrainer of TRL have temperature"}
    assert "temperature" not in lab.surface().params


BOUNDS: dict[str, dict[str, tuple[list[Any], list[Any]]]] = {
    "dpo": {"beta": ([0, -0.1], [1e-6, 5]), "label_smoothing": ([-0.1, 0.5, 1], [0, 0.49])},
    "orpo": {"beta": ([-0.1], [0, 3])},
    "kto": {"desirable_weight": ([-1], [0, 4]), "undesirable_weight": ([-1], [0, 4]), "beta": ([-1], [0])},
    "reward": {"center_rewards_coefficient": ([-0.1], [0, 1])},
    "grpo": {
        "beta": ([-0.1], [0, 1]), "epsilon": ([-0.1], [0, 0.5]), "epsilon_high": ([-0.1], [0, 3]),
        "temperature": ([0, -1], [0.01, 2]), "top_p": ([0, 1.01], [0.5, 1]),
        "max_completion_length": ([0, 65, 2.5], [1, 64]),
    },
}  # fmt: skip


@pytest.mark.parametrize("method", BOUNDS)
def test_bounds(method: str, model: str, tmp_path: Path) -> None:
    trainer = new_trainer(method, model, tmp_path, **LAUNCH.get(method, {}))
    for name, (bad, good) in BOUNDS[method].items():
        found = tunable(trainer, name)
        assert isinstance(found, Tunable), found
        param = found.param(found.asked)
        assert [param.problem(value) for value in good] == [None] * len(good), name
        assert all(param.problem(value) for value in bad), name


def test_a_loss_that_takes_the_logarithm_of_the_smoothing_refuses_0(model: str, tmp_path: Path) -> None:
    trainer = new_trainer("dpo", model, tmp_path, loss_type=["exo_pair"], label_smoothing=0.1)
    found = tunable(trainer, "label_smoothing")
    assert isinstance(found, Tunable)
    assert found.param(0.1).problem(0)
