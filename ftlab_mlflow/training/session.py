"""One training session: what is asked for becomes what is in force, at optimizer-step boundaries.

No framework in it: a host (`callback.LiveControl`, a plain loop) calls `boundary` after every optimizer step
and brings tunables and commands. All I/O is the listener's; here is only a queue to look at.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Entry, Ledger
from ftlab_mlflow.control.messages import FINAL_STATES, AckStatus, Code, State, Update
from ftlab_mlflow.control.surface import Surface
from ftlab_mlflow.control.wire import format_time, new_id, one_line, shown, shown_value, utc_now
from ftlab_mlflow.errors import describe
from ftlab_mlflow.training.answers import Answers, Outbox
from ftlab_mlflow.training.host import Host
from ftlab_mlflow.training.tunable import Tunable
from ftlab_mlflow.training.values import Values, error_text

logger = logging.getLogger("ftlab_mlflow")

_WAIT_S = 0.2
"""Longest sleep of a paused training before it looks for a signal."""


class Given(NamedTuple):
    """Requests of the one who starts the training, which it begins with.

    Attributes:
        must_fit: Whether the training must not begin if one of them is refused.
    """

    updates: tuple[Update, ...] = ()
    must_fit: bool = False


NOTHING_GIVEN = Given()


@dataclass
class _Stop:
    request_id: str
    result: dict[str, Any] = field(default_factory=dict)


class Session:
    """The requests of one training session, from arrival to answer.

    Attributes:
        state: Of the training. step: Optimizer steps done.
        next_step: The first step that a waiting request is for; infinite without one.
        paused_s: Seconds that the training has waited in pauses.

    Args:
        id: Of this session. tunables: By name, in the order in which they are applied.
        unsupported: Why a known parameter or command is not offered, by name.
        commands: Offered commands. host: The training loop. outbox: Where answers go.
        describe: The status message for a state, as text.
        idle: Called several times a second while the training is paused, in its thread.
    """

    def __init__(
        self,
        *,
        id: str,
        tunables: Mapping[str, Tunable],
        unsupported: Mapping[str, str],
        commands: tuple[str, ...],
        host: Host,
        outbox: Outbox,
        describe: Callable[[State], str],
        idle: Callable[[], None] | None = None,
    ) -> None:
        self.id = id
        self.state: State = "starting"
        self.step = 0
        self.next_step: float = math.inf
        self.paused_s = 0.0
        self._values = Values(tunables)
        self._unsupported = unsupported
        self._commands = commands
        self._host = host
        self._outbox = outbox
        self._describe = describe
        self._idle = idle
        self._withdrawn: str | None = None
        self._inbox: deque[Callable[[], None]] = deque()
        self._waiting: list[Entry] = []
        self._answers = Answers(id, outbox, self._values.points, self._shown)
        self._stop: _Stop | None = None
        self._interrupt: Callable[[], None] | None = None
        # Set by other threads and signal handlers, looked at by the training thread at every step.
        self._attention = False
        self._surface_due = False
        self._wake = threading.Event()

    # --- called by the listener's thread ---------------------------------------------------------

    def deliver(self, entries: Iterable[Entry], *, sent_before: bool) -> None:
        """Brings pending requests, in order. `sent_before`: they were there when this session began."""
        self._inbox.extend(partial(self._admit, entry, sent_before) for entry in entries)
        self._call_attention()

    def deliver_history(self, ledger: Ledger) -> None:
        """Brings the run's history late, when the tracking store did not answer at the beginning."""
        self._inbox.append(partial(self._replay, ledger))
        self._call_attention()

    def refresh_surface(self) -> None:
        """Asks the training thread to post the surface, because a schedule may have moved a value."""
        self._surface_due = True
        self._call_attention()

    def look_at_expiry(self, now: datetime) -> None:
        """Asks the training thread to answer waiting requests whose time is over."""
        if any(_is_expired(entry, now) for entry in tuple(self._waiting)):
            self._call_attention()

    def confirmed(self, keys: Iterable[str]) -> None:
        """These tags are written: answers among them need not ride in checkpoints."""
        self._answers.confirmed(keys)

    def _call_attention(self) -> None:
        self._attention = True
        self._wake.set()

    # --- called in the training thread -----------------------------------------------------------

    def interrupt(self, then: Callable[[], None]) -> None:
        """Runs `then` at the next boundary. Safe in a signal handler: it only sets plain attributes."""
        self._interrupt = then
        self._attention = True

    def begin(self, step: int, saved: Mapping[str, Any], ledger: Ledger | None) -> None:
        """Brings into force what this run was told before, and says what can be changed.

        Args:
            step: Optimizer steps done (of the checkpoint that training resumes from).
            saved: What `saved_state` gave for that checkpoint; empty without one.
            ledger: The run's history; None if the tracking store does not answer.
        """
        self.step = step
        self._values.load(saved)
        self._answers.load(saved)
        if ledger is not None:
            self._replay(ledger)
        self.post_surface()

    def refusal(self, given: Given) -> str | None:
        """Why the training must not begin: what it refuses of the requests, or None. It changes nothing."""
        values = {name: value for update in given.updates for name, value in (update.set or {}).items()}
        # All at once: no step is trained between them, and one may make room for another.
        problem = self._problems(Update(at=utc_now(), set=values)) if given.must_fit and values else None
        return describe(problem[1]) if problem else None

    def ask(self, given: Given) -> str | None:
        """Makes the requests, now. Returns why the training must not begin, or None."""
        errors: dict[str, str] = {}
        for update in given.updates:
            entry = Entry(new_id(), update)
            self._outbox.post({tags.UPDATE_PREFIX + entry.id: update.encode()})
            if given.must_fit:
                errors |= self._transact(entry, update)
            else:
                self._execute(entry, update)
        return describe(errors) if errors else None

    def running(self) -> None:
        """A step begins. Cheap: called at every step, it acts at the first."""
        if self.state == "starting":
            self.state = "running"
            self.post_surface()

    def _replay(self, ledger: Ledger) -> None:
        """Applies again, in the same order, what was applied later than the checkpoint knows."""
        self._answers.follow(ledger)
        if self.state in FINAL_STATES:
            return  # the history came so late that there is no training left to change
        for update, ack in ledger.applied_sets(after=self._answers.known_at):
            asked = update.set or {}
            values = {name: value for name, value in asked.items() if self._values.can_have(name, value)}
            if lost := ", ".join(map(one_line, sorted(set(asked) - set(values)))):
                logger.warning("%s of step %d cannot be changed here: as launched", lost, ack.step)
            _, error = self._values.apply(values)
            if not error:
                logger.info("Kept from before: %s (asked for at step %d)", values, ack.step)

    def boundary(self, step: int) -> None:
        """An optimizer step is done. Applies what is due, and returns when training may go on."""
        self.step = step
        if self._attention or step >= self.next_step:
            self._serve()
            while self.state == "paused":
                began = time.monotonic()
                self._wake.wait(_WAIT_S)
                self._wake.clear()
                if self._idle:
                    self._idle()
                self.paused_s += time.monotonic() - began
                if self._attention:
                    self._serve()

    def withdraw(self, reason: str) -> None:
        """From now on nothing can be changed, and every request is answered with the reason."""
        self._withdrawn = reason
        if self.state == "paused":
            self.state = "running"
        self.post_surface()

    def saved_state(self) -> dict[str, Any]:
        """What a checkpoint must hold of this session, as JSON values."""
        return {"step": self.step, **self._values.saved(), **self._answers.saved()}

    def end(self, state: State) -> None:
        """The training has ended; everything that is still open gets its answer."""
        self.state = state
        if self._stop is not None:
            self._answer(self._stop.request_id, "applied", result=self._stop.result)
            self._stop = None
        self.answer_rest()
        self.post_surface()

    def answer_rest(self) -> None:
        """Answers what is open after the end, also what the listener brought since."""
        while self._inbox:
            self._inbox.popleft()()
        text = f"the training ended ({self.state}) at step {self.step}"
        for entry in self._waiting:
            # A `set` for a training that did not finish waits for the one that resumes it.
            if self.state == "finished" or (entry.update and entry.update.command):
                self._reject(entry, "expired", {"message": text})
        self._waiting.clear()

    # --- inside ----------------------------------------------------------------------------------

    def _serve(self) -> None:
        self._attention = False
        if self._surface_due:
            self._surface_due = False
            self.post_surface()
        while self._inbox:
            self._inbox.popleft()()
        now = utc_now()
        for entry in list(self._waiting):
            if entry not in self._waiting:  # cancelled meanwhile
                continue
            update = entry.update
            assert update is not None
            if update.expires and update.expires <= now:
                self._waiting.remove(entry)
                self._reject(
                    entry, "expired", {"expires": f"was not applied before {format_time(update.expires)}"}
                )
            elif self.step >= (update.at_step or 0) and self._stop is None:
                self._waiting.remove(entry)
                self._execute(entry, update)
        self.next_step = min((e.update.at_step or 0 for e in self._waiting if e.update), default=math.inf)
        if self._interrupt:
            then, self._interrupt = self._interrupt, None
            then()

    def _admit(self, entry: Entry, sent_before: bool) -> None:
        """Refuses at once what can never be applied; the rest waits for its boundary."""
        update = entry.update
        if self._answers.has(entry.id):
            return  # by the session before, which the checkpoint remembers: the answer is on its way
        if entry.error is not None:
            code: Any = entry.error.code
            self._reject(entry, code, entry.error.errors)
        elif update is None:
            raise AssertionError("an entry has an update or an error")
        elif sent_before and update.command is not None:
            self._reject(entry, "expired", {"command": "was sent before this training session began"})
        elif (problem := self._problems(update)) and problem[0] != "stale":
            self._reject(entry, *problem)
        else:
            self._waiting.append(entry)

    def _problems(self, update: Update) -> tuple[Code, dict[str, str]] | None:
        problem = self.surface().problems(update)
        if problem is None and update.set and (errors := self._values.problem(update.set)):
            return "out_of_bounds", errors
        return problem

    def _execute(self, entry: Entry, update: Update) -> None:
        if problem := self._problems(update):
            self._reject(entry, *problem)
        elif update.set is not None:
            self._transact(entry, update)
        else:
            self._command(entry, update)

    def _transact(self, entry: Entry, update: Update) -> dict[str, str]:
        changes, error = self._values.apply(update.set or {})
        if error:
            self._reject(entry, "failed", error)
            return error
        self._answer(entry.id, "applied", changes=changes)
        who = one_line(": ".join(text for text in (update.by, update.reason) if text))
        for name, (old, new) in changes.items():
            logger.info(
                "Applied %s %s → %s at step %d%s",
                name, shown_value(old), shown_value(new), self.step, f" ({who})" if who else "",
            )  # fmt: skip
        return {}

    def _command(self, entry: Entry, update: Update) -> None:
        command = update.command
        result: dict[str, Any] = {}
        try:
            if command == "pause":
                self.state = "paused"
            elif command == "resume":
                self.state = "running"
            elif command == "checkpoint":
                result = {"checkpoint": self._host.checkpoint()}
            elif command == "evaluate":
                result = {"metrics": dict(self._host.evaluate())}
            elif command == "rollback":
                result = self._roll_back(update.args.get("checkpoint"))
            elif command == "cancel" and not self._cancel(target := update.args["id"]):
                self._reject(entry, "failed", {"command": f"no request {shown(target)} is pending"})
                return
            elif command == "stop":
                self._begin_stop(entry.id, save=update.args.get("save", True))
                return  # answered when the training has ended
        except Exception as error:  # whatever it raises, the training must go on
            logger.exception("%s failed; training goes on", command)
            self._reject(entry, "failed", {"command": error_text(error)})
            return
        self._answer(entry.id, "applied", result=result)
        logger.info("Done: %s at step %d", command, self.step)

    def _roll_back(self, checkpoint: str | None) -> dict[str, Any]:
        """Goes back to a checkpoint. What was asked for since stays in force."""
        assert self._host.rollback is not None, "rollback is not offered"
        path, saved, self.step = self._host.rollback(checkpoint)
        result: dict[str, Any] = {"checkpoint": path, "step": self.step}
        if errors := self._values.keep(saved):
            logger.warning("Not in force after the rollback: %s", describe(errors))
            result["not_kept"] = errors
        return result

    def _begin_stop(self, request_id: str, *, save: bool) -> None:
        stop = _Stop(request_id)
        if save and "checkpoint" in self._commands:
            stop.result["checkpoint"] = self._host.checkpoint()
        self.stop_now()
        self._stop = stop

    def stop_now(self) -> None:
        """Makes this boundary the last one."""
        self._host.stop()
        self.state = "stopping"
        self._outbox.post({tags.STATUS: self._describe(self.state)})

    def _cancel(self, target: str) -> bool:
        for entry in self._waiting:
            if entry.id == target:
                self._waiting.remove(entry)
                self._answer(target, "cancelled")
                return True
        return False

    def _reject(self, entry: Entry, code: Code, errors: Mapping[str, str]) -> None:
        self._answer(entry.id, "rejected", code=code, errors=errors)
        text = one_line("; ".join(f"{name}: {error}" for name, error in errors.items()))
        logger.warning("Rejected a request at step %d (%s): %s", self.step, code, text)

    def _answer(self, request_id: str, status: AckStatus, **fields: Any) -> None:
        self._answers.give(request_id, status, self.step, **fields)

    def surface(self, *, planned: bool = False) -> Surface:
        """What can be changed now, read from where the trainer uses it; `planned`: with plans."""
        params = self._values.params(planned=planned)
        reasons = {**self._unsupported, **self._values.unavailable()}
        if self._withdrawn:
            return Surface({}, (), dict.fromkeys((*reasons, *params, *self._commands), self._withdrawn))
        return Surface(params, self._commands, reasons)

    def post_surface(self) -> None:
        """Posts surface and status."""
        self._outbox.post(self._shown())

    def _shown(self) -> dict[str, str]:
        return {tags.SURFACE: self.surface(planned=True).encode(), tags.STATUS: self._describe(self.state)}


def _is_expired(entry: Entry, now: datetime) -> bool:
    return bool(entry.update and entry.update.expires and entry.update.expires <= now)
