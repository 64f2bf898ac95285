"""A page is changed while the old one still asks for a refresh: it used to break Streamlit's front end."""

from __future__ import annotations

import re
from collections.abc import Callable

from dashboard_process import Dashboard
from mlflow import MlflowClient
from playwright.sync_api import Page, WebSocketRoute, expect
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

Frame = str | bytes


class LateRefresh:
    """Stands between page and server, and sends the server one more refresh of the old page, too late.

    That is: while the server makes the new page, and before the browser can have heard of it.

    Args:
        moment: The message of the server that it is sent at: the first of the new page of this kind.
    """

    def __init__(self, page: Page, moment: str) -> None:
        self._moment = moment
        self._is_new = False
        self._refresh: bytes | None = None
        self._page_hash = ""
        self.is_armed = False
        self.was_sent = False
        page.route_web_socket(re.compile("/_stcore/stream"), self._connect)

    @property
    def is_ready(self) -> bool:
        """Whether the page has refreshed itself: there is something to send once more."""
        return self._refresh is not None

    def _connect(self, socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()

        def from_page(frame: Frame) -> None:
            message = BackMsg.FromString(frame)  # type: ignore[arg-type]
            if not self.is_armed and message.rerun_script.is_auto_rerun:
                self._refresh = bytes(frame)  # type: ignore[arg-type]
                self._page_hash = message.rerun_script.page_script_hash
            server.send(frame)

        def from_server(frame: Frame) -> None:
            message = ForwardMsg.FromString(frame)  # type: ignore[arg-type]
            of_page = message.new_session.page_script_hash
            self._is_new = self._is_new or of_page not in ("", self._page_hash)
            kind = message.WhichOneof("type")
            if self.is_armed and self._is_new and not self.was_sent and kind == self._moment:
                assert self._refresh is not None
                server.send(self._refresh)
                self.was_sent = True
            socket.send(frame)

        socket.on_message(from_page)
        server.on_message(from_server)


def made(uri: str) -> str:
    """A run that goes on, so its pages refresh themselves."""
    client = MlflowClient(uri)
    run_id: str = client.create_run("0", run_name="first").info.run_id
    for step in range(5):
        client.log_metric(run_id, "loss", 1 / (step + 1), step=step)
    return run_id


def arm(page: Page, late: LateRefresh) -> None:
    """Waits until the page has refreshed itself, and is ready to change it."""
    while not late.is_ready:
        page.wait_for_timeout(50)
    late.is_armed = True


def test_from_a_part_that_refreshes_itself(
    tracking_uri: str, new_dashboard: Callable[..., Dashboard], open_page: Callable[..., Page]
) -> None:
    run_id = made(tracking_uri)
    page = open_page("about:blank")
    late = LateRefresh(page, "new_session")
    page.goto(new_dashboard(tracking_uri).url)
    expect(page.get_by_text("1 run, 1 going on")).to_be_visible()
    arm(page, late)
    page.get_by_test_id("stDataFrame").click(position={"x": 60, "y": 52})
    expect(page).to_have_url(re.compile(f"/run\\?id={run_id}"))
    chart = page.get_by_role("img", name="Loss", exact=True)
    expect(chart).to_be_visible()
    MlflowClient(tracking_uri).log_metric(run_id, "loss", 0.01, step=5)
    page.wait_for_function("document.querySelector('.ftlab-plot')?.data?.[0].x.length == 6")
    assert late.was_sent


def test_by_a_link(
    tracking_uri: str, new_dashboard: Callable[..., Dashboard], open_page: Callable[..., Page]
) -> None:
    run_id = made(tracking_uri)
    page = open_page("about:blank")
    late = LateRefresh(page, "delta")
    page.goto(f"{new_dashboard(tracking_uri).url}/run?id={run_id}")
    expect(page.get_by_role("heading", name="first")).to_be_visible()
    arm(page, late)
    page.get_by_role("link", name="Runs").click()
    expect(page.get_by_text("1 run, 1 going on")).to_be_visible()
    made(tracking_uri)
    expect(page.get_by_text("2 runs, 2 going on")).to_be_visible()
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()
    assert late.was_sent
