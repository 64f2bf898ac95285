"""`LiveLoop` and checkpoints: what was asked for stays in force when a loop goes on."""

import io
from typing import Any

import torch
from loop_schedules import SCHEDULES, STEPS, natural_rates
from loop_tiny import Tiny, asked, close


def _stored(tiny: Tiny) -> dict[str, Any]:
    """A checkpoint as it lies on disk: loaded the safe way."""
    file = io.BytesIO()
    torch.save(tiny.checkpoint(), file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def _resumable(run: Tiny | None = None) -> tuple[Tiny, Any]:
    tiny = Tiny(run.store, run.run_id) if run else Tiny()
    SCHEDULES["LambdaLR"](tiny)
    mix = tiny.lay().tunable("mix_ratio", 0.5, min=0, max=1)
    tiny.watch = lambda: mix.value
    return tiny, mix


def test_a_resume_is_the_same_training_bit_for_bit() -> None:
    whole, broken = _resumable()[0], _resumable()[0]
    kept: list[dict[str, Any]] = []
    for tiny in (whole, broken):
        tiny.tell(4, "a", set={"learning_rate": 0.05, "adam_beta2": 0.99, "mix_ratio": 0.7})
        tiny.tell(9, "b", set={"lr_schedule": "hold", "weight_decay": 0.1})
    broken.at[12] = lambda: kept.append(_stored(broken))
    broken.tell(13, "s", command="stop")
    whole.train(STEPS)
    broken.train(STEPS)
    again, _ = _resumable(broken)
    again.load(kept[0])
    assert again.live.steps_done == 12
    again.train(STEPS)
    assert broken.used[:12] + again.used == whole.used
    assert broken.seen[:12] + again.seen == whole.seen
    assert all(map(torch.equal, again.weights(), whole.weights()))
    assert again.surface().params["learning_rate"].asked == 0.05


def test_a_resume_keeps_what_was_applied_after_its_checkpoint() -> None:
    tiny, _ = _resumable()
    kept: list[dict[str, Any]] = []
    tiny.tell(4, "a", set={"learning_rate": 0.05, "mix_ratio": 0.7})
    before = tiny.at[4]
    tiny.at[6] = lambda: kept.append(_stored(tiny))
    tiny.tell(9, "b", set={"mix_ratio": 0.8, "learning_rate": 0.03})
    tiny.tell(10, "c", set={"mix_ratio": 0.9})
    tiny.tell(12, "s", command="stop")
    tiny.train(STEPS)
    assert before is not None
    tiny.send("waiting", set={"adam_beta2": 0.9})
    tiny.send("old", command="stop")
    again, mix = _resumable(tiny)
    again.load(kept[0])
    again.train(STEPS)
    natural = natural_rates(SCHEDULES["LambdaLR"])
    assert again.seen == [0.9] * (STEPS - 6)
    assert mix.value == 0.9
    assert close(again.rates, asked(natural, 0.03, 6))
    assert [each[0]["betas"][1] for each in again.used] == [0.9] * (STEPS - 6)
    assert (again.ack("waiting").step, again.ack("old").code) == (6, "expired")
    assert [again.ack(i).step for i in "abc"] == [4, 9, 10], "answered once"


def test_an_answer_that_was_not_written_rides_in_the_checkpoint() -> None:
    tiny, _ = _resumable()
    kept: list[dict[str, Any]] = []

    def away() -> None:
        tiny.store.refused = {"ftlab.ack.a"}

    tiny.at[4] = away
    tiny.tell(4, "a", set={"mix_ratio": 0.7})
    tiny.at[5] = lambda: kept.append(_stored(tiny))
    tiny.train(8)
    assert list(kept[0]["live"]["unconfirmed"]) == ["a"]
    assert "ftlab.ack.a" not in tiny.tags()
    again, _ = _resumable(tiny)
    again.store.refused = set()
    again.load(kept[0])
    again.train(8)
    assert (again.ack("a").step, again.ack("a").changes) == (4, {"mix_ratio": (0.5, 0.7)})
    assert again.seen == [0.7] * 3


def test_a_checkpoint_of_another_run_brings_its_values_and_not_its_answers() -> None:
    tiny, _ = _resumable()
    kept: list[dict[str, Any]] = []
    tiny.tell(4, "a", set={"mix_ratio": 0.7, "learning_rate": 0.05})
    tiny.at[6] = lambda: kept.append(_stored(tiny))
    tiny.train(8)
    other, _ = _resumable()
    other.load(kept[0])
    other.tell(8, "new", set={"mix_ratio": 0.8}, expect={"mix_ratio": 0.7, "learning_rate": 0.05})
    other.train(10)
    assert other.seen == [0.7] * 2 + [0.8] * 2
    assert close(other.rates, asked(natural_rates(SCHEDULES["LambdaLR"]), 0.05, 4)[2:6])
    assert "ftlab.ack.a" not in other.tags()


def test_the_next_loop_on_a_finished_run_begins_as_launched() -> None:
    tiny, _ = _resumable()
    tiny.tell(4, "a", set={"mix_ratio": 0.7})
    tiny.train(6)
    again, _ = _resumable(tiny)
    again.train(3)
    assert again.seen == [0.5] * 3
