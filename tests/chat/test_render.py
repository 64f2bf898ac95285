"""Answers as Markdown: of every function over a real store, with figures as people read them."""

from __future__ import annotations

import io
import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import slash_store
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from rendered import check, raw_rows
from rich.console import Console
from rich.markdown import Markdown
from slash_store import ASKED, Store

from ftlab_mlflow.analytics import TOOLS, call_tool
from ftlab_mlflow.chat import cells
from ftlab_mlflow.chat.render import RENDERERS, markdown
from ftlab_mlflow.chat.render_runs import send_command
from ftlab_mlflow.cli import cli
from ftlab_mlflow.cli.change import set_


@pytest.fixture(scope="module")
def store(new_sqlite: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(new_sqlite(tmp_path_factory.mktemp("render")))


def test_every_function_has_a_rendering_and_is_tested() -> None:
    assert set(RENDERERS) == set(TOOLS) == set(ASKED)


@pytest.mark.parametrize("name", ASKED)
def test_every_answer_is_well_formed(store: Store, name: str) -> None:
    shown = store.show(name, **ASKED[name])
    check(shown)
    printed = io.StringIO()
    Console(file=printed, width=100, force_terminal=True).print(Markdown(shown))
    assert len(printed.getvalue()) > 20


# --- what they say -------------------------------------------------------------------------------------


def test_what_lists_say(store: Store) -> None:
    ranked = store.show("rank_runs", **ASKED["rank_runs"])
    assert "best is the smallest value" in ranked
    assert re.search(r"\|    1 \| sft-0 +\| [0-9a-f]{8} \| FINISHED \| +1.5 \| +30 \|", ranked)
    assert "3 of 10 are shown. Left out: status RUNNING (1)." in ranked
    assert "More: `/rank eval_loss mode=min experiment=sweep limit=3 offset=3`" in ranked
    assert "the last value (of the highest step, not the best)" in ranked
    grouped = store.show("aggregate", **ASKED["aggregate"])
    assert "eval_loss by params.learning_rate**, experiment sweep (lower is better)" in grouped
    assert re.search(r"\| 3e-05 +\| +3 \|", grouped)
    found = store.show("search_runs", **ASKED["search_runs"])
    assert "where params.learning_rate >= 3e-05, by metrics.eval_loss, smallest first" in found
    assert re.search(r"\| sft-1 .* 2026-09-21 \d\d:\d\d \| +1 h \| 0.00003 +\| +1.6 \|", found)
    effects = store.show("param_effects", **ASKED["param_effects"])
    assert re.search(r"\| seed +\| +10 \| +\+1.00 \| \+0.9\d to \+1.00 \| rises", effects)
    assert "is not a cause" in effects
    assert store.show("search_runs", experiment="sweep", where=[{"field": "name", "op": "=", "value": "x"}])
    experiments = store.show("list_experiments")
    assert re.search(r"\| my other +\| \d+ +\|    2 \| 1 ✗ FAILED, 1 FINISHED", experiments)


def test_what_is_not_finite_or_not_known(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = store.show("get_run", run="broken")
    assert re.search(r"\| loss +\| +NaN \|", broken)
    assert re.search(r"\| weird +\| +\+∞ \|", broken)
    assert "✗ FAILED" in broken
    history = store.show("metric_history", run="broken", metrics=["loss", "weird"])
    assert "2 values, first 1, min 1 (step 1), max 1 (step 1), last NaN, NaN: 1, infinite: 0" in history
    assert f"\n\n▅{cells.GAP}\n" in history
    assert "first +∞, min –, max –, last +∞" in history
    monkeypatch.delenv("FTLAB_GPU_PRICES", raising=False)
    cost = store.show("cost_summary", experiment="sweep", limit=2)
    assert "$" not in cost
    assert cost.count("unknown |") >= 6
    assert "no price of H100 (10)" in cost
    monkeypatch.setenv("FTLAB_GPU_PRICES", "H100=2.5")
    cost = store.show("cost_summary", experiment="sweep", limit=2)
    assert re.search(
        r"\| sft-\d +\| [0-9a-f]{8} \| FINISHED \| +1 h \| +1 h \| unknown \| +2.50 USD \|", cost
    )
    assert re.search(r"\| \*\*all\*\* .* 25.00 USD \(1 unknown\) \|", cost)
    grouped = store.show("cost_summary", experiment="sweep", group_by=["status"])
    assert re.search(r"\| RUNNING +\| +1 \| .* unknown \|\n", grouped)


def test_what_single_runs_say(store: Store) -> None:
    live = store.show("get_run", run="live")
    assert re.search(r"\| step +\| 60 of 1,000 ", live)
    assert re.search(r"\| live requests \| 1 applied ", live)
    compared = store.show("compare_runs", **ASKED["compare_runs"])
    assert re.search(r"\| learning_rate +\| 0.00003 \| 3e-4 +\| – +\|", compared)
    assert re.search(r"\| eval_loss \| min \(lower is better\) \| +1.6 \| +1.8 \| +– \|", compared)
    changes = store.show("live_changes", run="live")
    assert r"| ada via cli | it \| stalled |" in changes
    assert "learning_rate 3e-05 → 0.0001" in changes
    assert "Live changes of experiment sweep" in store.show("live_changes", experiment="sweep")
    assert "None was applied." in store.show("live_changes", run="sft-1")
    history = store.show("metric_history", run="live", metrics=["loss"], max_points=30)
    assert "60 values, first 2.49, min 1.9 (step 60), max 2.49 (step 1), last 1.9" in history
    assert "loss (20 of" in history
    whole = store.show("metric_history", run="live", metrics=["loss"], offset=35, max_points=10)
    assert [row[0].strip() for row in raw_rows(whole)[0][2:]] == [str(step) for step in range(36, 46)]
    plot = store.show("plot_metrics", **ASKED["plot_metrics"])
    assert re.search(r"\| live, Loss +\| +60 \| +2.49 \| +1.9 \| +1.9 \| █+▇.*▁+ \|", plot)
    assert "- at 30: learning_rate 3e-05 → 0.0001" in plot
    assert "Eval loss** (steps 1 to 60)" in plot
    assert "hours since the start" in store.show("plot_metrics", runs=["live"], metrics=["loss"], x="hours")
    assert store.show("calculate", **ASKED["calculate"]) == (
        "`(a - b) / a * 100` = **6.097560976** (a = 2.46, b = 2.31)"
    )


def test_a_finding_comes_with_the_command_that_proposes_its_change(store: Store) -> None:
    client = MlflowClient(store.uri)
    shown = store.show("diagnose_run", run="live")
    assert "✗ problem: stalled" in shown
    assert "Threshold: silent for" in shown
    row = {
        **call_tool("diagnose_run", {"run": "live"}, store.uri)["rows"][0],
        "live": {"learning_rate": {"from": 0.0001, "to": 2e-05}},
    }
    answer = {**call_tool("diagnose_run", {"run": "live"}, store.uri), "rows": [row]}
    said = f"by `/propose {store.ids['live']} learning_rate=2e-05`"
    assert f"The run would take now: learning_rate 0.0001 → 2e-05, {said}" in markdown(
        "diagnose_run", {}, answer
    )
    assert client.get_run(store.ids["live"]).info.status == "RUNNING"


def test_runs_of_one_name_are_told_apart(store: Store) -> None:
    client = MlflowClient(store.uri)
    twins = [client.create_run("0", run_name="twin").info.run_id for _ in range(2)]
    for run_id in twins:
        client.log_metric(run_id, "loss", 1.0, slash_store.BEGAN, 1)
    shown = store.show("compare_runs", runs=twins)
    assert "|     | run  | id " in shown
    assert re.search(r"\| metric \| value +\|   A \|   B \|", shown)
    assert all(run_id in shown for run_id in twins)


# --- a proposal ----------------------------------------------------------------------------------------


def test_the_command_of_a_proposal_sends_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    values = {"learning_rate": 5e-5, "eval_steps": 8, "lr_schedule": "hold"}
    reason = 'it\'s "noisy" $(touch x) `y` | z'
    shown = store.show("propose_update", run="live", values=values, reason=reason)
    assert "nothing has been sent" in shown
    (command,) = re.findall(r"^```\n(ftlab set .*)\n```$", shown, re.M)
    done = CliRunner().invoke(cli, [*shlex.split(command)[1:], "--json"])
    assert done.exit_code == 0, done.output
    tags = MlflowClient(store.uri).get_run(store.ids["live"]).data.tags
    (sent,) = [json.loads(text) for text in tags.values() if "noisy" in text]
    assert sent["set"] == values
    assert sent["expect"] == {"learning_rate": 1e-4, "eval_steps": 50, "lr_schedule": "keep"}
    assert sent["reason"] == reason


def test_a_proposal_that_would_be_rejected_has_no_command(store: Store) -> None:
    shown = store.show("propose_update", run="live", values={"learning_rate": 5, "lr": 1})
    assert "ftlab set" not in shown
    assert "must be a finite number from 0 to 1, got 5" in shown
    assert "is no parameter of this run" in shown
    assert "✗ The run would reject it." in shown


def test_a_parameter_that_looks_like_an_option_is_none() -> None:
    changes = {
        "--tracking-uri": {"from": "a", "to": "http://evil.example"},
        "-x": {"from": True, "to": False},
    }
    answer = {"run_id": "0" * 32, "changes": changes, "reason": "--wait"}
    command = send_command(answer)
    assert command is not None
    parsed = set_.make_context("set", shlex.split(command)[2:]).params
    assert parsed["tracking_uri"] is None
    assert parsed["values"] == (("--tracking-uri", "http://evil.example"), ("-x", "false"))
    assert parsed["expect"] == (("--tracking-uri", "a"), ("-x", "true"))
    assert (parsed["reason"], parsed["wait"]) == ("--wait", False)


@pytest.mark.parametrize("name", ["a=b", " a", "a\x1b"])
def test_a_parameter_that_no_shell_can_be_told_has_no_command(name: str) -> None:
    assert send_command({"run_id": "0" * 32, "changes": {name: {"from": 1, "to": 2}}, "reason": None}) is None


# --- figures -------------------------------------------------------------------------------------------


def test_figures_of_a_column_tell_apart_what_differs() -> None:
    assert cells.figures([1.61234, 1.61239, None, "NaN", "inf", "-inf"]) == [
        "1.6123", "1.6124", "–", "NaN", "+∞", "−∞",
    ]  # fmt: skip
    assert cells.figures([1.6, 1.6, 12345.6]) == ["1.6", "1.6", "12,346"]
    assert cells.figures([3600.0, 3600.5], "s") == ["1 h", "1 h"]
    assert len(set(cells.figures([1.0, math.nextafter(1.0, 2.0)]))) == 2
    assert cells.metric_figures([0.5], "tokens_per_second") == ["0.5 tokens/s"]


def test_money_and_times() -> None:
    assert cells.money(None, "USD") == "unknown"
    assert cells.money(0.0, "EUR") == "0.00 EUR"
    assert cells.money(1234.5, "EUR") == "1,234.50 EUR"
    assert cells.money(0.00042, "EUR") == "4.2e-04 EUR"
    assert cells.moment(1795219200.0) == "2026-11-21 00:00"
    assert cells.moment(1e20) == "1e+20 s"
    assert cells.moment(None) == "–"
    assert list(cells.short_ids(["a" * 32, "a" * 10 + "b" * 22]).values()) == ["a" * 11, "a" * 10 + "b"]


@given(st.lists(st.one_of(st.floats(allow_nan=False), st.sampled_from(["NaN", "inf", None])), max_size=90))
def test_a_sparkline_has_a_mark_for_every_piece(values: list[float | str | None]) -> None:
    for log in (False, True):
        line = cells.sparkline(values, log=log)
        assert len(line) == min(40, len(values))
        assert set(line) <= set(cells.SPARKS + cells.GAP)


def test_sparklines() -> None:
    assert cells.sparkline([1, 2, 3, 4, 5, 6, 7, 8]) == cells.SPARKS
    assert cells.sparkline([8, "NaN", 1]) == f"█{cells.GAP}▁"
    assert cells.sparkline([-1.7e308, 0.0, 1.7e308]) == "▁▅█"
    assert cells.sparkline([1, 10, 100, 0], log=True) == f"▁▅█{cells.GAP}"
    assert cells.sparkline([3, 3]) == "▅▅"
    assert cells.sparkline(list(range(100)), 4) == "▁▃▆█"
