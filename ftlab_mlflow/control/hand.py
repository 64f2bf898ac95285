"""Requests by hand: ``ftlab.set.<parameter>`` tags that a person writes in the MLflow UI."""

from __future__ import annotations

from collections.abc import Mapping

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.messages import Update
from ftlab_mlflow.control.surface import MAX_TEXT, Param, read_text
from ftlab_mlflow.control.wire import Scalar, utc_now


def hand_texts(run_tags: Mapping[str, str]) -> dict[str, str]:
    """The hand-written tags of a run: text by parameter name (or ``command``)."""
    start = len(tags.SET_PREFIX)
    return {k[start:]: v for k, v in run_tags.items() if k.startswith(tags.SET_PREFIX)}


def to_update(name: str, text: str, param: Param | None) -> Update:
    """The ordinary request that a hand-written tag means."""
    if name == tags.HAND_COMMAND:
        command = text.strip()[:MAX_TEXT]
        return Update(at=utc_now(), command=command, by="tag", via="tag")
    return Update(at=utc_now(), set={name: read_text(text, param)}, by="tag", via="tag")


class HandTags:
    """Which hand-written tags are new. A value left standing is handled once, also over a restart."""

    def __init__(self, ledger: Ledger, run_tags: Mapping[str, str], params: Mapping[str, Param]) -> None:
        handled: dict[str, Scalar] = {}
        for entry in ledger.entries:
            update = entry.update
            if update and update.via == "tag":
                handled |= update.set or {tags.HAND_COMMAND: update.command or ""}
        self._params = params
        self._standing = {
            name: text
            for name, text in hand_texts(run_tags).items()
            if name in handled and handled[name] == self._meaning(name, text)
        }

    def _meaning(self, name: str, text: str) -> Scalar:
        update = to_update(name, text, self._params.get(name))
        meaning: Scalar = update.set[name] if update.set else update.command or ""
        return meaning

    def new(self, run_tags: Mapping[str, str]) -> list[Update]:
        """Requests for the tags that were written, changed or written again since the last call."""
        texts = hand_texts(run_tags)
        fresh = [name for name, text in texts.items() if self._standing.get(name) != text]
        self._standing = texts
        return [to_update(name, texts[name], self._params.get(name)) for name in sorted(fresh)]
