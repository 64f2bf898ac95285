"""Asks the real chat the questions of the benchmark, and checks what it says."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import facts_courses
import facts_groups
import facts_hard
import facts_runs
import numpy as np
import stores
from checking import Said, abstains
from facts import CATEGORIES, PHRASINGS, Fact, Turn, checked
from oracle import Oracle
from reading import Text
from results import Asked, Result

from ftlab_mlflow.app_store import AppStore
from ftlab_mlflow.chat.events import Answer, Answered
from ftlab_mlflow.chat.service import ChatService

USER = "benchmark"
_SETTINGS = (
    "FTLAB_CURRENCY",
    "FTLAB_METRICS",
    "FTLAB_ANSWER_CHARS",
    "FTLAB_CHAT_USD_PER_DAY",
    "FTLAB_CHAT_TOKENS_PER_DAY",
)


@dataclass(frozen=True)
class Bench:
    """All there is to be asked, and where.

    Attributes:
        paths: SQLite files of the stores by name. names: Of the runs in each.
    """

    facts: Sequence[Fact]
    paths: Mapping[str, Path]
    names: Mapping[str, frozenset[str]]


def build(folder: Path, seed: int) -> Bench:
    """Makes the stores and works out what is true of them."""
    paths = stores.build(folder, seed)
    oracles = {name: Oracle(path, stores.PRICES) for name, path in paths.items()}
    modules = (facts_runs, facts_groups, facts_courses, facts_hard)
    facts = checked(fact for module in modules for fact in module.facts(oracles))
    names = {name: frozenset(oracle.runs["name"]) for name, oracle in oracles.items()}
    return Bench(facts, paths, names)


def order(facts: Sequence[Fact], seed: int, limit: int | None) -> list[tuple[Fact, int]]:
    """All questions in a random order in which the categories take turns. limit: Only the first so many."""
    random = np.random.default_rng(seed)
    queues = []
    for category in CATEGORIES:
        found = [(fact, way) for fact in facts if fact.category == category for way in range(PHRASINGS)]
        queues.append([found[place] for place in random.permutation(len(found))])
    longest = max(map(len, queues))
    turns = [queue[place] for place in range(longest) for queue in queues if place < len(queue)]
    return turns[:limit]


@contextmanager
def settings(folder: Path) -> Iterator[None]:
    """The environment of the benchmark: its prices, no settings of whoever runs it that change answers."""
    own = {
        "FTLAB_GPU_PRICES": "; ".join(f"{name}={price}" for name, price in stores.PRICES.items()),
        "FTLAB_DATABASE_URL": f"sqlite:///{folder}/app.db",
        "FTLAB_CHAT_USD_PER_DAY": "none",
    }
    before = {name: os.environ.get(name) for name in {*own, *_SETTINGS, "FTLAB_CHAT_USD"}}
    for name in _SETTINGS:
        os.environ.pop(name, None)
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Asker:
    """Asks a model.

    Args:
        options: More arguments of `ChatService.ask`, such as the temperature.
    """

    def __init__(self, bench: Bench, model_id: str, **options: Any) -> None:
        self.bench = bench
        self.model_id = model_id
        self._options = options
        app = AppStore()
        self.services = {
            name: ChatService(USER, f"sqlite:///{path}", app) for name, path in bench.paths.items()
        }

    def ask(self, fact: Fact, way: int) -> Result:
        """Has a new conversation about a fact, its questions put in one of the three ways.

        Raises:
            FTLabError: There was no answer.
        """
        service, names = self.services[fact.store], self.bench.names[fact.store]
        chat = service.open(runs=fact.runs, experiment=fact.experiment)
        told: list[Any] = []
        asked = []
        for turn in fact.turns:
            made = self._answer(service, chat.id, turn.asked[way])
            told += [run.result for run in made.runs]
            asked.append(_checked(turn, way, made, names, told))
        return Result(fact.id, fact.category, fact.need, way, tuple(asked))

    def _answer(self, service: ChatService, chat_id: str, question: str) -> Answer:
        for event in service.ask(chat_id, question, model_id=self.model_id, **self._options):
            if isinstance(event, Answered):
                return event.answer
        raise RuntimeError("the answer has no end")


def _checked(turn: Turn, way: int, made: Answer, names: frozenset[str], told: Sequence[Any]) -> Asked:
    question, text = turn.asked[way], Text(made.text, names)
    usage = made.usage
    return Asked(
        question=question,
        answer=made.text,
        problem=turn.expected.problem(Said(text, Text(question, names), told)),
        abstains=abstains(text),
        unverified=tuple(made.unverified),
        calls=tuple(run.name for run in made.runs),
        failed=sum(not run.ok for run in made.runs),
        input_tokens=usage.input_tokens if usage else None,
        cached_tokens=usage.cached_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        cost_usd=made.cost_usd,
        first_token_s=made.first_token_s,
        seconds=made.seconds,
        stopped=made.stopped,
    )
