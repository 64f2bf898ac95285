"""`ftlab history` to look through and to take away: its filters, its CSV, its JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

import pytest
from cli_helpers import Ftlab, WrittenRun

from ftlab_mlflow.control.history import history_json
from ftlab_mlflow.control.ledger import Ledger


@pytest.fixture
def run(new_run: Callable[..., WrittenRun]) -> WrittenRun:
    run = new_run()
    first = run.request(set={"learning_rate": 5e-5}, by="alice", reason="=1+1, \x1b[31m\nÄrger")
    run.answer(first, changes={"learning_rate": (8.7e-05, 5e-05)})
    second = run.request(set={"learning_rate": 7, "eval_steps": 5}, by="bob")
    run.answer(second, "rejected", code="out_of_bounds", errors={"learning_rate": "got 7"})
    run.request(command="pause", by="alice")
    return run


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ([], [0, 1, 2]),
        (["--by", "alice"], [0, 2]),
        (["--by", "alice", "--by", "bob"], [0, 1, 2]),
        (["--about", "eval_steps", "--about", "pause"], [1, 2]),
        (["--answer", "pending", "--answer", "rejected"], [1, 2]),
        (["--text", "ärger"], [0]),
        (["--by", "alice", "--answer", "applied", "--text", "8.7e-05"], [0]),
        (["--by", "nobody"], []),
    ],
)
def test_filters_hold_for_every_form(
    ftlab: Ftlab, run: WrittenRun, options: list[str], kept: list[int]
) -> None:
    everything = [request["id"] for request in ftlab("history", "--json").json["requests"]]
    assert len(everything) == 3
    ids = [everything[i] for i in kept]
    assert [request["id"] for request in ftlab("history", "--json", *options).json["requests"]] == ids
    rows = csv.DictReader(io.StringIO(ftlab("history", "--csv", *options).out, newline=""))
    assert list(dict.fromkeys(row["id"] for row in rows)) == ids
    lines = ftlab("history", *options).out.splitlines()
    if kept:
        assert len(lines) == 1 + len(kept)
    else:
        assert lines == ["None of the 3 requests matches."]


def test_the_csv_is_safe_to_open_and_to_print(ftlab: Ftlab, run: WrittenRun) -> None:
    printed = ftlab("history", "--csv").out
    assert not [c for c in printed if not c.isprintable() and c not in "\r\n"]
    first, *_ = csv.DictReader(io.StringIO(printed, newline=""))
    assert first["reason"] == "'=1+1,  [31m\nÄrger"
    assert (float(first["old"]), float(first["new"])) == (8.7e-05, 5e-05)


def test_the_json_is_that_of_the_library(ftlab: Ftlab, run: WrittenRun) -> None:
    entries = Ledger.read(run.store.get(run.run_id).tags).entries
    assert ftlab("history", "--json").json == json.loads(history_json(run.run_id, entries))


def test_one_form_at_a_time(ftlab: Ftlab, run: WrittenRun) -> None:
    result = ftlab("history", "--csv", "--json")
    assert result.code == 2
    assert "give --csv or --json, not both" in result.err
    assert ftlab("history", "--answer", "maybe").code == 2
