"""What only a browser shows of the pages of runs and settings: selected places, the address, the theme."""

from __future__ import annotations

import re
from collections.abc import Callable

from dashboard_process import Dashboard
from mlflow import MlflowClient
from playwright.sync_api import Page, expect

Open = Callable[..., Page]
_ROW = 33
"""Pixels of a row of the table, and of its head."""
_DARK = "rgb(18, 22, 28)"  # backgroundColor in streamlit_app/.streamlit/config.toml


def made(uri: str, name: str) -> str:
    """A run of another program, which goes on: so the page refreshes itself."""
    run_id: str = MlflowClient(uri).create_run("0", run_name=name).info.run_id
    return run_id


def click(page: Page, row: int, x: int) -> None:
    """Clicks on a row of the table, `x` pixels from its left."""
    page.locator("[data-testid=stDataFrame]").click(position={"x": x, "y": _ROW * (row + 1) + _ROW // 2})


def test_a_selection_is_of_runs_and_not_of_rows(
    tracking_uri: str, new_dashboard: Callable[..., Dashboard], open_page: Open
) -> None:
    first, second = made(tracking_uri, "first"), made(tracking_uri, "second")
    dashboard = new_dashboard(tracking_uri)
    page = open_page(dashboard.url)
    expect(page.get_by_text("2 runs")).to_be_visible()
    click(page, 1, 16)
    expect(page.get_by_text("1 selected")).to_be_visible()

    third = made(tracking_uri, "third")
    expect(page.get_by_text("3 runs")).to_be_visible()
    click(page, 0, 16)
    expect(page.get_by_text("2 selected")).to_be_visible()
    page.get_by_role("button", name="Compare").click()
    expect(page).to_have_url(re.compile(f"runs={first}(,|%2C){third}"))
    assert second not in page.url


def test_a_click_on_a_name_opens_the_run(
    tracking_uri: str, new_dashboard: Callable[..., Dashboard], open_page: Open
) -> None:
    made(tracking_uri, "first")
    second = made(tracking_uri, "second")
    page = open_page(new_dashboard(tracking_uri).url)
    expect(page.get_by_text("2 runs")).to_be_visible()
    click(page, 0, 70)
    expect(page).to_have_url(re.compile(f"/run\\?id={second}"))


def test_filters_go_into_the_address_and_come_from_it(
    tracking_uri: str, new_dashboard: Callable[..., Dashboard], open_page: Open
) -> None:
    made(tracking_uri, "first")
    made(tracking_uri, "second")
    page = open_page(new_dashboard(tracking_uri).url)
    page.get_by_label("Text").fill("sec")
    expect(page.get_by_text("1 of 2 runs")).to_be_visible()
    expect(page).to_have_url(re.compile("text=sec"))
    page.reload()
    expect(page.get_by_text("1 of 2 runs")).to_be_visible()
    page.get_by_role("link", name="Settings").click()
    expect(page.get_by_role("heading", name="Settings")).to_be_visible()
    page.get_by_role("link", name="Runs").click()
    expect(page.get_by_text("1 of 2 runs")).to_be_visible()


def test_a_theme_is_the_same_on_every_page_and_after_a_reload(
    tracking_uri: str, new_dashboard: Callable[..., Dashboard], open_page: Open
) -> None:
    dashboard = new_dashboard(tracking_uri)
    page = open_page(dashboard.url, color_scheme="light")
    app = page.locator(".stApp")
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()
    page.get_by_role("link", name="Settings").click()
    page.get_by_role("radio", name="Dark").click()
    page.get_by_role("button", name="Save").click()
    expect(app).to_have_css("background-color", _DARK)
    for path in ("/", "/settings", "/compare"):
        page.goto(dashboard.url + path)
        expect(app).to_have_css("background-color", _DARK)
    page.goto(dashboard.url + "/settings")
    page.get_by_role("radio", name="As the system").click()
    page.get_by_role("button", name="Save").click()
    expect(app).to_have_css("background-color", "rgb(255, 255, 255)")
