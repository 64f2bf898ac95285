"""Live batch sizes in TRL's trainers: samples, sizes, rates and weights, all counted by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from training_tiny import POLL_S, weights
from training_trl import Reward, new_model, new_trainer, save_tiny_model
from trl import SFTTrainer
from trl_batches import (
    LOSSES,
    ROWS,
    BatchLab,
    Sizes,
    by_hand,
    flat,
    markers,
    planned,
    planned_epochs,
    planned_rates,
    rows,
    save_model,
)

from ftlab_mlflow import attach

pytestmark = pytest.mark.filterwarnings(
    # transformers, of TRL's own defaults.
    "ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
LAUNCH: Sizes = (4, 1)
CHANGES: dict[int, Sizes] = {2: (3, 2), 4: (3, 1), 6: (5, 2)}
"""In the middle of an epoch, at its last step but one, and in the next."""

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "packing": ("sft", {"packing": True, "max_length": 12}),
    "padding free": ("sft", {"padding_free": True, "max_length": None}),
    "workers": ("sft", {"dataloader_num_workers": 2}),
    "persistent workers": ("sft", {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}),
    "group by length": ("sft", {"train_sampling_strategy": "group_by_length"}),
    "lora": (
        "sft",
        {"peft_config": LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])},
    ),
    "dpo": ("dpo", {}),
    "kto": ("kto", {"train_sampling_strategy": "sequential"}),
    "orpo": ("orpo", {}),
    "reward": ("reward", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rest_of_an_epoch_is_cut_anew(tmp_path: Path, model: str, case: str) -> None:
    method, options = CASES[case]
    lab = BatchLab(tmp_path)
    now = LAUNCH
    for step, to in CHANGES.items():
        asked = {name: new for name, old, new in zip(BATCH, now, to, strict=True) if old != new}
        lab.tell(step, f"r{step}", set=asked)
        now = to
    trainer = lab.start(method, model, **options)
    alone = new_model(method, model)
    if "peft_config" in options:
        alone = get_peft_model(alone, options["peft_config"])
    alone.load_state_dict(trainer.model.state_dict())
    trainer.train()

    # What is packed is a row of several samples, and known by the first of them.
    tokens = trainer.train_dataset["input_ids"] if case == "packing" else []
    first = {markers(row)[0] for row in tokens} or set(range(ROWS))
    plan = planned(len(first), LAUNCH, CHANGES)
    ids = lab.diary.ids
    assert [[sum(i in first for i in batch) for batch in step] for step in ids] == flat(plan)
    for epoch in (ids[: len(plan[0])], ids[len(plan[0]) :]):
        assert sorted(flat(flat(epoch))) == list(range(ROWS))
    for step in CHANGES:
        assert lab.ack(f"r{step}").status == "applied"

    state, steps = trainer.state, len(flat(plan))
    assert (state.global_step, state.max_steps, state.num_train_epochs) == (steps, steps, 2)
    assert lab.diary.epochs == pytest.approx(planned_epochs(len(first), LAUNCH, CHANGES), rel=1e-12)
    rates = planned_rates(len(first), LAUNCH, CHANGES)
    assert lab.diary.rates == pytest.approx(rates, rel=1e-9)
    loss, scale = LOSSES[method]
    expected = by_hand(alone, lab.diary.steps, rates, loss, scale)
    for ours, theirs in zip(weights(trainer.model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_kl_estimate_needs_two_samples(tmp_path: Path, model: str) -> None:
    lab = BatchLab(tmp_path)
    lab.tell(2, "one", set={BATCH[0]: 1})
    lab.start("kto", model, train_sampling_strategy="sequential", max_steps=4).train()
    assert (lab.ack("one").status, lab.ack("one").code) == ("rejected", "out_of_bounds")
    assert (lab.surface().params[BATCH[0]].min, lab.surface().params[BATCH[0]].max) == (2, ROWS)
    other = BatchLab(tmp_path / "other")
    other.tell(2, "one", set={BATCH[0]: 1})
    other.start("kto", model, loss_type="apo_zero_unpaired", max_steps=4).train()
    assert other.ack("one").changes == {BATCH[0]: (4, 1)}


LORA = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5)


def test_an_adapter_with_dropout_goes_on_from_a_checkpoint_to_the_bit(tmp_path: Path, model: str) -> None:
    """By a resume, and by going back to it while it trains."""
    options: dict[str, Any] = {"peft_config": LORA, "save_strategy": "steps", "save_steps": 4}
    labs = {name: BatchLab(tmp_path / name) for name in ("whole", "back")}
    for lab in labs.values():
        lab.tell(2, "size", set={BATCH[0]: 3, BATCH[1]: 2})
    labs["back"].tell(6, "back", command="rollback")
    for lab in labs.values():
        lab.start("sft", model, **options).train()
    assert labs["back"].ack("back").result["step"] == 4
    assert len(labs["back"].diary.steps) == len(labs["whole"].diary.steps) + 2
    resumed = labs["resumed"] = BatchLab(tmp_path / "resumed", labs["whole"].store, labs["whole"].run_id)
    resumed.start("sft", model, **options).train(
        resume_from_checkpoint=str(tmp_path / "whole" / "out" / "checkpoint-4")
    )
    whole = labs["whole"].diary
    for name, begin in (("back", 6), ("resumed", 0)):
        assert labs[name].diary.ids[begin:] == whole.ids[4:]
        assert labs[name].diary.rates[begin:] == whole.rates[4:]
        pairs = zip(weights(labs[name].trainer.model), weights(labs["whole"].trainer.model), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


# --- where it is not offered ---------------------------------------------------------------------------


class OwnBatches(SFTTrainer):  # type: ignore[misc]
    """Batches of a kind that nobody knows how to cut."""

    def get_train_dataloader(self) -> Any:
        class Pairs(BatchSampler):
            """Such as one that fills batches with tokens."""

        batches = Pairs(SequentialSampler(range(ROWS)), 2, False)
        data = self._remove_unused_columns(self.train_dataset)
        return self.accelerator.prepare(
            DataLoader(data, batch_sampler=batches, collate_fn=self.data_collator)
        )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "LiveControl alone": ({"attached": False}, "needs attach(trainer)"),
    "a stream": ({"stream": True}, "are a stream without a length"),
    "its own batches": ({"trainer_class": OwnBatches}, "a Pairs makes the batches itself"),
    "found by itself": ({"auto_find_batch_size": True}, "auto_find_batch_size chooses the size of a batch"),
    "rebalanced": (
        {"train_sampling_strategy": "batch_rebalance"}, "a BatchRebalanceSampler makes the batches itself",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_not_offered_where_it_cannot_be_exact(tmp_path: Path, model: str, case: str) -> None:
    options, reason = REFUSED[case]
    options = dict(options)
    if options.pop("stream", False):
        options["train_dataset"] = rows("sft").to_iterable_dataset()
    lab = BatchLab(tmp_path)
    lab.tell(2, "size", set={BATCH[0]: 2})
    lab.tell(2, "both", set={"learning_rate": 0.001, BATCH[1]: 2})
    trainer = lab.start("sft", model, **options, max_steps=4)
    trainer.train()
    for request in ("size", "both"):
        ack = lab.ack(request)
        assert ack.code == "not_supported"
        assert reason in ack.errors[BATCH[0] if request == "size" else BATCH[1]]
    assert not set(BATCH) & set(lab.surface().params)
    assert (trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps) == (4, 1)
    steps_too = case not in ("LiveControl alone", "a stream")
    assert ("max_steps" in lab.surface().params) == steps_too


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_batches_of_generated_completions_stay_but_there_may_be_more(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, method: str
) -> None:
    lab = BatchLab(tmp_path)
    lab.tell(2, "size", set={BATCH[0]: 2})
    lab.tell(2, "more", set={"max_steps": 6})
    lab.trainer = new_trainer(
        method, save_tiny_model(tmp_path_factory.mktemp("tiny")), tmp_path, lab.script, max_steps=4
    )
    assert isinstance(lab.trainer.reward_funcs[0], Reward)
    lab.control = attach(lab.trainer, POLL_S, store=lab.store, run_id=lab.run_id)
    lab.trainer.train()
    assert lab.ack("size").code == "not_supported"
    assert "tied to the batches" in lab.ack("size").errors[BATCH[0]]
    assert not set(BATCH) & set(lab.surface().params)
    assert lab.trainer.state.global_step == 6
    assert list(lab.logged("loss")) == [1, 2, 3, 4, 5, 6]
