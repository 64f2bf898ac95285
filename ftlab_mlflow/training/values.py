"""The values in force: changed as one transaction, remembered for checkpoints, kept over a return to one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.messages import Ack
from ftlab_mlflow.control.store import Point
from ftlab_mlflow.control.surface import Param
from ftlab_mlflow.control.wire import Scalar, is_finite
from ftlab_mlflow.errors import FTLabError
from ftlab_mlflow.training.tunable import Tunable

logger = logging.getLogger("ftlab_mlflow")


class Values:
    """The parameters of one training: what is in force, what was last asked for, what was changed.

    Args:
        tunables: By name, in the order in which they are applied.
    """

    def __init__(self, tunables: Mapping[str, Tunable]) -> None:
        self._tunables = tunables
        self._asked: dict[str, Scalar] = {name: t.asked for name, t in tunables.items()}
        # What was changed, and the how-manieth change it was that did so last; all changes by that number.
        self._changed: dict[str, int] = {}
        self._log: list[tuple[int, dict[str, Scalar]]] = []

    def params(self, *, planned: bool = False) -> dict[str, Param]:
        """What can be changed now, read from where the trainer uses it; `planned`: with plans."""
        there = {name: tunable for name, tunable in self._tunables.items() if tunable.unavailable() is None}
        params = {name: t.param(self._asked[name], planned=planned) for name, t in there.items()}
        # A rate that a scheduler made infinite is nothing that a tag can hold.
        return {n: p for n, p in params.items() if p.type != "float" or is_finite(p.value)}

    def unavailable(self) -> dict[str, str]:
        """Why parameters cannot be changed now, by name."""
        reasons = {name: tunable.unavailable() for name, tunable in self._tunables.items()}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def problem(self, proposed: Mapping[str, Scalar]) -> dict[str, str]:
        """What is wrong with values that are right one by one, when they are all in force together."""
        for name in proposed:
            if text := self._tunables[name].check(proposed):
                return {name: text}
        return {}

    def can_have(self, name: str, value: object) -> bool:
        """Whether the training has this parameter and can have this value, whatever the bounds are now."""
        tunable = self._tunables.get(name)
        return tunable is not None and tunable.accepts(value) and tunable.unavailable() is None

    def apply(self, values: Mapping[str, Scalar]) -> tuple[dict[str, tuple[Scalar, Scalar]], dict[str, str]]:
        """All of the values or none: (old and new by name, {}) or ({}, errors)."""
        chosen = [t for name, t in self._tunables.items() if name in values]
        captured: list[tuple[Tunable, Any]] = []
        current = ""
        try:
            old = {}
            for tunable in chosen:
                current = tunable.name
                captured.append((tunable, tunable.capture()))
                old[tunable.name] = tunable.read()
            for tunable in chosen:
                current = tunable.name
                tunable.apply(values[tunable.name])
            changes = {t.name: (old[t.name], t.read()) for t in chosen}
        except Exception as error:  # whatever a parameter raises, the training must go on as it was
            logger.exception("Changing %s failed; it is put back", current)
            for tunable, state in reversed(captured):
                tunable.restore(state)
            return {}, {current: error_text(error)}
        asked = {name: values[name] for name in changes}
        count = max(self._changed.values(), default=0) + 1
        self._log.append((count, asked))
        self._asked |= asked
        self._changed |= dict.fromkeys(asked, count)
        return changes, {}

    def points(self, ack: Ack) -> list[Point]:
        """What an answer changed as metrics ``live/<parameter>``; a value of an enum is its number."""
        at = int(ack.at.timestamp() * 1000)
        return [
            Point(tags.LIVE_METRIC_PREFIX + name, self._as_metric(name, new), ack.step, at)
            for name, (_, new) in ack.changes.items()
            if self.can_have(name, new)
        ]

    def _as_metric(self, name: str, value: Scalar) -> float:
        choices = self._tunables[name].choices
        return float(choices.index(str(value))) if choices else float(value)

    # --- checkpoints -----------------------------------------------------------------------------

    def saved(self) -> dict[str, Any]:
        """What a checkpoint must hold, as JSON values."""
        return {
            "values": {n: (self._tunables[n].save or self._tunables[n].read)() for n in self._changed},
            "asked": {name: self._asked[name] for name in self._changed},
            "changed": dict(self._changed),
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Brings back what `saved` gave, when training resumes from that checkpoint."""
        self._load(saved)
        for name in self._kept(saved):
            self._changed[name] = saved["changed"][name]
            self._asked[name] = saved["asked"][name]
        counted = sorted((count, name) for name, count in self._changed.items())
        for count, group in groupby(counted, key=itemgetter(0)):
            self._log.append((count, {name: self._asked[name] for _, name in group}))

    def keep(self, saved: Mapping[str, Any]) -> dict[str, str]:
        """The trainer went back to a checkpoint that holds `saved`: what was asked for since is asked again.

        Returns:
            Errors by name, of what cannot be in force there.
        """
        # All states first: two parameters may share one (the rate and its schedule), and it must not undo
        # what is asked of the other one afterwards.
        self._load(saved)
        then = max(saved.get("changed", {}).values(), default=0)
        since = [asked for count, asked in self._log if count > then]
        self._log = [(count, asked) for count, asked in self._log if count <= then]
        errors: dict[str, str] = {}
        for asked in since:
            errors |= self.apply({n: value for n, value in asked.items() if self.can_have(n, value)})[1]
        return errors

    def _load(self, saved: Mapping[str, Any]) -> None:
        for name in self._kept(saved):
            tunable = self._tunables[name]
            (tunable.load or tunable.apply)(saved["values"][name])

    def _kept(self, saved: Mapping[str, Any]) -> list[str]:
        """The names of what was changed, is still there, and can still have that value (of an enum)."""
        asked = saved.get("asked", {})
        return [n for n, tunable in self._tunables.items() if n in asked and tunable.accepts(asked[n])]


def error_text(error: Exception) -> str:
    """What was raised, for the one who asked."""
    return str(error) if isinstance(error, FTLabError) else f"{type(error).__name__}: {error}"
