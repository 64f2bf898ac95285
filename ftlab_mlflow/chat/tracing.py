"""`Tracer`: makes each answer an MLflow trace, beside the answer and never in its way."""

from __future__ import annotations

import logging
import threading
from collections import deque
from datetime import datetime

from ftlab_mlflow import settings
from ftlab_mlflow.chat.events import Answer
from ftlab_mlflow.chat.mlflow_trace import Traced, write
from ftlab_mlflow.chat.model import Model
from ftlab_mlflow.control.mlflow_errors import first_line
from ftlab_mlflow.control.wire import one_line
from ftlab_mlflow.errors import ConfigError, FTLabError

logger = logging.getLogger("ftlab_mlflow")

MAX_WAITING = 100
"""Answers that wait to be written; what comes beyond is not traced."""


class Tracer:
    """Writes traces in a thread of its own, which lasts as long as there are some to write.

    What goes wrong is a warning in the log, once for each cause. May be shared by threads, and by several
    tracking URIs: MLflow's own settings of the process are left alone.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Traced] = deque()
        self._thread: threading.Thread | None = None
        self._said: set[str] = set()

    def trace(
        self,
        question: str,
        answer: Answer,
        *,
        began: datetime,
        tracking_uri: str | None,
        user: str,
        chat_id: str | None,
        model: Model | None,
    ) -> None:
        """Traces an answer on the tracking store of its runs, unless ``FTLAB_TRACE`` is 0. Returns at once.

        Args:
            began: When the question came.
            tracking_uri: None is MLflow's own setting.
            chat_id: MLflow's session.
            model: That answered, with its price; None for a slash command.
        """
        try:
            if not settings.tracing():
                return
        except ConfigError as error:
            self._warn(str(error))
            return
        experiment = settings.trace_experiment()
        traced = Traced(question, answer, began, tracking_uri, user, chat_id, model, experiment)
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                self._warn(f"{MAX_WAITING} answers already wait for the tracking store")
                return
            self._waiting.append(traced)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="ftlab-tracer", daemon=True)
                self._thread.start()

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Waits until all is written or has failed, but no longer than that; whether it is."""
        with self._changed:
            is_done = self._changed.wait_for(lambda: not self._waiting, timeout_s)
            if not is_done:
                self._warn(
                    f"the tracking store has not taken {len(self._waiting)} of them in {timeout_s:g} s"
                )
        return is_done

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._thread = None
                    return
                traced = self._waiting[0]
            try:
                write(traced)
            except FTLabError as error:
                self._warn(str(error))
            except Exception as error:  # whatever it is, the answer was given
                self._warn(f"{type(error).__name__}: {first_line(error)}")
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()

    def _warn(self, cause: str) -> None:
        if cause not in self._said:
            self._said.add(cause)
            logger.warning(
                "answers of the chat are not traced (FTLAB_TRACE=0 turns it off): %s", one_line(cause)
            )
