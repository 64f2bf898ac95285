"""The chat in a real browser: models on loopback answer over the real SDKs, a real training is changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from chat_scene import FIRST_HALF, LIVE, Script, finished, training
from dashboard_process import Dashboard
from injections import INJECTIONS
from mlflow import MlflowClient
from model_servers import AnthropicServer, Failure, OpenAIServer
from playwright.sync_api import Locator, Page, expect

from ftlab_mlflow import LiveRun
from ftlab_mlflow.control.client import user_name

Open = Callable[..., Page]


@dataclass
class Scene:
    """What the tests share: one dashboard over one store, and the models' script."""

    url: str
    uri: str
    script: Script
    run: Callable[[], LiveRun]


@pytest.fixture(scope="module")
def scene(new_sqlite: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("chat")
    uri = new_sqlite(folder)
    finished(uri, "low-lr", [0.9, 0.6, 0.45, 0.36, 0.31])
    finished(uri, "high-lr", [1.0, 0.8, 0.7, 0.66, 0.64])
    script = Script()
    with OpenAIServer(script) as openai, AnthropicServer(script) as anthropic, training(uri, folder) as run:
        dashboard = Dashboard(
            uri,
            folder,
            OPENAI_API_KEY="sk-test-0123456789abcdefGHIJ",
            OPENAI_BASE_URL=openai.base_url,
            ANTHROPIC_API_KEY="sk-ant-test-0123456789abcdef",
            ANTHROPIC_BASE_URL=anthropic.base_url,
            OLLAMA_HOST="127.0.0.1:9",
        )
        dashboard.start()
        try:
            yield Scene(f"{dashboard.url}/chat", uri, script, run)
        finally:
            dashboard.kill()


def field(page: Page) -> Locator:
    return page.get_by_test_id("stChatInputTextArea")


def ask(page: Page, text: str) -> None:
    field(page).fill(text)
    field(page).press("Enter")


def choose(page: Page, model: str) -> None:
    """Picks a model by the begin of its label."""
    select = page.get_by_role("combobox", name="Model")
    select.fill(model)
    page.get_by_role("option").filter(has_text=model).first.click()
    expect(select).to_have_value(re.compile(re.escape(model)))


def test_a_conversation_streams_shows_its_work_and_changes_a_training(scene: Scene, open_page: Open) -> None:
    page = open_page(scene.url)
    choose(page, "openai · gpt-4.1-mini")
    ask(page, "Which run has the lowest eval loss?")
    first = page.get_by_text(FIRST_HALF.rstrip(" *"), exact=False)
    expect(first).to_be_visible()
    expect(field(page)).to_be_disabled()
    expect(page.get_by_text("has the lowest eval loss, 0.31")).to_have_count(0)
    tool = page.get_by_text("rank_runs experiment=Default")
    expect(tool).to_be_visible()
    scene.script.go_on.set()
    expect(page.get_by_text("has the lowest eval loss, 0.31")).to_be_visible()
    expect(page.get_by_role("link", name="low-lr").first).to_have_attribute("href", re.compile("run\\?id="))
    expect(page.get_by_text("openai/gpt-4.1-mini · 1,300 (1,000 cached) + 80 tokens")).to_be_visible()
    tool.click()
    expect(page.get_by_role("cell", name="0.64")).to_be_visible()

    ask(page, "plot them")
    expect(page.locator(".ftlab-plot .scatterlayer .trace")).to_have_count(2)
    scene.run()  # it listens by now, or is waited for
    ask(page, "halve the rate")
    button = page.get_by_role("button", name=f"Send to {LIVE}")
    expect(button).to_be_enabled()
    expect(page.get_by_role("img", name="Learning rate over the rest of the run")).to_be_visible()
    assert scene.run().history() == ()
    button.dblclick()
    expect(page.get_by_text(re.compile(r"applied at step \d+: learning_rate"))).to_be_visible()
    (entry,) = scene.run().history()
    assert entry.update is not None
    assert (entry.update.by, entry.update.via) == (user_name(), "chat")
    assert scene.run().surface().params["learning_rate"].asked == 5e-4

    page.reload()
    expect(page.get_by_text(re.compile(r"applied at step \d+: learning_rate"))).to_be_visible()
    expect(button).to_have_count(0)
    expect(page.get_by_text("has the lowest eval loss, 0.31")).to_be_visible()
    expect(page.get_by_role("combobox", name="Model")).to_have_value(re.compile("gpt-4.1-mini"))
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_text("has the lowest eval loss, 0.31")).to_have_count(0)
    page.get_by_label("Search the chats").fill("HALVE")
    page.get_by_test_id("stSidebar").get_by_role("button", name="Which run has the lowest").click()
    expect(page.get_by_text("has the lowest eval loss, 0.31")).to_be_visible()


def test_the_other_provider_stop_and_an_error_with_retry(scene: Scene, open_page: Open) -> None:
    page = open_page(scene.url)
    choose(page, "anthropic · claude-sonnet-5 ")
    ask(page, "endless")
    expect(page.get_by_text("Alpha beta")).to_be_visible()
    page.reload()
    expect(page.get_by_text("Alpha beta")).to_be_visible()  # it was found again, in the making
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped by you")).to_be_visible()

    scene.script.failures.append(Failure(401, "invalid x-api-key"))
    ask(page, "plot them")
    expect(page.get_by_text("There is no answer.")).to_be_visible()
    expect(page.get_by_text("ANTHROPIC_API_KEY")).to_be_visible()
    page.reload()
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_text("low-lr ends lower than high-lr.")).to_be_visible()
    expect(page.get_by_text(re.compile("anthropic/claude-sonnet-5 · [0-9,]+ "))).to_be_visible()
    expect(page.locator(".ftlab-plot .scatterlayer .trace")).to_have_count(2)


_MADE = "img, script, iframe, style, form, input, a[href*=attacker], a[href^=javascript], [onerror]"
"""What is in a message only if something was made of a name."""


def test_hostile_names_are_text(scene: Scene, open_page: Open) -> None:
    client = MlflowClient(scene.uri)
    experiment = client.create_experiment("hostile")
    for payload in INJECTIONS:
        run = client.create_run(experiment, run_name=payload.text[:250])
        client.log_metric(run.info.run_id, "eval_loss", 0.5)
        client.set_terminated(run.info.run_id)
    page = open_page(scene.url)
    ask(page, f"/rank eval_loss experiment=hostile limit={len(INJECTIONS)}")
    expect(page.locator(".ftlab-text tbody tr")).to_have_count(len(INJECTIONS))
    found = page.locator(f":is(.ftlab-text, .ftlab-typed, .st-key-chats) :is({_MADE})")
    assert found.evaluate_all("all => all.map(each => each.outerHTML)") == []
    links = page.locator(".ftlab-text a").evaluate_all("all => all.map(each => each.getAttribute('href'))")
    assert all(re.fullmatch("run\\?id=[0-9a-f]{32}", link) for link in links)
