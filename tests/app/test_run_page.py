"""The page of one run on a real MLflow database: what can be changed, asking for it, what comes of it."""

from __future__ import annotations

import getpass
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
from app_pages import Runs
from run_page import COMMANDS, PARAMS, Page, answered, asked, status, surface

from ftlab_mlflow import LiveLoop, LiveRun, MlflowRunStore
from ftlab_mlflow.control import tags
from ftlab_mlflow.control.surface import Param
from ftlab_mlflow.control.wire import utc_now


@pytest.fixture
def listening(runs: Runs) -> Page:
    """The page of a run that listens."""
    return Page(runs, runs.plain("tuned", status="RUNNING", run_tags=status() | surface()))


# --- a training that listens -------------------------------------------------------------------------


class Training:
    """A real loop in a thread of its own, which goes on until it is told to stop."""

    def __init__(self, uri: str, run_id: str) -> None:
        weight = torch.nn.Parameter(torch.ones(2, 2))
        optimizer = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 100_000)
        store = MlflowRunStore(uri)
        self.live = LiveLoop(
            optimizer, schedule, max_steps=100_000, poll_interval=0.05, store=store, run_id=run_id
        )
        self.live.tunable("mix_ratio", 0.5, min=0, max=1, help="Share of the new data.")
        self.live.tunable("shuffle", False)
        self.live.tunable("order", "short", choices=("short", "long"))
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._train, args=(optimizer, schedule), daemon=True)
        self._thread.start()

    def _train(self, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
        with self.live as live:
            while not self._ends.wait(0.01):
                optimizer.step()
                schedule.step()
                if live.step():
                    break

    def end(self) -> None:
        self._ends.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def trained(runs: Runs, dashboard: str) -> Iterator[tuple[Page, LiveRun, Training]]:
    run_id = runs.plain("real", status="RUNNING")
    training = Training(dashboard, run_id)
    page = Page(runs, run_id).until(lambda: tags.SURFACE in runs.client.get_run(run_id).data.tags)
    yield page.look(), LiveRun(run_id, tracking_uri=dashboard, by="alice"), training
    training.end()


def test_a_training_is_changed_paused_and_stopped(trained: tuple[Page, LiveRun, Training]) -> None:
    page, run, training = trained
    params = run.surface().params
    assert {"learning_rate", "weight_decay", "mix_ratio", "shuffle", "order"} <= set(params)
    assert page.field("mix_ratio").help.startswith(r"Share of the new data\.")
    page.type(learning_rate="5e-4", mix_ratio=" 0.75 ", shuffle="true", order="long")
    assert {"learning_rate: 0.001 → 0.0005", "mix_ratio: 0.5 → 0.75", "shuffle: False → True"} <= set(
        page.words
    )
    assert page.app.button(key="send").label == "Send 4 changes"
    page.app.text_input(key=f"reason {run.run_id} {page.edits}").set_value("  plateau ")
    page.click("send")

    (request,) = page.requests()
    assert request.update is not None
    assert request.update.set == {"learning_rate": 5e-4, "mix_ratio": 0.75, "shuffle": True, "order": "long"}
    assert request.update.expect == {
        "learning_rate": 1e-3,
        "mix_ratio": 0.5,
        "shuffle": False,
        "order": "short",
    }
    said = (request.update.reason, request.update.by, request.update.via)
    assert said == ("plateau", getpass.getuser(), "dashboard")
    assert not page.has_button("send")
    page.until(lambda: any(line.startswith("applied at step") for line in page.words))
    ack = page.requests()[0].ack
    assert ack is not None
    line = next(line for line in page.words if line.startswith("applied at step"))
    assert line.startswith(f"applied at step {ack.step}: learning_rate ")
    assert "mix_ratio 0.5 → 0.75; shuffle False → True; order short → long" in line
    assert [page.field(name).value for name in ("learning_rate", "order")] == ["", None]
    assert page.field("mix_ratio").placeholder == "0.75 in force"

    assert not page.has_button("command resume")
    page.click("command pause").until(lambda: page.has_button("command resume"))
    assert run.status().state == "paused"
    assert not page.has_button("command pause")
    page.click("command resume").until(lambda: page.has_button("command pause"))

    page.click("command stop")
    page.click("asked no")
    assert not page.has_button("asked yes")
    assert len(page.requests()) == 3
    page.click("command stop")
    page.app.checkbox(key="stop saves").uncheck()
    page.click("asked yes").until(lambda: "The training was stopped at step" in page.text)
    last = page.requests()[-1].update
    assert last is not None
    assert (last.command, last.args) == ("stop", {"save": False})
    assert training.live.outcome == "stopped"
    assert page.field("learning_rate").disabled
    assert not any(page.has_button(f"command {name}") for name in COMMANDS)


def test_who_was_slower_sees_both_values_and_can_ask_again(trained: tuple[Page, LiveRun, Training]) -> None:
    page, run, _ = trained
    page.type(mix_ratio="0.9")
    run.update(mix_ratio=0.25).wait(30)
    page.look()
    told = "While you typed, somebody changed it from 0.5."
    assert {"mix_ratio: 0.25 → 0.9", told} <= set(page.words)
    page.click("send")
    assert len(page.requests()) == 1
    assert any(line.startswith("stale: ") and "0.5" in line and "0.25" in line for line in page.words)
    assert told not in page.words
    page.click("again").until(lambda: any("mix_ratio 0.25 → 0.9" in line for line in page.words))
    update = page.requests()[-1].update
    assert update is not None
    assert (update.set, update.expect) == ({"mix_ratio": 0.9}, {"mix_ratio": 0.25})
    assert page.field("mix_ratio").value == ""
    assert not page.has_button("send")
    assert not page.has_button("again")


# --- fields ------------------------------------------------------------------------------------------


def test_fields_are_those_of_the_surface_and_nothing_else(listening: Page) -> None:
    def labels() -> list[str]:
        fields = [
            each
            for each in (*listening.app.text_input, *listening.app.selectbox)
            if each.key.startswith("set ")
        ]
        return sorted(each.label for each in fields)

    assert labels() == sorted(PARAMS)
    assert listening.field("learning_rate").placeholder == "0.0008 in force, 0.001 asked for"
    assert listening.field("learning_rate").help == "Of the next step\\.  \nfloat from 0 to 1"
    assert listening.field("weight_decay").help == "float from 0"
    assert listening.field("logging_steps").help == "int from 1 to 64"
    assert listening.field("lr_schedule").options == ["keep", "hold"]
    assert listening.field("use_cache").options == ["true", "false"]
    listening.write(
        surface({"brand_new": Param("int", 3, 3), "color": Param("enum", "a", "a", choices=("a", "b"))})
    )
    assert labels() == ["brand_new", "color"]
    listening.type(brand_new="4", color="b").click("send")
    update = listening.requests()[0].update
    assert update is not None
    assert (update.set, update.expect) == ({"brand_new": 4, "color": "b"}, {"brand_new": 3, "color": "a"})


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("learning_rate", "a lot", 'must be a finite number from 0 to 1, got "a lot"'),
        ("learning_rate", "nan", 'must be a finite number from 0 to 1, got "nan"'),
        ("learning_rate", "1e400", 'must be a finite number from 0 to 1, got "1e400"'),
        ("learning_rate", "-1", "must be a finite number from 0 to 1, got -1.0"),
        ("weight_decay", "true", "must be a finite number from 0, got true"),
        ("logging_steps", "8.5", "must be a whole number from 1 to 64, got 8.5"),
        ("logging_steps", "0", "must be a whole number from 1 to 64, got 0"),
    ],
)
def test_garbage_is_said_at_the_field_and_holds_back_the_rest(
    listening: Page, name: str, text: str, said: str
) -> None:
    listening.type(**{name: text})
    assert f"{name}: {said}" in listening.words
    assert "send" not in [button.key for button in listening.app.button]
    listening.type(use_cache="false")
    assert listening.app.button(key="send").disabled
    assert f"Nothing is sent while another value is wrong: {name}." in listening.words
    listening.type(**{name: "1"})
    assert listening.has_button("send")
    assert listening.requests() == []


def test_what_was_typed_between_the_last_look_and_the_click_is_not_sent_unseen(listening: Page) -> None:
    listening.type(weight_decay="0.1")
    listening.field("weight_decay").set_value("0.11")
    listening.click("send")
    assert listening.requests() == []
    assert "A value changed while you clicked." in listening.text
    assert "weight_decay: 0.0 → 0.11" in listening.words or "weight_decay: 0 → 0.11" in listening.words
    listening.click("send")
    assert [entry.update and entry.update.set for entry in listening.requests()] == [{"weight_decay": 0.11}]
    assert "A value changed while you clicked." not in listening.text


def test_what_is_half_typed_outlives_refreshes_and_can_be_thrown_away(listening: Page) -> None:
    listening.type(weight_decay="0.", learning_rate="1e-").look()
    assert (listening.field("weight_decay").value, listening.field("learning_rate").value) == ("0.", "1e-")
    listening.type(learning_rate="1e-3").click("discard")
    assert (listening.field("weight_decay").value, listening.field("learning_rate").value) == ("", "")
    assert listening.requests() == []


def test_a_reason_that_a_tag_cannot_hold_is_said_and_nothing_is_lost(listening: Page) -> None:
    listening.type(weight_decay="0.1")
    listening.app.text_input(key=f"reason {listening.run_id} {listening.edits}").set_value("x" * 9000)
    listening.click("send")
    assert listening.requests() == []
    assert "shorten the reason" in listening.text
    assert listening.field("weight_decay").value == "0.1"
    listening.click("forget")
    assert "shorten the reason" not in listening.text


def test_after_a_refusal_it_sends_what_the_summary_shows(listening: Page) -> None:
    """Not what was refused, and not what was typed just before the click."""
    listening.type(weight_decay="0.1")
    changed = dict(PARAMS, weight_decay=Param("float", 0.3, 0.3, 0))
    for key, value in surface(changed).items():
        listening.runs.client.set_tag(listening.run_id, key, value)
    listening.click("send")
    listening.type(weight_decay="0.2").field("weight_decay").set_value("0.4")
    listening.click("again")
    assert listening.requests() == []
    listening.type(weight_decay="0.2").click("send").look().click("again")
    assert [entry.update and (entry.update.set, entry.update.expect) for entry in listening.requests()] == [
        ({"weight_decay": 0.2}, {"weight_decay": 0.3})
    ]


# --- commands and the way of requests ----------------------------------------------------------------


def test_only_offered_commands_have_buttons_and_they_fit_the_state(listening: Page) -> None:
    def offered() -> dict[str, bool]:
        """Every button of a command, and whether it can be clicked."""
        buttons = [each for each in listening.app.button if str(each.key).startswith("command ")]
        return {str(each.key).removeprefix("command "): not each.disabled for each in buttons}

    assert offered() == {
        "pause": True, "resume": False, "evaluate": True, "checkpoint": True, "rollback": True, "stop": True
    }  # fmt: skip
    listening.write(surface(commands=("pause", "resume", "dance")), status(state="paused"))
    assert offered() == {"pause": False, "resume": True}, "in their places, always"
    listening.click("command resume")
    assert [entry.update and entry.update.command for entry in listening.requests()] == ["resume"]


def test_a_rollback_asks_where_to(listening: Page) -> None:
    listening.click("command rollback")
    assert listening.requests() == []
    listening.app.text_input(key="rollback to").set_value(" checkpoint-10 ")
    listening.click("asked yes").click("command rollback").click("asked yes")
    updates = [entry.update for entry in listening.requests()]
    assert [(update and update.command, update and update.args) for update in updates] == [
        ("rollback", {"checkpoint": "checkpoint-10"}),
        ("rollback", {}),
    ]


def test_the_way_of_requests_is_told_in_words(listening: Page) -> None:
    now = utc_now()
    early = now - timedelta(hours=2)
    rate = asked(set={"weight_decay": 0.2}, reason="why not")
    listening.write(
        asked(set={"weight_decay": 0.1}, at=now + timedelta(seconds=1)),
        asked(set={"weight_decay": 0.3}, at=early),
        asked(set={"weight_decay": 0.4}, at_step=80, at=early),
    )
    stages = [element.proto.body for element in listening.app.markdown if "badge[" in element.proto.body][1:]
    assert [stage.split(": ")[-1].rstrip("]") for stage in stages] == ["seen", "waiting", "sent"]
    assert "waiting for step 80, now at step 50" in listening.words
    assert any("seen: the trainer has looked since" in line for line in listening.words)
    assert any(line.endswith("not seen yet") for line in listening.words)
    # Answers of this browser's own requests stay; those of others are in the history.
    listening.type(weight_decay="0.5").click("send")
    (mine,) = [e for e in listening.requests() if e.update and e.update.via == "dashboard"]
    own = {
        tags.UPDATE_PREFIX + mine.id: listening.runs.client.get_run(listening.run_id).data.tags[
            tags.UPDATE_PREFIX + mine.id
        ]
    }
    listening.write(
        answered(own, "rejected", 51, code="failed", errors={"weight_decay": "no memory"}), answered(rate)
    )
    expected = (
        "rejected at step 51: it was tried and failed, and nothing of it stayed in force "
        "(weight_decay: no memory)"
    )
    assert expected in listening.words
    assert not any("why not" in line for line in listening.words)


def test_a_trainer_s_stale_answer_can_be_asked_again_over_the_value_of_now(listening: Page) -> None:
    listening.type(weight_decay="0.5").click("send")
    (mine,) = listening.requests()
    key = tags.UPDATE_PREFIX + mine.id
    own = {key: listening.runs.client.get_run(listening.run_id).data.tags[key]}
    stale = {"weight_decay": "expected 0.0, but 0.3 was asked for"}
    changed = dict(PARAMS, weight_decay=Param("float", 0.3, 0.3, 0))
    listening.write(surface(changed), answered(own, "rejected", 51, code="stale", errors=stale))
    assert any(
        "somebody else has changed it meanwhile (weight_decay: expected 0.0, but 0.3" in w
        for w in listening.words
    )
    listening.click(f"again {mine.id}")
    update = listening.requests()[-1].update
    assert update is not None
    assert (update.set, update.expect) == ({"weight_decay": 0.5}, {"weight_decay": 0.3})


def test_pending_requests_can_be_withdrawn_however_many_there_are(listening: Page) -> None:
    for number in range(7):
        listening.type(weight_decay=f"0.{number + 1}").click("send")
    listening.look()
    ids = [entry.id for entry in listening.requests()]
    assert all(listening.has_button(f"cancel {request_id}") for request_id in ids)
    listening.click(f"cancel {ids[0]}")
    update = listening.requests()[-1].update
    assert update is not None
    assert (update.command, update.args) == ("cancel", {"id": ids[0]})
