"""What live control costs a training: the same training without us, with us, and with a blocking read.

All variants run in this process, one after the other, in an order that rotates from round to round; each
round's time is divided by that of the same round without us, so a machine that grows slower cancels out, and
imports, connections and memory are the same for all. Every training runs inside an MLflow run on a real
`mlflow server` with its default settings, on SQLite. On two ranks it is two such processes, started by
torchrun, that average their gradients over gloo; the times are those of rank 0.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from report import publish, table
from servers import mlflow_server
from trainings import STEP_2_MS, STEP_50_MS, Size, make_trainer

import mlflow  # isort: skip  (after trainings, which sets what it reads from the environment)
from transformers import Trainer, TrainerCallback

from ftlab_mlflow import attach

QUIET = 1.05
"""Where the same training without us varies by more than this factor, no verdict is given."""
READ_EVERY = 10
"""Steps between two blocking reads in the variant that shows what people write today."""


@dataclass(frozen=True)
class Load:
    """A training to measure, and the ratio of wall times that is the goal."""

    name: str
    size: Size
    steps: int
    rounds: int
    goal: float


Variants = Mapping[str, Callable[[Trainer], Any]]

LOADS = [
    Load("2 ms", STEP_2_MS, steps=3000, rounds=4, goal=1.03),
    Load("50 ms", STEP_50_MS, steps=480, rounds=3, goal=1.005),
]
ON_TWO_RANKS = Load("two ranks", STEP_2_MS, steps=1500, rounds=4, goal=1.03)


class BlockingRead(TrainerCallback):
    """Reads the run in the training thread, every `READ_EVERY` steps."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        run = mlflow.active_run()
        assert run is not None
        self._client = mlflow.MlflowClient()
        self._run_id = run.info.run_id

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % READ_EVERY == 0:
            self._client.get_run(self._run_id)


class Clock(TrainerCallback):
    """Notes when the first step began and the last one ended."""

    first = last = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.first = self.first or time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = time.perf_counter()


VARIANTS: Variants = {
    "without us": lambda trainer: None,
    "with us": attach,
    f"blocking read every {READ_EVERY} steps": lambda trainer: trainer.add_callback(BlockingRead()),
}
RANK_VARIANTS: Variants = {
    "without us": lambda trainer: None,
    "with us": attach,
    "with us, agreeing at every step": lambda trainer: attach(trainer, rank_sync_steps=1),
}
BASE, OURS, _ = VARIANTS


class Cost(NamedTuple):
    """Of one `trainer.train()`, in seconds.

    Attributes:
        wall: All of it, with what it delivers at its end.
        steps: From the begin of the first step to the end of the last one.
        cpu: Of all threads of this process, which other work on the machine hardly moves.
    """

    wall: float
    steps: float
    cpu: float


def train(size: Size, live: Callable[[Trainer], Any], steps: int, folder: str) -> Cost:
    """Trains once."""
    trainer = make_trainer(size, steps, folder)
    clock = Clock()
    trainer.add_callback(clock)
    live(trainer)
    with mlflow.start_run() if trainer.is_world_process_zero() else nullcontext():
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        return Cost(time.perf_counter() - wall, clock.last - clock.first, time.process_time() - cpu)


def measure(load: Load, variants: Variants, steps: int, rounds: int, folder: str) -> dict[str, list[Cost]]:
    """Costs by variant, one a round."""
    names = list(variants)
    for variant in names:
        train(load.size, variants[variant], 30, folder)  # imports, connections, caches
    costs: dict[str, list[Cost]] = {variant: [] for variant in names}
    for number in range(rounds):
        turn = number % len(names)
        for variant in names[turn:] + names[:turn]:
            costs[variant].append(train(load.size, variants[variant], steps, folder))
        shown = ", ".join(f"{name} {each[-1].wall:.2f} s" for name, each in costs.items())
        if os.environ.get("RANK", "0") == "0":
            print(f"{load.name}, round {number + 1}: {shown}", flush=True)
    return costs


def measure_ranks(load: Load, steps: int, rounds: int, folder: str) -> dict[str, list[Cost]]:
    """As `measure`, in two processes of their own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = Path(folder, "ranks.json")
    subprocess.run([*launcher, __file__, "--rank", str(steps), str(rounds), folder, str(result)], check=True)
    return {name: [Cost(*cost) for cost in each] for name, each in json.loads(result.read_text()).items()}


def be_a_rank(steps: str, rounds: str, folder: str, result: str) -> None:
    """What each of the two processes does."""
    costs = measure(ON_TWO_RANKS, RANK_VARIANTS, int(steps), int(rounds), folder)
    if os.environ["RANK"] == "0":
        Path(result).write_text(json.dumps(costs))


def rows_of(load: Load, steps: int, costs: dict[str, list[Cost]]) -> list[list[str]]:
    """The table's rows for one load: medians over the rounds."""
    base = costs[BASE]
    rows = []
    for variant, each in costs.items():
        walls = [cost.wall for cost in each]
        row = [load.name, variant, f"{1000 * statistics.median(c.steps for c in each) / steps:.2f} ms"]
        row.append(f"{statistics.median(walls):.2f} s ({min(walls):.2f} to {max(walls):.2f})")
        if variant == BASE:
            rows.append([*row, "1", "1", "", "1", ""])
            continue
        pairs = list(zip(each, base, strict=True))
        ratios = [cost.wall / plain.wall for cost, plain in pairs]
        middle = statistics.median(ratios)
        row.append(f"{middle:.4f} ({min(ratios):.4f} to {max(ratios):.4f})")
        row.append(f"{statistics.median(cost.steps / plain.steps for cost, plain in pairs):.4f}")
        edges = [(cost.wall - cost.steps) - (plain.wall - plain.steps) for cost, plain in pairs]
        row.append(f"{1000 * statistics.median(edges):+.0f} ms")
        row.append(f"{statistics.median(cost.cpu / plain.cpu for cost, plain in pairs):.4f}")
        verdict = "met" if middle <= load.goal else "missed"
        if max(plain.wall for plain in base) > QUIET * min(plain.wall for plain in base):
            verdict = "open, the machine was not quiet"
        row.append(f"≤ {load.goal}: {verdict}" if variant == OURS else "")
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run; README untouched")
    parser.add_argument(
        "--only",
        choices=[load.name for load in (*LOADS, ON_TWO_RANKS)],
        help="this load alone; README untouched",
    )
    parser.add_argument("--rank", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        be_a_rank(*options.rank)
        return
    rows = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        backend = f"sqlite:///{folder}/mlflow.db"
        uri, _ = stack.enter_context(mlflow_server(Path(folder), backend))
        os.environ["MLFLOW_TRACKING_URI"] = uri
        mlflow.set_experiment("overhead")
        for load in (*LOADS, ON_TWO_RANKS):
            if options.only in (None, load.name):
                steps = load.steps // 3 if options.quick else load.steps
                rounds = 2 if options.quick else load.rounds
                if load is ON_TWO_RANKS:
                    costs = measure_ranks(load, steps, rounds, folder)
                else:
                    costs = measure(load, VARIANTS, steps, rounds, folder)
                rows += rows_of(load, steps, costs)
    head = [
        "step", "variant", "mean step", "wall: median (range)", "wall ratio: median (range)",
        "ratio of the steps alone", "start and end", "CPU ratio", "goal",
    ]  # fmt: skip
    publish("overhead", table(head, rows), quick=options.quick or options.only is not None)


if __name__ == "__main__":
    main()
