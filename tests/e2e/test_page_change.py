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

    That is: when the server has said that it makes the new page, and before the page can have heard it.
    """

    def __init__(self, page: Page) -> None:
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
            made = ForwardMsg.FromString(frame).new_session.page_script_hash  # type: ignore[arg-type]
            if self.is_armed and not self.was_sent and made not in ("", self._page_hash):
                assert self._refresh is not None
                server.send(self._refresh)
                self.was_sent = True
            socket.send(frame)

        socket.on_message(from_page)
        server.on_message(from_server)


def test_a_refresh_that_comes_late_does_not_take_the_new_page_away(
    tracking_uri: str, new_dashboard: Callable[..., Dashboard], open_page: Callable[..., Page]
) -> None:
    client = MlflowClient(tracking_uri)
    run_id = client.create_run("0", run_name="first").info.run_id
    for step in range(5):
        client.log_metric(run_id, "loss", 1 / (step + 1), step=step)
    page = open_page("about:blank")
    late = LateRefresh(page)
    page.goto(new_dashboard(tracking_uri).url)
    expect(page.get_by_text("1 runs, 1 going on")).to_be_visible()
    while not late.is_ready:
        page.wait_for_timeout(50)
    late.is_armed = True
    page.get_by_test_id("stDataFrame").click(position={"x": 60, "y": 52})
    expect(page).to_have_url(re.compile(f"/run\\?id={run_id}"))
    chart = page.get_by_role("img", name="Loss", exact=True)
    expect(chart).to_be_visible()
    client.log_metric(run_id, "loss", 0.01, step=5)
    page.wait_for_function("document.querySelector('.ftlab-plot')?.data?.[0].x.length == 6")
    assert late.was_sent
