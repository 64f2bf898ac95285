"""A run as a row of the table of runs, and what is done with rows: filter, group, order. No I/O."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from ftlab_mlflow.analytics.reader import PARENT, RunRecord
from ftlab_mlflow.control.messages import FINAL_STATES, GOING_ON, Status
from ftlab_mlflow.control.tags import COMMAND_LINE, STATUS
from ftlab_mlflow.control.view import RunView
from ftlab_mlflow.errors import MessageError

MODEL_PARAMS = (
    "model_name_or_path",
    "base_model_name_or_path",
    "_name_or_path",
    "base_model",
    "model_name",
    "model",
)
"""Params that name the model, the first that is there counts. transformers logs `_name_or_path`."""
UNKNOWN = "unknown"
"""The group of runs that name no model."""

GroupBy = Literal["model", "experiment"]

_HUB_CACHE = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/")
_ABSOLUTE = re.compile(r"[/~]|[A-Za-z]:[\\/]")
_TRAIN = re.compile(r"\bftlab(?:_mlflow\.cli)? train ([a-z]+)\b")
NOT_OF_PEOPLE = ("mlflow.", "ftlab.")
"""How the keys of tags begin that no person has set."""


@dataclass(frozen=True)
class RunRow:
    """A run in the table of runs.

    Attributes:
        name: `RunData.label`.
        experiment: Its name.
        method: `sft`, `dpo`, … None where neither the trainer nor the command line says it.
        model: Its base model: a name on the hub, or the last two parts of a folder's path.
        state: `RunView.state`: `running`, `paused`, `lost`, `failed`, …
        is_live: Whether a trainer of this protocol has ever written to it.
        step, max_steps: Optimizer steps. progress: From 0 to 1.
        eta_s: Seconds left, while it runs: the trainer's last estimate less the time since.
        loss: The last one. last_eval_loss: The last one. best_eval_loss: The smallest finite one of the run.
        heartbeat_age_s: Seconds since the trainer's last sign; None when the run is over.
        tags: Those that people set: none of MLflow's and none of ours.
        is_best: See `grouped`.
    """

    run_id: str
    name: str
    experiment: str
    experiment_id: str
    method: str | None
    model: str | None
    state: str
    is_live: bool
    step: int | None
    max_steps: int | None
    progress: float | None
    eta_s: float | None
    loss: float | None
    last_eval_loss: float | None
    best_eval_loss: float | None
    learning_rate: float | None
    heartbeat_age_s: float | None
    started: datetime | None
    ended: datetime | None
    tags: Mapping[str, str]
    is_best: bool = False

    @property
    def urgency(self) -> int:
        """2 for what goes on and can be steered, 0 for what is over.

        1 is what only says that it goes on: a lost run, one of another program.
        """
        if self.is_live and self.state in GOING_ON:
            return 2
        return 0 if self.ended is not None or self.state in FINAL_STATES else 1


def row_of(
    record: RunRecord,
    view: RunView,
    *,
    best_eval_loss: float | None = None,
) -> RunRow:
    """The row of a run.

    Args:
        view: The same run, with the time now.
        best_eval_loss: From the series, where the run does not log it itself.
    """
    data, status = record.data, view.status
    return RunRow(
        run_id=data.run_id,
        name=data.label,
        experiment=record.experiment,
        experiment_id=data.experiment_id,
        method=method_of(view),
        model=model_of(record.params),
        state=view.state,
        is_live=data.is_live,
        step=status.step if status else None,
        max_steps=status.max_steps or None if status else None,
        progress=view.progress,
        eta_s=view.eta_s,
        loss=view.loss,
        last_eval_loss=data.metrics.get("eval_loss"),
        best_eval_loss=logged_best(record) if logged_best(record) is not None else best_eval_loss,
        learning_rate=view.learning_rate,
        heartbeat_age_s=None if view.is_over else view.heartbeat_age_s,
        started=data.started,
        ended=data.ended,
        tags={key: text for key, text in data.tags.items() if not key.startswith(NOT_OF_PEOPLE)},
    )


def logged_best(record: RunRecord) -> float | None:
    """The best eval loss where the run logs it itself (`docs/metrics.md`)."""
    value = record.data.metrics.get("best_eval_loss")
    return value if value is not None and math.isfinite(value) else None


def method_of(view: RunView) -> str | None:
    """The training method: as the trainer says, else as `ftlab train` was called, else None.

    A stage of `ftlab train rlhf` has the command line of the whole pipeline, which does not tell its method.
    """
    return _method(view.status, view.data.tags)


def method_in(run_tags: Mapping[str, str]) -> str | None:
    """The same from tags alone."""
    with suppress(MessageError):
        return _method(Status.decode(run_tags[STATUS]) if STATUS in run_tags else None, run_tags)
    return None


def _method(status: Status | None, run_tags: Mapping[str, str]) -> str | None:
    if status is not None:
        return status.method or None
    if PARENT in run_tags:
        return None
    called = _TRAIN.search(run_tags.get(COMMAND_LINE, ""))
    return called[1] if called else None


def model_of(params: Mapping[str, str]) -> str | None:
    """The base model that a run's params name, or None."""
    named = (params.get(key, "") for key in MODEL_PARAMS)
    name = next((text for text in named if text and text != "None"), None)
    if name is None:
        return None
    if cached := _HUB_CACHE.search(name):
        return f"{cached[1]}/{cached[2]}"
    if _ABSOLUTE.match(name):
        return "/".join(re.split(r"[/\\]", name.rstrip("/\\"))[-2:])
    return name


# --- what is done with rows --------------------------------------------------------------------------


def filtered(
    rows: Iterable[RunRow],
    *,
    experiments: Collection[str] = (),
    states: Collection[str] = (),
    methods: Collection[str] = (),
    text: str = "",
    tag: str = "",
) -> list[RunRow]:
    """The rows that fit everything that is given, in their order.

    Args:
        experiments: Names or ids. states, methods: Any of these. Empty is all.
        text: Each word of it is in the name or the model, or begins the run id; in any case.
        tag: `key`, or `key=value`; either may hold a "=" itself.
    """
    words = text.casefold().split()
    return [
        row
        for row in rows
        if (not experiments or row.experiment in experiments or row.experiment_id in experiments)
        and (not states or row.state in states)
        and (not methods or row.method in methods)
        and all(_has(row, word) for word in words)
        and (not tag or any(tag in (key, f"{key}={value}") for key, value in row.tags.items()))
    ]


def _has(row: RunRow, word: str) -> bool:
    is_named = word in row.name.casefold() or word in (row.model or "").casefold()
    return is_named or row.run_id.startswith(word)


def grouped(rows: Iterable[RunRow], by: GroupBy | None = None) -> dict[str, list[RunRow]]:
    """The rows by model or experiment, in their order, with the best of each group marked.

    Best is the smallest finite `best_eval_loss` among runs of the same method in the group (losses of two
    methods are two quantities); with equal losses, all of them. A run that is alone in that is not marked.
    Every run competes, whether it runs, failed or was stopped: the evaluation was real.

    Args:
        by: None is one group, with the key "".
    """
    groups: dict[str, list[RunRow]] = {}
    for row in rows:
        key = "" if by is None else (row.model or UNKNOWN) if by == "model" else row.experiment
        groups.setdefault(key, []).append(row)
    return {key: _marked(group) for key, group in groups.items()}


def _marked(rows: Sequence[RunRow]) -> list[RunRow]:
    best: dict[str | None, float] = {}
    competitors: Counter[str | None] = Counter()
    for row in rows:
        if _is_value(row.best_eval_loss):
            competitors[row.method] += 1
            best[row.method] = min(row.best_eval_loss or 0.0, best.get(row.method, math.inf))
    return [
        replace(row, is_best=competitors[row.method] > 1 and row.best_eval_loss == best[row.method])
        for row in rows
    ]


def ordered(rows: Iterable[RunRow], column: str = "started", *, descending: bool = True) -> list[RunRow]:
    """The rows by one of their attributes. What has no value, NaN or infinity there comes last either way.

    Rows that are equal there stay in their order.
    """
    rows = list(rows)
    known = [row for row in rows if _is_value(getattr(row, column))]
    rest = [row for row in rows if not _is_value(getattr(row, column))]
    return sorted(known, key=lambda row: _sortable(getattr(row, column)), reverse=descending) + rest


def _is_value(value: object) -> bool:
    return value is not None and (not isinstance(value, float) or math.isfinite(value))


def _sortable(value: Any) -> Any:
    return value.casefold() if isinstance(value, str) else value


@dataclass(frozen=True)
class Options:
    """What the filters of a table offer, each sorted. tags: Keys."""

    experiments: tuple[str, ...]
    states: tuple[str, ...]
    methods: tuple[str, ...]
    models: tuple[str, ...]
    tags: tuple[str, ...]


def options(rows: Collection[RunRow]) -> Options:
    """The values that there are in the rows."""
    return Options(
        experiments=tuple(sorted({row.experiment for row in rows})),
        states=tuple(sorted({row.state for row in rows})),
        methods=tuple(sorted({row.method for row in rows if row.method})),
        models=tuple(sorted({row.model for row in rows if row.model})),
        tags=tuple(sorted({key for row in rows for key in row.tags})),
    )
