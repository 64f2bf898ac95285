"""How often `diagnose_run` is right: real trainings, healthy ones and ones made to go wrong, with new seeds.

The trainings are those of `tests/analytics/diagnosis_trainings.py`. The rules were tuned on the seeds that
the tests use; here every one is run again with seeds that were not looked at before.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
TESTS = Path(__file__).parents[1] / "tests"
sys.path += [str(TESTS / "analytics"), str(TESTS / "training")]

from diagnosis_trainings import TRAININGS, train  # noqa: E402
from report import publish, table  # noqa: E402

from ftlab_mlflow.analytics import call_tool  # noqa: E402

FIRST_SEED = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, README untouched")
    seeds = 1 if parser.parse_args().quick else 3
    rows, right, missed, false = [], Counter[str](), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uri = f"sqlite:///{folder}/mlflow.db"
        for training, spec in TRAININGS.items():
            here: Counter[str] = Counter()
            for seed in range(FIRST_SEED, FIRST_SEED + seeds):
                run_id = train(replace(spec, seed=seed), uri, folder)
                answer = call_tool("diagnose_run", {"run": run_id}, uri)
                kinds = {finding["kind"] for finding in answer["rows"]}
                here.update(kinds)
                right.update(spec.expected & kinds)
                missed.update(spec.expected - kinds)
                false.update(kinds - spec.expected - spec.allowed)
            found = ", ".join(f"{kind} {count}/{seeds}" for kind, count in sorted(here.items()))
            rows.append([training, ", ".join(sorted(spec.expected)) or "nothing", found or "nothing"])
            print(" | ".join(rows[-1]), flush=True)
    kinds = sorted(right.keys() | missed.keys() | false.keys())
    scores = [
        [
            kind,
            str(right[kind]),
            str(missed[kind]),
            str(false[kind]),
            *_scores(right[kind], missed[kind], false[kind]),
        ]
        for kind in kinds
    ]
    sums = right.total(), missed.total(), false.total()
    scores.append(["all", *map(str, sums), *_scores(*sums)])
    first = table(["training", "made to have", f"found, of {seeds} seeds"], rows)
    second = table(["finding", "right", "missed", "false", "precision", "recall"], scores)
    publish("diagnosis", f"{first}\n\n{second}", quick=seeds == 1)


def _scores(right: int, missed: int, false: int) -> tuple[str, str]:
    """Precision and recall."""
    found, there = right + false, right + missed
    return f"{right / found:.2f}" if found else "", f"{right / there:.2f}" if there else ""


if __name__ == "__main__":
    main()
