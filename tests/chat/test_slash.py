"""Slash commands over a real store: what their words mean, what holds without them, how they fail."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import slash_store
from mlflow import MlflowClient
from slash_store import Store

from ftlab_mlflow.analytics import TOOLS, call_tool
from ftlab_mlflow.chat import slash
from ftlab_mlflow.chat.scope import Scope
from ftlab_mlflow.chat.slash_commands import COMMANDS
from ftlab_mlflow.chat.slash_words import SHAPES
from ftlab_mlflow.errors import ChatError


@pytest.fixture(scope="module")
def store(new_sqlite: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(new_sqlite(tmp_path_factory.mktemp("slash")))


def test_every_function_has_one_command() -> None:
    assert sorted(command.tool for command in COMMANDS.values()) == sorted(TOOLS) == sorted(SHAPES)
    assert all(SHAPES[command.tool].command == name == command.name for name, command in COMMANDS.items())
    for command in COMMANDS.values():
        assert command.usage.split()[0] == command.example.split()[0] == f"/{command.name}"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_each_command_is_answered_as_its_function_answers(store: Store, name: str) -> None:
    result = store.run(COMMANDS[name].example, experiment="sweep")
    assert result.ok
    (done,) = result.runs
    assert done.name == COMMANDS[name].tool
    assert re.fullmatch("[A-Za-z0-9_-]{1,64}", done.id)
    assert done.started >= 0
    assert 0 < done.seconds < 60
    again = call_tool(done.name, done.arguments, store.uri)
    if done.name not in ("cost_summary", "diagnose_run"):  # of a run that trains they change every moment
        assert dict(done.result) == again


def test_ids_of_calls_are_unique(store: Store) -> None:
    assert store.run("/calc 1").runs[0].id != store.run("/calc 1").runs[0].id


# --- what holds where a command does not say -----------------------------------------------------------


def test_selected_runs_are_meant_where_none_is_named(store: Store) -> None:
    chosen = [store.ids["sft-1"], store.ids["live"]]
    assert store.arguments("/compare", "sft-1", "live") == {"runs": chosen}
    assert store.arguments("/plot loss,eval_loss", "sft-1", "live")["runs"] == chosen
    for command in ("/run", "/diagnose", "/changes", "/history loss", "/propose learning_rate=5e-5"):
        assert store.arguments(command, "live")["run"] == store.ids["live"]
    assert store.arguments("/run sft-2", "live") == {"run": "sft-2"}
    with pytest.raises(ChatError, match="say which run: 2 are selected"):
        store.run("/run", "sft-1", "live")


def test_the_experiment_that_is_selected_or_of_the_runs_or_of_the_newest_run(store: Store) -> None:
    assert store.arguments("/rank loss", experiment="my other")["experiment"] == "my other"
    assert store.arguments("/rank loss", "broken")["experiment"] == "my other"
    assert store.arguments("/rank loss last sweep", "broken")["experiment"] == "sweep"
    assert store.arguments("/changes", "sft-1", "sft-2")["experiment"] == "sweep"
    found = store.run("/rank loss")
    assert found.runs[0].arguments["experiment"] == "my other"
    assert "Of my other, the experiment of the newest run" in found.markdown
    assert "newest run" not in store.run("/rank loss 'my other'").markdown
    with pytest.raises(ChatError, match="say which experiment: the selected runs are of my other, sweep"):
        store.run("/cost", "sft-1", "broken")


def test_latest_is_the_newest_run_of_the_scope(store: Store) -> None:
    assert store.arguments("/run latest") == {"run": store.ids[slash_store.SPECIAL]}
    assert store.arguments("/run latest", experiment="sweep") == {"run": store.ids["live"]}
    assert store.arguments("/run latest", "sft-3", "sft-4", "sft-1") == {"run": store.ids["sft-4"]}
    assert store.arguments("/compare latest sft-1", experiment="sweep")["runs"] == [
        store.ids["live"],
        "sft-1",
    ]


def test_latest_where_there_is_no_run(tracking_uri: str) -> None:
    with pytest.raises(ChatError, match="there is no run yet"):
        slash.run("/run latest", Scope(), tracking_uri)
    MlflowClient(tracking_uri).create_experiment("empty")
    with pytest.raises(ChatError, match="this experiment has no run yet"):
        slash.run("/run latest", Scope(experiment="empty"), tracking_uri)


# --- words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("/experiments limit=2 offset=1", {"limit": 2, "offset": 1}),
        (
            "/experiment 'my other' skip=params:1,metrics:2",
            {"experiment": "my other", "skip": {"params": 1, "metrics": 2}},
        ),
        (
            "/RANK loss min sweep mode=max",
            {"metric": "loss", "agg": "min", "experiment": "sweep", "mode": "max"},
        ),
        ("/rank loss experiment=min agg=max", {"metric": "loss", "agg": "max", "experiment": "min"}),
        (
            "/rank loss sweep status=failed,finished",
            {"metric": "loss", "experiment": "sweep", "statuses": ["FAILED", "FINISHED"]},
        ),
        (
            "/aggregate loss learning_rate,tags.team,status mean_of_last_3 sweep",
            {
                "metric": "loss",
                "group_by": ["params.learning_rate", "tags.team", "status"],
                "agg": "mean_of_last_3",
                "experiment": "sweep",
            },
        ),
        ("/effects loss last sweep", {"metric": "loss", "agg": "last", "experiment": "sweep"}),
        ("/cost sweep by=learning_rate", {"group_by": ["params.learning_rate"], "experiment": "sweep"}),
        ('/run "a b"', {"run": "a b"}),
        ("/run\n a", {"run": "a"}),
        (
            "/history loss,eval_loss a from=1 to=9 points=10",
            {"metrics": ["loss", "eval_loss"], "run": "a", "from_step": 1, "to_step": 9, "max_points": 10},
        ),
        (
            "/plot loss a b x=hours log=true",
            {"metrics": ["loss"], "runs": ["a", "b"], "x": "hours", "log_y": True},
        ),
        ("/compare a b metrics=loss", {"runs": ["a", "b"], "metrics": ["loss"]}),
        ("/changes experiment=sweep limit=3", {"experiment": "sweep", "limit": 3}),
        ("/changes a", {"run": "a"}),
        ("/calc  (1 + 2) * 'x' ", {"expression": "(1 + 2) * 'x'"}),
    ],
)
def test_words_are_arguments(store: Store, command: str, arguments: dict[str, Any]) -> None:
    assert store.arguments(command) == arguments


def test_runs_that_meet_conditions(store: Store) -> None:
    found = store.run(
        "/runs params.learning_rate>5e-5 status=FINISHED order=metrics.eval_loss limit=3 experiment=sweep"
    )
    assert [row["name"] for row in found.runs[0].result["rows"]] == ["sft-2", "sft-3", "sft-6"]
    assert len(store.run("/runs", experiment="sweep").runs[0].result["rows"]) == 11


def test_values_are_read_as_the_run_has_them(store: Store) -> None:
    read = store.arguments('/propose live eval_steps=8 learning_rate=.5 lr_schedule=8 -- it\'s "noisy"')
    assert read == {
        "run": "live",
        "values": {"eval_steps": 8, "learning_rate": 0.5, "lr_schedule": "8"},
        "reason": 'it\'s "noisy"',
    }
    assert store.arguments("/propose live eval_steps=8 because it stalls")["reason"] == "it stalls"
    assert store.arguments("/propose live lr_schedule='a -- b'")["values"] == {"lr_schedule": "a -- b"}
    assert "reason" not in store.arguments("/propose live eval_steps=8 --")


def test_an_apostrophe_in_a_reason_alone_needs_no_quotes(store: Store) -> None:
    with pytest.raises(ChatError, match="double quotes"):
        store.run("/run bob's")
    assert store.arguments('/run "bob\'s"') == {"run": "bob's"}


def test_one_parameter_is_found_on_any_page(store: Store) -> None:
    found = store.run("/effects learning_rate eval_loss last sweep limit=1")
    assert [row["param"] for run in found.runs for row in run.result["rows"]] == ["seed", "learning_rate"]
    assert "| learning_rate" in found.markdown
    assert "| seed" not in found.markdown
    missing = store.run("/effects params.warmup eval_loss last sweep limit=1")
    assert len(missing.runs) == 2
    assert missing.markdown.startswith("The param warmup is not a numeric param that varies")
    assert "there are seed, learning_rate" in missing.markdown
    failed = store.run("/effects seed nothing last sweep")
    assert (failed.ok, len(failed.runs)) == (False, 1)


# --- how they fail -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("/", "no command '/'"),
        ("/rnk loss", "no command '/rnk'; the nearest of 16 are rank, run"),
        ("/tmp/x is full", "no command '/tmp/x'; .*takes a space or another slash before it"),
        ("/help nothing", "no command '/nothing'"),
        (
            "/rank",
            r"say which metric. Usage: /rank METRIC \[AGG\] \[EXPERIMENT\], such as /rank eval_loss min",
        ),
        ("/rank loss last sweep more", "'more' is one word too many"),
        ("/rank loss sweep experiment=sweep", "'sweep' is one word too many"),
        ("/rank loss limit=x", "limit: 'x' is no whole number"),
        ("/rank loss limit=", "limit= has no value"),
        ("/rank loss limit=1 limit=2", "limit= is given twice"),
        ("/plot loss a log=maybe", "log: 'maybe' is neither true nor false"),
        ("/cost by=,", "by: ',' names nothing"),
        ('/run "a', "no closing quotation: put a text with an apostrophe in double quotes"),
        ("/run", "say which run: none is selected, or say latest"),
        ("/diagnose a b", "'b' is one word too many"),
        ("/compare", "it takes 2 runs or more, 0 are selected"),
        ("/compare a", "it takes 2 runs or more, 1 are named"),
        ("/compare " + "a " * 11, "it takes at most 10 runs, 11 are named"),
        ("/plot", "say which metric"),
        ("/plot loss", "it takes 1 run or more, 0 are selected"),
        ("/history", "say which metric"),
        ("/aggregate loss", "say what to group by"),
        ("/effects", "say which metric"),
        ("/changes a experiment=b", "it takes either a run or an experiment"),
        ("/calc", "there is nothing to calculate"),
        ("/propose", "say which run"),
        ("/propose live", "say at least one NAME=VALUE"),
        ("/propose live =1", "'=1' is no NAME=VALUE"),
        ("/propose live a=1 a=2", "a is given twice"),
        ("/runs sweep", "'sweep' is no condition such as"),
        ("/runs lr>3", "'lr' is no field: say params.lr, tags.lr or metrics.lr"),
        ("/runs order=loss", "order: 'loss' is no field: say params.loss"),
        ("/runs params.lr =", "params.lr = has nothing to compare with"),
        ("/runs start_time>2026-13-40", "'2026-13-40' is no time such as"),
        ("/experiments all", "'all' is one word too many"),
    ],
)
def test_wrong_commands_say_how_they_are_right(store: Store, command: str, said: str) -> None:
    with pytest.raises(ChatError, match=said):
        store.run(command)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("/rank los last sweep", "no run of the experiment has logged 'los'; the nearest of 2 are loss"),
        ("/rank loss last swep", "no experiment 'swep'; the nearest of 3 are sweep"),
        ("/run sft", "no run 'sft'; the nearest of"),
        ("/rank loss last sweep limit=500", "less than or equal to 100"),
        ("/calc 1/0", "has no value: float division by zero"),
        ("/propose sft-1 learning_rate=1", "run sft-1 cannot be changed: The run is finished"),
    ],
)
def test_what_a_function_cannot_answer_is_said(store: Store, command: str, said: str) -> None:
    found = store.run(command)
    assert not found.ok
    assert said in found.runs[0].result["error"]
    assert found.markdown.startswith("✗ ")
    assert said.split("'")[0] in found.markdown


def test_what_is_a_command() -> None:
    assert all(map(slash.is_command, ("/rank loss", "/Help", "/tmp/x is full", "/x")))
    assert not any(map(slash.is_command, ("//tmp/x", " /rank", "/", "/ x", "/1", "rank", "", "1/a")))
    assert slash.question_in("//tmp/x is full") == "/tmp/x is full"
    assert slash.question_in(" /tmp/x is full") == "/tmp/x is full"
    assert slash.question_in("why?") == "why?"


def test_help(store: Store) -> None:
    found = store.run("/help")
    assert found.runs == ()
    for command in COMMANDS.values():
        assert f"`{command.usage}`" in found.markdown
        assert f"`{command.example}`" in found.markdown
        one = store.run(f"/help {command.name}").markdown
        assert one.startswith(f"`{command.usage}`")
        assert all(f"`{option}=`" in one for option in command.options)
    assert store.run("/help /Rank").markdown == store.run("/help rank").markdown


def test_completion() -> None:
    assert slash.complete("/ex") == ["/experiments", "/experiment"]
    assert slash.complete("/HE") == ["/help"]
    assert len(slash.complete("/")) == len(COMMANDS) + 1
    assert slash.complete("/rank loss li") == ["/rank loss limit="]
    assert slash.complete("/run la") == ["/run latest"]
    assert slash.complete("/nothing la") == slash.complete("why la") == slash.complete("/run ") == []


# --- what gets the rest --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "/experiments limit=1",
        "/runs name~sft 'params.learning_rate>=3e-5' status in FINISHED,FAILED limit=2 experiment=sweep",
        "/rank loss min sweep limit=3 status=FINISHED,RUNNING",
        "/aggregate loss learning_rate,status sweep limit=1",
        "/effects eval_loss max experiment=sweep limit=1",
        "/cost sweep limit=4",
        "/cost 'my other' by=status limit=1",
    ],
)
def test_the_command_for_the_rest_gets_it(store: Store, command: str) -> None:
    rows: list[Any] = []
    found = store.run(command)
    for _ in range(20):
        result = found.runs[0].result
        rows += result["rows"]
        if result["next"] is None:
            break
        typed = re.search(r"More: `(.+?)`(?:\s|$)", found.markdown)
        assert typed, found.markdown
        found = store.run(typed[1])
        assert found.runs[0].arguments["offset"] == result["next"]["offset"]
    assert len(rows) == result["total"] > 1
    assert len({str(row) for row in rows}) == len(rows)


def test_the_command_for_the_rest_of_a_series_and_of_a_run(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = store.run("/history loss live points=10")
    typed = re.search(r"More: `(.+?)`", found.markdown)
    assert typed
    assert typed[1] == "/history loss live points=10 offset=0"
    monkeypatch.setenv("FTLAB_ANSWER_CHARS", "4000")
    name = "x" * 200
    client = MlflowClient(store.uri)
    long = client.create_run("0", slash_store.BEGAN - 1, run_name="long").info.run_id
    for number in range(40):
        client.log_param(long, f"p{number}", name)
    found = store.run("/run long")
    typed = re.search(r"More: `(.+?)`", found.markdown)
    assert typed
    rest = store.run(typed[1])
    shown = [set(each.runs[0].result["params"]) for each in (found, rest)]
    assert all(shown)
    assert not shown[0] & shown[1]


def test_it_loads_nothing_heavy() -> None:
    heavy = ("mlflow", "torch", "transformers", "pandas", "scipy", "streamlit", "openai", "anthropic", "rich")
    code = f"import sys, ftlab_mlflow.chat.slash; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
