"""The table of benchmarks/peers.md: right by a formula of its own, and what the script gives today."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("peers")


def test_our_row_is_the_protocols_formula(script: ModuleType) -> None:
    """Under a linear decay to 0 over N steps, step t would use launch * (1 - (t - 1) / N)."""
    rates = script.train("linear", script.OURS)
    natural = [script.LAUNCHED * (1 - step / script.STEPS) for step in range(script.STEPS)]
    asked_at = script.AT_STEP
    assert rates[:asked_at] == pytest.approx(natural[:asked_at])
    right = [script.ASKED * rate / natural[asked_at] for rate in natural[asked_at:]]
    assert rates[asked_at:] == pytest.approx(right, rel=1e-9)


def test_the_page_is_what_the_script_gives(script: ModuleType) -> None:
    page = script.PAGE.read_text()
    text = script.peers()
    assert text in page
    assert script.written(page, text) == page


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("111", "right"), ("000", "never right"), ("100", "gone after 1 step"), ("110", "gone after 2 steps"),
     ("011", "1 step late"), ("001", "2 steps late"), ("010", "now and then")],
)  # fmt: skip
def test_verdicts(script: ModuleType, pattern: str, words: str) -> None:
    assert script.verdict([mark == "1" for mark in pattern]) == words
