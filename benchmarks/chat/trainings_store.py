"""The store of single trainings: runs that were changed while they trained, and runs with something wrong."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
from rows import Points, Run, RunStatus

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.messages import Ack, AckStatus, State, Status, Update

BEGIN = datetime(2026, 4, 6, 8, 0, tzinfo=UTC)
_STATUS: dict[State, RunStatus] = {"finished": "FINISHED", "failed": "FAILED", "running": "RUNNING"}


def runs(random: np.random.Generator) -> list[Run]:
    """All of them."""
    return [*_changed(random), *_ill(random)]


def _run(name: str, experiment: str, number: int, metrics: dict[str, Points], **more: str) -> Run:
    state: State = more.pop("state", "finished")  # type: ignore[assignment]
    run = Run(
        name,
        experiment,
        BEGIN + timedelta(hours=3 * number),
        minutes=95.0 + number,
        status=_STATUS[state],
        params={"learning_rate": more.pop("rate", "0.0002"), "optim": "adamw_torch", "lora_r": "16"},
        metrics=metrics,
    )
    last = max(step for points in metrics.values() for step, _ in points)
    end = run.started + timedelta(minutes=run.minutes)
    status = Status(
        state, last, 1000, last / 400, end, 10, f"s{number}", "node7", 4242, "sft", more.get("error")
    )
    run.tags[tags.STATUS] = status.encode()
    return run


# --- changed -----------------------------------------------------------------------------------------


def _changed(random: np.random.Generator) -> list[Run]:
    harbor = _run("harbor", "live-runs", 0, _bent(random, 400, 200, -0.05, -0.30), rate="3e-05")
    _request(harbor, 1, 200, "learning_rate", 3e-5, 1e-4, by="ada", via="cli", reason="the loss stalled")

    lagoon = _run("lagoon", "live-runs", 1, _bent(random, 600, 300, -0.30, -0.02), rate="0.0003")
    _request(lagoon, 1, 300, "learning_rate", 3e-4, 1e-5, by="grace", via="dashboard", reason="too noisy")
    _request(lagoon, 2, 320, "learning_rate", 1e-5, 9.0, by="linus", via="dashboard", status="rejected")
    _request(lagoon, 3, 350, "learning_rate", 1e-5, 2e-5, by="linus", via="cli", status="cancelled")
    _request(lagoon, 4, 560, "weight_decay", 0.0, 0.1, by="barbara", via="python", reason="before the end")

    strait = _run("strait", "live-runs", 2, _bent(random, 204, 200, -0.1, -0.1), rate="5e-05")
    _request(strait, 1, 200, "learning_rate", 5e-5, 1e-4, by="ada", via="cli")

    canal = _run("canal", "live-runs", 3, _bent(random, 400, 200, -0.1, -0.1), rate="0.0001")
    bay = _run("bay", "live-runs", 4, _bent(random, 300, 150, -0.2, -0.2), state="failed", rate="0.0001",
               error="RuntimeError: the data loader stopped: shard 17 is corrupt")  # fmt: skip
    _request(
        bay, 1, 150, "per_device_train_batch_size", 8, 16, by="grace", via="cli", reason="memory is left"
    )
    return [harbor, lagoon, strait, canal, bay]


def _bent(random: np.random.Generator, steps: int, at: int, before: float, after: float) -> dict[str, Points]:
    """A loss that falls on two straight lines, whose slopes are per 100 steps, with noise, at every step."""
    losses = []
    for step in range(1, steps + 1):
        value = 2.6 + before * min(step, at) / 100 + after * max(0, step - at) / 100
        losses.append((step, value + float(random.normal(0, 0.01))))
    return {"loss": losses}


def _request(
    run: Run,
    number: int,
    step: int,
    name: str,
    old: float,
    new: float,
    *,
    status: AckStatus = "applied",
    by: str,
    via: str,
    reason: str | None = None,
) -> None:
    at = run.started + timedelta(seconds=10 * step)
    key = f"{run.name}-{number}"
    update = Update(at=at, set={name: new}, by=by, via=via, reason=reason)
    ack = Ack(
        status,
        step,
        at + timedelta(seconds=1),
        "s0",
        changes={name: (old, new)} if status == "applied" else {},
        code="out_of_bounds" if status == "rejected" else None,
        errors={name: "must be a finite number from 0 to 1, got 9"} if status == "rejected" else {},
    )
    run.tags[tags.UPDATE_PREFIX + key] = update.encode()
    run.tags[tags.ACK_PREFIX + key] = ack.encode()


# --- ill ---------------------------------------------------------------------------------------------


def _ill(random: np.random.Generator) -> list[Run]:
    healthy = _healthy(random)
    worse = _healthy(random)
    worse["eval_loss"] = [
        (step, round(_course(step) + 0.05 + max(0, step - 400) * 0.0009 + float(random.normal(0, 0.002)), 4))
        for step in range(50, 1001, 50)
    ]
    worse["loss"] = [(step, value - 0.0006 * step) for step, value in worse["loss"]]
    blackout = _healthy(random)
    blackout["loss"] = [(step, value if step < 310 else math.nan) for step, value in blackout["loss"]]
    spiky = _healthy(random)
    heights = {180: 2.1, 440: 3.4, 730: 2.7}
    spiky["loss"] = [(step, value * heights.get(step, 1.0)) for step, value in spiky["loss"]]
    away = _healthy(random)
    away["loss"] = [(step, value + max(0, step - 500) * 0.012) for step, value in away["loss"]]
    slow = _healthy(random)
    slow["tokens_per_second"] = [
        (step, float(np.round((5200 if step < 600 else 1900) + random.normal(0, 60), 1)))
        for step in range(10, 1001, 10)
    ]
    cut: dict[str, Points] = {
        metric: [point for point in points if point[0] <= 420] for metric, points in _healthy(random).items()
    }
    lost: dict[str, Points] = {
        metric: [point for point in points if point[0] <= 250] for metric, points in _healthy(random).items()
    }
    error = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB"
    return [
        _run("sparrow", "doctor", 5, healthy),
        _run("bookworm", "doctor", 6, worse),
        _run("blackout", "doctor", 7, blackout),
        _run("kangaroo", "doctor", 8, spiky),
        _run("runaway", "doctor", 9, away),
        _run("tortoise", "doctor", 10, slow),
        _run("mammoth", "doctor", 11, cut, state="failed", error=error),
        _run("drifter", "doctor", 12, lost, state="running"),
    ]


def _course(step: int) -> float:
    return 1.6 + 1.1 * math.exp(-step / 300)


def _healthy(random: np.random.Generator) -> dict[str, Points]:
    """What a sound training logs in 1,000 steps."""
    steps = range(10, 1001, 10)
    return {
        "loss": [(step, _course(step) + float(random.normal(0, 0.012))) for step in steps],
        "eval_loss": [
            (step, round(_course(step) + 0.05 + float(random.normal(0, 0.002)), 4))
            for step in range(50, 1001, 50)
        ],
        "learning_rate": [(step, 2e-4 * (1 - step / 1100)) for step in steps],
        "grad_norm": [(step, float(np.round(1.2 + 0.2 * random.random(), 4))) for step in steps],
        "tokens_per_second": [(step, float(np.round(5200 + random.normal(0, 60), 1))) for step in steps],
    }
