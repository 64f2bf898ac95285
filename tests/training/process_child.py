"""Tiny trainings in processes of their own (`forked_cases`); tests look at what they leave behind."""

import os
import signal
from pathlib import Path
from typing import Any

import mlflow
from forked_cases import main
from training_tiny import POLL_S, Net, arguments, collate, data
from transformers import Trainer, TrainerCallback

from ftlab_mlflow import LiveControl, LiveRun, attach


class At(TrainerCallback):
    """Does something at the beginning of step 6."""

    def __init__(self, act: Any) -> None:
        self._act = act

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            self._act()


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    return Trainer(
        model=Net(),
        args=arguments(folder, **({"max_steps": 2000, "logging_steps": 500} | options)),
        train_dataset=data(),  # type: ignore[arg-type]
        data_collator=collate,
        callbacks=list(callbacks),
    )


def by_signal(folder: Path, number: int, **options: Any) -> None:
    attached = trainer(folder, At(lambda: os.kill(os.getpid(), number)), report_to=["mlflow"], **options)
    attach(attached, POLL_S)
    attached.train()
    print("never printed")


def by_signal_late(folder: Path) -> None:
    added = trainer(folder, At(lambda: os.kill(os.getpid(), signal.SIGINT)))
    added.add_callback(LiveControl(POLL_S))
    added.train()
    print("never printed")


def while_paused(folder: Path) -> None:
    """Told to pause, then to end: a paused training hears a signal too."""
    control = LiveControl(POLL_S)

    def pause() -> None:
        import threading

        def client() -> None:
            LiveRun(str(control.run_id)).pause().wait(30)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=client, daemon=True).start()

    trainer(folder, At(pause), control, max_steps=10**6, save_strategy="steps", save_steps=10**5).train()
    print("never printed")


def stopped_in_with(folder: Path) -> None:
    """A user's ``with`` whose training is stopped; the user goes on logging."""
    control = LiveControl(POLL_S)
    with mlflow.start_run():
        done = trainer(folder, control, max_steps=10**6)

        def stop() -> None:
            LiveRun(str(control.run_id)).stop(save=False)

        done.add_callback(At(stop))
        done.train()
        mlflow.log_metric("after", 1.0)
        print("the program goes on")


def caught_in_with(folder: Path) -> None:
    """A user's ``with`` whose training fails, and the user catches the error."""

    def fail() -> None:
        raise ZeroDivisionError("no data left")

    with mlflow.start_run():
        try:
            trainer(folder, LiveControl(POLL_S), At(fail)).train()
        except ZeroDivisionError:
            print("the program goes on")


def one_rank_fails(folder: Path) -> None:
    """Two ranks; the second one finds no more data."""

    def fail() -> None:
        if os.environ["RANK"] == "1":
            raise ZeroDivisionError("no data left")

    trainer(folder, LiveControl(POLL_S), At(fail), ddp_backend="gloo").train()
    print("never printed")


CASES = {
    "sigint": lambda folder: by_signal(folder, signal.SIGINT, save_strategy="steps", save_steps=10**5),
    "sigterm": lambda folder: by_signal(folder, signal.SIGTERM, save_strategy="epoch"),
    "sigterm without saving": lambda folder: by_signal(folder, signal.SIGTERM),
    "late sigint": by_signal_late,
    "sigterm while paused": while_paused,
    "stopped in with": stopped_in_with,
    "caught in with": caught_in_with,
    "one rank fails": one_rank_fails,
}


if __name__ == "__main__":
    main(CASES, on_two_ranks=["one rank fails"])
