"""What a conversation is about: the runs and the experiment that the person picked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scope:
    """What questions are about where they do not say.

    Attributes:
        runs: Ids, in the order they were picked; empty where none were.
        experiment: Its name; None where none was picked.
    """

    runs: tuple[str, ...] = ()
    experiment: str | None = None
