"""benchmarks/chat: its checker takes right answers and no others, it goes on, and a scripted model passes."""

# ruff: noqa: E501 - an answer is a line

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from model_servers import AnthropicServer, Reply

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "chat"
sys.path.append(str(BENCHMARK))

import asking  # noqa: E402
import first_token  # noqa: E402
import run  # noqa: E402
import scripted  # noqa: E402
from checking import Abstain, All, Expectation, Names, Said, Value, Winner, Words  # noqa: E402
from intervals import share  # noqa: E402
from reading import Text  # noqa: E402
from results import Log, Result  # noqa: E402

from ftlab_mlflow.chat.choice import Chosen  # noqa: E402
from ftlab_mlflow.chat.model import Model, Price, Rates  # noqa: E402

NAMES = frozenset({"amber-3", "amber-31", "cedar-5", "pearl-17", "quartz-18"})
BEST = "Which finished run has the lowest eval_loss, and how low is it?"
EITHER = "Which of `quartz-18` and `pearl-17` ended with the lower eval_loss?"
LOWER = Winner("pearl-17", r"\blowe[rs]|\bsmalle[rs]", r"\bhighe[rs]|\blarge[rs]")
OF_BEST = All((Names((frozenset({"pearl-17"}),)), Value(1.5969, traps=(1.2848,))))
BLEU = Abstain(r"bleu")


@pytest.mark.parametrize(
    ("expected", "question", "answer"),
    [
        (OF_BEST, BEST, "`pearl-17` is lowest: its last eval_loss is **1.597**."),
        (OF_BEST, BEST, "**pearl-17**, with 1.5969 at step 1,000. (`cedar-5` reached 1.2848, but failed.)"),
        (OF_BEST, BEST, "Leaving out `cedar-5`, which failed, it is `pearl-17` (1.60)."),
        (Value(10, exact=True, traps=(25,)), "How many?", "10 of the 25 runs."),
        (Value(3e-5), "Which rate?", "It was 3 × 10⁻⁵."),
        (Value(3e-5), "Which rate?", "`0.00003`"),
        (Value(17.687, unit="h"), "How long?", "17 h 41 min in all"),
        (Value(17.687, unit="h"), "How long?", "About 63,672 s, or 17.7 hours."),
        (Value(40_380_616.0), "Tokens?", "It saw 40.4M tokens."),
        (Value(-0.0522, rel=0.15, is_signed=False), "How fast?", "It fell by 0.05 per 100 steps."),
        (Names((frozenset({"pearl-17", "amber-3"}),), is_all=True), "Which?", "- amber-3\n- pearl-17\n\n`cedar-5` is left out."),
        (LOWER, EITHER, "`pearl-17` (1.5969, against 1.7952)."),
        (LOWER, EITHER, "`quartz-18` ended at 1.7952 and `pearl-17` at 1.5969, so `pearl-17` is lower."),
        (LOWER, EITHER, "`quartz-18` ended higher than `pearl-17`."),
        (Words(r"\boverfit", r"\bNaN\b"), "What is wrong?", "No NaN was seen, but it overfits from step 450 on."),
        (BLEU, "BLEU of `amber-3`?", "I can't tell: `amber-3` never logged a BLEU score. Its last eval_loss is 1.5."),
        (BLEU, "BLEU of `amber-3`?", "There is no metric `bleu` in this run."),
    ],
)  # fmt: skip
def test_a_right_answer_passes(expected: Expectation, question: str, answer: str) -> None:
    assert problem(expected, question, answer) is None


@pytest.mark.parametrize(
    ("expected", "question", "answer"),
    [
        (OF_BEST, BEST, "`cedar-5` with 1.2848; the best that finished is `pearl-17` with 1.5969."),
        (OF_BEST, BEST, "`quartz-18` is best, before `pearl-17` (1.5969)."),
        (OF_BEST, BEST, "`pearl-17`, with 1.5869."),
        (OF_BEST, BEST, "`pearl-17`, with 1.6."),
        (OF_BEST, BEST, "`pearl-17` is lowest; the values are 2.1, 1.9, 1.8, 1.7, 1.65 and 1.5969."),
        (Names((frozenset({"amber-3"}),)), "Which?", "`amber-31`"),
        (Value(10, exact=True, traps=(25,)), "How many?", "25 runs, 10 of which failed."),
        (Value(10, exact=True), "How many?", "10.4"),
        (Value(2, exact=True), "How many?", "1. amber-3\n2. cedar-5\n3. pearl-17"),
        (Value(17.0), "How many?", "It is pearl-17, on 2026-03-17."),
        (Value(3e-5), "Which rate?", "0.0003"),
        (Value(17.687, unit="h"), "How long?", "17.7 minutes"),
        (Names((frozenset({"amber-3"}),), is_all=True), "Which?", "`amber-3` and `cedar-5`"),
        (Names((frozenset({"amber-3", "cedar-5"}),), is_all=True), "Which?", "`amber-3`"),
        (Names((frozenset({"amber-3"}), frozenset({"cedar-5"}))), "In order?", "`cedar-5`, then `amber-3`"),
        (LOWER, EITHER, "`quartz-18` is lower than `pearl-17`."),
        (LOWER, EITHER, "Both `quartz-18` and `pearl-17` did well."),
        (Words(r"\boverfit", r"\bNaN\b"), "What is wrong?", "It does not overfit."),
        (Words(r"\boverfit", r"\bNaN\b"), "What is wrong?", "The loss is NaN, perhaps it overfits."),
        (BLEU, "BLEU of `amber-3`?", "Its BLEU is 31.2."),
        (BLEU, "BLEU of `amber-3`?", "BLEU was not logged, but it is probably about 1.5."),
        (BLEU, "BLEU of `amber-3`?", "BLEU was never logged; 31.2 is usual."),
        (BLEU, "BLEU of `amber-3`?", "No BLEU was logged for it; `cedar-5` has the best one."),
        (BLEU, "BLEU of `amber-3`?", "I cannot answer."),
        (Abstain(r"\bcost", never=r"\b0 dollars"), "Cost?", "There is no price, so the cost is 0 dollars."),
        (OF_BEST, BEST, "I cannot know that."),
        (OF_BEST, BEST, ""),
    ],
)  # fmt: skip
def test_a_wrong_answer_does_not(expected: Expectation, question: str, answer: str) -> None:
    assert problem(expected, question, answer) is not None


def problem(expected: Expectation, question: str, answer: str) -> str | None:
    return expected.problem(Said(Text(answer, NAMES), Text(question, NAMES), [{"eval_loss": 1.5}]))


def test_shares_have_wilsons_interval_for_the_questions_that_are_independent() -> None:
    single = share({str(number): [float(number < 8)] for number in range(10)})
    assert (single.value, single.low, single.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    alike = share({str(number): [float(number < 8)] * 3 for number in range(10)})
    assert (alike.low, alike.high) == pytest.approx((0.4902, 0.9433), abs=0.02)
    mixed = share({str(number): [1.0, 1.0, float(number < 4)] for number in range(10)})
    assert mixed.value == pytest.approx(0.8)
    assert mixed.low > alike.low
    sure = share({str(number): [1.0] * 3 for number in range(20)})
    assert (sure.value, sure.high) == (1.0, 1.0)
    assert sure.low == pytest.approx(0.8389, abs=1e-4)
    assert math.isnan(share({}).value)


# --- the whole of it ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> asking.Bench:
    return asking.build(tmp_path_factory.mktemp("stores"), 0)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[None]:
    with asking.settings(tmp_path):
        yield


def test_a_scripted_model_is_right_about_every_category(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.jsonl"
    asked = ["--model", "scripted", "--limit", "10", "--first-token", "2", "--out", str(out)]
    assert run.main(asked) == 0
    said = capsys.readouterr().out
    assert said.count("] right") == 10
    assert "| conversations with nothing but right answers | 100 %" in said
    head, *lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert head["model"] == "scripted/perfect"
    assert {line["category"] for line in lines} == set(asking.CATEGORIES)
    assert all(answer["calls"] for line in lines for answer in line["asked"][:1])
    scores = json.loads(Path(f"{out}.scores.json").read_text())
    assert scores["scores"]["correct"]["value"] == 1.0
    assert scores["first token"]["sdk"]["value"] > 0


def test_a_run_that_was_cut_goes_on_where_it_was(bench: asking.Bench, settings: None, tmp_path: Path) -> None:
    out, questions = tmp_path / "results.jsonl", asking.order(bench.facts, 0, 4)
    scripts = scripted.scripts_of(bench.facts)
    with scripted.serving({}) as url, run._endpoint(tmp_path, url) as model:
        log = Log(out, {"model": model})
        with pytest.raises(run.Halted, match="3 errors in a row, the last: ProviderError"):
            run.ask(asking.Asker(bench, model), questions, log, None, None)
    assert [result.is_right for result in log.results.values()] == [False] * 3

    with scripted.serving(scripts) as url, run._endpoint(tmp_path, url) as model:
        asker = asking.Asker(bench, model)
        run.ask(asker, questions[:3], Log(out, {"model": model}), None, None)
        with out.open("a") as file:
            file.write('{"fact": "cut in the mid')
        log = Log(out, {"model": model})
        run.ask(asker, questions, log, None, None)
    assert [result.is_right for result in log.results.values()] == [True] * 4
    lines = out.read_text().splitlines()
    assert len(lines) == 1 + 3 + 4  # the head, the errors, each answer once
    with pytest.raises(ValueError, match="name another file by --out"):
        Log(out, {"model": "another"})


def test_wrong_answers_are_seen(bench: asking.Bench, settings: None, tmp_path: Path) -> None:
    facts = {fact.category: fact for fact in bench.facts}
    with scripted.serving({}, default="I cannot know that.") as url, run._endpoint(tmp_path, url) as model:
        asker = asking.Asker(bench, model)
        results = [asker.ask(fact, 0) for fact in facts.values()]
    assert not any(result.is_right for result in results)
    assert all(result.abstains for result in results)


def test_the_cap_on_the_price_is_kept(
    bench: asking.Bench, settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FTLAB_CHAT_USD", raising=False)
    price = Price((Rates(1.0, 1.0),))  # the largest request: 0.0441 dollars
    questions = asking.order(bench.facts, 0, 1)
    log = Log(tmp_path / "results.jsonl", {})
    asker = asking.Asker(bench, "no/model")
    with pytest.raises(run.Halted, match=r"0\.00 of \$0\.08 are spent"):
        run.ask(asker, questions, log, 0.08, price)
    assert log.results == {}
    with pytest.raises(run.Halted):  # there is no such model; but it might have been asked
        run.ask(asker, questions, log, 0.09, price)
    assert float(os.environ["FTLAB_CHAT_USD"]) == pytest.approx(0.09 - 2 * 0.044096, abs=1e-6)


def test_what_is_recorded_replaces_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "measured.json"
    table.write_text("[]")
    monkeypatch.setattr(run, "MEASURED", table)
    right, wrong = (Result("a fact", "rank", "lookup", 0, error=error) for error in (None, "it failed"))
    run.record(run.measured([wrong], "some/model", "2026-01-01"))
    run.record(run.measured([right], "some/model", "2026-01-02"))
    run.record(run.measured([right], "a/model", "2026-01-02"))
    from ftlab_mlflow.chat.recommendation import read_table

    rows = read_table(table.read_text())
    assert [(row.model, row.questions, row.correct) for row in rows] == [
        ("a/model", 1, 1),
        ("some/model", 1, 1),
    ]


def test_the_first_token_of_anthropic_is_timed_by_its_own_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    provider: Any = None
    with AnthropicServer([Reply("Good morning.")]) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.base_url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
        assert first_token.raw(Chosen(Model("anthropic", "claude", "anthropic"), provider))() > 0
    (request,) = server.requests
    assert len(request.json["tools"]) > 10
