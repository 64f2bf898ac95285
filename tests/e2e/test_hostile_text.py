"""Text from a run is data: whatever it says, the browser shows it and does nothing of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dashboard_process import Dashboard
from mlflow import MlflowClient
from playwright.sync_api import Page, expect

from ftlab_mlflow import LiveRun
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.history import history_csv, history_json
from ftlab_mlflow.control.messages import Ack, Status, Update
from ftlab_mlflow.control.plan import Plan
from ftlab_mlflow.control.surface import Param, Surface
from ftlab_mlflow.control.wire import new_id, utc_now

EVIL = (
    "<script>ran=1</script><img src=x onerror='ran=1'> <b>bold</b> **strong** _slanted_ `code` ~~gone~~ "
    "[link](https://example.com) <https://example.com> https://example.com www.example.com me@example.com "
    ":red[red] :material/delete: :smile: $x^2$ $$y$$ # head &lt; %{x} \\*"
)
"""All that HTML, Markdown, Streamlit's own marks, LaTeX and Plotly's templates would make something of."""


def hostile(uri: str) -> str:
    """A live run all of whose texts are that one."""
    client, now = MlflowClient(uri), utc_now()
    experiment = client.create_experiment("www.example.com :red[red] **strong** $x$ <b>bold</b>")
    surface = Surface(
        params={
            "learning_rate": Param("float", 1e-3, 1e-3, 0, 1, help=EVIL, plan=Plan((0, 100), (1e-3, 0.0))),
            EVIL: Param("float", 0.0, 0.0, help=EVIL),
            "lr_schedule": Param("enum", "keep", "keep", choices=("keep", "hold", EVIL), help=EVIL),
            "flag *": Param("bool", True, True, help=EVIL),
        },
        commands=("pause", "stop", "cancel", EVIL),
        unsupported={EVIL: EVIL},
    )
    status = Status("running", 50, 100, 0.5, now, 3600.0, "s1", EVIL, 7, EVIL, error=EVIL)
    applied, rejected, pending = new_id(), new_id(), new_id()

    def update(**fields: object) -> str:
        return Update(at=now, by=EVIL, via=EVIL, reason=EVIL, **fields).encode()  # type: ignore[arg-type]

    run_tags = {
        tags.SURFACE: surface.encode(),
        tags.STATUS: status.encode(),
        tags.UPDATE_PREFIX + applied: update(set={EVIL: EVIL}),
        tags.ACK_PREFIX + applied: Ack("applied", 20, now, "s1", changes={EVIL: (EVIL, EVIL)}).encode(),
        tags.UPDATE_PREFIX + rejected: update(command=EVIL, args={EVIL: EVIL}),
        tags.ACK_PREFIX + rejected: Ack(
            "rejected", 21, now, EVIL, code="failed", errors={EVIL: EVIL}
        ).encode(),
        tags.UPDATE_PREFIX + pending: update(set={EVIL: EVIL}, expect={EVIL: EVIL}),
        EVIL[:200].translate({ord(c): "_" for c in "<>'*`~[]()@$^#&;%{}\\="}): EVIL,
    }
    run = client.create_run(experiment, tags=run_tags, run_name=EVIL)
    for step in range(30):
        for key in ("loss", ":material/delete: www.example.com"):
            client.log_metric(run.info.run_id, key, 1.0 / (step + 1), step=step)
    return str(run.info.run_id)


_MADE = "b, em, del, img, .katex, h1, code, a[href*=example], .stMarkdownColoredText"
"""What is on the page only if something was made of a text."""


def test_nothing_of_a_run_is_more_than_text(
    tracking_uri: str, new_dashboard: Callable[..., Dashboard], open_page: Callable[..., Page]
) -> None:
    run_id = hostile(tracking_uri)
    page = open_page(f"{new_dashboard(tracking_uri).url}/run?id={run_id}")
    expect(page.get_by_role("heading", name="<script>ran=1</script>")).to_contain_text("**strong** _slanted_")
    expect(page.get_by_text("What the changes did to the training loss")).to_be_visible()
    page.get_by_role("combobox", name="Charts").click()
    page.get_by_role("option").filter(has_text="www.example.com").click()
    page.keyboard.press("Escape")
    expect(page.locator(".ftlab-plot")).to_have_count(3)
    page.get_by_text("Not offered in this run").click()
    expect(page.get_by_text("flag *", exact=True)).to_be_visible()
    page.get_by_label("learning_rate", exact=True).fill("5e-4")
    expect(page.locator(".st-key-preview .legend")).to_contain_text("<script>")
    tooltip = page.get_by_test_id("stTooltipContent")
    for _ in range(10):  # a refresh of the page may close it
        page.mouse.move(0, 0)
        page.get_by_test_id("stTooltipHoverTarget").first.hover()
        with suppress(AssertionError):
            expect(tooltip).to_be_visible(timeout=3000)
            break
    expect(tooltip).to_contain_text("**strong** _slanted_")
    made = page.locator(f":is(.stApp, [data-testid=stTooltipContent]) :is({_MADE})")
    assert made.evaluate_all("found => found.map(each => each.outerHTML)") == []
    page.locator(".ftlab-plot .scatterlayer path.point").last.hover(force=True)
    assert page.evaluate("typeof ran") == "undefined"


def test_the_history_can_be_taken_along(
    tracking_uri: str, new_dashboard: Callable[..., Dashboard], open_page: Callable[..., Page]
) -> None:
    """What fits the filter, as the library writes it."""
    run_id = hostile(tracking_uri)
    page = open_page(f"{new_dashboard(tracking_uri).url}/run?id={run_id}")
    expect(page.get_by_text("3 of 3 requests")).to_be_visible()

    def downloaded(kind: str) -> bytes:
        with page.expect_download() as download:
            page.get_by_role("button", name=kind, exact=True).click()
        return Path(download.value.path()).read_bytes()

    entries = LiveRun(run_id, tracking_uri=tracking_uri).history()
    assert downloaded("CSV") == history_csv(entries).encode("utf-8-sig")
    assert downloaded("JSON").decode() == history_json(run_id, entries)
    page.get_by_label("Text", exact=True).fill("pending")
    expect(page.get_by_text("1 of 3 requests")).to_be_visible()
    pending = history_csv([entry for entry in entries if not entry.answered]).encode("utf-8-sig")
    end = time.monotonic() + 30
    while downloaded("CSV") != pending:  # the button is drawn anew a moment after the count
        assert time.monotonic() < end
