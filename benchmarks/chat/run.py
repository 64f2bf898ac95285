"""How well a language model answers questions about runs, through the real chat: about 200 questions.

    python benchmarks/chat/run.py --model openai/gpt-4o-mini

`--model scripted` is no model: its answers are made from what the tools return by a script for each question.
It shows that tools and loop are right, and nothing about any model.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import asking
import first_token
import scripted
from asking import Asker, Bench
from facts import Fact, fingerprint
from intervals import Estimate
from results import Log, Result
from scoring import document, measured, tables

sys.path.append(str(Path(__file__).parents[1]))

from report import publish, table

import ftlab_mlflow.chat
from ftlab_mlflow.chat import choice
from ftlab_mlflow.chat.model import Price, Usage
from ftlab_mlflow.chat.plugins import load_providers
from ftlab_mlflow.chat.provider import Surroundings
from ftlab_mlflow.errors import BadKey, ConfigError, FTLabError, ModelNotUsable, QuotaExceeded

SCRIPTED = "scripted"
MEASURED = Path(ftlab_mlflow.chat.__path__[0]) / "measured.json"
FIRST_TOKEN_ROUNDS = 100
_ERRORS = 3
"""In a row, and it is not the question's fault."""
_LARGEST_REQUEST = Usage(40_000, 4096)
"""What no request here exceeds."""


class Halted(Exception):
    """Not all questions were asked. The text says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Asks, and says what came of it. arguments: None: of the command line."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with asking.settings(folder):
            bench = asking.build(folder, options.seed)
            with _model(options.model, bench, folder) as model_id:
                return _run(options, bench, folder, model_id)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="its id, as for `ftlab chat`; or scripted")
    parser.add_argument("--limit", type=int, help="so many questions only; the README is left alone")
    parser.add_argument("--seed", type=int, default=0, help="of the stores and the order (default 0)")
    parser.add_argument("--out", type=Path, help="a file of results, gone on with if it is there")
    parser.add_argument(
        "--price-cap", type=_cap, default=5.0, metavar="USD", help="never spend more (default 5); or none"
    )
    parser.add_argument("--temperature", type=float, help="default: the model's own")
    parser.add_argument(
        "--max-tokens", type=int, help="of output, of each request (default: that of the chat)"
    )
    parser.add_argument(
        "--first-token", type=int, metavar="N", help="measure the time to the first token N times"
    )
    parser.add_argument(
        "--record", action="store_true", help="into the table by which the chat recommends models"
    )
    options = parser.parse_args(arguments)
    if options.record and (options.model == SCRIPTED or options.limit):
        parser.error("--record is for all questions and a real model")
    return options


def _cap(text: str) -> float | None:
    return None if text == "none" else float(text)


@contextmanager
def _model(model: str, bench: Bench, folder: Path) -> Iterator[str]:
    """The id of the model to ask; the scripted one is served."""
    if model != SCRIPTED:
        yield model
        return
    with scripted.serving(scripted.scripts_of(bench.facts)) as url, _endpoint(folder, url) as model_id:
        yield model_id


@contextmanager
def _endpoint(folder: Path, url: str) -> Iterator[str]:
    """The id of the scripted model that is served at an address."""
    file = folder / "models.toml"
    file.write_text(f'[endpoints.{SCRIPTED}]\nbase_url = "{url}"\nmodels = ["{scripted.NAME}"]\n')
    before = os.environ.get("FTLAB_MODELS")
    os.environ["FTLAB_MODELS"] = str(file)
    try:
        yield f"{SCRIPTED}/{scripted.NAME}"
    finally:
        os.environ.pop("FTLAB_MODELS")
        if before is not None:
            os.environ["FTLAB_MODELS"] = before


def _run(options: argparse.Namespace, bench: Bench, folder: Path, model_id: str) -> int:
    is_scripted = options.model == SCRIPTED
    out = options.out or (
        folder / "results.jsonl" if is_scripted else Path(f"chat-{model_id.replace('/', '-')}.jsonl")
    )
    questions = asking.order(bench.facts, options.seed, options.limit)
    halted = None
    try:
        price = choice.resolve(model_id, None, load_providers(Surroundings())).model.price
        if price is None and options.price_cap is not None and not is_scripted:
            raise Halted(f"the price of {model_id} is not known, so no cap can be kept; say --price-cap none")
        log = Log(out, _head(options, bench, model_id))
    except (Halted, ModelNotUsable, ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    asker = Asker(bench, model_id, temperature=options.temperature, max_tokens=options.max_tokens)
    try:
        ask(asker, questions, log, options.price_cap, price)
    except Halted as why:
        halted = str(why)
    except KeyboardInterrupt:
        halted = "interrupted"
    wanted = {(fact.id, way) for fact, way in questions}
    results = [result for key, result in log.results.items() if key in wanted]
    if halted:  # what has no answer yet is not wrong
        results = [result for result in results if result.error is None]
    text = tables(results, options.seed)
    scores: dict[str, Any] = {
        "head": _head(options, bench, model_id),
        "scores": document(results, options.seed),
    }
    rounds = options.first_token if options.first_token is not None else FIRST_TOKEN_ROUNDS * is_scripted
    if rounds and not halted:
        found = _first_token(options, bench, folder, model_id, rounds)
        text += f"\n\n{_first_token_table(found)}"
        scores["first token"] = {name: vars(each) for name, each in found.items()}
    if not is_scripted or options.out:
        Path(f"{out}.scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    publish("chat", text, quick=not is_scripted or bool(options.limit) or bool(halted))
    if halted:
        print(
            f"\nHalted: {halted}. The results so far are in {out}; the same command goes on.", file=sys.stderr
        )
        return 1
    if options.record:
        if errors := [result for result in results if result.error]:
            print(f"Not recorded: {len(errors)} questions have no answer; ask again.", file=sys.stderr)
            return 1
        record(measured(results, model_id, f"{datetime.now(UTC):%Y-%m-%d}"))
    return int(is_scripted and not all(result.is_right for result in results))


def _head(options: argparse.Namespace, bench: Bench, model_id: str) -> dict[str, Any]:
    return {
        "model": model_id,
        "seed": options.seed,
        "questions": fingerprint(bench.facts),
        "ftlab-mlflow": version("ftlab-mlflow"),
        "temperature": options.temperature,
        "max_tokens": options.max_tokens,
    }


# --- asking ------------------------------------------------------------------------------------------


def ask(
    asker: Asker, questions: Sequence[tuple[Fact, int]], log: Log, cap: float | None, price: Price | None
) -> None:
    """Asks what has no answer yet.

    Raises:
        Halted: The cap is reached, or the model does not answer any more.
    """
    errors = 0
    for number, (fact, way) in enumerate(questions, 1):
        before = log.results.get((fact.id, way))
        if before is not None and before.error is None:
            continue
        _keep_under(cap, log.spent_usd, price)
        try:
            result = asker.ask(fact, way)
            errors = 0
        except FTLabError as error:
            result = Result(fact.id, fact.category, fact.need, way, error=f"{type(error).__name__}: {error}")
            errors += 1
            if isinstance(error, BadKey | QuotaExceeded | ModelNotUsable):
                raise Halted(str(error)) from error
        log.add(result)
        print(_line(number, len(questions), result, log.spent_usd), flush=True)
        if errors == _ERRORS:
            raise Halted(f"{errors} errors in a row, the last: {result.error}")


def _keep_under(cap: float | None, spent: float, price: Price | None) -> None:
    """Lets the next answer have what is left, less two requests: those that may follow when it is used up.

    Raises:
        Halted: Nothing is left.
    """
    if cap is None or price is None:
        return
    left = cap - spent - 2 * price.cost(_LARGEST_REQUEST)
    if left <= 0:
        raise Halted(f"${spent:.2f} of ${cap:g} are spent, and the next answer might exceed the cap")
    os.environ["FTLAB_CHAT_USD"] = f"{min(1.0, left):.6f}"


def _line(number: int, count: int, result: Result, spent: float) -> str:
    said = f"[{number}/{count}] {'right' if result.is_right else 'WRONG'}  {result.category}: {result.fact}"
    said += f" (way {result.phrasing + 1})" + (f"  ${spent:.4f}" if spent else "")
    if result.error:
        return f"{said}\n    {result.error}"
    for each in result.asked:
        if each.problem:
            said += (
                f"\n    asked: {each.question}\n    said:  {each.answer[:300]!r}\n    but:   {each.problem}"
            )
    return said


# --- what is written ---------------------------------------------------------------------------------


def _first_token(
    options: argparse.Namespace, bench: Bench, folder: Path, model_id: str, rounds: int
) -> dict[str, Estimate]:
    uri = f"sqlite:///{next(iter(bench.paths.values()))}"
    if options.model != SCRIPTED:
        return first_token.measure(model_id, uri, rounds, options.seed)
    with first_token.still_server() as url, _endpoint(folder, url) as still:
        return first_token.measure(still, uri, rounds, options.seed)


def _first_token_table(found: dict[str, Estimate]) -> str:
    def ms(value: float) -> str:
        return f"{1000 * value:.1f} ms"

    rows = [
        ["the SDK alone", found["sdk"].text(ms)],
        ["the loop adds", found["loop"].text(ms)],
        ["the whole service (app database, history, limits) adds", found["service"].text(ms)],
    ]
    return table(["time to the first text of an answer without tools", "median (95 %)"], rows)


def record(entries: Sequence[dict[str, Any]]) -> None:
    """Puts entries into the table by which the chat recommends models, in place of older ones of it."""
    kept = [
        each
        for each in json.loads(MEASURED.read_text())
        if all((each["model"], each["need"]) != (new["model"], new["need"]) for new in entries)
    ]
    rows = sorted([*kept, *entries], key=lambda each: (each["model"], each["need"]))
    MEASURED.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
