"""Sign-in with OpenID Connect: a real provider on a loopback port, the dashboard, a real browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dashboard_process import Dashboard
from mlflow import MlflowClient
from oidc_provider import Provider
from playwright.sync_api import Page, expect

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.messages import Status
from ftlab_mlflow.control.surface import Surface
from ftlab_mlflow.control.wire import utc_now

Open = Callable[..., Page]
REDIRECT = "http://127.0.0.1:{port}"  # Streamlit fills it in


@pytest.fixture
def new_provider() -> Iterator[Callable[..., Provider]]:
    """``new_provider(**claims)`` starts one; all end with the test."""
    made: list[Provider] = []

    def make(**claims: object) -> Provider:
        made.append(Provider(**claims))
        return made[-1]

    yield make
    for provider in made:
        provider.close()


def write_secrets(folder: Path, text: str) -> None:
    (folder / ".streamlit").mkdir(exist_ok=True)
    (folder / ".streamlit" / "secrets.toml").write_text(text)


def new_run(uri: str) -> str:
    """A run that listens."""
    status = Status(
        "running",
        130,
        1000,
        epoch=0.4,
        at=utc_now(),
        every_s=600,
        session="s1",
        host="h",
        pid=1,
        method="sft",
    )
    listening = {tags.SURFACE: Surface({}, ("pause",)).encode(), tags.STATUS: status.encode()}
    run_id: str = MlflowClient(uri).create_run("0", tags=listening, run_name="secret run").info.run_id
    return run_id


def sign_in(page: Page, email: str, button: str = "Sign in") -> None:
    page.get_by_role("button", name=button).click()
    page.get_by_label("E-mail").fill(email)
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()


def test_nobody_sees_a_page_before_they_have_signed_in_and_then_they_ask_in_their_name(
    tracking_uri: str,
    tmp_path: Path,
    new_dashboard: Callable[..., Dashboard],
    new_provider: Callable,
    open_page: Open,
) -> None:
    provider, run_id = new_provider(email_verified=True), new_run(tracking_uri)
    write_secrets(tmp_path, provider.secrets_toml(REDIRECT))
    dashboard = new_dashboard(tracking_uri, tmp_path)
    for path in (f"/run?id={run_id}", "/settings"):  # the first visit of all asks for a page, not for /
        page = open_page(dashboard.url + path)
        expect(page.get_by_role("button", name="Sign in")).to_be_visible()
        assert page.get_by_role("navigation").count() == 0
        assert page.get_by_role("button", name="Sign in").count() == 1
        shown = page.locator("[data-testid=stApp]").inner_text()
        assert "secret run" not in shown
        assert "Who I am" not in shown

    sign_in(page, "alice@example.org")
    page.goto(f"{dashboard.url}/run?id={run_id}")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("alice@example.org").first).to_be_attached()
    (entry,) = Ledger.read(MlflowClient(tracking_uri).get_run(run_id).data.tags).entries
    assert entry.update is not None
    assert (entry.update.by, entry.update.command) == ("alice@example.org", "pause")
    assert [claims["email"] for claims in provider.granted] == ["alice@example.org"]


def test_an_address_that_is_not_verified_is_not_a_name(
    tracking_uri: str,
    tmp_path: Path,
    new_dashboard: Callable[..., Dashboard],
    new_provider: Callable,
    open_page: Open,
) -> None:
    provider = new_provider(email_verified=False)
    write_secrets(tmp_path, provider.secrets_toml(REDIRECT, section="auth.example"))
    page = open_page(new_dashboard(tracking_uri, tmp_path).url)
    sign_in(page, "boss@example.org", "Sign in with Example")
    page.get_by_role("link", name="Settings").click()
    expect(page.get_by_role("textbox", name="Who I am")).to_have_value("user-boss@example.org")


def test_secrets_that_break_while_it_runs_close_the_door(
    tracking_uri: str,
    tmp_path: Path,
    new_dashboard: Callable[..., Dashboard],
    new_provider: Callable,
    open_page: Open,
    problems: list[str],
) -> None:
    write_secrets(tmp_path, new_provider().secrets_toml(REDIRECT))
    new_run(tracking_uri)
    dashboard = new_dashboard(tracking_uri, tmp_path)
    expect(open_page(dashboard.url).get_by_role("button", name="Sign in")).to_be_visible()
    write_secrets(tmp_path, "[auth")
    page = open_page(dashboard.url)
    while page.get_by_role(
        "button", name="Sign in"
    ).count():  # until Streamlit has seen that the file changed
        page.reload()
        expect(
            page.get_by_test_id("stException").or_(page.get_by_role("button", name="Sign in"))
        ).to_be_visible()
    expect(page.get_by_test_id("stException")).to_be_visible()
    assert "secret run" not in page.locator("[data-testid=stApp]").inner_text()
    problems.clear()
