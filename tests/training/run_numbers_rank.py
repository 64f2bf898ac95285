"""One rank of a training with `RunNumbers`; writes what it consumed and what it logged to its folder."""

import json
import math
import os
import sys
from pathlib import Path

from run_numbers_text import Scene


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    scene = Scene(folder, max_steps=4, logging_steps=2, ddp_backend="gloo")
    bad_step = {0: 2, 1: 4}[rank]
    scene.model.add = lambda step, batch: math.nan if step == bad_step else 0.0
    scene.trainer.train()
    keys = ("samples_per_second", "tokens_per_second", "nonfinite_steps")
    report = {"steps": scene.model.steps} | {key: scene.logged(key) for key in keys}
    (folder / f"rank{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
