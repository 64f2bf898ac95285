"""The rules of the diagnosis on histories whose truth is known; what is said of runs that go on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_samples import Runs

from ftlab_mlflow.analytics import call_tool
from ftlab_mlflow.analytics.diagnosis import diagnosed
from ftlab_mlflow.analytics.evidence import Evidence, Finding
from ftlab_mlflow.analytics.series import Series
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.messages import Ack, Status, Update
from ftlab_mlflow.control.store import RunData
from ftlab_mlflow.control.view import RunView
from ftlab_mlflow.control.wire import new_id, utc_now


def evidence(
    method: str = "sft",
    params: dict[str, str] | None = None,
    **series: Sequence[float] | np.ndarray[Any, Any],
) -> Evidence:
    """A run that has ended, with values at steps 1, 2, …; in names, ``__`` is a slash."""
    data = RunData(
        run_id="0" * 32, name="run", experiment_id="0", status="FINISHED", started=None, ended=None,
        tags={tags.COMMAND_LINE: f"ftlab train {method}"}, metrics={}, steps={}, logged_at={},
    )  # fmt: skip
    found = {}
    for name, values in series.items():
        steps = np.arange(1, len(values) + 1, dtype=np.int64)
        found[name.replace("__", "/")] = Series(
            steps, np.array(values, dtype=float), steps * 1000, len(values)
        )
    return Evidence(RunView.of(data), params or {}, method, found)


def kinds(run: Evidence) -> set[str]:
    return {finding.kind for finding in diagnosed(run)[0]}


def noise(seed: int, count: int, memory: float) -> np.ndarray[Any, Any]:
    """Standard normal, correlated from value to value."""
    dice = np.random.default_rng(seed)
    values = dice.normal(size=count)
    for place in range(1, count):
        values[place] = memory * values[place - 1] + math.sqrt(1 - memory**2) * values[place]
    return values


SEEDS, COUNTS = st.integers(0, 10**6), st.integers(20, 400)
SPREADS, MEMORIES = st.floats(0.001, 0.3), st.floats(0, 0.5)


@settings(max_examples=150)
@given(SEEDS, COUNTS, SPREADS, MEMORIES, st.floats(0.3, 5), st.floats(0.2, 3))
def test_a_loss_that_falls_is_not_accused(
    seed: int, count: int, spread: float, memory: float, floor: float, speed: float
) -> None:
    """It still falls by several percent of itself in the second half, at a constant rate."""
    place = np.linspace(0, 1, count)
    course = floor * (1 + np.exp(-speed * place))
    run = evidence(loss=course * (1 + spread * noise(seed, count, memory)), learning_rate=[1e-4] * count)
    assert kinds(run) <= {"rate_too_low"} if speed < 0.5 else not kinds(run)


@settings(max_examples=100)
@given(SEEDS, COUNTS, SPREADS, MEMORIES)
def test_noise_alone_is_nothing_but_a_loss_that_stays(
    seed: int, count: int, spread: float, memory: float
) -> None:
    run = evidence(loss=2 + spread * noise(seed, count, memory), learning_rate=[1e-4] * count)
    assert kinds(run) <= {"underfitting"}


@settings(max_examples=60)
@given(SEEDS, st.integers(60, 400), st.floats(0.001, 0.05))
def test_what_goes_wrong_is_found(seed: int, count: int, spread: float) -> None:
    place = np.linspace(0, 1, count)
    jitter = 1 + spread * noise(seed, count, 0)
    rate = [1e-4] * count
    diverging = np.where(place < 0.6, 1 + 2 * np.exp(-8 * place), 1 + 4 * (place - 0.6))
    assert {"divergence", "rate_too_high"} <= kinds(evidence(loss=diverging * jitter, learning_rate=rate))
    falling = (1 + 2 * np.exp(-3 * place)) * jitter
    spiked = falling.copy()
    spiked[count // 2] *= 4
    assert kinds(evidence(loss=spiked, learning_rate=rate)) == {"loss_spikes"}
    unseen = 1.5 + 1.5 * np.exp(-6 * place) + np.maximum(0, place - 0.4)
    both = evidence(loss=(0.2 + 2.8 * np.exp(-3 * place)) * jitter, eval_loss=unseen, learning_rate=rate)
    assert kinds(both) == {"overfitting"}
    dead = evidence(loss=falling, grad_norm=np.where(place < 0.7, 1.0, 1e-6) * jitter)
    assert "gradient_vanishing" in kinds(dead)
    exploding = evidence(loss=falling, grad_norm=np.where(place < 0.7, 1.0, 40.0) * jitter)
    assert "gradient_explosion" in kinds(exploding)


def test_a_decayed_rate_is_no_plateau() -> None:
    place = np.linspace(0, 1, 400)
    falling = np.where(place < 0.5, 3 - 2 * place, 2.0)
    decayed = np.where(place < 0.5, 1e-4, 1e-7)
    assert kinds(evidence(loss=falling, learning_rate=decayed)) == set()
    assert kinds(evidence(loss=np.where(place < 0.4, 3 - 2.5 * place, 2.0), learning_rate=[1e-4] * 400)) == {
        "plateau"
    }


def test_an_evaluation_below_the_training_loss_is_no_overfitting() -> None:
    """Dropout and a mean over past steps put the training loss above; only a rise counts."""
    place = np.linspace(0, 1, 200)
    falling = 1 + np.exp(-2 * place)
    assert kinds(evidence(loss=falling, eval_loss=falling[::10] - 0.5)) == set()
    assert kinds(evidence(loss=falling, eval_loss=falling[::10] + 5)) == set()


@pytest.mark.parametrize(
    ("params", "skipped", "found"),
    [({}, 1, {"nonfinite"}), ({"fp16": "True"}, 15, set()), ({"fp16": "True"}, 60, {"nonfinite"})],
)
def test_steps_without_a_finite_gradient(params: dict[str, str], skipped: int, found: set[str]) -> None:
    place = np.linspace(0, 1, 1000)
    counted = np.minimum(skipped, np.arange(1000))
    run = evidence(params=params, loss=1 + np.exp(-2 * place), nonfinite_steps=counted)
    assert kinds(run) == found


def test_nan_is_no_other_finding() -> None:
    losses = [*(3 - 0.01 * step for step in range(100)), *([math.nan] * 50)]
    run = evidence(loss=losses, learning_rate=[1e-4] * 150)
    assert kinds(run) == {"nonfinite", "rate_too_high"}
    (finding,) = (each for each in diagnosed(run)[0] if each.kind == "nonfinite")
    assert (finding.step, finding.numbers["first_step"]) == (101, {"loss": 101})


def test_few_values_are_not_judged() -> None:
    findings, clear, not_judged = diagnosed(evidence("dpo", loss=[1.0, 5.0, 9.0], rewards__margins=[-1.0]))
    assert findings == []
    assert "divergence" not in clear
    assert not_judged["divergence"] == "loss has 3 values, 20 are needed"
    assert not_judged["reward margins"] == "rewards/margins has 1 values, 20 are needed"


@settings(max_examples=60)
@given(SEEDS, st.integers(120, 400), st.floats(0.01, 0.1))
def test_rewards(seed: int, count: int, spread: float) -> None:
    place = np.linspace(0, 1, count)
    jitter = spread * noise(seed, count, 0)
    rising = 1 - np.exp(-4 * place)
    healthy = {"reward_std": np.full(count, 0.2), "frac_reward_zero_std": np.full(count, 0.1)}
    assert kinds(evidence("grpo", reward=rising + jitter, loss=jitter, kl=0.1 * place, **healthy)) == set()
    falling = np.where(place < 0.5, rising, 0.1)
    assert kinds(evidence("grpo", reward=falling + jitter, **healthy)) == {"reward_collapse"}
    assert kinds(evidence("grpo", reward=rising + jitter, kl=0.01 + 2.0 * place)) == {"kl_blow_up"}


# --- in a store --------------------------------------------------------------------------------------

FALLING = [3 - 0.005 * step for step in range(200)]
RISING = [1.0 + 0.03 * max(0, step - 100) + 2 / (1 + step) for step in range(200)]


def ask(runs: Runs, run: str) -> dict[str, Any]:
    return call_tool("diagnose_run", {"run": run}, runs.client.tracking_uri)


def test_what_can_be_changed_is_what_the_run_offers(runs: Runs) -> None:
    runs.live("live", loss=RISING, learning_rate=[1e-4] * 200)
    rows = {row["kind"]: row for row in ask(runs, "live")["rows"]}
    assert set(rows) == {"divergence", "rate_too_high"}
    assert rows["divergence"]["live"] == {"learning_rate": {"from": 1e-4, "to": 3e-5}}
    proposed = {"run": "live", "values": {"learning_rate": rows["divergence"]["live"]["learning_rate"]["to"]}}
    assert call_tool("propose_update", proposed, runs.client.tracking_uri)["is_allowed"]
    runs.live("over", state="finished", status="FINISHED", loss=RISING, learning_rate=[1e-4] * 200)
    assert {tuple(row["live"]) for row in ask(runs, "over")["rows"]} == {()}


def test_lost_failed_and_stalled(runs: Runs) -> None:
    runs.live("lost", heartbeat_s=3600, loss=FALLING)
    failed = Status("failed", 7, 100, 0.1, utc_now(), 10, "s1", "node7", 4242, "sft", "CUDA out of memory")
    runs.plain("failed", status="FAILED", run_tags={tags.STATUS: failed.encode()}, loss=FALLING)
    stalled = runs.plain("stalled")
    runs.log(stalled, "loss", FALLING, age_s=7200)
    found = {name: ask(runs, name)["rows"] for name in ("lost", "failed")}
    assert [row["kind"] for row in found["lost"]] == ["lost"]
    assert found["lost"][0]["numbers"]["silent_s"] > 3000
    assert [row["kind"] for row in found["failed"]] == ["failed"]
    assert "CUDA out of memory" in found["failed"][0]["summary"]
    assert ask(runs, "stalled")["not_judged"]["failed, lost or stalled"]  # all values of one moment
    for step in range(5):
        runs.log(stalled, "grad_norm", [1.0], first=step, age_s=7200 - 10 * step)
    assert [row["kind"] for row in ask(runs, "stalled")["rows"]] == ["stalled"]


def test_what_a_rollback_took_back_is_not_diagnosed(runs: Runs) -> None:
    run_id = runs.live("back", step=200)
    runs.log(run_id, "loss", RISING, age_s=600)
    assert {row["kind"] for row in ask(runs, "back")["rows"]} == {"divergence"}
    at = utc_now()
    request = new_id()
    update = Update(at=at, command="rollback", args={"step": 100})
    runs.client.set_tag(run_id, tags.UPDATE_PREFIX + request, update.encode())
    runs.client.set_tag(run_id, tags.ACK_PREFIX + request, Ack("applied", 100, at, "s1", {}).encode())
    runs.log(run_id, "loss", [1.0 - 0.001 * step for step in range(100)], first=101, age_s=-60)
    assert ask(runs, "back")["rows"] == []


def test_an_answer_of_many_findings_keeps_its_size(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTLAB_ANSWER_CHARS", "4000")
    losses = [*RISING, math.nan]
    runs.live(
        "bad", loss=losses, learning_rate=[1e-4] * 201, eval_loss=[1, 0.5, 2, 3, 4, 5], grad_norm=RISING
    )
    answer = ask(runs, "bad")
    seen = [row["kind"] for row in answer["rows"]]
    while answer["next"]:
        answer = call_tool("diagnose_run", answer["next"], runs.client.tracking_uri)
        seen += [row["kind"] for row in answer["rows"]]
    assert len(seen) == len(set(seen)) == answer["total"] >= 3


def test_every_finding_is_in_the_guide() -> None:
    import ast
    import inspect
    from pathlib import Path

    from ftlab_mlflow.analytics import loss_symptoms, method_symptoms, rate_symptoms, run_symptoms

    guide = (Path(__file__).parents[2] / "docs" / "guides" / "diagnosis.md").read_text()
    names = set()
    for module in (loss_symptoms, rate_symptoms, run_symptoms, method_symptoms):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == Finding.__name__:
                names |= {
                    k.value.value
                    for k in node.keywords
                    if k.arg == "kind" and isinstance(k.value, ast.Constant)
                }
    assert len(names) > 15
    assert all(f"`{name}`" in guide for name in names)
