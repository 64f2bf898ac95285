"""The MLflow run that a training listens on: which one it is, what is logged to it, its status at the end."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from training_doubles import wait_for
from training_tiny import POLL_S, Recorder, Script, arguments, collate, data, train_beside
from training_tiny import Net as TinyNet
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback

from ftlab_mlflow import LiveControl, LiveRun, UpdateRejected, attach
from ftlab_mlflow.errors import ConfigError

pytestmark = pytest.mark.usefixtures("tracking_uri")


class Bench:
    """A tiny training on real MLflow, with live control added in one of three ways."""

    def __init__(self, folder: Path, how: str, report_to: str, *, limits: Any = None, **options: Any) -> None:
        self.recorder = Recorder()
        control = LiveControl(POLL_S, limits)
        self.trainer = Trainer(
            model=TinyNet(),
            args=arguments(folder, report_to=[report_to] if report_to else [], **options),
            train_dataset=data(),  # type: ignore[arg-type]
            data_collator=collate,
            callbacks=[self.recorder, *([control] if how == "callbacks" else [])],
        )
        if how == "add_callback":
            self.trainer.add_callback(control)
        self.control = attach(self.trainer, POLL_S, limits) if how == "attach" else control

    def run(self) -> LiveRun:
        """What a client holds, as soon as the run listens."""
        wait_for(lambda: self.control.run_id, "the run")
        run = LiveRun(str(self.control.run_id))
        wait_for(lambda: "ftlab.status" in run.tags(), "the run to listen")
        return run

    def status(self) -> tuple[str, str]:
        run = LiveRun(str(self.control.run_id))
        return run.status().state, run.data().status


HOWS = pytest.mark.parametrize("how", ["callbacks", "add_callback", "attach"])
WHERES = pytest.mark.parametrize("where", ["report_to", "active", "none"])


@pytest.fixture
def active(where: str) -> Iterator[str | None]:
    """The run of a user's ``with mlflow.start_run()``, where there is one."""
    if where != "active":
        yield None
        return
    with _own_run() as run_id:
        yield run_id


@contextmanager
def _own_run() -> Iterator[str]:
    gc.collect()  # a collected MLflowCallback of an earlier test ends whatever run is active
    with mlflow.start_run() as run:
        yield run.info.run_id


@HOWS
@WHERES
def test_finished(tmp_path: Path, how: str, where: str, active: str | None) -> None:
    bench = Bench(tmp_path, how, "mlflow" if where == "report_to" else "")
    bench.trainer.train()
    if active:
        assert bench.control.run_id == active
        assert bench.status() == ("finished", "RUNNING"), "a run of the user's goes on"
        assert mlflow.active_run() is not None
    else:
        assert bench.status() == ("finished", "FINISHED")
        assert mlflow.active_run() is None
    assert len(mlflow.search_runs(output_format="list")) == 1


@HOWS
@WHERES
def test_stopped(tmp_path: Path, how: str, where: str, active: str | None) -> None:
    bench = Bench(
        tmp_path, how, "mlflow" if where == "report_to" else "", max_steps=10**5, logging_steps=1000
    )
    train_beside(bench.trainer, lambda: bench.run().stop(save=False).wait(30))
    assert bench.status() == ("stopped", "KILLED")
    assert len(mlflow.search_runs(output_format="list")) == 1


@HOWS
@WHERES
def test_failed(tmp_path: Path, how: str, where: str, active: str | None) -> None:
    class Breaks(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise ZeroDivisionError("no data left")

    bench = Bench(tmp_path, how, "mlflow" if where == "report_to" else "")
    bench.trainer.add_callback(Breaks())
    with pytest.raises(ZeroDivisionError):
        bench.trainer.train()
    assert bench.status() == ("failed", "FAILED")
    assert LiveRun(str(bench.control.run_id)).status().error == "ZeroDivisionError: no data left"


@WHERES
def test_limits_that_are_too_wide_fail_the_run(tmp_path: Path, where: str, active: str | None) -> None:
    bench = Bench(
        tmp_path, "attach", "mlflow" if where == "report_to" else "", limits={"learning_rate": (0, 7)}
    )
    with pytest.raises(ConfigError):
        bench.trainer.train()
    (run,) = mlflow.search_runs(output_format="list")
    if where != "active":  # a run of the user's gets its status when the user's program lets it go
        assert run.info.status == "FAILED"
        assert mlflow.active_run() is None


class Takes20ms(TrainerCallback):
    """Steps as long as a small model's: MLflow's own logging of every step keeps up with them."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        time.sleep(0.02)


def test_what_mlflow_shows_is_what_was_in_force(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "callbacks", "mlflow", max_steps=5000, lr_scheduler_type="cosine")
    bench.trainer.add_callback(Takes20ms())

    def client() -> None:
        run = bench.run()
        for i, rate in enumerate([0.05, 0.002, 0.03]):
            run.update(learning_rate=rate, reason=f"try {i}").wait(60)
        run.update(weight_decay=0.25, max_grad_norm=0.5, lr_schedule="hold").wait(60)
        with pytest.raises(UpdateRejected, match="must be a finite number from 0 to 1, got nan"):
            run.update(learning_rate=float("nan"))
        run.stop(save=False).wait(60)

    train_beside(bench.trainer, client)
    history = MlflowClient().get_metric_history(str(bench.control.run_id), "learning_rate")
    logged = {m.step: m.value for m in history}
    assert [logged[step + 1] for step in range(len(bench.recorder.rates))] == bench.recorder.rates
    live = MlflowClient().get_metric_history(str(bench.control.run_id), "live/learning_rate")
    assert [m.value for m in live] == [0.05, 0.002, 0.03]
    for metric in live:
        assert bench.recorder.rates[metric.step] == metric.value, "step + 1 is the first that uses it"
    entries = LiveRun(str(bench.control.run_id)).history()
    assert [entry.ack.step for entry in entries if entry.ack][:3] == [m.step for m in live]
    (decay,) = MlflowClient().get_metric_history(str(bench.control.run_id), "live/weight_decay")
    assert bench.recorder.groups[decay.step][0]["weight_decay"] == decay.value == 0.25
    (mode,) = MlflowClient().get_metric_history(str(bench.control.run_id), "live/lr_schedule")
    assert mode.value == 1.0
    assert len(set(bench.recorder.rates[mode.step :])) == 1


def test_two_trainings_in_one_run_end_with_the_status_of_the_last(
    tmp_path: Path, exits: Callable[[], None]
) -> None:
    with _own_run() as run_id:
        first = Bench(tmp_path / "a", "attach", "", max_steps=10**5, logging_steps=1000)
        train_beside(first.trainer, lambda: first.run().stop(save=False).wait(30))
        second = Bench(tmp_path / "b", "attach", "")
        second.trainer.train()
    exits()
    assert first.control.run_id == second.control.run_id == run_id
    assert mlflow.get_run(run_id).info.status == "FINISHED"


def test_a_stopped_run_of_the_users_is_killed_when_the_program_ends(
    tmp_path: Path, exits: Callable[[], None]
) -> None:
    with _own_run() as run_id:
        bench = Bench(tmp_path, "attach", "", max_steps=10**5, logging_steps=1000)
        train_beside(bench.trainer, lambda: bench.run().stop(save=False).wait(30))
    assert mlflow.get_run(run_id).info.status == "FINISHED", "MLflow's own `with` says so"
    exits()
    assert mlflow.get_run(run_id).info.status == "KILLED"


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Runs what was registered for the end of the process during the test, as Python would."""
    import atexit

    registered: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def register(call: Callable[..., Any], *args: Any) -> None:
        registered.append((call, args))

    def unregister(call: Callable[..., Any]) -> None:
        registered[:] = [(c, args) for c, args in registered if c != call]

    monkeypatch.setattr(atexit, "register", register)
    monkeypatch.setattr(atexit, "unregister", unregister)

    def run() -> None:
        for call, args in reversed(registered):
            call(*args)

    return run


def test_a_language_model_by_hand(tmp_path: Path) -> None:
    """A person writes tags in the MLflow UI, next to a Llama that trains with MLflow's own callback."""
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    rows = [{"input_ids": [1, *(3 + (i + k) % 28 for k in range(6)), 2]} for i in range(16)]
    control = LiveControl(POLL_S)
    script = Script()
    trainer = Trainer(
        model=LlamaForCausalLM(config),
        args=arguments(tmp_path, report_to=["mlflow"], max_steps=10**5, logging_steps=50),
        train_dataset=[row | {"labels": row["input_ids"]} for row in rows],  # type: ignore[arg-type]
        callbacks=[script, control],
    )

    def person() -> None:
        wait_for(lambda: control.run_id, "the run")
        client, run_id = MlflowClient(), str(control.run_id)
        run = LiveRun(run_id, via="test")
        wait_for(lambda: "ftlab.surface" in run.tags(), "the surface")
        client.set_tag(run_id, "ftlab.set.learning_rate", "5e-3")
        wait_for(lambda: run.surface().params["learning_rate"].asked == 5e-3, "the rate")
        client.set_tag(run_id, "ftlab.set.command", "stop")

    train_beside(trainer, person)
    run = LiveRun(str(control.run_id))
    assert [(e.update.via, e.ack and e.ack.status) for e in run.history() if e.update] == [
        ("tag", "applied")
    ] * 2
    assert run.history()[1].ack.result["checkpoint"].endswith(f"checkpoint-{run.status().step}")  # type: ignore[union-attr]
    assert (run.status().state, run.data().status) == ("stopped", "KILLED")
