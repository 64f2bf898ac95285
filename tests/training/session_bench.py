"""A session at a desk: what it is asked, and what it answers."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from training_doubles import LIMIT_S, Desk, Trainee, entry, new_session

from ftlab_mlflow.control.messages import Ack
from ftlab_mlflow.control.wire import format_time, utc_now


class Bench:
    """A session at step 7 of a training, with its desk."""

    def __init__(self, **session: Any) -> None:
        self.trainee, self.desk = Trainee(), Desk()
        self.session = new_session(self.trainee, self.desk, **session)
        self.session.begin(7, {}, None)
        self.session.running()

    def send(self, request_id: str, text: str | None = None, *, before: bool = False, **fields: Any) -> None:
        self.session.deliver([entry(request_id, text, **fields)], sent_before=before)

    def ask(self, request_id: str, text: str | None = None, **fields: Any) -> Ack:
        """Sends a request and has it served at the boundary of the step that the session is at."""
        self.send(request_id, text, **fields)
        self.session.boundary(self.session.step)
        return self.desk.ack(request_id)


def past(seconds: float = 1.0) -> str:
    return format_time(utc_now() - timedelta(seconds=seconds))


@contextmanager
def in_thread(work: Callable[[], object]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield thread
    thread.join(LIMIT_S)
    assert not thread.is_alive()
