"""A training whose session listens on a run, over the whole way from tag to tag."""

from collections.abc import Callable
from typing import Any

from training_doubles import FlakyStore, Trainee, new_session, request, wait_for

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Ledger, read_entry
from ftlab_mlflow.control.messages import Ack, State, Status
from ftlab_mlflow.control.wire import utc_now
from ftlab_mlflow.training.listener import Listener

POLL_S = 0.005


class Line:
    """A training whose session listens on a run, over the whole way from tag to tag."""

    def __init__(self, store: FlakyStore, run_id: str, poll_interval: float = POLL_S) -> None:
        self.store, self.run_id = store, run_id
        self.trainee = Trainee()
        self.listener = Listener(
            store, run_id, lambda: self._describe(self.session.state), poll_interval=poll_interval
        )
        self.session = new_session(self.trainee, self.listener)
        self.closed = False

    def _describe(self, state: State) -> str:
        step = self.session.step
        return Status(state, step, 100, 0.0, utc_now(), 10.0, "s1", "h", 1, "sft").encode()

    def begin(self, step: int = 0, saved: dict[str, Any] | None = None) -> "Line":
        first = self.listener.read_first()
        self.session.begin(step, saved or {}, None if first is None else Ledger.read(first))
        self.listener.start(self.session, self.session.surface().params, first)
        self.session.boundary(step)
        self.session.running()
        return self

    def step(self) -> None:
        self.session.boundary(self.session.step + 1)

    def end(self, state: State = "finished", status: Any = "FINISHED") -> bool:
        self.session.end(state)
        self.closed = True
        return self.listener.close(status)

    def tags(self) -> dict[str, str]:
        return self.store.inner.get(self.run_id).tags

    def send(self, request_id: str, **fields: Any) -> None:
        self.store.inner.write(self.run_id, {tags.UPDATE_PREFIX + request_id: request(**fields)})

    def by_hand(self, name: str, text: str) -> None:
        self.store.inner.write(self.run_id, {tags.SET_PREFIX + name: text})

    def looked(self) -> None:
        """Waits until whatever is on the run now has been brought to the session."""
        seen = self.store.gets
        wait_for(lambda: self.store.gets >= seen + 2, "two looks at the tags")

    def ack(self, request_id: str) -> Ack:
        """The answer, once it is a tag on the run; training goes on meanwhile."""

        def answered() -> Ack | None:
            self.step()
            return read_entry(self.tags(), request_id).ack

        ack: Ack = wait_for(answered, f"the answer to {request_id}")
        return ack

    def by_tag(self) -> list[tuple[Any, str | None]]:
        """What was asked for by hand, in order, with the status of the answer."""
        self.looked()
        self.step()
        self.looked()
        entries = [e for e in Ledger.read(self.tags()).entries if e.update and e.update.via == "tag"]
        return [
            (e.update.set or e.update.command, e.ack and e.ack.status)  # type: ignore[union-attr]
            for e in sorted(entries, key=lambda e: e.ack.at if e.ack else utc_now())
        ]


NewLine = Callable[..., Line]
