"""A training that ends or dies and is resumed: what it was told stays in force, and nothing acts twice."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_doubles import FlakyStore, request, wait_for
from training_tiny import Lab, saved, weights
from transformers import TrainerCallback, get_scheduler

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Ledger, read_entry
from ftlab_mlflow.control.messages import Status, Update
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.control.wire import utc_now
from ftlab_mlflow.errors import ConfigError

STEPS = 24
OPTIONS: dict[str, Any] = {
    "max_steps": STEPS,
    "save_strategy": "steps",
    "save_steps": 6,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 3,
}


def _natural(steps: int = STEPS) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.01)
    scheduler = get_scheduler("cosine", optimizer, 3, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def _asked(value: float, since: int, until: int = STEPS) -> list[float]:
    natural = _natural()
    peaks = [max(natural[since : t + 1]) for t in range(since, until)]
    return [value * natural[since + i] / peak if peak else value for i, peak in enumerate(peaks)]


class Dies(TrainerCallback):
    """Ends the training with an exception, as a machine that crashes does: no answer, no last word."""

    def __init__(self, lab: Lab, at: int) -> None:
        self.lab, self.at = lab, at

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.at:
            self.lab.store.away = True
            raise KeyboardInterrupt


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture
def _short_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    from ftlab_mlflow.training import listener

    monkeypatch.setattr(listener, "DELIVERY_S", 0.05)


def _again(lab: Lab) -> Lab:
    """The same run and folder in a new session, which would be a new process."""
    lab.store.away = False
    return Lab(lab.folder, lab.store, lab.run_id)


def _resume(lab: Lab, checkpoint: int, **options: Any) -> None:
    lab.make(**(OPTIONS | options))
    lab.trainer.train(resume_from_checkpoint=str(lab.folder / "out" / f"checkpoint-{checkpoint}"))


@pytest.mark.usefixtures("_short_delivery")
def test_what_was_asked_for_before_and_after_the_checkpoint_stays_in_force(lab: Lab) -> None:
    lab.make(**OPTIONS, callbacks=(Dies(lab, 11),))
    lab.tell(4, "before", set={"learning_rate": 0.05, "weight_decay": 0.1})
    lab.tell(8, "after1", set={"learning_rate": 0.02, "max_grad_norm": 0.3})
    lab.tell(9, "after2", set={"learning_rate": 0.03})
    lab.script.at[10] = lambda: wait_for(lambda: len(lab.answered()) == 3, "the answers")
    with pytest.raises(KeyboardInterrupt):
        lab.trainer.train()
    again = _again(lab)
    again.tell(12, "later", set={"weight_decay": 0.2}, expect={"learning_rate": 0.03, "weight_decay": 0.1})
    _resume(again, 6)
    assert again.recorder.rates == pytest.approx(_asked(0.03, 6), rel=1e-12)
    decays = [groups[0]["weight_decay"] for groups in again.recorder.groups]
    assert decays == [0.1] * 6 + [0.2] * 12
    assert again.trainer.args.max_grad_norm == 0.3
    assert again.ack("later").status == "applied"
    assert [e.id for e in again.entries()] == ["after1", "after2", "before", "later"]
    assert [again.ack(i).step for i in ("before", "after1", "after2")] == [4, 8, 9], "answered once"


def test_a_resume_is_the_same_training_bit_for_bit(tmp_path: Path) -> None:
    whole, broken = Lab(tmp_path / "whole"), Lab(tmp_path / "broken")
    for lab in (whole, broken):
        lab.tell(4, "a", set={"learning_rate": 0.05, "adam_beta2": 0.99, "weight_decay": 0.1})
        lab.tell(9, "b", set={"lr_schedule": "hold"})
    broken.tell(12, "s", command="stop")
    for lab in (whole, broken):
        lab.make(**OPTIONS)
        lab.trainer.train()
    again = _again(broken)
    _resume(again, 12)
    assert broken.recorder.groups + again.recorder.groups == whole.recorder.groups
    assert all(map(torch.equal, weights(whole.trainer.model), weights(again.trainer.model)))
    assert whole.surface().params["learning_rate"].asked == again.surface().params["learning_rate"].asked


def test_a_resume_goes_on_under_the_schedule_after_a_stop_on_demand(lab: Lab) -> None:
    lab.make(**OPTIONS)
    lab.tell(4, "a", set={"learning_rate": 0.05})
    lab.tell(9, "s", command="stop")
    lab.trainer.train()
    assert lab.checkpoints() == ["checkpoint-6", "checkpoint-9"]
    again = _again(lab)
    _resume(again, 9)
    assert again.recorder.rates == pytest.approx(_asked(0.05, 4)[5:], rel=1e-12)


def _given(**values: Any) -> list[Update]:
    return [Update(at=utc_now(), set={name: value}, reason="given") for name, value in values.items()]


def _stopped_with_a_request_left(lab: Lab) -> Lab:
    lab.make(**OPTIONS)
    lab.tell(9, "s", command="stop")
    lab.trainer.train()
    lab.send("between", set={"learning_rate": 0.05, "max_grad_norm": 0.5})
    return _again(lab)


def test_what_is_given_for_a_resume_is_asked_for_after_what_was_pending(lab: Lab) -> None:
    again = _stopped_with_a_request_left(lab)
    again.make(**OPTIONS, eval_strategy="steps", eval_steps=3, load_best_model_at_end=True)
    assert again.control
    # save_steps must be a multiple of eval_steps: 4 alone would be refused beside 6.
    again.control.ask_first(_given(learning_rate=0.02, eval_steps=4, save_steps=8), must_fit=True)
    again.trainer.train(resume_from_checkpoint=str(again.folder / "out" / "checkpoint-9"))
    assert again.recorder.rates == pytest.approx(_asked(0.02, 9), rel=1e-12)
    assert again.trainer.args.max_grad_norm == 0.5
    given = [(e.update.set, e.ack) for e in again.entries() if e.update and e.update.reason == "given"]
    assert [values for values, _ in given] == [{"learning_rate": 0.02}, {"eval_steps": 4}, {"save_steps": 8}]
    assert all(ack and (ack.status, ack.step) == ("applied", 9) for _, ack in given)
    evaluated = [step for event, step in again.recorder.events if event == "evaluate"]
    assert evaluated == [12, 16, 20, 24]


def test_a_value_that_is_refused_on_a_resume_ends_it_before_its_first_step(lab: Lab) -> None:
    again = _stopped_with_a_request_left(lab)
    before = again.entries()
    again.make(**OPTIONS)
    assert again.control
    again.control.ask_first(_given(weight_decay=0.1, learning_rate=2.0), must_fit=True)
    with pytest.raises(ConfigError, match="given: learning_rate: must be a finite number from 0 to 1, got 2"):
        again.trainer.train(resume_from_checkpoint=str(again.folder / "out" / "checkpoint-9"))
    assert again.recorder.rates == []
    assert again.entries() == before, "also the request that is pending"
    assert again.status().state == "failed"
    last = _again(again)
    _resume(last, 9)
    assert last.ack("between").status == "applied"
    assert last.recorder.rates == pytest.approx(_asked(0.05, 9), rel=1e-12)


def test_a_value_that_need_not_fit_is_refused_like_any_request(lab: Lab) -> None:
    lab.make(**OPTIONS)
    assert lab.control
    lab.control.ask_first(_given(learning_rate=2.0, max_grad_norm=0.5), must_fit=False)
    lab.trainer.train()
    codes = [entry.ack.code or entry.ack.status for entry in lab.entries() if entry.ack]
    assert sorted(codes) == ["applied", "out_of_bounds"]
    assert lab.recorder.rates == pytest.approx(_natural(), rel=1e-12)


def test_pending_when_the_trainer_died(lab: Lab) -> None:
    lab.make(**OPTIONS)
    lab.tell(5, "set", set={"learning_rate": 0.05}, at_step=14)
    lab.tell(5, "soon", set={"max_grad_norm": 0.5}, at_step=8)
    lab.tell(5, "old", set={"max_grad_norm": 0.7}, at_step=13, expires="2026-01-01T00:00:00.000Z")
    lab.tell(7, "stop", command="stop", args={"save": False})
    lab.trainer.train()
    assert lab.answered() == {"stop", "old"}
    lab.send("between", set={"weight_decay": 0.1})
    lab.send("between-cmd", command="stop")
    lab.send("between-old", set={"weight_decay": 0.9}, expires="2026-01-01T00:00:00.000Z")
    again = _again(lab)
    _resume(again, 6)
    assert again.trainer.state.global_step == STEPS, "the old stop does not stop the new training"
    assert [again.ack(i).code for i in ("between-cmd", "between-old", "old")] == ["expired"] * 3
    assert [(again.ack(i).status, again.ack(i).step) for i in ("between", "soon", "set")] == [
        ("applied", 6),
        ("applied", 8),
        ("applied", 14),
    ]
    assert again.recorder.rates == pytest.approx(_natural()[6:14] + _asked(0.05, 14), rel=1e-12)


@pytest.mark.usefixtures("_short_delivery")
def test_an_answer_that_was_not_written_rides_in_the_checkpoint(lab: Lab) -> None:
    def away() -> None:
        lab.store.away = True

    lab.make(**OPTIONS, callbacks=(Dies(lab, 7),))
    lab.tell(5, "a", set={"learning_rate": 0.05})
    lab.tell(5, "bad", set={"learning_rate": 5})
    told = lab.script.at[5]
    lab.script.at[5] = lambda: (told(), away())[0]
    with pytest.raises(KeyboardInterrupt):
        lab.trainer.train()
    assert lab.answered() == set()
    assert list(saved(lab.folder, "checkpoint-6")["unconfirmed"]) == ["a", "bad"]
    again = _again(lab)
    _resume(again, 6)
    assert (again.ack("a").step, again.ack("a").changes["learning_rate"][1]) == (5, 0.05)
    assert again.ack("bad").code == "out_of_bounds"
    assert again.ack("a").session == again.ack("bad").session != again.status().session
    assert again.recorder.rates == pytest.approx(_asked(0.05, 5)[1:], rel=1e-12)
    assert len(again.store.metric_history(again.run_id, "live/learning_rate")) <= 1


@pytest.mark.usefixtures("_short_delivery")
def test_died_between_applying_and_answering(lab: Lab) -> None:
    lab.make(**OPTIONS, callbacks=(Dies(lab, 9),))
    lab.tell(8, "a", set={"learning_rate": 0.05})
    told = lab.script.at[8]
    lab.script.at[8] = lambda: (told(), setattr(lab.store, "away", True))[0]
    with pytest.raises(KeyboardInterrupt):
        lab.trainer.train()
    assert lab.recorder.rates[8] == 0.05
    assert lab.answered() == set()
    again = _again(lab)
    _resume(again, 6)
    assert (again.ack("a").status, again.ack("a").step) == ("applied", 6)
    assert again.recorder.rates == pytest.approx(_asked(0.05, 6), rel=1e-12)


def test_a_resume_in_another_run_keeps_the_values_and_sends_no_foreign_answers(lab: Lab) -> None:
    lab.make(**OPTIONS)
    lab.tell(4, "a", set={"learning_rate": 0.05, "max_grad_norm": 0.3})
    lab.tell(5, "b", set={"learning_rate": 7})
    lab.tell(12, "s", command="stop")
    lab.trainer.train()
    path = lab.folder / "out" / "checkpoint-12" / "trainer_state.json"
    state = json.loads(path.read_text())
    inner = state["stateful_callbacks"]["LiveControl"]["attributes"]["saved"]
    inner["unconfirmed"] = {"a": lab.tags()[tags.ACK_PREFIX + "a"]}
    path.write_text(json.dumps(state))
    other = Lab(lab.folder, FlakyStore())
    other.tell(14, "new", set={"max_grad_norm": 0.4}, expect={"learning_rate": 0.05, "max_grad_norm": 0.3})
    _resume(other, 12)
    assert other.recorder.rates == pytest.approx(_asked(0.05, 4)[8:], rel=1e-12)
    assert [e.id for e in other.entries()] == ["new"]
    assert other.ack("new").status == "applied"
    assert tags.ACK_PREFIX + "a" not in other.tags()


def test_a_run_that_begins_anew_without_a_checkpoint_keeps_what_it_was_told(lab: Lab) -> None:
    lab.make(**(OPTIONS | {"save_strategy": "no"}))
    lab.tell(4, "a", set={"learning_rate": 0.05})
    lab.tell(7, "s", command="stop", args={"save": False})
    lab.trainer.train()
    again = _again(lab)
    again.make(**(OPTIONS | {"save_strategy": "no"}))
    again.trainer.train()
    assert again.recorder.rates == pytest.approx(_asked(0.05, 0), rel=1e-12)


def test_the_store_is_away_when_a_training_is_resumed(lab: Lab) -> None:
    """The checkpoint's values are in force at once, the rest as soon as the history can be read."""
    lab.make(**OPTIONS)
    lab.tell(4, "a", set={"learning_rate": 0.05})
    lab.tell(8, "b", set={"max_grad_norm": 0.3})
    lab.tell(9, "s", command="stop", args={"save": False})
    lab.trainer.train()
    again = _again(lab)
    again.store.away = True

    def back() -> None:
        assert again.trainer.args.max_grad_norm == 1.0
        again.store.away = False
        again.looked()

    again.script.at[9] = back
    _resume(again, 6)
    assert again.recorder.rates == pytest.approx(_asked(0.05, 4)[2:], rel=1e-12)
    assert again.trainer.args.max_grad_norm == 0.3
    assert again.answered() == {"a", "b", "s"}


CHILD = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import mlflow
from training_tiny import Lab, Script, arguments, collate, data, Net, POLL_S
from transformers import Trainer
from ftlab_mlflow import LiveControl
from ftlab_mlflow.control.store import Point
from ftlab_mlflow.control.mlflow_store import MlflowRunStore

uri, run_id, folder = sys.argv[2:5]
killed = []

class DiesBeforeItAnswers(MlflowRunStore):
    def write(self, run_id, tags, points=()):
        if any(key.startswith("ftlab.ack.") for key in tags):
            os.kill(os.getpid(), 9)
        super().write(run_id, tags, points)

control = LiveControl(POLL_S, store=DiesBeforeItAnswers(uri), run_id=run_id)
trainer = Trainer(
    model=Net(), train_dataset=data(), data_collator=collate, callbacks=[control],
    args=arguments(Path(folder), max_steps=10**6, save_strategy="steps", save_steps=50,
                   logging_steps=10**5, save_total_limit=2),
)
trainer.train()
"""


def test_killed_between_applying_and_answering(tracking_uri: str, tmp_path: Path) -> None:
    """A real process, killed with -9 while it writes the answer, and resumed from its own checkpoint."""
    import mlflow

    with mlflow.start_run() as run:
        run_id = run.info.run_id
    store = MlflowRunStore(tracking_uri)
    text = request(set={"learning_rate": 0.5}, at_step=60)
    store.write(run_id, {tags.UPDATE_PREFIX + "a": text})
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", CHILD, here, tracking_uri, run_id, str(tmp_path)]
    child = subprocess.run(command, timeout=120, check=False, capture_output=True, text=True, env=os.environ)
    assert child.returncode == -signal.SIGKILL, child.stderr[-2000:]
    entry = read_entry(store.get(run_id).tags, "a")
    assert not entry.answered
    assert Status.decode(store.get(run_id).tags[tags.STATUS]).state == "running"
    checkpoints = sorted(int(p.name.split("-")[1]) for p in (tmp_path / "out").glob("checkpoint-*"))
    assert checkpoints[0] >= 50

    lab = Lab(tmp_path, run_id=run_id)
    lab.store.inner = store  # type: ignore[assignment]
    lab.make(max_steps=checkpoints[0] + 30, logging_steps=10**5)
    lab.trainer.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{checkpoints[0]}"))
    ack = read_entry(store.get(run_id).tags, "a").ack
    assert ack is not None
    assert (ack.status, ack.step, ack.changes["learning_rate"][1]) == (
        "applied",
        max(60, checkpoints[0]),
        0.5,
    )
    assert 0.5 in lab.recorder.rates
    assert len(Ledger.read(store.get(run_id).tags).entries) == 1
    assert Status.decode(store.get(run_id).tags[tags.STATUS]).state == "finished"
