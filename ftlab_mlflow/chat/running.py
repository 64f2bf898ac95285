"""An answer that is made in the background, for a page that looks at it again and again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ftlab_mlflow.chat.events import Answer, Answered, Event, Text, ToolEnded, ToolRun, ToolStarted, Waiting
from ftlab_mlflow.errors import FTLabError

logger = logging.getLogger("ftlab_mlflow")


@dataclass(frozen=True)
class Said:
    """A piece of text between tools."""

    text: str


@dataclass(frozen=True)
class Called:
    """A tool. run: None while it runs."""

    id: str
    name: str
    arguments: str
    run: ToolRun | None = None


@dataclass(frozen=True)
class Progress:
    """How far an answer is.

    Attributes:
        parts: Texts and tools in order. waiting: Why nothing comes now, in words.
        answer: In the end. error: What went wrong instead, in words.
    """

    parts: tuple[Said | Called, ...] = ()
    waiting: str | None = None
    answer: Answer | None = None
    error: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""
        return self.answer is not None or self.error is not None

    def after(self, event: Event) -> Progress:
        """With one more thing that happened."""
        match event:
            case Text(text):
                last = self.parts[-1] if self.parts else None
                if isinstance(last, Said):
                    parts: tuple[Said | Called, ...] = (*self.parts[:-1], Said(last.text + text))
                else:
                    parts = (*self.parts, Said(text))
                return replace(self, parts=parts, waiting=None)
            case ToolStarted(id, name, arguments):
                return replace(self, parts=(*self.parts, Called(id, name, arguments)), waiting=None)
            case ToolEnded(run):
                parts = tuple(
                    replace(part, run=run) if isinstance(part, Called) and part.id == run.id else part
                    for part in self.parts
                )
                return replace(self, parts=parts)
            case Waiting(seconds, why):
                return replace(self, waiting=f"{why}. The next try comes in {seconds:.0f} s.")
            case Answered(answer):
                return replace(self, answer=answer, waiting=None)


class Running:
    """An answer in the making. It goes on if nobody looks.

    Args:
        ask: Gives the events; called in the background with the event that stops it.
    """

    def __init__(self, ask: Callable[[threading.Event], Iterator[Event]]) -> None:
        self.progress = Progress()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(ask,), name="ftlab-answer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Asks it to end with what it has."""
        self._stop.set()

    def join(self, timeout_s: float | None = None) -> None:
        """Waits for its end."""
        self._thread.join(timeout_s)

    def _work(self, ask: Callable[[threading.Event], Iterator[Event]]) -> None:
        try:
            for event in ask(self._stop):
                self.progress = self.progress.after(event)
        except FTLabError as error:
            self.progress = replace(self.progress, error=str(error))
        except Exception as error:
            logger.exception("an answer failed")
            self.progress = replace(self.progress, error=f"unexpected {type(error).__name__}: {error}"[:500])
