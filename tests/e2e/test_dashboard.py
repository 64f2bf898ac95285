"""The dashboard in a real browser: with a real tracking server and a training that it changes live."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dashboard_process import Dashboard
from playwright.sync_api import Page, expect

from ftlab_mlflow import LiveRun
from ftlab_mlflow.errors import NotLive, RunNotFound

LIMIT_S = 120
expect.set_options(timeout=60_000)
OPTIONS = {
    "model": "demo",
    "data": "demo",
    "max_steps": "100000",
    "learning_rate": "1e-3",
    "lr_scheduler_type": "cosine",
    "warmup_steps": "5",
    "per_device_train_batch_size": "2",
    "logging_steps": "1",
    "eval_strategy": "steps",
    "eval_steps": "40",
    "save_strategy": "no",
    "poll_interval": "0.2",
    "disable_tqdm": "true",
}
Open = Callable[..., Page]


class Training:
    """`ftlab train sft` as a process of its own, which goes on until it is told to stop."""

    def __init__(self, uri: str, folder: Path, name: str, **options: str) -> None:
        self.name, self.uri = name, uri
        words = [word for key, value in (OPTIONS | options).items() for word in (f"--{key}", value)]
        command = [sys.executable, "-m", "ftlab_mlflow.cli", "train", "sft", "--run_name", name, *words]
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            environment = os.environ | {"MLFLOW_TRACKING_URI": uri}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)

    @property
    def run(self) -> LiveRun:
        """The run, once it trains."""
        end = time.monotonic() + LIMIT_S
        while True:
            try:
                run = LiveRun(self.name, tracking_uri=self.uri, by="bob")
                if run.status().step >= 2:
                    return run
            except (RunNotFound, NotLive):
                pass  # it has not begun
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < end, "the training did not begin"
            time.sleep(0.2)


@pytest.fixture
def new_training(tmp_path: Path) -> Iterator[Callable[..., Training]]:
    """``new_training(uri, name, **options)`` starts one; all are killed at the end."""
    made: list[Training] = []

    def make(uri: str, name: str, **options: str) -> Training:
        made.append(Training(uri, tmp_path, name, **options))
        return made[-1]

    yield make
    for training in made:
        training.process.kill()
        training.process.wait()


def field(page: Page, name: str):  # type: ignore[no-untyped-def]
    """The input of a parameter."""
    return page.get_by_label(name, exact=True)


def request_cards(page: Page):  # type: ignore[no-untyped-def]
    """The requests of this browser, the newest first."""
    return page.locator("[class*='st-key-request-']")


def test_a_training_is_watched_and_steered(
    new_mlflow_server: Callable,
    new_dashboard: Callable[..., Dashboard],
    open_page: Open,
    new_training: Callable,
) -> None:
    """See the run appear, open it, change it, be told, be late, be wrong, pause, stop."""
    server = new_mlflow_server()
    page = open_page(new_dashboard(server.uri).url)
    expect(page.get_by_text("This tracking store has no runs yet.")).to_be_visible()

    training = new_training(server.uri, "first")
    run = training.run
    expect(page.get_by_text("1 run, 1 going on")).to_be_visible()
    open_first(page)
    expect(page.get_by_role("heading", name="first")).to_be_visible()
    assert page.url.endswith(f"/run?id={run.run_id}")
    step = page.get_by_test_id("stMetric").filter(has_text="step").first
    before = step.inner_text()
    expect(step).not_to_have_text(before, use_inner_text=True)

    change_two_parameters(page, run)
    a_zoom_stays(page)
    half_typed_text_stays(page, run)
    somebody_else_was_faster(page, run)
    garbage_is_refused(page, run)

    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("paused", exact=True).first).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("running", exact=True).first).to_be_visible()
    page.get_by_role("button", name="Stop…").click()
    page.get_by_role("button", name="Keep training").click()
    expect(page.get_by_role("button", name="Stop now")).to_have_count(0)
    page.get_by_role("button", name="Stop…").click()
    page.get_by_text("Write a checkpoint first").click()
    page.get_by_role("button", name="Stop now").click()
    expect(page.get_by_text("Nothing can be changed now.")).to_be_visible()
    expect(page.get_by_text("The training was stopped at step")).to_be_visible()
    assert training.process.wait(LIMIT_S) == 0
    assert run.status().state == "stopped"
    commands = [entry.update.command for entry in run.history() if entry.update and entry.update.command]
    assert commands == ["pause", "resume", "stop"], "one click is one request"
    expect(field(page, "learning_rate")).to_be_disabled()


def open_first(page: Page) -> None:
    """Clicks on the name in the first row; the table is a canvas."""
    page.get_by_test_id("stDataFrame").click(position={"x": 60, "y": 52})


def change_two_parameters(page: Page, run: LiveRun) -> None:
    """Typed, previewed, summed up, sent as one request; the answer arrives, and a mark on the charts."""
    asked = run.surface().params["weight_decay"].asked
    field(page, "learning_rate").fill("5e-4")
    field(page, "weight_decay").fill("0.05")
    summary = page.locator(".st-key-summary")
    expect(summary).to_contain_text("learning_rate: 0.001 → 0.0005")
    expect(summary).to_contain_text(f"weight_decay: {asked:g} → 0.05")
    expect(page.locator(".st-key-preview")).to_contain_text("hold")
    field(page, "Why (optional)").fill("<b>plateau</b>")
    page.get_by_role("button", name="Send 2 changes").click()
    expect(request_cards(page).first).to_contain_text(
        re.compile(r"applied at step \d+: learning_rate .* → 0.0005")
    )
    (entry,) = run.history()
    assert entry.update is not None
    assert entry.ack is not None
    assert entry.update.set == {"learning_rate": 5e-4, "weight_decay": 0.05}
    assert entry.update.expect == {"learning_rate": 1e-3, "weight_decay": asked}
    assert (entry.update.via, entry.update.reason) == ("dashboard", "<b>plateau</b>")
    expect(field(page, "learning_rate")).to_have_value("")
    mark = page.get_by_role("img", name="Loss", exact=True).locator(".scatterlayer path.point").last
    expect(mark).to_be_attached()
    expect(page.locator("b", has_text="plateau")).to_have_count(0)


def a_zoom_stays(page: Page) -> None:
    """A chart gets new values where it stands: it is not built anew, and shows what somebody zoomed to."""
    chart = page.get_by_role("img", name="Loss", exact=True)
    chart.scroll_into_view_if_needed()
    area = chart.locator(".nsewdrag").first.bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + 30, area["y"] + 30)
    page.mouse.down()
    page.mouse.move(area["x"] + 90, area["y"] + 120, steps=5)
    page.mouse.up()
    zoomed, count = chart.evaluate("place => [place.layout.xaxis.range, place.data[0].x.length]")
    chart.evaluate("place => { place.isTheSame = true }")
    page.wait_for_function(
        "([count]) => [...document.querySelectorAll('.ftlab-plot')].some(p => p.isTheSame"
        " && p.data[0].x.length > count + 2)",
        arg=[count],
    )
    assert chart.evaluate("place => place.layout.xaxis.range") == zoomed


def half_typed_text_stays(page: Page, run: LiveRun) -> None:
    """The page refreshes itself several times; what was typed stays, and so does the place of the cursor."""
    reason = page.get_by_label("weight_decay", exact=True)
    reason.press_sequentially("0.0")
    step = run.status().step
    metric = page.get_by_test_id("stMetric").filter(has_text="step").first
    for _ in range(3):
        before = metric.inner_text()
        expect(metric).not_to_have_text(before, use_inner_text=True)
    reason.press_sequentially("7")
    expect(reason).to_have_value("0.07")
    assert run.status().step > step
    page.get_by_role("button", name="Discard").click()
    expect(page.get_by_role("button", name="Discard")).to_have_count(0)
    expect(reason).to_have_count(1)
    expect(reason).to_have_value("")


def somebody_else_was_faster(page: Page, run: LiveRun) -> None:
    """The value changed while it was edited: both values are shown; it can be sent all the same."""
    field(page, "learning_rate").press_sequentially("3e-4")
    expect(page.locator(".st-key-summary")).to_contain_text("0.0005 → 0.0003")
    run.update(learning_rate=4e-4).wait(LIMIT_S)
    page.get_by_role("button", name="Send 1 change").click()
    expect(page.get_by_text(re.compile("stale.*0.0005.*0.0004"))).to_be_visible()
    page.get_by_role("button", name="Send it all the same").click()
    expect(request_cards(page).first).to_contain_text(
        re.compile(r"applied at step \d+: learning_rate .* → 0.0003")
    )


def garbage_is_refused(page: Page, run: LiveRun) -> None:
    """It is said at the field what is allowed, and there is nothing to send."""
    count = len(run.history())
    for text in ("a lot", "nan", "-1", "1e400"):
        field(page, "learning_rate").fill(text)
        expect(
            page.get_by_text(re.compile("learning_rate: .*must be a finite number from 0"))
        ).to_be_visible()
        expect(page.get_by_role("button", name=re.compile("Send . change"))).to_have_count(0)
    field(page, "learning_rate").fill("")
    assert len(run.history()) == count


def test_two_runs_are_compared(
    new_mlflow_server: Callable,
    new_dashboard: Callable[..., Dashboard],
    open_page: Open,
    new_training: Callable,
) -> None:
    server = new_mlflow_server()
    trainings = [
        new_training(server.uri, name, max_steps="12", learning_rate=rate, eval_steps="6")
        for name, rate in (("slow", "1e-4"), ("fast", "1e-3"))
    ]
    for training in trainings:
        assert training.process.wait(LIMIT_S) == 0, training.log.read_text()[-2000:]
    ids = [LiveRun(name, tracking_uri=server.uri).run_id for name in ("slow", "fast")]
    page = open_page(f"{new_dashboard(server.uri).url}/compare?runs={','.join(ids)}")
    for _ in range(2):
        expect(page.get_by_role("heading", name="Parameters that differ")).to_be_visible()
        for name in ("slow", "fast"):
            expect(page.locator("svg text", has_text=name).first).to_be_visible()
        expect(page.get_by_text("Eval loss").first).to_be_visible()
        page.reload()


def test_a_server_that_goes_away_comes_back(
    new_mlflow_server: Callable,
    new_dashboard: Callable[..., Dashboard],
    open_page: Open,
    new_training: Callable,
) -> None:
    """A banner with the reason and the age of what is shown; it goes by itself. Settings outlive a reload."""
    server = new_mlflow_server()
    training = new_training(server.uri, "lonely")
    run = training.run
    dashboard = new_dashboard(server.uri)
    page = open_page(f"{dashboard.url}/run?id={run.run_id}")
    expect(page.get_by_role("heading", name="lonely")).to_be_visible()
    runs = open_page(dashboard.url)
    expect(runs.get_by_text("1 run, 1 going on")).to_be_visible()
    server.stop()
    for each in (page, runs):
        expect(each.get_by_text("The tracking store does not answer.")).to_be_visible()
        expect(each.get_by_text("Shown is what was read")).to_be_visible()
    expect(page.get_by_role("heading", name="lonely")).to_be_visible()
    server.start()
    for each in (page, runs):
        expect(each.get_by_text("The tracking store does not answer.")).to_have_count(0)
    field(page, "learning_rate").fill("2e-4")
    page.get_by_role("button", name="Send 1 change").click()
    expect(request_cards(page).first).to_contain_text(re.compile(r"applied at step"), timeout=60_000)
