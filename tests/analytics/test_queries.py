"""The questions about an experiment against pandas on MLflow's raw tables, in stores full of traps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from trap_store import METRICS, Oracle, fill

from ftlab_mlflow.analytics import call_tool
from ftlab_mlflow.analytics.columns import Wanted
from ftlab_mlflow.analytics.reader import open_reader
from ftlab_mlflow.control.mlflow_store import MlflowRunStore
from ftlab_mlflow.errors import AnalyticsError

STATUSES = ["FINISHED", "FAILED", "KILLED", "RUNNING"]
SEED = 7


@dataclass(frozen=True)
class Store:
    """A tracking URI, and the truth about what is there."""

    uri: str
    oracle: Oracle

    def ask(self, name: str, **arguments: Any) -> dict[str, Any]:
        return call_tool(name, {"experiment": "traps"} | arguments, self.uri)

    def whole(self, name: str, **arguments: Any) -> list[dict[str, Any]]:
        """All rows, page by page, each page as its answer says."""
        answer = self.ask(name, **arguments)
        rows: list[dict[str, Any]] = answer["rows"]
        while answer["next"] is not None:
            answer = call_tool(name, answer["next"], self.uri)
            rows = rows + answer["rows"]
        assert len(rows) == answer["total"]
        return rows


@pytest.fixture(scope="module", params=["sqlite", "postgres", "http"])
def store(
    request: pytest.FixtureRequest,
    new_sqlite: Callable[[Path], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Store:
    if request.param == "sqlite":
        uri = database = new_sqlite(tmp_path_factory.mktemp("traps"))
    elif request.param == "postgres":
        uri = database = request.getfixturevalue("postgres_uri")
        MlflowRunStore(uri)
    else:
        server = request.getfixturevalue("new_mlflow_server")()
        uri, database = server.uri, server.backend_uri
    fill(database, SEED, long=True)
    return Store(uri, Oracle(database))


@pytest.fixture(scope="module")
def many(new_sqlite: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``many(seed)``: a store of its own for each seed."""
    made: dict[int, Store] = {}

    def make(seed: int) -> Store:
        if seed not in made:
            uri = new_sqlite(tmp_path_factory.mktemp("seed"))
            fill(uri, seed, runs=10 + 3 * seed, order=seed)
            made[seed] = Store(uri, Oracle(uri))
        return made[seed]

    return make


def check_ranking(store: Store, metric: str, mode: str, agg: str, statuses: list[str]) -> None:
    truth = store.oracle.values(metric, agg)
    counts = truth[truth["status"].isin(statuses) & truth["value"].notna()]
    expected = counts.sort_values("value", ascending=mode == "min", kind="stable")
    found = store.whole("rank_runs", metric=metric, mode=mode, agg=agg, statuses=statuses, limit=7)
    assert [row["run_id"] for row in found] == list(expected.index)
    assert [row["value"] for row in found] == pytest.approx(list(expected["value"]), rel=1e-15)
    assert [row["step"] for row in found] == list(expected["step"])
    assert [row["name"] for row in found] == list(expected["name"])
    ranks = counts["value"].rank(method="min", ascending=mode == "min").astype(int)
    assert [row["rank"] for row in found] == list(ranks.reindex(expected.index))
    omitted = store.ask("rank_runs", metric=metric, mode=mode, agg=agg, statuses=statuses)["omitted"]
    assert sum(omitted.values()) == len(truth) - len(counts)
    is_in = truth["status"].isin(statuses)
    assert omitted.get("never logged the metric", 0) == (is_in & ~truth["logged"]).sum()
    assert (
        omitted.get("value is NaN or infinite", 0) == (is_in & truth["logged"] & truth["value"].isna()).sum()
    )


@pytest.mark.parametrize("agg", ["last", "min", "max", "mean_of_last_3"])
@pytest.mark.parametrize("metric", METRICS)
def test_runs_are_ranked_as_pandas_does(store: Store, metric: str, agg: str) -> None:
    check_ranking(store, metric, "min", agg, ["FINISHED"])
    check_ranking(store, metric, "max", agg, STATUSES)


SEEDS = st.integers(0, 11)
SOME = st.lists(st.sampled_from(STATUSES), min_size=1, unique=True)
AGGS = st.sampled_from(["last", "min", "max", "mean_of_last_1", "mean_of_last_4", "mean_of_last_999"])


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(METRICS), st.sampled_from(["min", "max"]), AGGS, SOME)
def test_any_ranking_in_any_store(
    many: Any, seed: int, metric: str, mode: str, agg: str, statuses: list[str]
) -> None:
    check_ranking(many(seed), metric, mode, agg, statuses)


def test_the_direction_is_that_of_the_metric_or_must_be_said(store: Store) -> None:
    assert store.ask("rank_runs", metric="eval_loss")["policy"]["best"] == "the smallest value"
    assert store.ask("rank_runs", metric="rewards/margins")["policy"]["best"] == "the largest value"
    for metric in ("kl", "my metric"):
        with pytest.raises(AnalyticsError, match="say mode min or max"):
            store.ask("rank_runs", metric=metric)
    with pytest.raises(AnalyticsError, match=r"has logged 'evalloss'; the nearest of 4 are eval_loss"):
        store.ask("rank_runs", metric="evalloss")
    with pytest.raises(AnalyticsError, match=r"no experiment 'trap'; the nearest of .* are traps"):
        store.ask("rank_runs", experiment="trap", metric="eval_loss")


RATE = "params.learning_rate"


OPS = ["=", "!=", ">", ">=", "<", "<="]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("value", [1e-4, "0.0001", 3e-4])
def test_params_are_compared_as_numbers(store: Store, op: str, value: float | str) -> None:
    check_comparison(store, op, value)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from(OPS), st.sampled_from(["1e-4", "0.0003", "1E-3"]) | st.floats(0, 0.002))
def test_any_comparison_in_any_store(many: Any, seed: int, op: str, value: float | str) -> None:
    check_comparison(many(seed), op, value)


def check_comparison(store: Store, op: str, value: float | str) -> None:
    rates = store.oracle.params["learning_rate"]
    numbers = pd.to_numeric(rates, errors="coerce")
    expected = {
        "=": numbers == float(value), "!=": rates.notna() & (numbers != float(value)),
        ">": numbers > float(value), ">=": numbers >= float(value),
        "<": numbers < float(value), "<=": numbers <= float(value),
    }[op]  # fmt: skip
    where = [{"field": RATE, "op": op, "value": value}]
    found = store.whole("search_runs", where=where, limit=9)
    assert [row["run_id"] for row in found] == list(rates.index[expected])
    omitted = store.ask("search_runs", where=where)["omitted"]
    assert sum(omitted.values()) + len(found) == len(rates)
    unclear = rates.isin(["auto", "NaN"]).sum()
    if op not in ("=", "!=") and unclear:
        assert omitted[f"{RATE} cannot be compared"] == unclear


def one(field: str, op: str, value: Any = None) -> dict[str, Any]:
    return {"field": field, "op": op, "value": value}


CONDITIONS: list[tuple[list[dict[str, Any]], Callable[[Oracle], pd.Series]]] = [
    ([one("tags.team", "missing")], lambda o: o.tags["team"].isna()),
    ([one("tags.team", "exists")], lambda o: o.tags["team"].notna()),
    ([one("tags.team", "contains", "BL")], lambda o: o.tags["team"] == "Blue"),
    ([one("tags.team", "in", [7, "red"])], lambda o: o.tags["team"].isin(["7", "red"])),
    ([one("params.use cache", "=", True)], lambda o: o.params["use cache"] == "True"),
    ([one("name", "starts_with", "TW")], lambda o: o.runs["name"] == "twin"),
    (
        [one("status", "!=", "FAILED"), one("duration_s", "<=", 1)],
        lambda o: (o.runs["status"] != "FAILED") & (o.runs["end_time"] - o.runs["start_time"] <= 1000),
    ),
    ([one("metrics.my metric", ">", 0.4)], lambda o: o.values("my metric", "last")["value"] > 0.4),
]


@pytest.mark.parametrize(("where", "fits"), CONDITIONS)
def test_conditions(store: Store, where: list[dict[str, Any]], fits: Callable[[Oracle], pd.Series]) -> None:
    expected = fits(store.oracle)
    found = store.whole("search_runs", where=where)
    assert [row["run_id"] for row in found] == list(expected.index[expected.fillna(False).astype(bool)])


@pytest.mark.parametrize("descending", [True, False])
def test_an_order_has_numbers_first_then_text_then_the_rest(store: Store, descending: bool) -> None:
    found = store.whole("search_runs", order_by=RATE, descending=descending)
    rates = store.oracle.params["learning_rate"]
    numbers = pd.to_numeric(rates, errors="coerce")
    first = numbers.dropna().sort_values(ascending=not descending, kind="stable")
    texts = rates[rates.isin(["auto", "NaN"])].sort_values(ascending=not descending, kind="stable")
    expected = [*first.index, *texts.index, *rates.index[rates.isna()]]
    assert [row["run_id"] for row in found] == expected
    newest = store.whole("search_runs")
    assert [row["run_id"] for row in newest] == list(rates.index)


def groups_of(columns: list[pd.Series]) -> dict[tuple[Any, ...], list[str]]:
    """Run ids by what they have in the columns, numbers as numbers."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for run_id in columns[0].index:
        texts = [column[run_id] for column in columns]
        numbers = [pd.to_numeric(text, errors="coerce") for text in texts]
        key = tuple(
            None if pd.isna(text) else text if pd.isna(number) else float(number)
            for text, number in zip(texts, numbers, strict=True)
        )
        found.setdefault(key, []).append(run_id)
    return found


def check_groups(store: Store, group_by: list[str], metric: str, agg: str, statuses: list[str]) -> None:
    truth = store.oracle.values(metric, agg)
    truth = truth[truth["value"].notna() & truth["status"].isin(statuses)]
    columns = [store.oracle.column(field).reindex(truth.index) for field in group_by]
    expected = {key: truth["value"][places] for key, places in groups_of(columns).items()}
    asked = {"metric": metric, "agg": agg, "group_by": group_by, "statuses": statuses}
    found = store.whole("aggregate", **asked, limit=2)
    assert {tuple(row["group"].values()) for row in found} == set(expected)
    for row in found:
        values = expected[tuple(row["group"].values())]
        assert row["n"] == len(values)
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-12)
        assert row["std"] == (pytest.approx(values.std(), rel=1e-9, abs=1e-12) if len(values) > 1 else None)
        assert (row["min"], row["max"]) == (values.min(), values.max())
        best = {"eval_loss": values.idxmin(), "rewards/margins": values.idxmax()}.get(metric)
        assert row["best_run_id"] == best


GROUPS = [[RATE], ["tags.team", "params.use cache"], ["status"]]


@pytest.mark.parametrize("group_by", GROUPS)
@pytest.mark.parametrize(
    ("metric", "agg"),
    [("eval_loss", "last"), ("rewards/margins", "max"), ("kl", "min"), ("my metric", "mean_of_last_2")],
)
def test_groups_are_those_of_pandas(store: Store, group_by: list[str], metric: str, agg: str) -> None:
    check_groups(store, group_by, metric, agg, ["FINISHED", "RUNNING"])


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from(GROUPS), st.sampled_from(METRICS), AGGS, SOME)
def test_any_groups_in_any_store(
    many: Any, seed: int, group_by: list[str], metric: str, agg: str, statuses: list[str]
) -> None:
    check_groups(many(seed), group_by, metric, agg, statuses)


def test_experiments_and_their_runs(store: Store) -> None:
    rows = {row["name"]: row for row in call_tool("list_experiments", {}, store.uri)["rows"]}
    assert {"Default", "traps", "other"} == set(rows)
    counts = store.oracle.runs["status"].value_counts().to_dict()
    assert rows["traps"]["by_status"] == counts
    assert rows["traps"]["runs"] == len(store.oracle.runs)
    assert rows["traps"]["last_start"] == store.oracle.runs["start_time"].max() / 1000
    assert rows["Default"]["first_start"] is None


QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("search_runs", {"order_by": "metrics.kl"}),
    ("rank_runs", {"metric": "kl", "mode": "max", "agg": "min", "statuses": STATUSES}),
    ("rank_runs", {"metric": "eval_loss", "agg": "mean_of_last_3"}),
    ("aggregate", {"metric": "eval_loss", "group_by": ["params.layers"], "statuses": STATUSES}),
    ("param_effects", {"metric": "eval_loss", "statuses": STATUSES}),
    ("describe_experiment", {}),
    ("cost_summary", {}),
]


@pytest.mark.parametrize(("name", "arguments"), QUESTIONS)
def test_neither_the_order_of_insertion_nor_the_size_of_pages_counts(
    new_sqlite: Callable[[Path], str], tmp_path: Path, name: str, arguments: dict[str, Any]
) -> None:
    answers = []
    for order in range(3):
        (tmp_path / str(order)).mkdir()
        uri = new_sqlite(tmp_path / str(order))
        fill(uri, SEED, order=order, long=True)
        store = Store(uri, Oracle(uri))
        if name == "describe_experiment":
            answers.append(store.ask(name))
        else:
            answers.append({"rows": store.whole(name, **arguments, limit=(3, 7, 100)[order])})
    assert answers[0] == answers[1] == answers[2]


def test_more_than_a_thousand_runs(
    new_sqlite: Callable[[Path], str], new_mlflow_server: Callable[..., Any], tmp_path: Path
) -> None:
    """Over HTTP they are read in spans of time: none twice, none left out, however many start at once."""
    server = new_mlflow_server()
    fill(server.backend_uri, SEED, runs=1800)
    oracle = Oracle(server.backend_uri)
    assert len(oracle.runs) > 1000
    for uri in (server.backend_uri, server.uri):
        store = Store(uri, oracle)
        truth = oracle.values("eval_loss", "last")
        counts = truth[(truth["status"] == "FINISHED") & truth["value"].notna()]
        expected = counts.sort_values("value", kind="stable")
        answer = store.ask("rank_runs", metric="eval_loss", limit=100)
        assert answer["total"] == len(counts)
        assert [row["run_id"] for row in answer["rows"]] == list(expected.index[: len(answer["rows"])])
        heads = open_reader(uri).runs_of(["101"]).columns(Wanted()).heads
        assert [head.run_id for head in heads] == list(oracle.runs.index)


def test_a_run_is_found_by_name_and_by_the_begin_of_its_id(store: Store) -> None:
    name = store.oracle.runs["name"].value_counts()
    alone = name.index[name == 1][0]
    (run_id,) = store.oracle.runs.index[store.oracle.runs["name"] == alone]
    for asked in (alone, run_id[:14], run_id):
        assert call_tool("get_run", {"run": asked}, store.uri)["run_id"] == run_id
    with pytest.raises(AnalyticsError, match=r"runs go by 'twin', say which: [0-9a-f]{32} \(twin, "):
        call_tool("get_run", {"run": "twin"}, store.uri)
    with pytest.raises(AnalyticsError, match=r"no run .it's.; there are"):
        call_tool("get_run", {"run": "it's"}, store.uri)


# --- overviews ---------------------------------------------------------------------------------------


def test_an_experiment_is_described(store: Store) -> None:
    answer, oracle = store.ask("describe_experiment"), store.oracle
    assert answer["runs"] == len(oracle.runs)
    rates = oracle.params["learning_rate"].dropna()
    told = answer["params"]["learning_rate"]
    assert (told["runs"], told["distinct"]) == (len(rates), rates.nunique())
    assert told["values"] == rates.value_counts().to_dict()
    assert "min" not in told, "auto is no number"
    assert answer["tags"] == {"team": oracle.tags["team"].notna().sum()}
    logged = oracle.points.groupby("key")["run_uuid"].nunique()
    assert {name: one["runs"] for name, one in answer["metrics"].items()} == logged.to_dict()
    assert answer["metrics"]["rewards/margins"]["better"] == "higher"
    assert answer["metrics"]["kl"]["better"] is None
    assert answer["omitted"] == {}


def test_long_values_that_begin_alike_are_counted_together(tracking_uri: str) -> None:
    client = MlflowClient(tracking_uri)
    for end in ("one", "two", "two"):
        client.log_param(client.create_run("0").info.run_id, "prompt", "x" * 150 + end)
    told = call_tool("describe_experiment", {"experiment": "0"}, tracking_uri)["params"]["prompt"]
    assert (told["distinct"], told["values"]) == (2, {"x" * 100 + "…": 3})


def test_correlations_are_those_of_pandas(many: Any) -> None:
    told = 0
    for seed in range(6):
        store = many(seed)
        truth = store.oracle.values("eval_loss", "min")
        truth = truth[truth["value"].notna() & truth["status"].isin(STATUSES)]
        rates = store.oracle.params["layers"].reindex(truth.index).dropna().astype(float)
        rows = store.ask("param_effects", metric="eval_loss", agg="min", statuses=STATUSES)["rows"]
        (row,) = [row for row in rows if row["param"] == "layers"]
        assert row["n"] == len(rates)
        if row["n"] < 8:
            assert row["verdict"] == "too few runs"
            continue
        expected = rates.corr(truth["value"].reindex(rates.index), method="spearman")
        assert row["correlation"] == pytest.approx(expected, abs=1e-12)
        assert row["low"] < row["correlation"] < row["high"]
        told += 1
    assert told


def test_a_clear_relation_is_told_from_none(tracking_uri: str) -> None:
    client = MlflowClient(tracking_uri)
    for number in range(20):
        run_id = client.create_run("0").info.run_id
        for key, value in {
            "up": number,
            "down": -number,
            "odd": (number * 7) % 5,
            "text": f"t{number}",
        }.items():
            client.log_param(run_id, key, value)
        client.log_metric(run_id, "loss", number**3)
        client.set_terminated(run_id)
    answer = call_tool("param_effects", {"experiment": "Default", "metric": "loss"}, tracking_uri)
    assert {row["param"]: row["verdict"] for row in answer["rows"]} == {
        "up": "rises", "down": "falls", "odd": "no clear relation"
    }  # fmt: skip
    assert answer["omitted"] == {"param that is no number": 1}
    few = {"experiment": "Default", "metric": "loss", "statuses": ["FAILED"]}
    assert call_tool("param_effects", few, tracking_uri)["rows"] == []


def test_answers_keep_their_size(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTLAB_ANSWER_CHARS", "4000")
    answer = store.ask("search_runs", limit=100)
    assert len(json.dumps(answer)) <= 4000
    assert 0 < len(answer["rows"]) < answer["total"]
    assert answer["next"]["offset"] == len(answer["rows"])
    assert len(store.whole("search_runs", limit=100)) == answer["total"]
    json.dumps(store.ask("search_runs", order_by="metrics.eval_loss"), allow_nan=False)
    assert math.isfinite(answer["total"])
