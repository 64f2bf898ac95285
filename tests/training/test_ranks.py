"""Two ranks that are changed while they train: `torchrun` and `accelerate launch`, on the CPU over gloo."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from training_doubles import wait_for
from training_tiny import Net, data, weights

from ftlab_mlflow import LiveRun
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import read_entry
from ftlab_mlflow.control.messages import Ack, Status
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.control.surface import Surface

CHILD = Path(__file__).parent / "ranks_child.py"
LIMIT_S = 300
SYNC_STEPS, STEPS = 4, 40
TORCHRUN = ["torch.distributed.run", "--nproc_per_node=2", "--standalone"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
ACCELERATE += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]


@contextmanager
def launched(launcher: list[str], *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A launcher with its two ranks; whatever is left of them at the end is killed."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", *launcher, str(CHILD), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@dataclass
class Seen:
    """What both ranks of a case saw."""

    ranks: list[dict[str, Any]]

    def __post_init__(self) -> None:
        self.tags: dict[str, str] = self.ranks[0]["tags"]

    def __getitem__(self, key: str) -> Any:
        """What both ranks saw alike."""
        first, second = (rank[key] for rank in self.ranks)
        assert first == second
        return first

    def ack(self, request_id: str) -> Ack:
        ack = read_entry(self.tags, request_id).ack
        assert ack is not None
        return ack

    @property
    def status(self) -> Status:
        return Status.decode(self.tags[tags.STATUS])


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Seen]:
    """All cases of the child, run once by torchrun; ``case(name)`` is what its two ranks saw."""
    folder = tmp_path_factory.mktemp("ranks")
    with launched(TORCHRUN, str(folder)) as process:
        output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, output
    return lambda name: Seen([json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)])


def linear(done: int, steps: int = STEPS) -> float:
    """The rate that the untouched schedule uses for the step after `done` steps."""
    return 0.01 * (steps - done) / steps


def rates(steps: range, *requests: tuple[int, float]) -> list[float]:
    """The protocol's formula for requests (step, value) on the linear schedule, which falls everywhere."""
    expected = []
    for done in steps:
        value, at = [(0.01, 0), *((value, at) for at, value in requests if at <= done)][-1]
        expected.append(value * linear(done) / linear(at))
    return expected


def plain_loop(seen: Seen, rates: list[float], decays: list[float]) -> list[torch.Tensor]:
    """Weights of a loop that averages the gradients of both ranks' batches."""
    model = Net()
    decayed = [model.first.weight, model.last.weight]
    others = [p for p in model.parameters() if all(p is not d for d in decayed)]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.0)
    batches = zip(*(rank["batches"] for rank in seen.ranks), strict=False)
    for rate, decay, pair in zip(rates, decays, batches, strict=False):
        optimizer.zero_grad()
        for batch in pair:
            (model(**{k: torch.tensor(v) for k, v in batch.items()})["loss"] / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0] |= {"lr": rate, "weight_decay": decay}
        optimizer.param_groups[1] |= {"lr": rate}
        optimizer.step()
    return list(model.parameters())


def test_all_ranks_apply_the_same_request_at_the_same_step(case: Callable[[str], Seen]) -> None:
    seen = case("together")
    now, exact, stop = seen.ack("now"), seen.ack("exact"), seen.ack("stop")
    assert 5 <= now.step <= 5 + SYNC_STEPS, "at the next meeting"
    assert exact.step == 21, "an at_step is exact, meeting or not"
    assert seen.ack("bad").code == "out_of_bounds"
    assert 30 <= stop.step <= 30 + SYNC_STEPS
    expected = rates(range(stop.step), (now.step, 0.002), (21, 0.004))
    assert seen["rates"] == pytest.approx(expected, rel=1e-9)
    decays = [0.0 if done < now.step else 0.2 for done in range(stop.step)]
    assert seen["decays"] == [[decay, 0.0] for decay in decays]
    oracle = plain_loop(seen, expected, decays)
    for ours, theirs in zip(seen["weights"], oracle, strict=True):
        assert torch.allclose(torch.tensor(ours), theirs, rtol=1e-5, atol=1e-6)


def test_commands_run_on_all_ranks(case: Callable[[str], Seen]) -> None:
    seen = case("together")
    assert seen.ack("evaluate").result["metrics"]["eval_loss"] > 0
    at, end = seen.ack("checkpoint").step, seen.ack("stop").step
    assert {f"checkpoint-{at}", f"checkpoint-{end}"} <= set(seen["checkpoints"])
    folder = Path(seen.ack("checkpoint").result["checkpoint"])
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in folder.iterdir()}
    assert (seen.status.state, seen.status.step, seen["outcome"]) == ("stopped", end, "stopped")


def test_the_agreement_costs_one_message_every_few_steps(case: Callable[[str], Seen]) -> None:
    seen = case("idle")
    # One at the beginning, one after the first step to learn how long a step takes, then every fourth.
    assert seen["meetings"] == 2 + (200 - 2) // SYNC_STEPS
    assert seen["rates"] == pytest.approx([linear(done, 200) for done in range(200)])


def test_a_rank_that_cannot_apply_makes_all_undo(case: Callable[[str], Seen]) -> None:
    seen = case("undo")
    both, rate = seen.ack("both"), seen.ack("rate")
    assert (both.code, both.errors) == (
        "failed",
        {"weight_decay": "rank 1: OSError: this group is read-only"},
    )
    assert rate.status == "applied"
    assert seen["rates"] == pytest.approx(rates(range(STEPS), (rate.step, 0.003)), rel=1e-9)
    assert seen["decays"] == [[0.01, 0.0]] * STEPS
    assert seen["outcome"] == "finished"
    assert seen["weights"]


def test_ranks_that_cannot_be_made_equal_again_end_the_training(case: Callable[[str], Seen]) -> None:
    seen = case("diverged")
    text = "restore failed on some ranks only: rank 1: OSError: this rate only falls"
    assert seen["ended"] == [f"RanksDiverged('{text}')"]
    assert (seen["outcome"], seen.status.state) == ("failed", "failed")
    assert seen.status.error == f"RanksDiverged: {text}"


def test_a_checkpoint_that_one_rank_cannot_write_is_removed(case: Callable[[str], Seen]) -> None:
    seen = case("undo")
    failed = seen.ack("checkpoint")
    assert failed.code == "failed"
    assert failed.errors["command"].startswith("rank 1: ")
    assert f"checkpoint-{failed.step}" not in seen["checkpoints"]
    assert f"checkpoint-{failed.step + 1}" in seen["checkpoints"], "what was there to make it fail"


def test_a_pause_outlives_the_timeout_of_the_ranks(case: Callable[[str], Seen]) -> None:
    seen = case("pause")
    (paused_s,) = seen.ranks[0]["paused"]
    assert paused_s > 2 * 3
    assert seen.ranks[0]["paused_s"] > 2 * 3
    step = seen.ack("pause").step
    assert (seen.ack("rate").step, seen.ack("resume").step) == (step, step)
    assert seen["rates"] == pytest.approx(rates(range(STEPS), (step, 0.002)), rel=1e-9)
    assert seen["outcome"] == "finished"


def test_a_resume_brings_both_ranks_to_what_the_run_was_told(case: Callable[[str], Seen]) -> None:
    died, resumed = case("died"), case("resumed")
    assert died["ended"] == ["ZeroDivisionError('no data left')"]
    assert died.status.state == "failed"
    assert 10 < resumed.ack("after").step < 20, "after the checkpoint"
    # Asked for after the checkpoint, in force from it.
    assert resumed["rates"] == pytest.approx(rates(range(10, STEPS), (10, 0.002)), rel=1e-9)
    assert resumed["decays"] == [[0.3, 0.0]] * 30
    assert (resumed["begun"], resumed["outcome"]) == (list(range(11, STEPS + 1)), "finished")
    assert resumed["weights"]


def test_both_ranks_go_back_and_keep_what_was_asked_for(case: Callable[[str], Seen]) -> None:
    seen = case("rollback")
    after, back = seen.ack("after"), seen.ack("back")
    assert (back.step, back.result["step"]) == (10, 10)
    left = seen["begun"].index(11, after.step)
    assert seen["begun"] == [*range(1, left + 1), *range(11, STEPS + 1)]
    assert seen["rates"][:left] == pytest.approx(rates(range(left), (after.step, 0.002)), rel=1e-9)
    assert seen["rates"][left:] == pytest.approx(rates(range(10, STEPS), (10, 0.002)), rel=1e-9)
    assert all(decay == [0.1, 0.0] for decay in seen["decays"][left:])
    assert seen.ack("batch").changes == {"per_device_train_batch_size": (4, 2)}
    assert all(len(rank["batches"][-1]["labels"]) == 2 for rank in seen.ranks)
    assert seen["weights"]


def test_both_ranks_cut_the_rest_of_an_epoch_anew(case: Callable[[str], Seen]) -> None:
    """Against one process that takes the batches of both: 64 samples, 2 * 4 a step, then 2 * 2 * 5."""
    seen = case("batches")
    assert seen.ack("sizes").step == 5
    assert (seen["max_steps"], seen["epoch"]) == (11, 2.0)
    batches: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for rank in seen.ranks:
        for step, x, labels in rank["used"]:
            batches.setdefault(step, []).append((torch.tensor(x), torch.tensor(labels)))
    sizes = [[len(labels) for _, labels in batches[step]] for step in range(1, 12)]
    # Of the first epoch 24 samples were left, of which 4 make a last round of ten; of the second, 64.
    assert sizes == [[4] * 2] * 5 + [[5] * 4, [5] * 2] + [[5] * 4] * 3 + [[5] * 2]
    samples = [tuple(row["x"]) for row in data(64)]
    known = {tuple(torch.tensor(sample).tolist()): i for i, sample in enumerate(samples)}
    for steps, padding in ((range(1, 8), 6), (range(8, 12), 6)):
        ids = [known[tuple(row.tolist())] for step in steps for x, _ in batches[step] for row in x]
        assert set(ids) == set(range(64))
        assert len(ids) == 64 + padding
    assert seen["rates"] == pytest.approx(
        [0.01 * (1 - t / 16) for t in range(5)] + [0.01 * 11 / 16 * (1 - t / 6) for t in range(6)], rel=1e-9
    )
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.0)
    for step, rate in enumerate(seen["rates"], 1):
        for x, labels in batches[step]:
            (net(x, labels)["loss"] / len(batches[step])).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    for ours, theirs in zip(seen["weights"], weights(net), strict=True):
        torch.testing.assert_close(torch.tensor(ours), theirs, rtol=0, atol=1e-6)


def test_ranks_that_lost_each_other_train_on_unchanged(case: Callable[[str], Seen]) -> None:
    seen = case("lost")
    later = seen.ack("later")
    assert (later.code, later.step) == ("not_supported", 20)
    assert "cannot be reached" in later.errors["learning_rate"]
    assert Surface.decode(seen.tags[tags.SURFACE]) == Surface({}, ())
    assert seen["rates"] == pytest.approx(rates(range(STEPS)), rel=1e-9)
    assert seen["outcome"] == "finished"


def test_ranks_of_a_kind_that_is_not_known_to_work_train_without_live_control(
    case: Callable[[str], Seen],
) -> None:
    seen = case("refused")
    assert (seen["ended"], seen["outcome"], seen.tags) == (["returned"], None, {})
    assert seen["begun"] == [1, 2, 3, 4]


def test_a_value_that_is_refused_on_a_resume_ends_all_ranks(case: Callable[[str], Seen]) -> None:
    seen = case("unfit")
    text = "the training refuses what was given: learning_rate: must be a finite number from 0 to 1, got 2.0"
    assert seen["ended"] == [f"ConfigError('{text}')"]
    assert (seen["begun"], seen["outcome"], seen.status.state) == ([], "failed", "failed")
    assert not any(key.startswith(tags.UPDATE_PREFIX) for key in seen.tags)


def test_a_signal_to_another_rank_stops_all(case: Callable[[str], Seen]) -> None:
    seen = case("signalled")
    assert seen["ended"] == ["SystemExit(143)"]
    assert 5 <= seen.status.step <= 5 + 2 * SYNC_STEPS
    assert seen["checkpoints"] == [f"checkpoint-{seen.status.step}"]
    assert (seen.status.state, seen["outcome"]) == ("stopped", "stopped")


def test_accelerate_launch_with_mlflow_from_a_set_to_sigterm(
    new_sqlite: Callable[[Path], str], tmp_path: Path
) -> None:
    uri = new_sqlite(tmp_path)
    store = MlflowRunStore(uri)
    with launched(ACCELERATE, str(tmp_path), "served", MLFLOW_TRACKING_URI=uri) as process:
        wait_for(lambda: process.poll() is not None or store.find(live=True), "a live run", LIMIT_S)
        assert process.poll() is None, process.stdout and process.stdout.read()
        run = LiveRun(tracking_uri=uri)
        ack = run.update(weight_decay=0.2).wait(60)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    seen = Seen([json.loads((tmp_path / f"served-{rank}.json").read_text()) for rank in range(2)])
    assert seen["ended"] == ["SystemExit(143)"], output
    (data,) = store.find()
    status = Status.decode(data.tags[tags.STATUS])
    assert (data.status, status.state) == ("KILLED", "stopped")
    assert seen["decays"] == [[0.0 if done < ack.step else 0.2, 0.0] for done in range(status.step)]
    assert f"checkpoint-{status.step}" in seen["checkpoints"]
    assert seen["weights"]
