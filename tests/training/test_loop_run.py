"""`LiveLoop` on real MLflow, under accelerate, and in processes that are stopped, killed and resumed."""

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from forked_cases import Ended, ended_cases
from loop_child import Program
from loop_tiny import POLL_S, RATES, asked, batch, close, groups, net
from training_doubles import request, wait_for

from ftlab_mlflow import LiveLoop, LiveRun, MemoryRunStore, MlflowRunStore
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.messages import Ack, Status

CASES = ("sigterm", "sigint", "killed", "two ranks")


# --- real MLflow ---------------------------------------------------------------------------------


def test_a_run_of_its_own_that_a_client_changes(tracking_uri: str, tmp_path: Path) -> None:
    program = Program(tmp_path, run_name="plain")
    acks: list[Ack] = []

    def client() -> None:
        run = LiveRun(str(program.live.run_id), tracking_uri=tracking_uri)
        wait_for(lambda: run.data().is_live, "the run to listen")
        acks.append(run.update(mix_ratio=0.75, weight_decay=0.1, reason="more of it").wait(30))
        acks.append(run.checkpoint().wait(30))
        run.stop(save=False).wait(30)

    thread = threading.Thread(target=client, daemon=True)
    with program.live as live:
        thread.start()
        while not live.step() and thread.is_alive():
            program.one(live.steps_done)
    run = LiveRun(str(live.run_id), tracking_uri=tracking_uri)
    assert (run.data().name, run.data().status, run.status().state) == ("plain", "KILLED", "stopped")
    assert mlflow.active_run() is None
    changed, saved = acks
    assert changed.changes == {"weight_decay": (0.0, 0.1), "mix_ratio": (0.5, 0.75)}
    assert [mix for mix, _ in program.used] == [0.5] * changed.step + [0.75] * (
        live.steps_done - changed.step
    )
    assert [(p.step, p.value) for p in run.metric_history("live/mix_ratio")] == [(changed.step, 0.75)]
    assert saved.result == {"checkpoint": str(tmp_path / f"step-{saved.step}.pt")}
    assert torch.load(saved.result["checkpoint"], weights_only=True)["live"]["step"] == saved.step


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_of_the_users_is_joined_and_goes_on(tracking_uri: str, tmp_path: Path, fails: bool) -> None:
    def use() -> None:
        with mlflow.start_run() as run:
            program = Program(tmp_path)
            with program.live as live:
                assert live.run_id == run.info.run_id
                program.one(0)
                live.step()
                if fails:
                    raise ZeroDivisionError("no data left")
            assert mlflow.active_run() is not None
            mlflow.log_metric("after", 1.0)

    if fails:
        with pytest.raises(ZeroDivisionError):
            use()
    else:
        use()
    (run,) = MlflowRunStore(tracking_uri).find()
    status = Status.decode(run.tags[tags.STATUS])
    assert (status.state, run.status) == (("failed", "FAILED") if fails else ("finished", "FINISHED"))
    assert run.metrics.get("after") == (None if fails else 1.0)


def test_a_loaded_state_goes_on_in_its_run_and_another_active_run_wins(
    tracking_uri: str, tmp_path: Path
) -> None:
    first = Program(tmp_path)
    with first.live as live:
        first.one(0)
        live.step()
    path = first.save()
    again = Program(tmp_path)
    again.resume(path)
    with again.live as live:
        assert live.run_id == first.live.run_id
        assert mlflow.get_run(str(live.run_id)).info.status == "RUNNING"
    with mlflow.start_run() as run:
        other = Program(tmp_path)
        other.resume(path)
        with other.live as live:
            assert live.run_id == run.info.run_id
    mlflow.delete_run(str(first.live.run_id))
    lost = Program(tmp_path)
    lost.resume(path)
    with pytest.raises(mlflow.MlflowException, match="deleted"):
        lost.live.start()


def test_the_guides_loop_runs_as_it_is(tracking_uri: str) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "plain_pytorch.md").read_text()
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    names: dict[str, Any] = {
        "LiveLoop": LiveLoop,
        "torch": torch,
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer),
        "batches": lambda mix: [batch(step) for step in range(5) if mix.value == 0.5],
    }
    exec(guide.split("```python\n")[1].split("```")[0], names)
    assert (names["live"].outcome, names["live"].steps_done) == ("finished", 5)


# --- accelerate ----------------------------------------------------------------------------------


def test_prepared_by_accelerate_with_accumulation(tmp_path: Path) -> None:
    """The wrappers hand on what is in force, skip what is no step, and save and load live control too."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    def prepared() -> tuple[Any, ...]:
        # accelerate has one state for the whole process: other tests have left theirs.
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
        model = net()
        optimizer = torch.optim.AdamW(groups(model), weight_decay=0.0)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return accelerator, *accelerator.prepare(model, optimizer, scheduler)

    natural = [[rate * 0.9**t for rate in RATES] for t in range(12)]

    def train(live: LiveLoop, accelerator: Any, model: Any, optimizer: Any, scheduler: Any) -> list[Any]:
        used = []
        with live:
            while live.steps_done < live_until:
                for micro in range(3):
                    with accelerator.accumulate(model):
                        x, y = batch(live.steps_done * 3 + micro)
                        accelerator.backward(torch.nn.functional.mse_loss(model(x), y))
                        if accelerator.sync_gradients:
                            used.append(scheduler.get_last_lr())
                            assert used[-1] == [group["lr"] for group in optimizer.param_groups]
                        optimizer.step()
                        scheduler.step()
                        optimizer.zero_grad()
                    live.step()
        return used

    store = MemoryRunStore()
    run_id = store.create_run()
    text = request(set={"learning_rate": 0.002}, at_step=4)
    store.write(run_id, {tags.UPDATE_PREFIX + "a": text})
    options: dict[str, Any] = {"max_steps": 12, "store": store, "run_id": run_id, "poll_interval": POLL_S}
    accelerator, model, optimizer, scheduler = prepared()
    live = LiveLoop(optimizer, scheduler, **options)
    accelerator.register_for_checkpointing(live)
    live_until = 7
    expected = natural[:4] + asked(natural, 0.002, 4)
    assert close(train(live, accelerator, model, optimizer, scheduler), expected[:7])
    accelerator.save_state(str(tmp_path))

    accelerator, model, optimizer, scheduler = prepared()
    live = LiveLoop(optimizer, scheduler, **options)
    accelerator.register_for_checkpointing(live)
    accelerator.load_state(str(tmp_path))
    live_until = 12
    assert live.steps_done == 7
    assert close(train(live, accelerator, model, optimizer, scheduler), expected[7:])


# --- processes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ended(new_sqlite: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """All cases, one after the other."""
    folders = {case: tmp_path_factory.mktemp("loop") for case in CASES}
    uris = {case: new_sqlite(folder) for case, folder in folders.items()}
    store = MlflowRunStore(uris["killed"])
    from mlflow import MlflowClient

    run = MlflowClient(uris["killed"]).create_run("0")
    text = request(set={"mix_ratio": 0.9, "learning_rate": 0.5}, at_step=60)
    store.write(run.info.run_id, {tags.UPDATE_PREFIX + "a": text})
    return ended_cases(Path(__file__).with_name("loop_child.py"), uris, folders)


def checkpoints(end: Ended) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in end.folder.glob("step-*.pt"))


@pytest.mark.parametrize(("case", "code", "saved"), [("sigterm", 143, [6]), ("sigint", -2, [])])
def test_a_signal_ends_the_loop_cleanly(
    ended: dict[str, Ended], case: str, code: int, saved: list[int]
) -> None:
    end = ended[case]
    assert end.codes == [code], end.output
    assert (end.status.state, end.status.step, end.run.status) == ("stopped", 6, "KILLED"), end.output
    assert checkpoints(end) == saved
    assert "never printed" not in end.output


def test_killed_between_applying_and_answering_and_resumed(
    ended: dict[str, Ended], monkeypatch: pytest.MonkeyPatch, tracking_uri: str
) -> None:
    end = ended["killed"]
    assert end.codes == [-signal.SIGKILL], end.output
    before = Ledger.read(end.run.tags).entries
    assert [entry.answered for entry in before] == [False]
    assert end.status.state == "running"
    last = checkpoints(end)[-1]
    assert last >= 50

    mlflow.set_tracking_uri(end.uri)
    program = Program(end.folder)
    program.resume(end.folder / f"step-{last}.pt")
    with program.live as live:
        assert live.run_id == end.run.run_id
        for step in range(live.steps_done, last + 30):
            program.one(step)
            live.step()
    (entry,) = Ledger.read(end.run.tags).entries
    assert entry.ack is not None
    since = max(60, last) - last
    natural = [[0.01 * 0.999**t] for t in range(last + 30)]
    expected = natural[last : last + since] + asked(natural, 0.5, max(60, last))
    if last > 60:  # the checkpoint holds the change and its answer
        expected = asked(natural, 0.5, 60)[last - 60 :]
    assert (entry.ack.status, entry.ack.step) == ("applied", 60 if last > 60 else max(60, last))
    assert [mix for mix, _ in program.used] == [0.5] * since + [0.9] * (30 - since)
    assert close([[rate] for _, rate in program.used], expected)
    assert (end.run.status, end.status.state, end.status.step) == ("FINISHED", "finished", last + 30)


def test_two_ranks_change_at_the_same_step(ended: dict[str, Ended]) -> None:
    end = ended["two ranks"]
    assert end.codes == [0, 0], end.output
    first, second = (json.loads((end.folder / f"rank-{rank}").read_text()) for rank in range(2))
    assert first == second
    acks = [entry.ack for entry in Ledger.read(end.run.tags).entries]
    change, evaluation, stop = acks
    assert change is not None
    assert evaluation is not None
    assert stop is not None
    assert [mix for mix, _ in first["used"]] == [0.5] * change.step + [0.9] * (stop.step - change.step)
    assert first["used"][change.step][1] == 0.003
    assert change.step >= 40
    assert evaluation.result == {"metrics": {"rank": 0.0}}
    assert (end.run.status, end.status.step) == ("KILLED", stop.step)
