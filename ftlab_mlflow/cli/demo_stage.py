"""What every demo does: start a training in a process of its own, follow it, act on it as anybody could."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ftlab_mlflow.errors import FTLabError, NotLive, RunNotFound

if TYPE_CHECKING:
    from ftlab_mlflow.control.client import LiveRun, SentUpdate

START_S = 180
STALL_S = 120


class Stage:
    """One training of a demo, from its start to its end.

    Attributes:
        run: The MLflow run, once it has begun.
        uri: Where it is. place: The folder of the demo.
    """

    run: LiveRun

    def __init__(self, place: Path, uri: str, name: str, *, quiet: bool) -> None:
        from rich.console import Console

        self.place, self.uri, self._name = place, uri, name
        self._console = Console(quiet=quiet, markup=False, highlight=False)
        self._log = place / "train.log"

    def tell(self, what: str) -> None:
        """Says what happens next."""
        self._console.print(what)

    def play(self, options: Mapping[str, str], act: Callable[[Stage], None]) -> LiveRun:
        """Runs `ftlab train sft` with these options, and `act` while it trains; returns the run at its end.

        Raises:
            FTLabError: The training failed, or does not go on.
        """
        words = [part for key, value in options.items() for part in (f"--{key}", value)]
        command = [sys.executable, "-m", "ftlab_mlflow.cli", "train", "sft", "--run_name", self._name, *words]
        with self._log.open("w") as log:
            environment = os.environ | {"MLFLOW_TRACKING_URI": self.uri}
            self._training = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            try:
                return self._follow(act)
            finally:
                if self._training.poll() is None:
                    self._training.terminate()
                    self._training.wait()

    def _follow(self, act: Callable[[Stage], None]) -> LiveRun:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.tell(f"Training on this machine; its own output is in {self._log}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as self._progress:
            self._task = self._progress.add_task("starting", total=None)
            self.run = self._find_run()
            self.tell(f"Run {self.run.run_id} ({self._name})")
            self._steps = self.run.status().max_steps
            act(self)
            self._until(lambda step, state: state in ("finished", "stopped", "failed"))
        if code := self._training.wait():
            raise FTLabError(f"the training ended with exit code {code}: {self._last_words()}")
        return self.run

    def at(self, share: float) -> None:
        """Waits until this share of the steps that were planned at the start is done."""
        self._until(lambda step, state: step >= share * self._steps)

    def answer(self, sent: SentUpdate) -> None:
        """Waits for the answer to a request.

        Raises:
            UpdateRejected: It was not applied.
        """
        sent.wait(timeout=STALL_S)

    def _find_run(self) -> LiveRun:
        from ftlab_mlflow.control.client import LiveRun

        end = time.monotonic() + START_S
        while True:
            try:
                run = LiveRun(self._name, tracking_uri=self.uri, by="demo", via="demo")
                if run.status().state != "starting":
                    return run
            except (RunNotFound, NotLive):
                pass  # it has not begun yet
            self._check_alive()
            if time.monotonic() > end:
                raise FTLabError(f"the training did not begin within {START_S} s: {self._last_words()}")
            time.sleep(0.5)

    def _until(self, reached: Callable[[int, str], bool]) -> None:
        """Shows progress until the training is where it should be."""
        last, since = -1, time.monotonic()
        while True:
            status = self.run.status()
            losses = self.run.metric_history("loss")
            shown = f"{status.state}, loss {losses[-1].value:.3f}" if losses else status.state
            # The status is written every 10 s; the metrics in between say how far it is.
            step = max([status.step, *(point.step for point in losses[-1:])])
            self._progress.update(self._task, description=shown, completed=step, total=status.max_steps)
            if reached(step, status.state):
                return
            if step > last:
                last, since = step, time.monotonic()
            self._check_alive()
            if time.monotonic() - since > STALL_S:
                raise FTLabError(f"no step for {STALL_S} s at step {step}: {self._last_words()}")
            time.sleep(0.5)

    def _check_alive(self) -> None:
        if self._training.poll():
            raise FTLabError(f"the training ended early: {self._last_words()}")

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'it said nothing'} (all of it in {self._log})"
