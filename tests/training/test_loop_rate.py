"""`LiveLoop` and the optimizer: what is in force at which step, against twins and formulas."""

import pytest
import torch
from loop_schedules import SCHEDULES, STEPS, by_hand, natural_rates, tensors
from loop_tiny import RATES, Tiny, asked, close, groups


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_asked_for_is_a_ceiling_on_the_loops_own_schedule(name: str) -> None:
    tiny = Tiny()
    SCHEDULES[name](tiny)
    tiny.tell(2, "a", set={"learning_rate": 0.004})
    tiny.tell(11, "b", set={"learning_rate": 0.05})
    tiny.lay()
    tiny.train(STEPS)
    natural = natural_rates(SCHEDULES[name])
    expected = natural[:2] + asked(natural[:11], 0.004, 2) + asked(natural, 0.05, 11)
    assert close(tiny.rates, expected)
    assert tiny.ack("b").changes["learning_rate"][1] == 0.05
    if tiny.scheduler:
        assert tiny.scheduler.get_last_lr() == [group["lr"] for group in tiny.optimizer.param_groups]


def test_rates_in_tensors_are_followed_with_their_precision() -> None:
    tiny = Tiny()
    tensors(tiny)
    tiny.tell(8, "a", set={"learning_rate": 0.004})
    used: list[list[float]] = []
    tiny.watch = lambda: used.append([float(g["lr"]) for g in tiny.optimizer.param_groups])
    tiny.lay()
    tiny.train(STEPS)
    natural = natural_rates(by_hand)
    expected = natural[:8] + asked(natural, 0.004, 8)
    assert used == [pytest.approx(row, rel=1e-6) for row in expected]


@pytest.mark.parametrize("name", ["by hand", "LambdaLR"])
def test_a_held_rate_stays_and_a_kept_one_goes_on_beneath_it(name: str) -> None:
    tiny = Tiny()
    SCHEDULES[name](tiny)
    tiny.tell(10, "hold", set={"lr_schedule": "hold", "learning_rate": 0.03})
    tiny.tell(18, "keep", set={"lr_schedule": "keep"})
    tiny.lay()
    tiny.train(STEPS)
    natural = natural_rates(SCHEDULES[name])
    share = RATES[1] / RATES[0]
    expected = natural[:10] + [[0.03, 0.03 * share]] * 8 + asked(natural, 0.03, 18)
    assert close(tiny.rates, expected)


def test_an_idle_live_loop_changes_nothing_at_all() -> None:
    for schedule in ("none", "by hand", "OneCycleLR"):
        plain, tiny = Tiny(), Tiny()
        for each in (plain, tiny):
            SCHEDULES[schedule](each)
        plain.train_plain(STEPS)
        scheduler_class = type(tiny.scheduler)
        tiny.lay()
        tiny.train(STEPS)
        assert tiny.used == plain.used
        assert all(map(torch.equal, tiny.weights(), plain.weights()))
        if tiny.scheduler:
            assert tiny.scheduler.state_dict() == plain.scheduler.state_dict()
        assert type(tiny.scheduler) is scheduler_class
        assert not tiny.optimizer._optimizer_step_pre_hooks
        assert not tiny.optimizer._optimizer_step_post_hooks


def test_the_weights_are_those_of_a_loop_that_assigns_the_same_by_hand() -> None:
    tiny, plain = Tiny(), Tiny()
    tiny.tell(7, "a", set={"learning_rate": 0.02, "weight_decay": 0.3, "adam_epsilon": 1e-4})
    tiny.tell(15, "b", set={"adam_beta1": 0.7, "adam_beta2": 0.98})
    tiny.lay()
    tiny.train(STEPS)

    def first() -> None:
        for group, rate in zip(plain.optimizer.param_groups, (0.02, 0.02 * 0.2), strict=True):
            group["lr"], group["eps"] = rate, 1e-4
        plain.optimizer.param_groups[0]["weight_decay"] = 0.3

    def second() -> None:
        for group in plain.optimizer.param_groups:
            group["betas"] = (0.7, 0.98)

    plain.at = {7: first, 15: second}
    plain.train_plain(STEPS)
    assert tiny.used == plain.used
    assert all(map(torch.equal, tiny.weights(), plain.weights()))


# --- the optimizer's parameters --------------------------------------------------------------------


def test_weight_decay_is_for_weights_and_what_an_optimizer_lacks_is_said() -> None:
    tiny = Tiny()
    tiny.tell(3, "decay", set={"weight_decay": 0.2})
    tiny.tell(3, "beta", set={"adam_beta1": 0.5})
    tiny.optimizer = torch.optim.SGD(groups(tiny.model), lr=0.1)
    tiny.lay()
    tiny.train(6)
    assert [group["weight_decay"] for group in tiny.optimizer.param_groups] == [0.2, 0]
    ack = tiny.ack("beta")
    assert (ack.code, ack.errors) == ("not_supported", {"adam_beta1": "this optimizer has no adam_beta1"})
    assert [*tiny.surface().params] == ["learning_rate", "lr_schedule", "weight_decay"]

    whole = Tiny()
    whole.tell(3, "decay", set={"weight_decay": 0.2})
    whole.optimizer = torch.optim.SGD(whole.model.parameters(), lr=0.1)
    whole.lay()
    whole.train(6)
    assert whole.ack("decay").code == "not_supported"
    assert "biases" in whole.ack("decay").errors["weight_decay"]
    assert whole.optimizer.param_groups[0]["weight_decay"] == 0
