"""Fixtures of the tests in a browser: Debian's Chromium, pages that note what goes wrong, the dashboard."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dashboard_process import Dashboard
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

Require = Callable[[str, bool, str], None]
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
expect.set_options(timeout=30_000)


@pytest.fixture(
    scope="module"
)  # Playwright keeps an event loop in this thread: it must not outlive its tests
def browser(require: Require) -> Iterator[Browser]:
    """A headless Chromium."""
    path = shutil.which("chromium")
    require("browser", path is not None, "there is no chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def problems() -> list[str]:
    """Errors on the console and in scripts of all pages of a test. Who causes some clears the list."""
    return []


@pytest.fixture
def open_page(browser: Browser, problems: list[str]) -> Iterator[Callable[..., Page]]:
    """``open_page(url, **context)`` opens a page in a browser profile of its own.

    The keywords are those of ``Browser.new_context``, such as ``viewport`` and ``color_scheme``. At the end
    of the test `problems` must be empty.
    """
    contexts = []

    def note(message: ConsoleMessage) -> None:
        url = str(message.location.get("url", ""))
        # Streamlit's page looks for the server's base path by trial: /run/_stcore/… is a 404 first.
        if message.type == "error" and not (" 404 " in message.text and "/_stcore/" in url):
            problems.append(f"{message.text} ({url})")

    def make(url: str, **context: Any) -> Page:
        settings = {"viewport": {"width": 1280, "height": 900}, "locale": "en-GB", **context}
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.on("console", note)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        return page

    yield make
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def new_dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Dashboard]]:
    """``new_dashboard(tracking_uri, folder=None, **environment)`` starts one; all are killed at the end.

    A second one over the same folder finds what the first has kept.
    """
    made: list[Dashboard] = []

    def make(tracking_uri: str, folder: Path | None = None, **environment: str) -> Dashboard:
        dashboard = Dashboard(tracking_uri, folder or tmp_path_factory.mktemp("dashboard"), **environment)
        made.append(dashboard)
        dashboard.start()
        return dashboard

    yield make
    for dashboard in made:
        dashboard.kill()
