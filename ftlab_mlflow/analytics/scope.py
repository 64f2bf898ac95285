"""What a question is about: the store, an experiment, a run, a metric, each by the name people use."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache

from ftlab_mlflow.analytics.answer import clipped
from ftlab_mlflow.analytics.columns import Wanted
from ftlab_mlflow.analytics.connection import open_existing
from ftlab_mlflow.analytics.metric_table import Better, Group, describe
from ftlab_mlflow.analytics.reader import RunReader, RunRecord, RunsOf
from ftlab_mlflow.errors import AnalyticsError, RunNotFound

_NEAREST = 5
_TELLING = (Group.LOSS, Group.REWARDS, Group.MARGINS, Group.ACCURACY)


def reader(tracking_uri: str | None) -> RunReader:
    """A reader of the tracking store; the same one for the same URI. Raises: as `open_existing`."""
    import mlflow

    return _reader(tracking_uri or mlflow.get_tracking_uri())


@lru_cache(maxsize=8)
def _reader(tracking_uri: str) -> RunReader:
    return open_existing(tracking_uri)


def runs_of(experiment: str, tracking_uri: str | None) -> RunsOf:
    """The runs of an experiment given by name or id; a name wins over an id that looks the same.

    Raises:
        AnalyticsError: There is none; the text names the nearest ones.
    """
    store = reader(tracking_uri)
    return store.runs_of([experiment_id(store, experiment)])


def experiment_id(store: RunReader, experiment: str) -> str:
    """The id of an experiment given by name or id. Raises: as `runs_of`."""
    names = store.experiments()
    by_name = [id for id, name in names.items() if name == experiment]
    if by_name:
        return by_name[0]
    if experiment in names:
        return experiment
    raise AnalyticsError(f"no experiment {brief(experiment)}; {nearest(experiment, names.values())}")


def record(store: RunReader, run: str) -> RunRecord:
    """A run given by id, unique prefix of one, or name.

    Raises:
        AnalyticsError: No run goes by it, or several do; the text lists them.
    """
    if re.fullmatch("[0-9a-f]{32}", run):
        with suppress(RunNotFound):
            return store.record(run)
    try:
        return store.record(_run_id(store, run))
    except RunNotFound as error:
        raise AnalyticsError(str(error)) from error


def records(store: RunReader, runs: Sequence[str]) -> list[RunRecord]:
    """Several runs, each once, in their order. Raises: as `record`."""
    found = [record(store, run) for run in runs]
    return list({each.data.run_id: each for each in found}.values())


def _run_id(store: RunReader, run: str) -> str:
    found = store.named(run)
    if len(found) == 1:
        return found[0].run_id
    if not found:
        heads = store.runs_of(list(store.experiments())).columns(Wanted()).heads
        raise AnalyticsError(f"no run {brief(run)}; {nearest(run, {head.label for head in heads})}")
    some = ", ".join(f"{head.run_id} ({head.label}, {head.status})" for head in found[:10])
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    raise AnalyticsError(f"{len(found)} runs go by {brief(run)}, say which: {some}{more}")


def check_metric(metric: str, metrics: Iterable[str]) -> None:
    """Raises: AnalyticsError: a metric is not among these; the text names the nearest."""
    metrics = list(metrics)
    if metric not in metrics:
        raise AnalyticsError(
            f"no run of the experiment has logged {brief(metric)}; {nearest(metric, metrics)}"
        )


def direction(metric: str) -> Better:
    """Which way is better. Raises: AnalyticsError: neither is, or that is not known."""
    if better := known_direction(metric):
        return better
    raise AnalyticsError(
        f"whether a high or a low {metric} is better is not known, or depends: say mode min or max, or for "
        f"good with FTLAB_METRICS='{metric}=lower' (or higher)"
    )


def known_direction(metric: str) -> Better | None:
    """Which way is better; None where neither is, or that is not known."""
    return describe(metric).better


def telling(metrics: Iterable[str]) -> list[str]:
    """Of these metrics those that say how good a run is, the most telling first."""
    known = {metric: describe(metric) for metric in metrics}
    return [m for m in by_importance(known) if known[m].better and known[m].group in _TELLING]


def by_importance(metrics: Iterable[str]) -> list[str]:
    """These metrics, the most telling first."""
    return sorted(metrics, key=lambda metric: (describe(metric).order, metric))


def brief(name: str) -> str:
    """A name in an error text, in quotes."""
    return repr(clipped(name, 100))


def nearest(name: str, names: Iterable[str]) -> str:
    """The names that are nearest to one that is not there, for an error text."""
    names = sorted(set(names))
    if not names:
        return "there is none at all"
    parts = [each for each in names if name.casefold() in each.casefold()] if name else []
    if len(names) == 1:
        return f"the only one is {clipped(names[0], 100)}"
    close = difflib.get_close_matches(name, names, n=_NEAREST, cutoff=0.4)
    found = list(dict.fromkeys([*close, *parts]))[:_NEAREST]
    said = ", ".join(clipped(each, 100) for each in found or names[:_NEAREST])
    return f"the nearest of {len(names)} are {said}" if found else f"there are {len(names)}, such as {said}"
