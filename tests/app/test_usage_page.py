"""The page of usage: what is summed, what is not known, whose it is, and the budgets of a day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from app_pages import APP, LIMIT_S, figures, opened, texts
from streamlit.testing.v1 import AppTest

from ftlab_mlflow.app_store import AppStore, Preferences
from ftlab_mlflow.control.client import user_name


def spend(user: str | None = None, chat_id: str | None = None, days_ago: int = 0, **took: Any) -> None:
    """What one answer took."""
    usual = {"input_tokens": 1000, "cached_tokens": 400, "output_tokens": 50, "cost_usd": 0.25}
    values = {"provider": "openai", "model": "openai/gpt-4o-mini"} | usual | took
    at = datetime.now(UTC) - timedelta(days=days_ago)
    store = AppStore()
    store.chats.record_usage(user or user_name(), chat_id, at=at, **values)
    store.close()


def said(app: AppTest) -> str:
    """All that is on the page, as a person reads it."""
    metrics = "\n".join(f"{each.label}: {each.value}" for each in app.metric)
    bars = "\n".join(each.proto.text for each in app.get("progress"))
    return "\n".join([texts(app), metrics, bars]).replace("\\", "")


def tables(app: AppTest) -> dict[str, list[dict[str, Any]]]:
    """The tables by their title."""
    titles = [each.value for each in app.subheader if each.value.startswith("By ")]
    return {title: each.value.to_dict("records") for title, each in zip(titles, app.dataframe, strict=True)}


def test_before_the_first_answer_it_says_so(dashboard: str) -> None:
    app = opened("usage")
    assert "No answer in this time." in said(app)
    assert "$0.00 of $10.00 a day" in said(app)
    assert not app.dataframe


def test_tokens_and_dollars_are_summed_and_what_is_unknown_is_no_zero(dashboard: str) -> None:
    store = AppStore()
    chat = store.chats.create(user_name(), "**hostile** <img src=x>")
    store.close()
    spend(chat_id=chat.id)
    spend(chat_id=chat.id, days_ago=3, cost_usd=0.5)
    spend(model="ollama/qwen3:8b", provider="local", cost_usd=None, days_ago=3)
    spend(model="ollama/qwen3:8b", provider="local", cost_usd=None, input_tokens=None, output_tokens=None)
    spend(days_ago=40, cost_usd=7.0)
    app = opened("usage")
    assert "answers: 4" in said(app)
    assert "known cost: $0.75" in said(app)
    assert "input tokens: 3,000" in said(app)
    assert "2 answers of unknown cost" in said(app)
    assert "1 answer of an unknown number of tokens" in said(app)

    by_model = tables(app)["By model"]
    assert [(row["Model"], row["Cost"]) for row in by_model] == [
        ("openai/gpt-4o-mini", "$0.75"),
        ("ollama/qwen3:8b", "unknown"),
    ]
    by_chat = {row["Chat"]: row for row in tables(app)["By chat"]}
    assert by_chat["**hostile** <img src=x>"]["Answers"] == 2
    assert by_chat["**hostile** <img src=x>"]["Open"] == f"chat?chat={chat.id}"
    assert "By person" not in tables(app)

    drawn = figures(app)
    cost, unknown = drawn["usage cost"]["data"]
    assert (cost["name"], len(cost["x"])) == ("openai/gpt-4o-mini", 30)
    assert [value for value in cost["y"] if value] == [0.5, 0.25]
    assert unknown["customdata"] == [1.0, 1.0]
    kinds = {trace["name"]: sum(trace["y"]) for trace in drawn["usage tokens"]["data"]}
    assert kinds == {"input": 1400, "cached input": 1600, "output": 150}

    app.segmented_control(key="days").set_value(90).run()
    assert "known cost: $7.75" in said(app)


def test_budgets_are_shown_with_what_they_do_not_count(
    dashboard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTLAB_CHAT_TOKENS_PER_DAY", "2000")
    store = AppStore()
    store.save(user_name(), Preferences(chat_usd_per_day=0.2))
    store.close()
    spend()
    spend(cost_usd=None)
    app = opened("usage")
    assert "$0.25 of $10.00 a day" in said(app)
    assert "$0.25 of $0.20 a day, my own limit" in said(app)
    assert "2,100 of 2,000 tokens a day" in said(app)
    assert "1 answer of unknown cost: limits count an estimate" in said(app)
    assert [each.proto.value for each in app.get("progress")] == [2, 100, 100]


def test_who_is_signed_in_sees_their_own(dashboard: str) -> None:
    spend("ann@example.org", cost_usd=0.125)
    spend("bob@example.org")
    everybody = opened("usage")
    assert {row["Person"] for row in tables(everybody)["By person"]} == {"ann@example.org", "bob@example.org"}
    app = AppTest.from_file(APP, default_timeout=LIMIT_S)
    app.secrets["auth"] = {"client_id": "x"}
    app.user = {"email": "ann@example.org", "is_logged_in": True}
    app.run()
    app.switch_page("views/usage.py").run()
    assert "known cost: $0.12" in said(app)
    assert "bob" not in said(app)
    assert "By person" not in tables(app)
