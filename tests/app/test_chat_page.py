"""The page of the chat: asking with and without a model, what is kept, who sees it, models and errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from app_pages import APP, LIMIT_S, Runs, figures
from chat_page import ChatPage, address, as_a_new_process, kept
from model_servers import Answer, AnthropicServer, Call, OpenAIServer, Reply, Tokens
from streamlit.testing.v1 import AppTest

from ftlab_mlflow.app_store import AppStore, Preferences
from ftlab_mlflow.control.client import user_name

_SERVERS = ("OPENAI", "ANTHROPIC", "XAI", "LOCAL")
RANK = Call("rank_runs", {"experiment": "Default", "metric": "eval_loss"})
KEY = "sk-test-0123456789abcdefGHIJ"


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for name in _SERVERS:
        monkeypatch.delenv(f"{name}_API_KEY", raising=False)
        monkeypatch.delenv(f"{name}_BASE_URL", raising=False)
    monkeypatch.delenv("ANALYTICS_DEFAULT_MODEL", raising=False)
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("FTLAB_MODELS", f"{tmp_path}/models.toml")
    monkeypatch.setenv("FTLAB_TRACE", "0")


@pytest.fixture
def replies() -> list[Answer]:
    """What the model says next: it ranks the runs and says which is best, unless a test replaces it."""
    return [
        Reply("I look.", calls=[RANK]),
        Reply("`low` has 0.31, half of 0.77.", usage=Tokens(900, 40, 800)),
    ]


@pytest.fixture
def server(replies: list[Answer], monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    """A model that can be used."""
    with OpenAIServer(lambda _: replies.pop(0)) as made:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", made.base_url)
        yield made


def two(runs: Runs) -> tuple[str, str]:
    """Two runs that can be ranked."""
    low = runs.plain("low", metrics={"eval_loss": [0.9, 0.5, 0.31]}, params={"lr": "1e-4"})
    return low, runs.plain("high", metrics={"eval_loss": [1.0, 0.8, 0.64]}, params={"lr": "1e-3"})


# --- without a model ---------------------------------------------------------------------------------


def test_without_a_model_commands_work_and_the_page_says_how_to_get_one(runs: Runs) -> None:
    two(runs)
    page = ChatPage()
    assert "No model can be used yet" in page.said
    assert "openai needs a key: set OPENAI_API_KEY" in page.said
    assert "/rank METRIC" in page.said
    page.ask("/rank eval_loss experiment=Default")
    assert "Best runs of experiment Default" in page.html
    assert "without a model" in page.said
    assert page.kept().messages[0].text == "/rank eval_loss experiment=Default"
    page.ask("/plot eval_loss low high")
    (chart,) = figures(page.app).values()
    assert [trace["name"] for trace in chart["data"]] == ["low", "high"]
    assert [trace["y"] for trace in chart["data"]] == [[0.9, 0.5, 0.31], [1.0, 0.8, 0.64]]


def test_a_question_without_a_model_is_kept_with_what_to_do(runs: Runs) -> None:
    page = ChatPage().ask("Which run is best?")
    assert "There is no answer." in page.said
    assert "set OPENAI_API_KEY" in page.said
    as_a_new_process()
    again = ChatPage(chat=page.chat_id)
    assert "set OPENAI_API_KEY" in again.said
    again.click("retry").until_answered()
    assert [message.role for message in again.kept().messages] == ["user", "assistant"] * 2


def test_an_example_is_asked_by_a_click(runs: Runs) -> None:
    page = ChatPage().click("example /changes").until_answered()
    assert page.kept().messages[0].text == "/changes latest"


def test_a_wrong_command_is_explained(runs: Runs) -> None:
    page = ChatPage().ask("/rnak eval_loss")
    assert "no command" in page.said
    assert "/help lists them all" in page.said


# --- with a model ------------------------------------------------------------------------------------


def test_an_answer_shows_its_tools_its_price_and_what_is_not_verified(
    runs: Runs, server: OpenAIServer
) -> None:
    low, _ = two(runs)
    page = ChatPage().ask("Which run is best?")
    (tool,) = page.app.get("status")
    assert "rank_runs** experiment=Default, metric=eval_loss · " in page.said
    assert tool.state == "complete"
    assert f'<a class="ftlab-run" href="run?id={low}">low</a>' in page.html
    assert '0.77</span> <span class="ftlab-unverified"' in page.html
    assert "Unverified: 0" in page.said
    assert "openai/gpt-4o-mini · 1,000 (800 cached) + 60 tokens · $0.000" in page.said
    assert page.kept().title == "Which run is best?"
    assert [message.role for message in page.kept().messages] == ["user", "assistant"]
    assert len(server.requests) == 2


def test_what_the_chat_is_about_is_kept_and_told_to_the_model(runs: Runs, server: OpenAIServer) -> None:
    low, high = two(runs)
    page = ChatPage()
    page.app.multiselect(key="about runs new").set_value([low])
    page.app.selectbox(key="about experiment new").set_value("Default")
    page.app.text_input(key="about goal new").set_value("the lowest loss").run()
    page.ask("Which run is best?")
    told = server.requests[0].json["messages"][1]["content"]
    assert low in told
    assert high not in told
    assert "the lowest loss" in told
    assert dict(page.kept().data) == {"runs": [low], "experiment": "Default", "goal": "the lowest loss"}

    page.app.multiselect(key=f"about runs {page.chat_id}").set_value([low, high]).run()
    assert page.kept().data["runs"] == [low, high]
    assert ChatPage().app.multiselect(key="about runs new").value == [], "the next chat is about nothing yet"


def test_a_model_is_chosen_for_a_person_and_marked_where_it_cannot_answer(
    runs: Runs, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ChatPage()
    select = page.app.selectbox(key="chat model")
    assert "openai · gpt-4o-mini · $ · 128k context" in select.options
    assert any(label.startswith("anthropic") and label.endswith("no key") for label in select.options)
    assert "$0.15 in" in page.said
    assert "next question about $0.0" in page.said
    select.set_value("anthropic/claude-sonnet-5").run()
    assert "anthropic needs a key: set ANTHROPIC_API_KEY" in page.said
    page.ask("Which run is best?")
    assert "There is no answer." in page.said
    assert server.requests == []

    script = [Reply("I say nothing of numbers.")]
    with AnthropicServer(script) as other:
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", other.base_url)
        as_a_new_process()
        again = ChatPage()
        assert again.app.selectbox(key="chat model").value == "anthropic/claude-sonnet-5"
        again.ask("Which run is best?")
        assert "I say nothing of numbers." in again.html
        assert other.requests[0].json["model"] == "claude-sonnet-5"


def test_temperature_and_tokens_are_kept_and_sent(runs: Runs, server: OpenAIServer) -> None:
    two(runs)
    page = ChatPage()
    page.app.number_input(key="chat temperature").set_value(0.5).run()
    page.app.number_input(key="chat tokens").set_value(1024).run()
    page.ask("Which run is best?")
    sent = server.requests[0].json
    assert sent["temperature"] == 0.5
    assert 1024 in (sent.get("max_tokens"), sent.get("max_completion_tokens"))
    store = AppStore()
    assert store.preferences(user_name()).chat_max_tokens == 1024
    store.close()


def test_a_price_that_is_not_known_is_no_zero(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    with OpenAIServer([Reply("Fine.")], models=["tiny"]) as local:
        monkeypatch.setenv("LOCAL_BASE_URL", local.base_url)
        store = AppStore()
        store.save(user_name(), Preferences(chat_model="local/tiny"))
        store.close()
        page = ChatPage()
        assert "local · tiny · price unknown" in page.app.selectbox(key="chat model").options
        page.ask("How are you?")
    assert "cost unknown" in page.said
    assert "$0" not in page.said


def test_an_error_is_said_in_words_without_the_key_and_can_be_tried_again(
    runs: Runs, server: OpenAIServer
) -> None:
    two(runs)
    page = ChatPage()
    server.key = "another"
    page.ask("Which run is best?")
    assert "openai did not accept the key (401)" in page.said
    assert KEY not in page.said
    server.key = None
    page.click("retry").until_answered()
    assert "0.31" in page.html
    answered = server.requests[-1].json["messages"]
    assert sum(message["role"] == "user" for message in answered) == 1, "what failed is not told again"


# --- an answer in the making -------------------------------------------------------------------------


def test_an_answer_is_found_again_after_a_reload_and_only_one_is_made(
    runs: Runs, server: OpenAIServer, replies: list[Answer]
) -> None:
    hold = threading.Event()
    replies[:] = [Reply("One two three four", hold=hold, hold_at=3)]
    page = ChatPage().ask("/calc 6*7")
    other = ChatPage(chat=page.chat_id)
    page.say("Count.")
    while "One" not in page.html:
        page.look()
    assert "four" not in page.html
    assert page.is_busy
    reloaded = ChatPage(chat=page.chat_id)
    assert "One" in reloaded.html
    assert reloaded.is_busy
    other.say("Another one.")
    assert "this chat is answering another question" in other.said
    assert len(server.requests) == 1
    hold.set()
    for each in (reloaded, other, page):
        assert "One two three four" in each.until_answered().html
    assert len(page.kept().messages) == 4


def test_stop_keeps_what_there_is(runs: Runs, server: OpenAIServer, replies: list[Answer]) -> None:
    replies[:] = [Reply("One two three four", hold=threading.Event(), hold_at=3)]
    page = ChatPage().say("Count.")
    while "One" not in page.html:
        page.look()
    page.click("stop").until_answered()
    assert "One" in page.html
    assert "Stopped" in page.html
    assert page.kept().messages[1].data["stopped"] == "user"


def test_a_question_whose_answer_died_with_its_process_can_be_asked_again(
    runs: Runs, server: OpenAIServer
) -> None:
    two(runs)
    store = AppStore()
    chat = store.chats.create(user_name(), "lost")
    store.chats.add_message(chat, "user", "Which run is best?")
    store.close()
    page = ChatPage(chat=chat.id)
    assert "another program may be at it just now, or has ended" in page.said
    page.click("retry").until_answered()
    assert "0.31" in page.html


# --- sessions ----------------------------------------------------------------------------------------


def test_chats_are_searched_renamed_exported_and_deleted(runs: Runs) -> None:
    page = ChatPage().ask("/calc 6*7")
    first = page.chat_id
    page.click("new chat").ask("/calc 2+3")
    assert page.chat_id != first
    page.app.text_input(key="chats search").set_value("6*7").run()
    assert [button.key for button in page.buttons("open ")] == [f"open {first}"]
    page.click(f"open {first}")
    assert page.chat_id == first
    (title,) = [field for field in page.app.text_input if field.label == "Title"]
    title.set_value("  sums *bold*  ").run()
    page.click("rename")
    assert page.kept().title == "sums *bold*"

    page.click("delete")
    assert "Delete it and all that was said in it?" in page.said
    page.click("delete no")
    assert page.kept()
    page.click("delete").click("delete yes")
    assert "chat" not in page.app.query_params
    assert "There is no such chat" in ChatPage(chat=first).said


def test_everybody_sees_their_own_chats_only(runs: Runs) -> None:
    mine = ChatPage().ask("/calc 6*7").chat_id
    app = AppTest.from_file(APP, default_timeout=LIMIT_S)
    app.secrets["auth"] = {"client_id": "x"}
    app.user = {"email": "ann@example.org", "is_logged_in": True}
    app.run()
    app.switch_page("views/chat.py")
    app.query_params = {"chat": mine}
    app.run()
    assert not app.exception
    assert "There is no such chat, or it was deleted." in [each.value for each in app.warning]
    assert not [button for button in app.button if (button.key or "").startswith("open ")]
    app.chat_input[0].set_value("/calc 1+1").run()
    assert kept(address(app), "ann@example.org").messages[0].text == "/calc 1+1"
