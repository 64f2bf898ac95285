"""`RunTable` against what pandas finds in MLflow's own tables, and what it reads to stay fresh."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from contextlib import closing
from typing import Any

import pandas as pd
import pytest
from run_samples import Counting, Runs, many_runs, read_all, until

from ftlab_mlflow.analytics.run_table import RunTable, grouped
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.wire import utc_now
from ftlab_mlflow.errors import RunNotFound

NAN, INF = math.nan, math.inf
INFINITE = 1e308
"""MLflow's tables hold infinity as the largest float."""

# --- what the rows say -------------------------------------------------------------------------------


def mixed_store(runs: Runs) -> None:
    """Runs of every kind."""
    other = runs.client.create_experiment("other")
    llama = {"_name_or_path": "org/llama"}
    runs.live("running", params=llama, loss=[3.0, 2.0], eval_loss=[2.5, 2.2], best_eval_loss=[2.5, 2.2])
    runs.live("paused", state="paused", experiment=other, loss=[3.0, 2.5], learning_rate=[1e-3])
    runs.live("lost", heartbeat_s=31, loss=[1.0])
    runs.live("failed, best", state="failed", status="FAILED", params=llama, eval_loss=[0.5, NAN, 9.0])
    runs.live("stopped", state="stopped", status="KILLED", method="dpo", eval_loss=[0.6])
    runs.live("finished", state="finished", step=1000, status="FINISHED", run_tags={"team": "a", "note": ""})
    runs.live("all NaN", loss=[1.0, NAN], eval_loss=[NAN, NAN])
    runs.live("infinite", loss=[INF], eval_loss=[INF, 4.0, -INF])
    runs.plain(
        "plain", experiment=other, run_tags={"team": "b"}, params={"model": "trees"}, eval_loss=[0.4, 0.9]
    )
    runs.plain("plain, failed", status="FAILED", train_loss=[5.0, 4.0])
    runs.plain("plain, killed", status="KILLED")
    runs.client.set_tag(runs.plain("unreadable"), tags.STATUS, "{")
    runs.client.delete_run(runs.live("deleted", eval_loss=[0.001]))


def raw_tables(uri: str) -> dict[str, pd.DataFrame]:
    names = ("runs", "experiments", "tags", "params", "metrics", "latest_metrics")
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        return {name: pd.read_sql(f"SELECT * FROM {name}", database) for name in names}


def expected_rows(uri: str) -> pd.DataFrame:
    """The table of runs by pandas, from MLflow's tables."""
    raw = raw_tables(uri)
    runs = raw["runs"].query("lifecycle_stage == 'active'").set_index("run_uuid")
    runs = runs.join(
        raw["experiments"].set_index("experiment_id")["name"].rename("experiment"), on="experiment_id"
    )
    by_run = raw["tags"].pivot(index="run_uuid", columns="key", values="value").reindex(runs.index)
    params = raw["params"].pivot(index="run_uuid", columns="key", values="value").reindex(runs.index)
    last = raw["latest_metrics"]
    last = last.assign(value=last["value"].mask(last["is_nan"] == 1)).pivot(
        index="run_uuid", columns="key", values="value"
    )
    last = last.reindex(runs.index)
    told = by_run[tags.STATUS].map(
        lambda text: json.loads(text) if isinstance(text, str) and text != "{" else {}
    )
    age = pd.Timestamp.now("UTC") - pd.to_datetime(told.map(lambda status: status.get("at")), utc=True)
    words = {"RUNNING": "running", "FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}
    state = told.map(lambda status: status.get("state")).fillna(runs["status"].map(words))
    state = state.mask(
        (age > pd.Timedelta(seconds=30)) & ~state.isin(["finished", "stopped", "failed"]), "lost"
    )
    evals = raw["metrics"].query("key == 'eval_loss' and is_nan == 0 and abs(value) < @INFINITE")
    asked = by_run[tags.SURFACE].notna()
    return pd.DataFrame(
        {
            "name": runs["name"],
            "experiment": runs["experiment"],
            "state": state.mask(by_run[tags.STATUS] == "{", "unreadable"),
            "method": told.map(lambda status: status.get("method")),
            "model": params["_name_or_path"].fillna(params["model"]),
            "step": told.map(lambda status: status.get("step")),
            "progress": told.map(lambda status: status.get("step", NAN)) / 1000,
            "loss": last["loss"].fillna(last["train_loss"].where(~last["loss"].notna())),
            "last_eval_loss": last["eval_loss"],
            "best_eval_loss": evals.groupby("run_uuid")["value"].min(),
            "learning_rate": last["learning_rate"].mask(asked, 8.7e-05),
            "team": by_run["team"],
            "started": pd.to_datetime(runs["start_time"], unit="ms", utc=True),
        },
        index=runs.index,
    )


def same(found: Any, expected: Any) -> bool:
    """Equal, where pandas has one word for what is not there and what is not a number."""
    if pd.isna(expected):
        return found is None or pd.isna(found)
    if isinstance(expected, float) and abs(expected) > INFINITE:
        return bool(found == math.copysign(INF, expected) or found == expected)
    return bool(found == expected)


def test_the_rows_are_those_that_pandas_finds_in_mlflow_s_tables(
    runs: Runs, table: RunTable, tracking_uri: str
) -> None:
    mixed_store(runs)
    rows = read_all(table)
    expected = expected_rows(tracking_uri)
    assert set(rows) == set(expected["name"])
    assert len(rows) == len(table.rows()) == 12
    for run_id, wanted in expected.iterrows():
        row = rows[wanted["name"]]
        assert row.run_id == run_id
        for column in expected.columns.drop("team"):
            assert same(getattr(row, column), wanted[column]), (
                row.name,
                column,
                getattr(row, column),
                wanted,
            )
        assert same(row.tags.get("team"), wanted["team"])
    assert rows["finished"].tags == {"team": "a", "note": ""}
    assert [name for name, row in rows.items() if row.is_live] == [
        name for name in rows if not name.startswith("plain")
    ]
    starts = [row.started for row in table.rows()]
    assert starts == sorted(starts, reverse=True)


def test_the_best_of_each_group_is_the_one_that_pandas_finds(
    runs: Runs, table: RunTable, tracking_uri: str
) -> None:
    mixed_store(runs)
    for name, best in (("tie 1", 0.5), ("tie 2", 0.5), ("infinite only", INF)):
        runs.live(name, params={"_name_or_path": "org/llama"}, eval_loss=[best], best_eval_loss=[best])
    read_all(table)
    frame = expected_rows(tracking_uri).fillna({"model": "unknown", "method": "none"})
    frame = frame[frame["best_eval_loss"].notna()]
    for by in ("model", "experiment"):
        best = frame.groupby([by, "method"])["best_eval_loss"].transform("min") == frame["best_eval_loss"]
        best &= frame.groupby([by, "method"])["best_eval_loss"].transform("size") > 1
        marked = {row.name for rows in grouped(table.rows(), by).values() for row in rows if row.is_best}
        assert marked == set(frame["name"][best])
    assert {"tie 1", "tie 2", "failed, best"} <= {
        row.name for row in grouped(table.rows(), "model")["org/llama"] if row.is_best
    }


def test_heartbeats_age_and_runs_get_lost(runs: Runs, table: RunTable) -> None:
    runs.live("beating", heartbeat_s=28)
    rows = read_all(table)
    age = rows["beating"].heartbeat_age_s
    assert age is not None
    assert 28 <= age < 30
    until(lambda: table.refresh() or table.rows()[0].state == "lost")
    age = table.rows()[0].heartbeat_age_s
    assert age is not None
    assert age > 30
    runs.beat(rows["beating"].run_id, "finished")
    runs.client.set_terminated(rows["beating"].run_id, "FINISHED")
    row = read_all(table)["beating"]
    assert (row.state, row.heartbeat_age_s) == ("finished", None)
    assert row.ended is not None


def test_an_eta_is_the_last_estimate_less_the_time_since(runs: Runs, table: RunTable) -> None:
    ids = {state: runs.live(state, state=state) for state in ("running", "paused")}
    ids |= {"used up": runs.live("used up"), "endless": runs.live("endless"), "silent": runs.live("silent")}
    for name in ("running", "paused"):
        runs.log(ids[name], "eta_s", [900.0], age_s=500)
        runs.log(ids[name], "eta_s", [300.0], first=2, age_s=100)
    runs.log(ids["used up"], "eta_s", [60.0], age_s=61)
    runs.log(ids["endless"], "eta_s", [INF])
    rows = read_all(table)
    assert rows["running"].eta_s == pytest.approx(200, abs=15)
    assert rows["running"].eta_s < 200
    assert {name: row.eta_s for name, row in rows.items() if name not in ("running", "endless")} == {
        "paused": None, "used up": None, "silent": None,
    }  # fmt: skip
    assert rows["endless"].eta_s is None or rows["endless"].eta_s > INFINITE
    runs.log(ids["running"], "eta_s", [50.0], first=3)
    assert read_all(table)["running"].eta_s == pytest.approx(50, abs=15)


# --- staying fresh -----------------------------------------------------------------------------------


def test_a_burst_of_refreshes_reads_once(runs: Runs, reader: Counting) -> None:
    runs.live("one")
    table = RunTable(reader, fresh_s=60)
    begin = threading.Barrier(8)

    def visit() -> None:
        begin.wait(10)
        table.refresh()
        assert [row.name for row in table.rows()] == ["one"]
        seen.append(table.read_at)

    seen: list[Any] = []
    threads = [threading.Thread(target=visit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == 8
    assert reader.calls == {"page": 1}
    for _ in range(5):
        table.refresh()
    assert reader.calls == {"page": 1}


def test_a_refresh_reads_new_runs_those_that_go_on_and_those_that_did(runs: Runs, reader: Counting) -> None:
    table = RunTable(reader, fresh_s=0)
    table.refresh()
    assert (table.rows(), table.is_complete) == ([], True)
    going = runs.live("going")
    table.refresh()
    assert [row.name for row in table.rows()] == ["going"]

    reader.forget()
    runs.beat(going, step=200)
    new = runs.plain("new")
    at_once = runs.plain("begun and ended", status="FINISHED")
    table.refresh()
    assert {row.name: (row.state, row.step) for row in table.rows()} == {
        "going": ("running", 200), "new": ("running", None), "begun and ended": ("finished", None),
    }  # fmt: skip
    assert reader.calls == {"page": 1, "active": 1}

    runs.beat(going, "failed", step=210)
    runs.client.set_terminated(going, "FAILED")
    runs.client.set_terminated(new, "KILLED")
    table.refresh()
    assert {row.name: row.state for row in table.rows()} == {
        "going": "failed", "new": "stopped", "begun and ended": "finished",
    }  # fmt: skip
    reader.forget()
    table.refresh()
    assert reader.calls == {"page": 1, "active": 1}
    assert at_once in {row.run_id for row in table.rows()}


def test_a_run_that_ends_below_many_newer_ones_is_read_by_its_id(
    runs: Runs, reader: Counting, tracking_uri: str
) -> None:
    going, deleted = runs.live("going"), runs.live("deleted")
    table = RunTable(reader, fresh_s=0)
    table.refresh()
    until(lambda: utc_now().timestamp() * 1000 > runs.client.get_run(deleted).info.start_time + 1100)
    newer = many_runs(tracking_uri, 100)  # that started in the last second
    table.refresh()
    assert len(table.rows()) == 22, "the newest 20 are read, the others by the next sweep"
    runs.client.set_terminated(going)
    runs.beat(going, "finished")
    runs.client.delete_run(deleted)
    reader.forget()
    table.refresh()
    rows = {row.run_id: row for row in table.rows()}
    assert rows[going].state == "finished"
    assert deleted not in rows
    assert set(rows) == {going, *newer[:20]}
    assert reader.calls == {"page": 1, "active": 1, "record": 2}


def test_a_sweep_finds_what_was_deleted_renamed_tagged_and_restored(
    runs: Runs, table: RunTable, tracking_uri: str
) -> None:
    deleted, going = runs.plain("deleted", status="FINISHED"), runs.live("deleted while it goes on")
    changed = runs.plain("changed", status="FINISHED")
    assert len(read_all(table)) == 3
    runs.client.delete_run(deleted)
    runs.client.delete_run(going)
    runs.client.update_run(changed, name="renamed")
    runs.client.set_tag(changed, "team", "a")
    runs.client.rename_experiment("0", "first")
    rows = read_all(table)
    assert {name: (row.tags, row.experiment) for name, row in rows.items()} == {
        "renamed": ({"team": "a"}, "first")
    }
    with pytest.raises(RunNotFound):
        table.view(deleted)
    runs.client.restore_run(deleted)
    runs.client.delete_tag(changed, "team")
    assert {name: row.tags for name, row in read_all(table).items()} == {"renamed": {}, "deleted": {}}


def test_many_runs_come_page_by_page_the_newest_first(tracking_uri: str, reader: Counting) -> None:
    ids = many_runs(tracking_uri, 450)
    table = RunTable(reader, fresh_s=60)
    table.refresh()
    assert len(table.rows()) >= 50
    first = [row.run_id for row in table.rows()]
    assert first == ids[: len(first)]
    while not table.is_complete:
        table.refresh()
    assert [row.run_id for row in table.rows()] == ids
    assert reader.calls == {"page": 5}
    table.refresh()
    assert reader.calls == {"page": 5}


def test_a_run_that_a_deletion_moves_over_the_border_of_a_page_stays(
    tracking_uri: str, reader: Counting, runs: Runs
) -> None:
    ids = many_runs(tracking_uri, 305)
    table = RunTable(reader, fresh_s=0, sweep_s=0)
    while not table.is_complete:
        table.refresh()
    for run_id in ids[:3]:  # after the sweep's first page, which they were on
        table.refresh()
        runs.client.delete_run(run_id)
    kept = set(ids[3:])
    for _ in range(12):
        table.refresh()
        assert kept <= {row.run_id for row in table.rows()}
    assert kept == {row.run_id for row in table.rows()}
