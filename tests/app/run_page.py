"""The page of one run without a browser: opening it, what it shows, and tags as a trainer writes them."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import streamlit as st
from app_pages import LIMIT_S, Runs, figures, opened, texts
from streamlit.testing.v1 import AppTest

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Entry, Ledger
from ftlab_mlflow.control.messages import Ack, Status, Update
from ftlab_mlflow.control.plan import Plan
from ftlab_mlflow.control.surface import Param, Surface
from ftlab_mlflow.control.wire import new_id, utc_now

PLAN = Plan((0, 10, 100), (0.0, 1e-3, 0.0))
PARAMS: Mapping[str, Param] = {
    "learning_rate": Param("float", 8e-4, 1e-3, 0, 1, help="Of the next step.", plan=PLAN),
    "weight_decay": Param("float", 0.0, 0.0, 0),
    "logging_steps": Param("int", 8, 8, 1, 64),
    "use_cache": Param("bool", True, True),
    "lr_schedule": Param("enum", "keep", "keep", choices=("keep", "hold")),
}
COMMANDS = ("pause", "resume", "stop", "checkpoint", "evaluate", "rollback", "cancel")


def surface(
    params: Mapping[str, Param] = PARAMS, commands: tuple[str, ...] = COMMANDS, **others: Any
) -> dict[str, str]:
    """The tag of a surface."""
    return {tags.SURFACE: Surface(params, commands, **others).encode()}


def status(**fields: Any) -> dict[str, str]:
    """The tag of a trainer whose heartbeat was just now."""
    values: dict[str, Any] = {
        "state": "running", "step": 50, "max_steps": 100, "epoch": 0.5, "at": utc_now(), "every_s": 3600.0,
        "session": "s1", "host": "node7", "pid": 42, "method": "sft",
    }  # fmt: skip
    return {tags.STATUS: Status(**(values | fields)).encode()}


def asked(**fields: Any) -> dict[str, str]:
    """The tag of a request."""
    return {tags.UPDATE_PREFIX + new_id(): Update(**({"at": utc_now(), "by": "bob"} | fields)).encode()}


def answered(
    request: Mapping[str, str], answer: str = "applied", step: int = 20, **fields: Any
) -> dict[str, str]:
    """A request's tag with that of its answer."""
    (key,) = request
    ack = Ack(answer, step, utc_now(), "s1", **fields)  # type: ignore[arg-type]
    return {**request, tags.ACK_PREFIX + key.removeprefix(tags.UPDATE_PREFIX): ack.encode()}


class Page:
    """The page of one run, as somebody has it open."""

    def __init__(self, runs: Runs, run_id: str) -> None:
        self.runs, self.run_id = runs, run_id
        self.app: AppTest = opened("run", id=run_id)

    def look(self) -> Page:
        """Its next refresh, with nothing kept from the look before."""
        st.cache_resource.clear()
        self.app.run()
        assert not self.app.exception
        return self

    def until(self, holds: Callable[[], bool]) -> Page:
        """Refreshes it until something holds."""
        end = time.monotonic() + LIMIT_S
        while not holds():
            assert time.monotonic() < end, self.text
            time.sleep(0.05)
            self.look()
        return self

    def write(self, *written: Mapping[str, str]) -> Page:
        """Somebody else writes tags; then it looks."""
        for run_tags in written:
            for key, value in run_tags.items():
                self.runs.client.set_tag(self.run_id, key, value)
        return self.look()

    @property
    def text(self) -> str:
        """All that it says in words."""
        return texts(self.app)

    @property
    def words(self) -> list[str]:
        """What it says of the run, line by line."""
        return [str(element.value) for element in self.app.text]

    @property
    def edits(self) -> int:
        """How many times the fields were sent or discarded: they are new ones then."""
        key = f"edit of {self.run_id}"
        return int(self.app.session_state[key]) if key in self.app.session_state else 0

    def field(self, name: str) -> Any:
        """The input of a parameter."""
        key = f"set {name} {self.run_id} {self.edits}"
        (found,) = [each for each in (*self.app.text_input, *self.app.selectbox) if each.key == key]
        return found

    def type(self, **values: str) -> Page:
        """Types into fields, and waits for the page."""
        for name, text in values.items():
            self.field(name).set_value(text)
        return self.rerun()

    def has_button(self, key: str) -> bool:
        """Whether there is one that can be clicked."""
        return any(button.key == key and not button.disabled for button in self.app.button)

    def click(self, key: str) -> Page:
        """Clicks on a button."""
        self.app.button(key=key).click()
        return self.rerun()

    def rerun(self) -> Page:
        """Sends what was typed and clicked."""
        self.app.run()
        assert not self.app.exception
        return self

    def requests(self) -> list[Entry]:
        """The run's requests in the tracking store, in order."""
        return list(Ledger.read(self.runs.client.get_run(self.run_id).data.tags).entries)

    def figure(self, title: str) -> dict[str, Any]:
        """A chart as it is sent to the browser: `chart Loss`, `preview chart`."""
        return figures(self.app)[title]

    @property
    def charts_field(self) -> Any:
        """The field that chooses charts."""
        (found,) = (each for each in self.app.multiselect if each.label == "Charts")
        return found

    def charts(self) -> list[str]:
        """Titles of its charts."""
        return [key.removeprefix("chart ") for key in figures(self.app) if key.startswith("chart ")]

    def traces(self, title: str) -> dict[str, dict[str, Any]]:
        """The traces of a chart by name; a second one of the same name has `smoothed` behind it."""
        found: dict[str, dict[str, Any]] = {}
        for trace in self.figure(title)["data"]:
            found[trace["name"] + (" smoothed" if trace["name"] in found else "")] = trace
        return found


def numbers(values: Any) -> np.ndarray[Any, Any]:
    """Values as Plotly sends them: plain, or packed."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"]).astype(float)
    return np.array([np.nan if value is None else value for value in values], dtype=float)
