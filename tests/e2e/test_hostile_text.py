"""Text from a run is data: whatever it says, the browser shows it and does nothing of it."""

from __future__ import annotations

import re
from collections.abc import Callable

from dashboard_process import Dashboard
from mlflow import MlflowClient
from playwright.sync_api import Page, expect

from ftlab_mlflow.control import tags
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
WORDS = EVIL.split()


def hostile(uri: str) -> str:
    """A live run all of whose texts are that one."""
    client, now = MlflowClient(uri), utc_now()
    experiment = client.create_experiment("www.example.com :red[red] **strong** $x$ <b>bold</b>")
    surface = Surface(
        params={
            "learning_rate": Param(
                "float", 1e-3, 1e-3, 0, 1, help=EVIL, plan=Plan((0, 100), (1e-3, 0.0))
            ),
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
        tags.ACK_PREFIX + rejected: Ack("rejected", 21, now, EVIL, code="failed", errors={EVIL: EVIL}).encode(),
        tags.UPDATE_PREFIX + pending: update(set={EVIL: EVIL}, expect={EVIL: EVIL}),
        EVIL[:200].translate({ord(c): "_" for c in "<>'*`~[]()@$^#&;%{}\\="}): EVIL,
    }
    run = client.create_run(experiment, tags=run_tags, run_name=EVIL)
    for step in range(30):
        for key in ("loss", ":material/delete: www.example.com"):
            client.log_metric(run.info.run_id, key, 1.0 / (step + 1), step=step)
    return str(run.info.run_id)


def test_nothing_of_a_run_is_more_than_text(
    tracking_uri: str, new_dashboard: Callable[..., Dashboard], open_page: Callable[..., Page]
) -> None:
    run_id = hostile(tracking_uri)
    page = open_page(f"{new_dashboard(tracking_uri).url}/run?id={run_id}")
    page.wait_for_timeout(12000)
    page.screenshot(path="/tmp/runpage/shot.png", full_page=True)
    print(page.evaluate("""() => {
      const out = [];
      for (const s of ['b','strong','em','code','del','img','script[src=""]','a','h1','h2','.katex','span[style*=color]','[data-testid=stIconMaterial]'])
        for (const e of document.querySelectorAll('.stApp ' + s)) out.push(s + ' | ' + e.outerHTML.slice(0,200) + ' | in ' + (e.closest('[data-testid]')||{dataset:{}}).dataset.testid);
      return out.join('\\n') }"""))
    __import__("pathlib").Path("/tmp/runpage/text.txt").write_text(page.locator(".stApp").inner_text())
