"""Every parameter on real optimizers: what is offered, what a change does to the weights, limits, undo."""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_tiny import Lab, Net, collate, data, weights
from transformers import get_scheduler
from transformers.optimization import Adafactor

from ftlab_mlflow.errors import ConfigError
from ftlab_mlflow.training.batch_tunables import BATCH_TABLE
from ftlab_mlflow.training.method_tunables import METHOD_TABLE
from ftlab_mlflow.training.schedule import LiveSchedule
from ftlab_mlflow.training.tunable import Trainee, Tunable
from ftlab_mlflow.training.tunables import TABLE, build_tunables, check_limits

DECAYED = ("first.weight", "last.weight")


def _groups(model: torch.nn.Module, decay: float = 0.0) -> list[dict[str, Any]]:
    """As `Trainer` builds them: weights with decay; biases and norms without."""
    named = list(model.named_parameters())
    return [
        {"params": [p for n, p in named if n in DECAYED], "weight_decay": decay},
        {"params": [p for n, p in named if n not in DECAYED], "weight_decay": 0.0},
    ]


class Lion(torch.optim.Optimizer):
    """An optimizer with betas and without eps, as Lion is."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99), "weight_decay": 0.0})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad.sign(), alpha=-group["lr"])


def _trainee(optimizer: torch.optim.Optimizer, model: torch.nn.Module, **over: Any) -> Trainee:
    steps = SimpleNamespace(value="steps")
    args = SimpleNamespace(
        max_grad_norm=1.0,
        logging_strategy=steps,
        eval_strategy=steps,
        save_strategy=steps,
        load_best_model_at_end=False,
    )
    meant = {id(p) for n, p in model.named_parameters() if n in DECAYED}
    parts: dict[str, Any] = {
        "args": args,
        "state": SimpleNamespace(logging_steps=10, eval_steps=20, save_steps=40),
        "optimizer": optimizer,
        "schedule": LiveSchedule(optimizer, get_scheduler("linear", optimizer, 0, 100)),
        "decays": lambda p: id(p) in meant,
        "evaluates": True,
    }
    return Trainee(**(parts | over))


def _build(
    optimizer: Callable[[Any], torch.optim.Optimizer], **over: Any
) -> tuple[dict[str, Tunable], Any, Any]:
    model = Net()
    built = optimizer(_groups(model, over.pop("decay", 0.0)))
    tunables, missing = build_tunables(_trainee(built, model, **over), {})
    assert set(OTHERS) <= set(missing), "without a trainer"
    return tunables, {name: reason for name, reason in missing.items() if name not in OTHERS}, built


# --- what is offered ---------------------------------------------------------------------------------

OTHERS = {**BATCH_TABLE, **METHOD_TABLE}
ALL = set(TABLE) - set(OTHERS)
OPTIMIZERS: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], set[str]]] = {
    "AdamW": (lambda g: torch.optim.AdamW(g, lr=0.01), ALL),
    "SGD": (lambda g: torch.optim.SGD(g, lr=0.01), ALL - {"adam_beta1", "adam_beta2", "adam_epsilon"}),
    "Adafactor": (
        lambda g: Adafactor(g, lr=0.01, relative_step=False, scale_parameter=False),
        ALL - {"adam_beta1", "adam_beta2", "adam_epsilon"},
    ),
    "Lion": (lambda g: Lion(g, lr=0.01), ALL - {"adam_epsilon"}),
    "tensor betas": (
        lambda g: torch.optim.AdamW(
            g, lr=0.01, betas=(torch.tensor(0.9), torch.tensor(0.99)), capturable=True, foreach=False
        ),
        ALL - {"adam_beta1", "adam_beta2"},
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_offered_follows_the_optimizer(name: str) -> None:
    make, offered = OPTIMIZERS[name]
    tunables, missing, _ = _build(make)
    assert set(tunables) == offered
    assert set(missing) == ALL - offered
    assert all(missing.values())
    assert list(tunables) == [n for n in TABLE if n in offered], "in the order of the table"


def test_a_scheduler_that_cycles_momentum_owns_the_first_beta() -> None:
    model = Net()
    optimizer = torch.optim.AdamW(_groups(model), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=50)
    tunables, missing = build_tunables(
        _trainee(optimizer, model, schedule=LiveSchedule(optimizer, scheduler)), {}
    )
    assert "adam_beta1" in missing
    assert "adam_beta2" in tunables
    tunables["adam_beta2"].apply(0.9)
    optimizer.step()
    scheduler.step()
    assert tunables["adam_beta2"].read() == 0.9


def test_no_decay_is_offered_where_it_would_act_on_biases() -> None:
    model = Net()
    mixed = torch.optim.SGD(model.parameters(), lr=0.01)
    assert "weight_decay" in build_tunables(_trainee(mixed, model), {})[1]
    launched = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=0.1)
    assert build_tunables(_trainee(launched, model), {})[0]["weight_decay"].asked == 0.1


def test_a_decay_acts_where_it_is_meant_to_act_also_when_it_started_at_zero() -> None:
    for start in (0.0, 0.3):
        tunables, _, optimizer = _build(lambda g: torch.optim.AdamW(g, lr=0.01), decay=start)
        decay = tunables["weight_decay"]
        assert (decay.asked, decay.read()) == (start, start)
        for value in (0.2, 0.0, 0.5):
            decay.apply(value)
            assert [g["weight_decay"] for g in optimizer.param_groups] == [value, 0.0]
            assert decay.read() == value


def test_groups_of_different_decay_keep_their_ratio() -> None:
    model = Net()
    groups = [
        {"params": [model.first.weight], "weight_decay": 0.1},
        {"params": [model.last.weight], "weight_decay": 0.4},
        {"params": [model.last.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.01)
    decay = build_tunables(_trainee(optimizer, model), {})[0]["weight_decay"]
    assert decay.asked == 0.4
    decay.apply(0.0)
    decay.apply(0.8)
    assert [g["weight_decay"] for g in optimizer.param_groups] == pytest.approx([0.2, 0.8, 0.0])


def test_an_optimizer_without_parameters_of_its_own_leaves_the_intervals() -> None:
    tunables, missing, _ = _build(
        lambda g: torch.optim.SGD(g, lr=0.01), schedule=None, no_optimizer="not driven"
    )
    assert set(tunables) == {"logging_steps", "eval_steps", "save_steps"}
    assert set(missing.values()) == {"not driven"}
    tunables, missing, _ = _build(lambda g: torch.optim.SGD(g, lr=0.01), schedule=None)
    assert {"learning_rate", "lr_schedule"} <= set(missing)


# --- undo --------------------------------------------------------------------------------------------

NEW: dict[str, Any] = {
    "learning_rate": 0.5, "lr_schedule": "hold", "weight_decay": 0.7, "adam_beta1": 0.5, "adam_beta2": 0.6,
    "adam_epsilon": 1e-3, "max_grad_norm": 9.0, "logging_steps": 3, "eval_steps": 4, "save_steps": 5,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_every_change_can_be_undone(name: str, decay: float) -> None:
    tunables, _, optimizer = _build(lambda g: torch.optim.AdamW(g, lr=0.01), decay=decay)
    tunable = tunables[name]
    groups = copy.deepcopy([{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups])
    values = {n: t.read() for n, t in tunables.items()}
    captured = tunable.capture()
    tunable.apply(NEW[name])
    assert tunable.read() == NEW[name]
    assert {n: t.read() for n, t in tunables.items() if n != name} == {
        n: v for n, v in values.items() if n != name
    }
    tunable.restore(captured)
    assert {n: t.read() for n, t in tunables.items()} == values
    assert [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups] == groups
    assert (tunable.save or tunable.read)() == (
        None if name in ("learning_rate", "lr_schedule") else values[name]
    )


# --- limits ------------------------------------------------------------------------------------------


def test_limits_narrow_and_never_widen() -> None:
    model = Net()
    trainee = _trainee(torch.optim.AdamW(_groups(model), lr=0.01), model)
    narrowed = build_tunables(trainee, {"learning_rate": (1e-6, 1e-3), "save_steps": (10, None)})[0]
    assert (narrowed["learning_rate"].min, narrowed["learning_rate"].max) == (1e-6, 1e-3)
    assert (narrowed["save_steps"].min, narrowed["save_steps"].max) == (10, None)
    for wide in ({"learning_rate": (-1, None)}, {"learning_rate": (0, 2)}, {"save_steps": (0, 5)}):
        with pytest.raises(ConfigError, match="narrowed"):
            build_tunables(trainee, wide)


def test_limits_that_make_no_sense() -> None:
    for limits in ({"x": (0, 1)}, {"lr_schedule": (0, 1)}, {"eval_steps": (9, 1)}, {"eval_steps": "19"}):
        with pytest.raises(ConfigError):
            check_limits(limits)  # type: ignore[arg-type]


@pytest.mark.parametrize("bounds", [(2, 3), (2, None), (None, -1.0)])
def test_a_limit_that_leaves_no_value_is_an_error_not_an_empty_range(bounds: Any) -> None:
    """A lower limit above the parameter's own upper bound, or the other way round, would allow nothing."""
    model = Net()
    trainee = _trainee(torch.optim.AdamW(_groups(model), lr=0.01), model)
    with pytest.raises(ConfigError):
        build_tunables(trainee, {"learning_rate": bounds})


def test_the_best_model_needs_an_evaluation_at_every_save(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.make(max_steps=12, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=4,
             load_best_model_at_end=True, metric_for_best_model="loss")  # fmt: skip
    lab.tell(1, "bad1", set={"save_steps": 3})
    lab.tell(1, "bad2", set={"eval_steps": 3})
    lab.tell(2, "both", set={"save_steps": 6, "eval_steps": 3})
    lab.tell(3, "log", set={"logging_steps": 5})
    lab.trainer.train()
    assert [lab.ack(i).code for i in ("bad1", "bad2")] == ["out_of_bounds"] * 2
    assert "multiple" in lab.ack("bad1").errors["save_steps"]
    assert lab.ack("both").status == lab.ack("log").status == "applied"
    assert lab.checkpoints() == ["checkpoint-12", "checkpoint-6"]


# --- against a plain loop ----------------------------------------------------------------------------

Settings = dict[str, Any]
Make = Callable[[list[dict[str, Any]], Settings], torch.optim.Optimizer]

TOLD: dict[int, Settings] = {
    3: {"learning_rate": 0.05, "weight_decay": 0.5},
    6: {"max_grad_norm": 0.05},
    9: {"lr_schedule": "hold", "max_grad_norm": 0.0},
    11: {"learning_rate": 0.002, "weight_decay": 0.1},
}
ADAM: dict[int, Settings] = {
    2: {"adam_beta1": 0.5},
    5: {"adam_beta2": 0.8, "adam_epsilon": 1e-3, "learning_rate": 0.03},
    8: {"adam_beta1": 0.95, "weight_decay": 0.3},
}


def _told(*scripts: dict[int, Settings]) -> dict[int, Settings]:
    steps = sorted({step for script in scripts for step in script})
    return {step: {k: v for script in scripts for k, v in script.get(step, {}).items()} for step in steps}


def _plain_loop(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module,
    batches: Iterable[Any],
    told: dict[int, Settings],
    steps: int,
) -> list[float]:
    """A training loop that anyone would write, with a linear schedule by hand. Returns its rates."""
    model.train()
    norm, value, since, held = 1.0, 0.01, 0, None
    rates = []
    for step, batch in enumerate(batches):
        now = told.get(step, {})
        for group in optimizer.param_groups:
            if "adam_beta1" in now:
                group["betas"] = (now["adam_beta1"], group["betas"][1])
            if "adam_beta2" in now:
                group["betas"] = (group["betas"][0], now["adam_beta2"])
            group["eps"] = now.get("adam_epsilon", group.get("eps"))
        optimizer.param_groups[0]["weight_decay"] = now.get(
            "weight_decay", optimizer.param_groups[0]["weight_decay"]
        )
        norm = now.get("max_grad_norm", norm)
        if "learning_rate" in now:
            value, since = now["learning_rate"], step
            held = None if held is None else value
        rate = value * ((steps - step) / (steps - since))
        if now.get("lr_schedule") == "hold":
            held = rate
        rates.append(held if held is not None else rate)
        for group in optimizer.param_groups:
            group["lr"] = rates[-1]
        model(**batch)["loss"].backward()
        if norm > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), norm)
        optimizer.step()
        optimizer.zero_grad()
    return rates


@pytest.mark.parametrize(
    ("make", "told"),
    [
        pytest.param(lambda g: torch.optim.AdamW(g, lr=0.01), _told(TOLD, ADAM), id="AdamW"),
        pytest.param(lambda g: torch.optim.SGD(g, lr=0.01, momentum=0.9), TOLD, id="SGD"),
        pytest.param(lambda g: torch.optim.RMSprop(g, lr=0.01), TOLD, id="RMSprop"),
        pytest.param(
            lambda g: Adafactor(g, lr=0.01, relative_step=False, scale_parameter=False), TOLD, id="Adafactor"
        ),
    ],
)
def test_the_weights_are_those_of_a_plain_loop(tmp_path: Path, make: Any, told: dict[int, Settings]) -> None:
    steps = 16
    model = Net()
    optimizer = make(_groups(model, 0.2))
    lab = Lab(tmp_path)
    lab.make(
        model=model, optimizers=(optimizer, get_scheduler("linear", optimizer, 0, steps)), max_steps=steps
    )
    for step, changes in told.items():
        lab.tell(step, f"r{step}", set=changes)
    lab.trainer.train()
    assert all(lab.ack(f"r{step}").status == "applied" for step in told)

    twin = Net()
    rates = _plain_loop(make(_groups(twin, 0.2)), twin, lab.batches, told, steps)
    assert lab.recorder.rates == pytest.approx(rates, rel=1e-12)
    for mine, theirs in zip(weights(model), weights(twin), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
    untouched = Net()
    _plain_loop(make(_groups(untouched, 0.2)), untouched, lab.batches, {}, steps)
    assert any(
        not torch.allclose(a, b, rtol=1e-3) for a, b in zip(weights(model), weights(untouched), strict=True)
    ), "the changes matter at all"


def test_the_trainers_own_groups_get_the_decay(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.make(max_steps=6)
    lab.tell(2, "a", set={"weight_decay": 0.4})
    lab.trainer.train()
    decays = [[g["weight_decay"] for g in groups] for groups in lab.recorder.groups]
    assert decays == [[0.0, 0.0]] * 2 + [[0.4, 0.0]] * 4
    named = {id(p): n for n, p in lab.trainer.model.named_parameters()}
    decayed = {named[id(p)] for p in lab.trainer.optimizer.param_groups[0]["params"]}
    assert decayed == set(DECAYED)


def test_clipping_acts_from_the_next_step_on(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.make(max_steps=8)
    lab.tell(4, "a", set={"max_grad_norm": 1e-3})
    norms: list[float] = []

    def measure(optimizer: Any, *_: Any) -> None:
        grads = [p.grad for g in optimizer.param_groups for p in g["params"]]
        norms.append(float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads]))))

    from torch.optim.optimizer import register_optimizer_step_pre_hook

    hook = register_optimizer_step_pre_hook(measure)
    try:
        lab.trainer.train()
    finally:
        hook.remove()
    assert len(norms) == 8
    assert all(norm > 0.5 for norm in norms[:4])
    assert norms[4:] == pytest.approx([1e-3] * 4, rel=1e-3)


def test_the_batches_of_the_oracle_are_real(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.make(max_steps=8)
    lab.trainer.train()
    seen = sorted(float(v) for batch in lab.batches for v in batch["labels"])
    assert seen == sorted(float(v) for v in collate(data())["labels"])
