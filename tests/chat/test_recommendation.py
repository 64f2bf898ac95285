"""Which model is advised: what a question takes, what was measured, and the rule where nothing was."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest

from ftlab_mlflow.chat.model import Model, Price, Rates
from ftlab_mlflow.chat.offers import Group, Offer, price_class
from ftlab_mlflow.chat.recommendation import Measured, measured, need_of, read_table, recommend
from ftlab_mlflow.errors import ChatError

LOOKUP = "Which run has the lowest eval_loss?"
STEPS = "Why did run b diverge?"


@pytest.mark.parametrize(
    "question",
    [
        LOOKUP,
        "What is the learning rate of tiny-3?",
        "List all runs with more than 2 epochs",
        "how many runs failed yesterday",
        "",
        "Welcher Lauf ist der beste?",
        "What does the weekend run cost?",  # not "then" in "weekend"
        "show both_losses of run a",
    ],
)
def test_one_look_up(question: str) -> None:
    assert need_of(question) == "lookup"


@pytest.mark.parametrize(
    "question",
    [
        STEPS,
        "Compare a and b",
        "COMPARE a and b",
        "a vs. b?",
        "Find the best run, then lower its rate",
        "Which run is best? And what did it cost?",
        "What should I change next?",
        "Is the trend of eval_loss still down?",
        "is something wrong with latest",
        " ".join(["word"] * 31),
    ],
)
def test_several_steps(question: str) -> None:
    assert need_of(question) == "multi_step"


def offer(name: str, dollars: float | None, why_not: str | None = None, retires: date | None = None) -> Offer:
    price = None if dollars is None else Price((Rates(dollars, dollars),))
    endpoint, _, name = name.partition("/")
    model = Model(endpoint, name, endpoint, has_tools=True, price=price, retires=retires)
    return Offer(model, why_not, price_class(price))


DEFAULT = offer("openai/gpt-4o-mini", 0.2625)
DEAR, DEARER = offer("anthropic/big", 2.0), offer("xai/huge", 9.0)
LOCAL = offer("ollama/qwen", None)


def advised(question: str, *offers: Offer, table: list[Measured] | None = None) -> tuple[str, str] | None:
    groups = [Group(each.model.endpoint, each.model.provider, None, (each,)) for each in offers]
    found = recommend(question, groups, [] if table is None else table)
    return None if found is None else (found.model.id, found.reason)


def row(model: str, correct: int, low: float, high: float, need: Any = "lookup") -> Measured:
    return Measured(model, need, 100, correct, low, high, date(2026, 11, 27))


@pytest.mark.parametrize(
    ("question", "offers", "wanted", "rule"),
    [
        (LOOKUP, (DEAR, DEFAULT, LOCAL), "openai/gpt-4o-mini", "the default model"),
        (LOOKUP, (DEARER, DEAR, LOCAL), "anthropic/big", "the cheapest that can be used"),
        (LOOKUP, (LOCAL,), "ollama/qwen", "the first that can be used"),
        (STEPS, (DEARER, DEFAULT, DEAR, LOCAL), "anthropic/big", "the cheapest of a higher price class"),
        (STEPS, (LOCAL, DEFAULT), "openai/gpt-4o-mini", "the cheapest that can be used"),
        (STEPS, (LOCAL,), "ollama/qwen", "the first that can be used"),
    ],
)
def test_without_a_measurement_a_rule_holds_and_says_so(
    question: str, offers: tuple[Offer, ...], wanted: str, rule: str
) -> None:
    for table in ([], [row(wanted, 60, 0.5, 0.7), row("not/here", 100, 0.96, 1.0)]):
        found = advised(question, *offers, table=table)
        assert found is not None
        assert found[0] == wanted
        assert found[1].startswith("not measured: ")
        assert rule in found[1]


def test_what_cannot_be_used_is_never_advised() -> None:
    unusable = offer("openai/gpt-4o-mini", 0.2625, "set OPENAI_API_KEY")
    table = [row("openai/gpt-4o-mini", 100, 0.96, 1.0)]
    assert advised(LOOKUP, unusable) is None
    assert advised(LOOKUP) is None
    assert recommend(LOOKUP, []) is None
    for question in (LOOKUP, STEPS):
        found = advised(question, unusable, DEAR, table=table)
        assert found is not None
        assert found[0] == "anthropic/big"


def test_a_model_that_will_retire_is_advised_only_where_there_is_no_other() -> None:
    going = offer("anthropic/old", 1.0, retires=date(2030, 1, 1))
    assert (advised(STEPS, going, DEAR) or "")[0] == "anthropic/big"
    assert (advised(STEPS, going) or "")[0] == "anthropic/old"


def test_of_what_was_measured_the_cheapest_that_is_not_worse_than_the_best() -> None:
    table = [
        row("xai/huge", 98, 0.93, 1.0),
        row("anthropic/big", 95, 0.89, 0.98),
        row("openai/gpt-4o-mini", 88, 0.80, 0.91),
        row("ollama/qwen", 97, 0.92, 0.99),
    ]
    assert (advised(LOOKUP, DEARER, DEAR, DEFAULT, table=table) or "")[0] == "anthropic/big"
    model, reason = advised(LOOKUP, DEARER, DEAR, DEFAULT, LOCAL, table=table) or ("", "")
    assert model == "anthropic/big"  # a price that is not known is not the lowest
    assert "95 of 100 questions answered right by benchmarks/chat (89% to 98%) on 2026-11-27" in reason
    assert (advised(LOOKUP, DEFAULT, DEARER, table=table) or "")[0] == "xai/huge"
    assert (advised(LOOKUP, DEFAULT, LOCAL, table=table) or "")[0] == "ollama/qwen"
    # Another need is another measurement.
    assert "not measured" in (advised(STEPS, DEARER, DEAR, table=table) or "")[1]


def test_the_table_of_the_package_can_be_read_and_holds_what_was_measured_alone() -> None:
    for each in measured():
        assert each.questions > 0


def test_a_table_is_read_as_it_was_written() -> None:
    entry = {
        "model": "openai/gpt-4o-mini",
        "need": "multi_step",
        "questions": 200,
        "correct": 150,
        "low": 0.68,
        "high": 0.81,
        "measured_on": "2026-11-27",
    }
    (found,) = read_table(json.dumps([entry]))
    assert found == Measured("openai/gpt-4o-mini", "multi_step", 200, 150, 0.68, 0.81, date(2026, 11, 27))
    assert found.share == 0.75
    for wrong in (
        {"need": "other"},
        {"model": 1},
        {"questions": 0},
        {"correct": 201},
        {"low": 0.8},
        {"high": 0.7},
        {"high": "1"},
        {"low": -0.1},
        {"high": 1.1},
        {"measured_on": "soon"},
        {"measured_on": None},
        {"more": 1},
    ):
        with pytest.raises(ChatError, match=r"^entry 2 of the table of measured models is damaged"):
            read_table(json.dumps([entry, {**entry, **wrong}]))
    del entry["low"]
    with pytest.raises(ChatError, match=r"^entry 1 of the table"):
        read_table(json.dumps([entry]))
    for text in ("{", "{}", "[1]", "[" * 100_000):
        with pytest.raises(ChatError, match="table of measured models"):
            read_table(text)
