"""What a slash command is about where it does not say, or says `latest`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ftlab_mlflow.chat.cells import plain
from ftlab_mlflow.chat.scope import Scope
from ftlab_mlflow.chat.slash_words import WrongWords
from ftlab_mlflow.errors import ChatError

if TYPE_CHECKING:
    from ftlab_mlflow.analytics.reader import RunReader, RunRecord
    from ftlab_mlflow.control.wire import Scalar

LATEST = "latest"
"""The word for the newest run of the scope."""


class Subject:
    """Runs and experiments of one command. All methods raise `WrongWords` where a choice is missing, and
    `ChatError`, `AnalyticsError` and `StoreError` where there is nothing to choose from.

    Attributes:
        notes: What was taken that nobody named, as Markdown.
    """

    def __init__(self, scope: Scope, tracking_uri: str | None) -> None:
        self.notes: list[str] = []
        self._scope = scope
        self._tracking_uri = tracking_uri

    def run(self, word: str | None) -> str:
        """A run as the analytics take it; without a word the only selected one."""
        if word == LATEST:
            return self._latest().data.run_id
        if word is not None:
            return word
        if len(self._scope.runs) == 1:
            return self._scope.runs[0]
        count = len(self._scope.runs)
        raise WrongWords(f"say which run: {f'{count} are' if count else 'none is'} selected, or say {LATEST}")

    def runs(self, words: Sequence[str], fewest: int = 1) -> list[str]:
        """Some runs; without words the selected ones."""
        from ftlab_mlflow.analytics.comparison import MAX_RUNS

        found = [self.run(word) for word in words] or list(self._scope.runs)
        said = "named" if words else "selected"
        if len(found) < fewest:
            raise WrongWords(f"it takes {fewest} run{'s' * (fewest > 1)} or more, {len(found)} are {said}")
        if len(found) > MAX_RUNS:
            raise WrongWords(f"it takes at most {MAX_RUNS} runs, {len(found)} are {said}")
        return found

    def experiment(self, name: str | None) -> str:
        """An experiment; without a name the selected one, else that of the selected runs, else of the newest
        run of all."""
        if name is not None:
            return name
        if self._scope.experiment is not None:
            return self._scope.experiment
        if not self._scope.runs:
            found = self._latest().experiment
            self.notes.append(
                f"Of {plain(found)}, the experiment of the newest run; `experiment=NAME` asks about another."
            )
            return found
        names = sorted({record.experiment for record in self._selected()})
        if len(names) > 1:
            raise WrongWords(f"say which experiment: the selected runs are of {', '.join(names)}")
        return names[0]

    @property
    def only_run(self) -> str | None:
        """The run, where exactly one is selected."""
        return self._scope.runs[0] if len(self._scope.runs) == 1 else None

    def values(self, run: str, texts: Mapping[str, str]) -> dict[str, Scalar]:
        """Values by the types that a run's parameters have, as `ftlab set` reads them."""
        from ftlab_mlflow.analytics import scope
        from ftlab_mlflow.control.surface import Surface
        from ftlab_mlflow.control.view import RunView

        surface = RunView.of(scope.record(self._reader, run).data).surface
        return (surface or Surface({}, ())).read(texts)

    @property
    def _reader(self) -> RunReader:
        """Of the tracking store."""
        from ftlab_mlflow.analytics import scope

        return scope.reader(self._tracking_uri)

    def _latest(self) -> RunRecord:
        if self._scope.runs:
            return min(self._selected(), key=_place)
        experiments = None
        if self._scope.experiment is not None:
            from ftlab_mlflow.analytics.scope import experiment_id

            experiments = [experiment_id(self._reader, self._scope.experiment)]
        # One run of one page: nothing else of the store is read.
        records = self._reader.page(limit=1, experiments=experiments).records
        if not records:
            raise ChatError(
                "there is no run yet" if experiments is None else "this experiment has no run yet"
            )
        return records[0]

    def _selected(self) -> list[RunRecord]:
        from ftlab_mlflow.analytics import scope

        return scope.records(self._reader, self._scope.runs)


def _place(record: RunRecord) -> tuple[float, str]:
    """Where it stands among all, the newest first, as everywhere in the analytics."""
    data = record.data
    return -(data.started.timestamp() if data.started else 0.0), data.run_id
