"""Makes the pictures of the dashboard in docs/images, from a real tracking server and real trainings.

    make screenshots

Needs Debian's chromium. Three short trainings of the demo model run first; two are changed meanwhile.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import picture_model
from playwright.sync_api import Browser, Page, sync_playwright

from ftlab_mlflow import LiveRun
from ftlab_mlflow.errors import NotLive, RunNotFound

IMAGES = Path(__file__).with_name("images")
WIDTHS = {"wide": 1280, "narrow": 390}
START_S = 120
TRAINING = {
    "model": "demo",
    "data": "demo",
    "lr_scheduler_type": "cosine",
    "warmup_steps": "15",
    "logging_steps": "2",
    "eval_strategy": "steps",
    "eval_steps": "20",
    "save_strategy": "no",
    "poll_interval": "0.3",
}


def main() -> None:
    """Runs the scene and takes every picture."""
    IMAGES.mkdir(exist_ok=True)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with (
        tempfile.TemporaryDirectory() as folder,
        _server(Path(folder)) as uri,
        picture_model.serving() as model,
    ):
        os.environ |= {"MLFLOW_TRACKING_URI": uri, "OPENAI_BASE_URL": model, "OPENAI_API_KEY": "none"}
        with _training(folder, "cosine-1e-3", max_steps="120", learning_rate="1e-3") as run:
            _until(run, 40)
            run.update(learning_rate=5e-4, reason="loss plateau").wait(60)
            _until(run, 80)
            run.update(per_device_train_batch_size=16, weight_decay=0.01, reason="less noise").wait(60)
        with _training(folder, "cosine-3e-4", max_steps="120", learning_rate="3e-4"):
            pass
        options = {"max_steps": "600", "learning_rate": "2e-3"}
        with _dashboard(Path(folder), uri) as url, _training(folder, "cosine-2e-3", **options) as run:
            _until(run, 60)
            run.update(learning_rate=1e-3, reason="eval loss rises").wait(60)
            _until(run, 100)
            _pictures(url, run)
            run.stop(save=False)


def _pictures(url: str, run: LiveRun) -> None:
    ids = [LiveRun(name).run_id for name in ("cosine-1e-3", "cosine-3e-4")] + [run.run_id]
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        chat = _chat(browser, url)
        for theme in ("light", "dark"):
            for width in WIDTHS:
                page = _open(browser, url, theme, width)
                _take(page, url, f"runs-{width}-{theme}")
                _take(page, f"{url}/run?id={run.run_id}", f"run-{width}-{theme}", edit=width == "wide")
                _take(page, f"{url}/compare?runs={','.join(ids)}", f"compare-{width}-{theme}")
                _take(page, chat, f"chat-{width}-{theme}", ready="stChatMessage")
                _take(page, f"{url}/usage", f"usage-{width}-{theme}")
                _take(page, f"{url}/settings", f"settings-{width}-{theme}")
                page.context.close()
        browser.close()


def _chat(browser: Browser, url: str) -> str:
    """Asks two questions of a model that is scripted; the address of their chat."""
    page = _open(browser, f"{url}/chat", "light", "wide")
    for count, question in enumerate((picture_model.BEST, picture_model.LOWER), 1):
        page.get_by_test_id("stChatInputTextArea").fill(question)
        page.keyboard.press("Enter")
        page.get_by_text("openai/gpt-4o-mini ·").nth(count - 1).wait_for()
        page.wait_for_timeout(2000)
    address = page.url
    page.context.close()
    return address


def _open(browser: Browser, url: str, theme: Any, width: str) -> Page:
    viewport: Any = {"width": WIDTHS[width], "height": 844}
    context = browser.new_context(viewport=viewport, color_scheme=theme, locale="en-GB", timezone_id="UTC")
    page = context.new_page()
    page.goto(url)
    return page


def _take(page: Page, url: str, name: str, *, edit: bool = False, ready: str = "stHeading") -> None:
    """A picture of the whole page, when it has been drawn. ready: What is there then."""
    page.goto(url)
    page.get_by_test_id(ready).first.wait_for()
    if edit:
        page.get_by_label("learning_rate", exact=True).fill("5e-4")
        page.get_by_text("Send 1 change").wait_for()
    page.wait_for_timeout(5000)
    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    size = page.viewport_size
    assert size is not None
    page.set_viewport_size({"width": size["width"], "height": min(height, 5000)})
    page.wait_for_timeout(3000)
    page.screenshot(path=IMAGES / f"{name}.png")
    page.set_viewport_size(size)
    print(f"docs/images/{name}.png")


def _until(run: LiveRun, step: int) -> None:
    while run.status().step < step:
        points = run.metric_history("loss")
        if points and points[-1].step >= step:
            return
        time.sleep(0.5)


@contextmanager
def _training(folder: str, name: str, **options: str) -> Iterator[LiveRun]:
    words = [word for key, value in (TRAINING | options).items() for word in (f"--{key}", value)]
    command = [sys.executable, "-m", "ftlab_mlflow.cli", "train", "sft", "--run_name", name, *words]
    with (Path(folder) / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            yield _find(name)
            process.wait(600)
        finally:
            process.kill()


def _find(name: str) -> LiveRun:
    end = time.monotonic() + START_S
    while True:
        try:
            run = LiveRun(name, by="alice")
            run.status()
            return run
        except (RunNotFound, NotLive):
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    port = _free_port()
    store = f"sqlite:///{folder}/mlflow.db"
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--backend-store-uri", store]
    with _process(
        [*command, "--artifacts-destination", f"{folder}/artifacts"], folder, port, "/health"
    ) as url:
        yield url


@contextmanager
def _dashboard(folder: Path, uri: str) -> Iterator[str]:
    port = _free_port()
    os.environ["FTLAB_DATABASE_URL"] = f"sqlite:///{folder}/app.db"
    command = [
        sys.executable,
        "-m",
        "ftlab_mlflow.cli",
        "dashboard",
        "--port",
        str(port),
        "--tracking-uri",
        uri,
    ]
    with _process(command, folder, port, "/_stcore/health") as url:
        yield url


@contextmanager
def _process(command: list[str], folder: Path, port: int, health: str) -> Iterator[str]:
    url = f"http://127.0.0.1:{port}"
    with (folder / f"{port}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            end = time.monotonic() + START_S
            while not _answers(url + health):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit((folder / f"{port}.log").read_text())
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
