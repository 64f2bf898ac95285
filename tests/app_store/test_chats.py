"""`ChatStore`: chats and messages as they are kept, found, changed and deleted; on both databases."""

from __future__ import annotations

import json
import math
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from alembic import command
from sqlalchemy import create_engine, text

from ftlab_mlflow.app_store import AppStore, Preferences, migrate
from ftlab_mlflow.app_store.chats import Chat, ChatStore
from ftlab_mlflow.errors import AppStoreError, ChatError, ChatNotFound

ABOUT = {
    "tracking_uri": "http://h:5000",
    "runs": ["a1", "b2"],
    "experiment": None,
    "goal": "fewer refusals — ohne Längenverlust",
    "model": "openai/gpt-4o-mini",
}


def raw(url: str, statement: str, **values: object) -> list[tuple[Any, ...]]:
    """Runs one statement past our code."""
    engine = create_engine(url)
    with engine.begin() as connection:
        result = connection.execute(text(statement), values)
        rows = [tuple(row) for row in result] if result.returns_rows else []
    engine.dispose()
    return rows


def titles(found: Any) -> list[str]:
    return [chat.title for chat in found]


def together(*calls: Any) -> list[Exception]:
    """Runs all at once, each in a thread; what they raised."""
    start, failed = threading.Barrier(len(calls)), []

    def run(call: Any) -> None:
        start.wait(10)
        try:
            call()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return failed


# --- what is kept ------------------------------------------------------------------------------------


def test_a_chat_and_its_messages_outlive_the_process(url: str) -> None:
    store = AppStore(url)
    before = datetime.now(UTC)
    chat = store.chats.create("alice", "Which run is best?", ABOUT)
    store.chats.add_message(chat, "user", "Which run is best?")
    answer = {"text": "Run **b2**", "rounds": [{"runs": [{"name": "rank_runs", "result": {"value": 0.5}}]}]}
    store.chats.add_message(chat, "assistant", "Run **b2**", answer)
    store.close()
    again = AppStore(url)
    found = again.chats.get("alice", chat.id)
    again.close()
    assert (found.id, found.user, found.title, found.data) == (chat.id, "alice", "Which run is best?", ABOUT)
    assert found.length == 2
    assert [(m.position, m.role, m.text, m.data) for m in found.messages] == [
        (0, "user", "Which run is best?", {}),
        (1, "assistant", "Run **b2**", answer),
    ]
    times = [before, found.created, *(m.created for m in found.messages), datetime.now(UTC)]
    assert times == sorted(times)
    assert found.updated == found.messages[-1].created
    assert found.created.tzinfo is not None


def test_what_a_database_refuses_is_kept_as_near_as_it_can_be(chats: ChatStore) -> None:
    data = {
        "values": [math.nan, math.inf, -math.inf, 1e308, 2**70, True, None],
        "pair": ("a\0b", "\ud800"),
        "k\0": {"at": datetime(2026, 1, 2, 3, tzinfo=UTC)},
        "ünï": "🎉 \\u0000",
    }
    chat = chats.create("zoë", "NUL\0 and \ud800\n in a title", data)
    message = chats.add_message(chat, "assistant", "a\0b \ud83d \x1b[31m", data)
    found = chats.get("zoë", chat.id)
    assert found.title == "NUL␀ and ? in a title"
    assert found.messages == (message,)
    assert found.messages[0].text == "a␀b ? \x1b[31m"
    assert found.data == found.messages[0].data
    assert found.data == {
        "values": ["NaN", "Infinity", "-Infinity", 1e308, 2**70, True, None],
        "pair": ["a␀b", "?"],
        "k␀": {"at": "2026-01-02T03:00:00.000Z"},
        "ünï": "🎉 \\u0000",
    }
    json.dumps(found.data, allow_nan=False)


def test_what_is_nested_without_end_is_cut(chats: ChatStore) -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"d": deep}
    chat = chats.create("alice", data=deep)
    assert "an object" in json.dumps(chats.get("alice", chat.id).data)


def test_a_title_is_one_line_that_fits(chats: ChatStore) -> None:
    assert chats.create("alice", " \n").title == ""
    long = chats.create("alice", "  why \n" + "x" * 300)
    assert long.title == "why " + "x" * 195 + "…"
    assert len(long.title) == 200
    assert chats.rename("alice", long.id, " which?\t\x1b[0m ").title == "which? [0m"
    assert chats.get("alice", long.id).title == "which? [0m"


def test_some_of_its_data_changes_and_the_rest_stays(chats: ChatStore) -> None:
    chat = chats.create("alice", "t", ABOUT)
    chats.add_message(chat, "user", "hello")
    changed = chats.update("alice", chat.id, {"model": "ollama/qwen3:8b", "runs": []})
    assert changed.data == {**ABOUT, "model": "ollama/qwen3:8b", "runs": []}
    assert changed.length == 1
    found = chats.get("alice", chat.id)
    assert (found.data, found.title) == (changed.data, "t")
    assert found.updated == changed.updated > chat.updated


# --- whose it is -------------------------------------------------------------------------------------


def test_nobody_sees_or_changes_what_is_another_persons(chats: ChatStore) -> None:
    chat = chats.create("alice", "secret")
    message = chats.add_message(chat, "user", "secret")
    stolen = Chat(chat.id, "bob", chat.title, chat.created, chat.updated, {})
    for attempt in (
        lambda: chats.get("bob", chat.id),
        lambda: chats.rename("bob", chat.id, "mine"),
        lambda: chats.update("bob", chat.id, {"goal": "mine"}),
        lambda: chats.delete("bob", chat.id),
        lambda: chats.add_message(stolen, "user", "mine"),
    ):
        with pytest.raises(ChatNotFound, match=r"no chat .* of bob"):
            attempt()
    assert chats.list("bob") == []
    found = chats.get("alice", chat.id)
    assert (found.title, found.data, found.messages) == ("secret", {}, (message,))


def test_a_chat_goes_by_the_beginning_of_its_id(chats: ChatStore) -> None:
    first, second = chats.create("alice", "1"), chats.create("alice", "2")
    chats.create("bob", "3")
    shared = next(i for i in range(36) if first.id[i] != second.id[i])
    assert chats.get("alice", f" {first.id[: shared + 1].upper()} ").title == "1"
    assert chats.rename("alice", second.id[: shared + 1], "zwei").title == "zwei"
    with pytest.raises(ChatNotFound, match=f"several chats: {first.id}, {second.id}$"):
        chats.get("alice", first.id[:8])
    for unknown in ("", "  ", "%", "_" * 36, first.id[:-1] + "x", "a\0", "'"):
        with pytest.raises(ChatError, match="there is no chat"):
            chats.get("alice", unknown)


def test_a_deleted_chat_is_gone_with_its_messages_and_nothing_else(url: str, app: AppStore) -> None:
    chats = app.chats
    gone, kept = chats.create("alice", "gone"), chats.create("alice", "kept")
    for chat in (gone, kept):
        chats.add_message(chat, "user", "hello")
    chats.delete("alice", gone.id)
    assert titles(chats.list("alice")) == ["kept"]
    assert raw(url, "SELECT chat_id FROM ftlab_chat_messages") == [(kept.id,)]
    for attempt in (
        lambda: chats.get("alice", gone.id),
        lambda: chats.delete("alice", gone.id),
        lambda: chats.add_message(gone, "user", "late"),
    ):
        with pytest.raises(ChatNotFound):
            attempt()
    assert raw(url, "SELECT count(*) FROM ftlab_chat_messages") == [(1,)]


# --- what is found -----------------------------------------------------------------------------------


def test_the_chat_used_last_comes_first_and_pages_do_not_overlap(chats: ChatStore) -> None:
    made = [chats.create("alice", str(number)) for number in range(5)]
    chats.create("bob", "other")
    chats.add_message(made[1], "user", "again")
    assert titles(chats.list("alice")) == ["1", "4", "3", "2", "0"]
    assert [chat.length for chat in chats.list("alice", limit=2)] == [1, 0]
    assert titles(chats.list("alice", limit=2, offset=2)) == ["3", "2"]
    assert titles(chats.list("alice", limit=2, offset=4)) == ["0"]
    assert chats.list("alice")[0].messages == ()


def test_a_search_looks_into_titles_and_messages_in_upper_and_lower_case(chats: ChatStore) -> None:
    loss = chats.create("alice", "Warum steigt der LOSS?")
    rank = chats.create("alice", "Rank")
    chats.add_message(rank, "user", "100% of the runs: run_7 \\ ÄRGER")
    chats.add_message(rank, "assistant", "all 1000 runs, run17")
    chats.add_message(chats.create("bob", "loss"), "user", "loss 100%")
    assert titles(chats.list("alice", " loss ")) == [loss.title]
    assert titles(chats.list("alice", "RUN17")) == ["Rank"]
    assert titles(chats.list("alice", "r")) == ["Rank", loss.title]
    assert titles(chats.list("alice", "ärger")) == ["Rank"]
    assert titles(chats.list("alice", "  ")) == ["Rank", loss.title]
    # What has a meaning in LIKE stands for itself.
    for found in ("100%", "run_7", "\\", "7 \\ ä"):
        assert titles(chats.list("alice", found)) == ["Rank"], found
    for other in ("100%o", "_", "run%", "a_l", "x\0", "'; DROP TABLE ftlab_chats; --"):
        expected = ["Rank"] if other == "_" else []
        assert titles(chats.list("alice", other)) == expected, other


# --- several at once ---------------------------------------------------------------------------------


def test_two_that_write_to_one_chat_at_once_lose_nothing(url: str) -> None:
    stores = [AppStore(url), AppStore(url)]
    chat = stores[0].chats.create("alice", "shared", {"n": 0})

    def write(store: AppStore, name: str) -> None:
        for number in range(10):
            store.chats.add_message(chat, "user", f"{name}{number}")
            store.chats.update("alice", chat.id, {f"{name}{number}": number})

    failed = together(lambda: write(stores[0], "a"), lambda: write(stores[1], "b"))
    found = stores[0].chats.get("alice", chat.id)
    for store in stores:
        store.close()
    assert failed == []
    assert [message.position for message in found.messages] == list(range(20))
    for name in "ab":
        said = [message.text for message in found.messages if message.text.startswith(name)]
        assert said == [f"{name}{number}" for number in range(10)]
    assert len(found.data) == 21


def test_who_writes_while_it_is_deleted_is_told_so_or_was_first(url: str) -> None:
    stores = [AppStore(url), AppStore(url)]
    for _ in range(5):
        chat = stores[0].chats.create("alice", "short")
        failed = together(
            lambda chat=chat: stores[0].chats.add_message(chat, "user", "late"),
            lambda chat=chat: stores[1].chats.delete("alice", chat.id),
        )
        assert all(isinstance(error, ChatNotFound) for error in failed)
    for store in stores:
        store.close()
    assert raw(url, "SELECT count(*) FROM ftlab_chat_messages") == [(0,)]


# --- older and broken databases ----------------------------------------------------------------------


def test_a_database_of_the_first_version_keeps_what_is_in_it(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        config = migrate._config()
        config.attributes[migrate.CONNECTION] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text("INSERT INTO ftlab_preferences (user_name, data, updated) VALUES (:user, :data, :at)"),
            {"user": "alice", "data": '{"axis": "epoch", "later": 1}', "at": "2026-01-02 03:04:05+00:00"},
        )
    engine.dispose()
    store = AppStore(url)
    assert store.preferences("alice") == Preferences(axis="epoch")
    chat = store.chats.create("alice", "first")
    store.chats.add_message(chat, "user", "hello")
    store.chats.record_usage(
        "alice", chat.id, provider="p", model="m", input_tokens=1, output_tokens=1, cost_usd=0.0
    )
    assert store.chats.get("alice", chat.id).length == 1
    store.close()
    assert raw(url, f"SELECT version_num FROM {migrate.VERSION_TABLE}") == [("0002",)]


def test_a_database_that_cannot_be_read_is_said(url: str, app: AppStore) -> None:
    chat = app.chats.create("alice", "t")
    raw(url, "DROP TABLE ftlab_chat_messages")
    for attempt in (
        lambda: app.chats.get("alice", chat.id),
        lambda: app.chats.list("alice"),
        lambda: app.chats.add_message(chat, "user", "hello"),
        lambda: app.chats.delete("alice", chat.id),
    ):
        with pytest.raises(AppStoreError, match=r"the app database .* failed: .*ftlab_chat_messages"):
            attempt()


def test_many_chats_are_listed_by_one_question(chats: ChatStore, app: AppStore) -> None:
    from sqlalchemy import event

    for number in range(30):
        chats.create("alice", f"chat {number}")
    asked: list[str] = []
    event.listen(app._engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    assert len(chats.list("alice", "chat", limit=20)) == 20
    assert len([each for each in asked if each.startswith("SELECT ftlab_chats")]) == 1
    before = len(asked)
    assert len(chats.get("alice", chats.list("alice")[0].id).messages) == 0
    assert len(asked) - before <= 4


def test_times_are_utc_wherever_they_were_made(chats: ChatStore) -> None:
    at = datetime(2026, 3, 1, 23, 30, tzinfo=UTC)
    elsewhere = at.astimezone(tz=None) + timedelta(hours=0)
    chats.record_usage(
        "alice", None, provider="p", model="m", input_tokens=1, output_tokens=1, cost_usd=None, at=elsewhere
    )
    assert [str(row.day) for row in chats.usage()] == ["2026-03-01"]
