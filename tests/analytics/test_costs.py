"""What runs have cost, against sums by hand."""

from __future__ import annotations

from typing import Any

import pytest
from mlflow import MlflowClient
from run_samples import status_text

from ftlab_mlflow.analytics import call_tool
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.wire import utc_now
from ftlab_mlflow.errors import ConfigError

HOUR_MS = 3_600_000
H100 = "NVIDIA H100"


@pytest.fixture
def client(tracking_uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri)


def spent(client: MlflowClient, hours: float, *, tokens: float | None = None, **of: str) -> str:
    """A run that ended after so many hours. gpus: Its accelerators. rate: A param."""
    run_id: str = client.create_run("0", start_time=1000 * HOUR_MS).info.run_id
    if "gpus" in of:
        client.set_tag(run_id, tags.ACCELERATORS, of["gpus"])
    client.log_param(run_id, "rate", of.get("rate", "1"))
    if tokens is not None:
        client.log_metric(run_id, "num_tokens", tokens / 2, step=1)
        client.log_metric(run_id, "num_tokens", tokens, step=2)
    client.set_terminated(run_id, end_time=int((1000 + hours) * HOUR_MS))
    return run_id


def asked(client: MlflowClient, **arguments: Any) -> dict[str, Any]:
    return call_tool("cost_summary", {"experiment": "Default"} | arguments, client.tracking_uri)


def test_time_tokens_and_money_are_summed(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTLAB_GPU_PRICES", f"{H100}=2.5; gfx942=1")
    two = spent(client, 2, tokens=1e6, gpus=f"{H100}, {H100}")
    one = spent(client, 1, tokens=5e5, gpus="gfx942", rate="2")
    spent(client, 4, gpus="none", rate="2")
    spent(client, 8, gpus="TPU", rate="2.0")
    spent(client, 0.5)
    answer = asked(client)
    rows = {row["run_id"]: row for row in answer["rows"]}
    assert [row["wall_s"] / 3600 for row in answer["rows"]] == [8, 4, 2, 1, 0.5]
    assert (rows[two]["gpu_s"], rows[two]["cost"]) == (4 * 3600, pytest.approx(10))
    assert (rows[one]["tokens"], rows[one]["cost"]) == (5e5, pytest.approx(1))
    totals = answer["totals"]
    assert (totals["runs"], totals["wall_s"], totals["tokens"]) == (5, 15.5 * 3600, 1.5e6)
    assert totals["gpu_s"] == (4 + 1 + 0 + 8) * 3600
    assert totals["cost"] == pytest.approx(11)
    assert totals["unknown"] == {"gpu_s": 1, "tokens": 3, "cost": 3}
    assert answer["no_cost_because"] == {
        "it had no accelerator": 1, "no price of TPU": 1, "not known: its accelerators": 1
    }  # fmt: skip
    groups = asked(client, group_by=["params.rate"])["rows"]
    assert [(row["group"]["params.rate"], row["runs"], row["wall_s"] / 3600) for row in groups] == [
        (2, 3, 13), (1, 2, 2.5),
    ]  # fmt: skip


def test_without_prices_there_is_no_money_and_not_nothing(client: MlflowClient) -> None:
    spent(client, 1, gpus=H100)
    answer = asked(client)
    assert answer["totals"]["cost"] is None
    assert answer["no_cost_because"] == {f"no price of {H100}": 1}


def test_a_run_that_goes_on_counts_to_its_last_sign(client: MlflowClient) -> None:
    now = utc_now().timestamp()
    lost = client.create_run("0", start_time=int((now - 7200) * 1000)).info.run_id
    client.set_tag(lost, tags.STATUS, status_text(heartbeat_s=3600))
    silent = client.create_run("0").info.run_id
    rows = {row["run_id"]: row for row in asked(client)["rows"]}
    assert rows[lost]["wall_s"] == pytest.approx(3600, abs=30)
    assert rows[silent]["wall_s"] is None


@pytest.mark.parametrize("text", ["2.5", "H100=much", "=2", "H100=-1", "H100=nan"])
def test_prices_that_are_none_are_refused(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("FTLAB_GPU_PRICES", text)
    with pytest.raises(ConfigError, match="FTLAB_GPU_PRICES must be NAME=PRICE"):
        asked(client)
