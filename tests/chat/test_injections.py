"""Whatever names, tags, params and reasons say: no call, no ranking and no element of the page is another."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from chat_store import collect, service
from injections import INJECTIONS
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from model_servers import AnthropicServer, Call, OpenAIServer, Reply
from sqlalchemy import event
from sqlalchemy.engine import Engine

from ftlab_mlflow.analytics import call_tool
from ftlab_mlflow.chat.events import Answer
from ftlab_mlflow.chat.grounding import Facts, Marker
from ftlab_mlflow.chat.markdown import html
from ftlab_mlflow.chat.prompt import data_of
from ftlab_mlflow.chat.render import markdown
from ftlab_mlflow.chat.run_names import runs_in
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.messages import Ack, Update
from ftlab_mlflow.control.wire import new_id, parse_time

HOSTILE, HARMLESS = "hostile", "harmless"
"""Experiments that differ in the texts of their runs alone."""
AT = parse_time("2026-11-21T19:00:00.123Z")


class Store:
    """Both experiments. ids: Of the run of each payload, in order, by experiment."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.ids: dict[str, list[str]] = {}
        for name in (HOSTILE, HARMLESS):
            client = MlflowClient(uri)
            experiment = client.create_experiment(name)
            texts = [payload.text if name == HOSTILE else payload.twin for payload in INJECTIONS]
            self.ids[name] = [
                self._run(client, experiment, text, 0.2 + place / 100) for place, text in enumerate(texts)
            ]
            self._run(client, experiment, "steady", 0.1)

    def _run(self, client: MlflowClient, experiment: str, text: str, loss: float) -> str:
        began = 1_700_000_000_000 + round(loss * 100) * 1000
        request = new_id()
        update = Update(at=AT, set={"learning_rate": 5e-5}, by=text[:100], via="cli", reason=text[:400])
        ack = Ack("applied", 2, AT, "s1", changes={"learning_rate": (1e-4, 5e-5)})
        requests = {
            tags.UPDATE_PREFIX + request: update.encode(),
            tags.ACK_PREFIX + request: ack.encode(),
        }
        run = client.create_run(experiment, start_time=began, run_name=text, tags={"note": text, **requests})
        run_id: str = run.info.run_id
        client.log_batch(
            run_id,
            [Metric("eval_loss", loss * factor, began, step) for step, factor in enumerate((3.0, 2.0, 1.0))],
            [Param("learning_rate", "1e-4"), Param("note", text)],
            [RunTag("owner", text[:200])],
        )
        return run_id

    def about_all(self, experiment: str) -> list[Call]:
        """Calls about an experiment: a ranking, a search and the changes."""
        return [
            Call("rank_runs", {"experiment": experiment, "metric": "eval_loss", "statuses": ["RUNNING"]}),
            Call("search_runs", {"experiment": experiment, "order_by": "metrics.eval_loss"}),
            Call("live_changes", {"experiment": experiment}),
        ]

    def pages(self, call: Call) -> Iterator[Mapping[str, Any]]:
        """All answers to a call: long texts make pages short."""
        arguments: Any = call.arguments
        while arguments is not None:
            answer = call_tool(call.name, arguments, self.uri)
            yield answer
            arguments = answer.get("next")


@pytest.fixture(scope="module")
def store(new_sqlite: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    def hasten(connection: Any, _: Any) -> None:  # 500 commits wait for the disk otherwise
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", hasten)
    try:
        yield Store(new_sqlite(tmp_path_factory.mktemp("injections")))
    finally:
        event.remove(Engine, "connect", hasten)


def places(store: Store, experiment: str, rows: list[Mapping[str, Any]]) -> list[tuple[int, float | None]]:
    """Which runs are in rows, by their place, with what they are worth."""
    ids = store.ids[experiment]
    return [
        (
            ids.index(row["run_id"]) if row["run_id"] in ids else -1,
            row.get("value", row.get("metrics.eval_loss")),
        )
        for row in rows
    ]


def test_rankings_are_those_of_the_twins(store: Store) -> None:
    found = {}
    for experiment in (HOSTILE, HARMLESS):
        ranking, search, changes = (
            [row for page in store.pages(call) for row in page["rows"]]
            for call in store.about_all(experiment)
        )
        found[experiment] = (
            places(store, experiment, ranking),
            [row["rank"] for row in ranking],
            places(store, experiment, search),
            places(store, experiment, changes),
        )
    assert found[HOSTILE] == found[HARMLESS]
    assert found[HOSTILE][0] == [(-1, 0.1), *((n, 0.2 + n / 100) for n in range(len(INJECTIONS)))]


@pytest.mark.parametrize("name", ["get_run", "live_changes", "compare_runs", "diagnose_run"])
def test_the_page_has_the_same_elements_as_with_the_twins(store: Store, name: str) -> None:
    for place, payload in enumerate(INJECTIONS):
        elements = []
        for experiment in (HOSTILE, HARMLESS):
            ids = store.ids[experiment]
            arguments: Any = {"runs": [ids[place], ids[0]]} if name == "compare_runs" else {"run": ids[place]}
            result = call_tool(name, arguments, store.uri)
            links = {found: f"run?id={run_id}" for found, run_id in runs_in([result]).items()}
            page = html(markdown(name, arguments, result), links)
            assert set(re.findall(r'href="([^"]*)"', page)) <= set(links.values())
            elements.append(re.findall(r"<[^>]*>", re.sub(r"</?a( [^>]*)?>", "", page)))
        assert elements[0] == elements[1], payload.name


@pytest.mark.parametrize("kind", [OpenAIServer, AnthropicServer])
def test_a_model_is_told_texts_as_data_alone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    calls, requests, answers = {}, {}, {}
    for experiment in (HOSTILE, HARMLESS):
        calls[experiment] = [
            *store.about_all(experiment),
            *(Call("get_run", {"run": id}) for id in store.ids[experiment]),
        ]
        with kind([Reply(calls=calls[experiment]), Reply("`steady` is best, with 0.1.")]) as server:
            provider, model = (
                ("OPENAI", "gpt-4o-mini") if kind is OpenAIServer else ("ANTHROPIC", "claude-haiku-4-5")
            )
            monkeypatch.setenv(f"{provider}_BASE_URL", server.base_url)
            monkeypatch.setenv(f"{provider}_API_KEY", "sk-test-1234567890")
            folder = tmp_path / experiment
            folder.mkdir()
            chats = service(store.uri, folder)
            chat = chats.open(runs=store.ids[experiment][:10], experiment=experiment)
            _, answers[experiment] = collect(chats.ask(chat.id, "which is best?", model_id=model))
            requests[experiment] = [request.json for request in server.requests]
    hostile, harmless = (
        skeleton(requests[experiment], store.ids[experiment]) for experiment in (HOSTILE, HARMLESS)
    )
    assert hostile == harmless
    for experiment, answer in answers.items():
        assert [run.name for run in answer.runs] == [call.name for call in calls[experiment]]
        assert [run.arguments for run in answer.runs] == [call.arguments for call in calls[experiment]]
        assert all(run.ok for run in answer.runs)
        assert all(block in results(answer) for block in data_in(requests[experiment][-1], answer))


def results(answer: Answer) -> list[Any]:
    return [json.loads(json.dumps(run.result)) for run in answer.runs]


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(each)


def data_in(request: Any, answer: Answer) -> list[Any]:
    """What a request holds as data of tools."""
    blocks = [text for text in strings(request["messages"]) if text.startswith("<data source=")]
    assert len(blocks) >= len(answer.runs)
    for text in blocks:
        assert text.count("<") == 2 or "</data>\n\nwhich is best?" in text
    return [data_of(text) for text in blocks if text.endswith("</data>")]


def skeleton(requests: list[Any], ids: list[str]) -> Any:
    """Requests without what stands in data, the ids of runs and the names of the experiments."""
    text = json.dumps(requests)
    text = re.sub(r'<data source=(\\+"\w+\\+")>[^<>]*</data>', r"<data \1>", text)
    for place, run_id in enumerate(ids):
        text = text.replace(run_id, f"run {place}")
    text = re.sub(rf"{HOSTILE}|{HARMLESS}", "experiment", text)
    return re.sub(r"(call|toolu)_\w+", "call", text)


def test_a_number_in_a_name_proves_nothing(store: Store) -> None:
    facts = Facts()
    for page in store.pages(store.about_all(HOSTILE)[0]):
        facts.add(page)
    marker = Marker(facts)
    assert marker.feed("`steady` has 0.1, the next one 0.0001 and 9.9.") + marker.end() == (
        "`steady` has 0.1, the next one 0.0001 [unverified] and 9.9 [unverified]."
    )
