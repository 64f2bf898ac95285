"""The made-up MLflow stores that the questions are about, full of what misleads.

Equal results, values that ended worse than they were, NaN and infinity, runs that failed, go on or were
deleted with better numbers than all others, one number spelt in several ways, metrics that some runs never
logged, two runs of one name, nested runs, requests that were rejected. All of it depends on the seed alone,
not on the time.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import trainings_store
from rows import Points, Run, RunStatus, empty, write

BEGIN = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
PRICES = {"NVIDIA H100 80GB HBM3": 2.5, "NVIDIA A100-SXM4-80GB": 1.8}
"""US dollars an hour."""
_RATES = (("1e-5", "0.00001", "1e-05"), ("3e-5", "0.00003"), ("1e-4", "0.0001", "1.0e-4"), ("3e-4", "0.0003"))
_ENDS = (1.92, 1.71, 1.58, 1.77)
"""About where the evaluation loss ends, by learning rate."""
_WORDS = (
    "amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "islet", "jade", "kelp", "larch",
    "maple", "onyx", "pearl", "quartz", "reed", "slate", "tundra", "umber", "vale", "willow",
)  # fmt: skip
H100, A100 = PRICES


def build(folder: Path, seed: int) -> dict[str, Path]:
    """Makes all stores and gives their SQLite files by name."""
    made = {}
    template = folder / "empty.db"
    empty(template)
    for place, (name, runs_of) in enumerate(STORES.items()):
        random = np.random.default_rng([seed, place])
        made[name] = folder / f"{name}.db"
        shutil.copy(template, made[name])
        write(made[name], runs_of(random), random)
    return made


# --- sweeps ------------------------------------------------------------------------------------------


def _sweeps(random: np.random.Generator) -> list[Run]:
    """A sweep of 26 runs with every trap, and 150 preference trainings: more than a page of any list."""
    return [*_tiny_sweep(random), *_preferences(random)]


def _tiny_sweep(random: np.random.Generator) -> list[Run]:
    runs = []
    for number, word in enumerate(_WORDS):
        rate = number % 4
        spellings = _RATES[rate]
        end = _ENDS[rate] + 0.011 * number % 0.07 + float(random.uniform(0, 0.004))
        run = Run(
            f"{word}-{number + 3}",
            "tiny-sweep",
            BEGIN + timedelta(minutes=50 * number),
            minutes=float(np.round(random.uniform(18, 48), 2)),
            params={
                "learning_rate": spellings[number // 4 % len(spellings)],
                "lora_r": str((8, 16, 32)[number % 3]),
                "seed": str(number),
                "model_name_or_path": "HuggingFaceTB/SmolLM2-135M",
            },
            metrics=_falling(random, end, overfits=rate == 3),
            tags={"dataset": ("wiki", "code", "chat")[number // 2 % 3]},
        )
        if number % 2:
            run.metrics["eval_accuracy"] = [
                (1000, round(float(1.05 - 0.3 * end + 0.01 * random.random()), 4))
            ]
        runs.append(run)
    return [*_trapped(runs), *_more(random)]


def _trapped(runs: list[Run]) -> list[Run]:
    """The same runs, of which some are not what they seem."""
    by_rate = [runs[place::4] for place in range(4)]
    _scale(by_rate[2][0], 0.8, "FAILED")  # better than all that finished
    _scale(by_rate[1][0], 0.9, "RUNNING")
    by_rate[0][3].status = "FAILED"
    by_rate[0][0].metrics["eval_loss"] = [*by_rate[0][0].metrics["eval_loss"][:-1], (1000, math.nan)]
    by_rate[3][1].metrics["eval_loss"] = [*by_rate[3][1].metrics["eval_loss"][:-1], (1000, math.inf)]
    for silent in (by_rate[0][2], by_rate[1][3]):
        del silent.metrics["eval_loss"]
    best = sorted(
        (run for run in by_rate[2] if run.status == "FINISHED"),
        key=lambda run: run.metrics["eval_loss"][-1][1],
    )
    tie = best[1].metrics["eval_loss"][-1][1]
    best[2].metrics["eval_loss"] = [*best[2].metrics["eval_loss"][:-1], (1000, tie)]
    by_rate[3][3].metrics["eval_loss"] = [  # the best of all, once
        (step, round(value * (0.86 if step == 400 else 1.0), 4))
        for step, value in by_rate[3][3].metrics["eval_loss"]
    ]
    return runs


def _scale(run: Run, factor: float, status: RunStatus) -> None:
    run.status = status
    run.metrics["eval_loss"] = [(step, round(v * factor, 4)) for step, v in run.metrics["eval_loss"]]


def _more(random: np.random.Generator) -> list[Run]:
    """Two runs of one name, one that was killed, and one in the bin with the best loss of all."""

    def run(name: str, hours: int, end: float, status: RunStatus = "FINISHED") -> Run:
        return Run(
            name,
            "tiny-sweep",
            BEGIN + timedelta(days=2, hours=hours),
            minutes=21.0 + hours,
            status=status,
            params={"learning_rate": "2e-5", "lora_r": "64", "seed": "99"},
            metrics=_falling(random, end),
            tags={"dataset": "wiki", "owner": "noor"},
        )

    deleted = run("ghost-78", 3, 1.11)
    deleted.is_deleted = True
    return [run("retry", 0, 1.8342), run("retry", 1, 1.8129), run("zinc-77", 2, 1.45, "KILLED"), deleted]


def _falling(random: np.random.Generator, end: float, *, overfits: bool = False) -> dict[str, Points]:
    """A training and an evaluation loss over 1,000 steps. overfits: The latter is best at step 400."""

    def course(step: int) -> float:
        value = end + 0.9 * (math.exp(-step / 250) - math.exp(-4))
        return value - (0.0003 * (1000 - step) if overfits and step >= 400 else 0.0)

    losses = [(step, course(step) - 0.06 + float(random.normal(0, 0.004))) for step in range(25, 1001, 25)]
    evals = [
        (step, round(course(step) + float(random.normal(0, 0.001)), 4)) for step in range(100, 1001, 100)
    ]
    return {"loss": losses, "eval_loss": evals}


def _preferences(random: np.random.Generator) -> list[Run]:
    runs = []
    for number in range(150):
        rate = float(f"{10 ** random.uniform(-6, -4):.2e}")
        beta = ("0.05", "0.1", "0.3")[number % 3]
        margin = 1.6 + 0.5 * math.log10(rate / 1e-6) + float(random.normal(0, 0.15)) - 0.4 * float(beta)
        runs.append(
            Run(
                f"dpo-{number:03d}",
                "prefs",
                BEGIN + timedelta(days=5, minutes=7 * number),
                minutes=float(np.round(random.uniform(40, 200), 2)),
                status="FAILED" if number % 37 == 5 else "FINISHED",
                params={
                    "learning_rate": repr(rate),
                    "beta": beta,
                    "weight_decay": ("0", "0.01", "0.05", "0.1", "0.0")[number % 5],
                    "model_name_or_path": ("Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.2-1B")[number % 2],
                },
                metrics={
                    "rewards/margins": [
                        (step, round(margin * step / 500, 4)) for step in range(100, 501, 100)
                    ],
                    "objective/kl": [(500, round(float(random.uniform(2, 9)), 3))],
                },
            )
        )
    return runs


# --- costs -------------------------------------------------------------------------------------------


def _costs(random: np.random.Generator) -> list[Run]:
    """Runs on priced, unpriced, unknown and no accelerators, and a pipeline with two stages inside."""
    plan: tuple[tuple[str, str | None, str, RunStatus], ...] = (
        ("falcon", H100, "red", "FINISHED"),
        ("osprey", f"{H100},{H100}", "red", "FINISHED"),
        ("kestrel", A100, "blue", "FINISHED"),
        ("merlin", f"{A100},{A100},{A100},{A100}", "blue", "FAILED"),
        ("heron", "NVIDIA GeForce RTX 4090", "red", "FINISHED"),
        ("egret", "none", "blue", "FINISHED"),
        ("plover", None, "blue", "FINISHED"),
        ("curlew", A100, "red", "KILLED"),
        ("pipeline", H100, "green", "FINISHED"),
    )
    runs = []
    for number, (name, gpus, team, status) in enumerate(plan):
        minutes = 190.0 if name == "pipeline" else float(np.round(random.uniform(35, 240), 1))
        run = Run(name, "gpu-runs", BEGIN + timedelta(hours=5 * number), minutes, status, tags={"team": team})
        if gpus is not None:
            run.tags["ftlab.accelerators"] = gpus
        tokens = int(random.integers(2_000_000, 90_000_000))
        if name not in ("egret", "plover"):
            run.metrics["num_tokens"] = [(500, float(tokens // 2)), (1000, float(tokens))]
        run.metrics["loss"] = [(step, 3.0 - 0.001 * step) for step in range(50, 1001, 50)]
        runs.append(run)
    inside = runs[-1]
    for name, after, minutes in (("stage-reward", 5, 60.0), ("stage-policy", 70, 110.0)):
        runs.append(
            Run(name, "gpu-runs", inside.started + timedelta(minutes=after), minutes, parent="pipeline",
                tags={"team": "green", "ftlab.accelerators": H100},
                metrics={"loss": [(step, 2.0 - 0.0005 * step) for step in range(50, 1001, 50)]})
        )  # fmt: skip
    return runs


STORES: Mapping[str, Callable[[np.random.Generator], list[Run]]] = {
    "sweeps": _sweeps,
    "trainings": trainings_store.runs,
    "costs": _costs,
}
"""What each store holds, by its name."""
