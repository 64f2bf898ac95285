"""`tools`: the analytics functions from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cli_helpers import Ftlab
from mlflow import MlflowClient

from ftlab_mlflow import analytics
from ftlab_mlflow.analytics import TOOLS


def test_the_functions_are_listed(ftlab: Ftlab) -> None:
    lines = ftlab("tools", "list").out.splitlines()
    assert [line.split()[0] for line in lines] == list(TOOLS)
    listed = json.loads(ftlab("tools", "list", "--json").out)["tools"]
    assert [each["name"] for each in listed] == list(TOOLS)
    assert listed[0]["arguments"]["type"] == "object"


def test_a_function_is_called(ftlab: Ftlab, tracking_uri: str) -> None:
    client = MlflowClient(tracking_uri)
    for name, loss in (("good", 1.0), ("bad", 2.0)):
        run_id = client.create_run("0", run_name=name).info.run_id
        client.log_metric(run_id, "loss", loss)
        client.set_terminated(run_id)
    result = ftlab("tools", "call", "rank_runs", "--json", '{"experiment": "Default", "metric": "loss"}')
    assert result.code == 0
    assert [row["name"] for row in json.loads(result.out)["rows"]] == ["good", "bad"]
    assert json.loads(ftlab("tools", "call", "list_experiments").out)["total"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["rank_runs", "--json", "{"], 2, "--json is no JSON"),
        (["rank_runs", "--json", "[1]"], 2, "--json must be an object"),
        (["rank_runs", "--json", "{}"], 1, "experiment: Field required"),
        (["rank"], 1, "no tool 'rank'; the nearest of 15 are"),
    ],
)
def test_wrong_calls(ftlab: Ftlab, arguments: list[str], code: int, said: str) -> None:
    result = ftlab("tools", "call", *arguments)
    assert (result.code, said in result.err) == (code, True)


def test_each_function_is_exported_and_has_an_example_in_the_guide() -> None:
    assert set(analytics.__all__) == {"TOOLS", "call_tool", *TOOLS}
    assert analytics.rank_runs is TOOLS["rank_runs"].function
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "analytics.md").read_text()
    assert re.findall(r"^\$ ftlab tools call (\w+)", guide.partition("<!-- examples -->")[2], re.M) == [
        *re.findall(r"^### (\w+)", guide, re.M)
    ]
    assert set(re.findall(r"^### (\w+)", guide, re.M)) == set(TOOLS)
    assert all(f"| `{name}` |" in guide for name in TOOLS)
