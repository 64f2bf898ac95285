"""What answers took: kept when a chat is deleted, summed by day, model, user, chat; unknown is not zero."""

from __future__ import annotations

import math
import time
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import event, insert
from sqlalchemy.orm import Session

from ftlab_mlflow.app_store import AppStore
from ftlab_mlflow.app_store.chats import ChatStore
from ftlab_mlflow.app_store.models import StoredUsage
from ftlab_mlflow.app_store.usage import Spent, UsageRow

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def spend(
    chats: ChatStore,
    at: datetime = NOON,
    user: str = "alice",
    *,
    model: str = "openai/gpt-4o-mini",
    chat_id: str | None = None,
    tokens: int | None = 100,
    cost: float | None = 0.01,
) -> None:
    """An answer of so many tokens of input and half as many of output."""
    chats.record_usage(
        user,
        chat_id,
        provider=model.partition("/")[0],
        model=model,
        input_tokens=tokens,
        cached_tokens=tokens and tokens // 4,
        cache_write_tokens=tokens and tokens // 10,
        output_tokens=tokens and tokens // 2,
        cost_usd=cost,
        requests=2,
        seconds=1.5,
        first_token_s=0.5,
        at=at,
    )


def test_all_of_it_is_summed(chats: ChatStore) -> None:
    spend(chats)
    spend(chats, tokens=200, cost=0.02)
    (row,) = chats.usage()
    assert row == UsageRow(
        answers=2,
        input_tokens=300,
        cached_tokens=75,
        cache_write_tokens=30,
        output_tokens=150,
        cost_usd=pytest.approx(0.03),
        unknown_cost_answers=0,
        unknown_token_answers=0,
        counted_usd=pytest.approx(0.03),
        counted_tokens=450,
        requests=4,
        seconds=3.0,
        day=date(2026, 3, 1),
    )
    assert row.tokens == 450
    assert chats.usage(by=()) == [UsageRow(**{**vars(row), "day": None})]


def test_a_budget_counts_estimates_of_what_is_not_known(chats: ChatStore) -> None:
    how = {"provider": "openai", "model": "openai/m", "at": NOON}
    chats.record_usage(
        "alice",
        None,
        input_tokens=None,
        output_tokens=None,
        cost_usd=None,
        counted_usd=0.5,
        counted_tokens=9,
        **how,
    )
    chats.record_usage("alice", None, input_tokens=10, output_tokens=5, cost_usd=0.25, **how)
    assert chats.spent_today("alice", NOON) == Spent(0.75, 24, 1)
    assert chats.usage(by=())[0].cost_usd == 0.25


def test_nothing_is_no_row(chats: ChatStore) -> None:
    for by in ("day", "model", "user", "chat", ()):
        assert chats.usage(by=by) == []  # type: ignore[arg-type]
    assert chats.spent_today("alice", NOON) == Spent(0.0, 0, 0)


def test_what_is_not_known_is_counted_and_never_summed_as_nothing(chats: ChatStore) -> None:
    spend(chats, cost=None)
    spend(chats, tokens=None, cost=None)
    spend(chats, cost=0.0)
    (row,) = chats.usage(by="model")
    assert (row.answers, row.unknown_cost_answers, row.unknown_token_answers) == (3, 2, 1)
    assert (row.input_tokens, row.output_tokens, row.cost_usd) == (200, 100, 0.0)
    assert chats.spent_today("alice", NOON) == Spent(0.0, 300, 2)


def test_what_cannot_be_is_not_known(chats: ChatStore) -> None:
    for cost in (math.nan, math.inf, -1.0):
        spend(chats, cost=cost)
    for tokens in (-4, 10**30):
        spend(chats, tokens=tokens, cost=None)
    (row,) = chats.usage()
    assert (row.answers, row.unknown_cost_answers, row.unknown_token_answers) == (5, 5, 2)
    assert (row.input_tokens, row.cost_usd) == (300, 0.0)
    spend(chats, model="vllm/" + "x" * 300)
    assert {len(row.model or "") for row in chats.usage(by="model")} == {255, 18}


def test_days_are_those_of_a_time_zone(chats: ChatStore) -> None:
    for hours in (0, 13, 22, 23, 24):
        spend(chats, datetime(2026, 2, 28, tzinfo=UTC) + timedelta(hours=hours), cost=float(2**hours))
    by_day = {
        zone: [(row.day and row.day.day, row.answers) for row in chats.usage(zone=ZoneInfo(zone))]
        for zone in ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Kiritimati")
    }
    assert by_day == {
        "UTC": [(28, 4), (1, 1)],
        "Europe/Berlin": [(28, 3), (1, 2)],
        "America/New_York": [(27, 1), (28, 4)],
        "Asia/Kathmandu": [(28, 2), (1, 3)],
        "Pacific/Kiritimati": [(28, 1), (1, 4)],
    }


def test_a_day_of_summer_time_has_its_own_length(chats: ChatStore) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    # 29 March 2026 has 23 hours there: from 23:00 to 22:00 UTC.
    begin = datetime(2026, 3, 28, 23, tzinfo=UTC)
    for seconds in (-1, 0, 23 * 3600 - 1, 23 * 3600):
        spend(chats, begin + timedelta(seconds=seconds))
    days = [(row.day and row.day.day, row.answers) for row in chats.usage(zone=berlin)]
    assert days == [(28, 1), (29, 2), (30, 1)]
    assert chats.spent_today("alice", begin + timedelta(hours=12), berlin).tokens == 3 * 150
    assert chats.spent_today("alice", begin - timedelta(hours=1), berlin).tokens == 4 * 150


def test_a_budget_counts_one_persons_day(chats: ChatStore) -> None:
    spend(chats, NOON - timedelta(hours=13))
    spend(chats, NOON - timedelta(hours=12))
    spend(chats, NOON)
    spend(chats, NOON, cost=None)
    spend(chats, NOON, "bob", cost=5.0)
    spent = chats.spent_today("alice", NOON)
    assert spent == (pytest.approx(0.02), 450, 1)
    assert chats.spent_today("bob", NOON) == Spent(5.0, 150, 0)
    assert chats.spent_today("carol", NOON) == Spent(0.0, 0, 0)
    assert chats.spent_today(None, NOON).cost_usd == pytest.approx(5.02)
    assert chats.spent_today("alice", NOON, ZoneInfo("Pacific/Kiritimati")).tokens == 300


def test_rows_are_of_what_was_asked_for_the_dearest_first(chats: ChatStore) -> None:
    spend(chats, cost=0.1)
    spend(chats, user="bob", cost=0.3)
    spend(chats, NOON + timedelta(days=1), model="ollama/qwen3:8b", cost=None)
    assert [(r.user, r.answers) for r in chats.usage(by="user")] == [("bob", 1), ("alice", 2)]
    by_model = chats.usage(by="model")
    assert [(r.model, r.answers) for r in by_model] == [("openai/gpt-4o-mini", 2), ("ollama/qwen3:8b", 1)]
    both = chats.usage(by=("day", "user"))
    assert [(r.day and r.day.day, r.user) for r in both] == [(1, "bob"), (1, "alice"), (2, "alice")]
    assert [r.model for r in chats.usage("alice", by="model")] == ["openai/gpt-4o-mini", "ollama/qwen3:8b"]
    assert all((r.day, r.user, r.chat_id, r.title) == (None,) * 4 for r in by_model)


def test_a_time_range_includes_its_begin_only(chats: ChatStore) -> None:
    for hours in range(4):
        spend(chats, NOON + timedelta(hours=hours), tokens=10**hours)
    (row,) = chats.usage(since=NOON + timedelta(hours=1), until=NOON + timedelta(hours=3))
    assert row.input_tokens == 110
    assert chats.usage(until=NOON) == []
    assert chats.usage(since=NOON + timedelta(days=1)) == []


def test_what_a_deleted_chat_took_stays(chats: ChatStore) -> None:
    kept, gone = chats.create("alice", "kept"), chats.create("alice", "gone")
    spend(chats, chat_id=kept.id, cost=0.1)
    spend(chats, chat_id=kept.id, cost=0.1)
    spend(chats, chat_id=gone.id, cost=0.5)
    spend(chats, cost=0.05)
    chats.delete("alice", gone.id)
    rows = chats.usage(by="chat")
    assert [(row.chat_id, row.title, row.answers) for row in rows] == [
        (gone.id, None, 1),
        (kept.id, "kept", 2),
        (None, None, 1),
    ]
    assert chats.spent_today("alice", NOON).cost_usd == pytest.approx(0.75)


def test_a_year_of_answers_is_read_at_once(app: AppStore) -> None:
    rows = [
        {
            "id": f"{number:036d}",
            "user": f"user{number % 7}",
            "chat_id": None,
            "at": datetime(2025, 1, 1, tzinfo=UTC) + timedelta(minutes=104 * number),
            "provider": "openai",
            "model": f"openai/m{number % 5}",
            "input_tokens": 10,
            "output_tokens": 5,
            "cost_usd": None if number % 10 == 0 else 0.001,
            "counted_usd": 0.001,
            "counted_tokens": 15,
            "requests": 1,
            "seconds": 1.0,
        }
        for number in range(5_000)
    ]
    with Session(app._engine) as session, session.begin():
        session.execute(insert(StoredUsage), rows)
    asked: list[str] = []
    event.listen(app._engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    began = time.process_time()
    by_day = app.chats.usage(by=("day", "model"), zone=ZoneInfo("Europe/Berlin"))
    assert len([each for each in asked if "ftlab_usage" in each]) == 1
    assert time.process_time() - began < 5
    assert sum(row.answers for row in by_day) == 5_000
    assert sum(row.unknown_cost_answers for row in by_day) == 500
    assert len({row.day for row in by_day}) == 362
