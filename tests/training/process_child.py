"""Tiny trainings in processes of their own; tests look at what they leave behind.

Reads ``[[case, folder, tracking URI], …]`` as JSON from its argument. Every case is a fork of this process,
with nothing but the imports behind it, and ends as any program does. In its folder it leaves what it printed
(``output``) and its exit codes, one a rank (``codes``).
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import mlflow
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


def fork(case: str, folder: Path, environment: dict[str, str]) -> int:
    """Runs a case in a fork, as a program that begins with it; returns the fork's process id."""
    pid = os.fork()
    if pid:
        return pid
    os.environ.update(environment)
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    CASES[case](folder)
    sys.exit()


def main() -> None:
    for case, folder, uri in json.loads(sys.argv[1]):
        ranks: list[dict[str, str]] = [{}]
        if case == "one rank fails":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            ranks = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        pids = [fork(case, Path(folder), {"MLFLOW_TRACKING_URI": uri} | rank) for rank in ranks]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        Path(folder, "codes").write_text(json.dumps(codes))


if __name__ == "__main__":
    main()
