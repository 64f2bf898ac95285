"""The card of a proposal: what it says, that only a click sends it, once, and what became of it."""

from __future__ import annotations

from app_pages import Runs, figures
from chat_page import ChatPage, as_a_new_process
from run_page import PARAMS, answered, status, surface

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.client import user_name
from ftlab_mlflow.control.ledger import Entry, Ledger

PROPOSE = "/propose sft-1 learning_rate=5e-4 weight_decay=0.1 because the loss is flat"


def live(runs: Runs) -> str:
    """A run that listens."""
    return runs.plain("sft-1", status="RUNNING", run_tags=status() | surface())


def requests(runs: Runs, run_id: str) -> tuple[Entry, ...]:
    return Ledger.read(runs.client.get_run(run_id).data.tags).entries


def test_a_click_sends_it_once_as_this_person_and_a_reload_shows_it(runs: Runs) -> None:
    run_id = live(runs)
    page = ChatPage().ask(PROPOSE)
    assert "learning_rate: 0.001 → 0.0005\nweight_decay: 0 → 0.1" in page.said
    assert "Why: the loss is flat" in page.said
    ((key, curve),) = figures(page.app).items()
    assert key.startswith("curve ")
    assert [trace["name"] for trace in curve["data"]] == ["as planned", "0.0005, keep", "0.0005, hold"]
    assert requests(runs, run_id) == ()

    other = ChatPage(chat=page.chat_id)
    page.click("send ")
    (entry,) = requests(runs, run_id)
    assert entry.update is not None
    assert entry.update.set == {"learning_rate": 5e-4, "weight_decay": 0.1}
    assert dict(entry.update.expect) == {"learning_rate": 1e-3, "weight_decay": 0.0}
    assert (entry.update.by, entry.update.via) == (user_name(), "chat")
    assert entry.update.reason == "the loss is flat"
    assert page.buttons("send ") == []

    other.click("send ")  # another tab, which had not seen it
    assert len(requests(runs, run_id)) == 1
    as_a_new_process()
    reloaded = ChatPage(chat=page.chat_id)
    assert reloaded.buttons("send ") == []
    assert "sent" in reloaded.said

    key = tags.UPDATE_PREFIX + entry.id
    request = {key: runs.client.get_run(run_id).data.tags[key]}
    for name, text in answered(request, step=51, changes={"learning_rate": (8e-4, 5e-4)}).items():
        runs.client.set_tag(run_id, name, text)
    as_a_new_process()
    assert "applied at step 51: learning_rate 0.0008 → 0.0005" in reloaded.look().said


def test_what_was_changed_meanwhile_is_stale_and_nothing_is_sent(runs: Runs) -> None:
    run_id = live(runs)
    page = ChatPage().ask(PROPOSE)
    changed = dict(PARAMS) | {"weight_decay": type(PARAMS["weight_decay"])("float", 0.2, 0.2, 0)}
    for name, text in surface(changed).items():
        runs.client.set_tag(run_id, name, text)
    page.click("send ")  # the page has not looked since
    assert "Nothing was sent." in page.said
    assert "stale" in page.said
    as_a_new_process()
    assert "weight_decay was changed since, from 0 to 0.2" in page.look().said
    assert requests(runs, run_id) == ()


def test_what_is_not_allowed_has_no_button(runs: Runs) -> None:
    run_id = live(runs)
    page = ChatPage().ask("/propose sft-1 learning_rate=7")
    assert "It cannot be sent." in page.said
    assert "learning_rate: must be" in page.said
    assert page.buttons("send ") == []
    assert requests(runs, run_id) == ()


def test_a_run_that_is_over_cannot_be_sent_to(runs: Runs) -> None:
    run_id = live(runs)
    page = ChatPage().ask(PROPOSE)
    for name, text in status(state="finished").items():
        runs.client.set_tag(run_id, name, text)
    runs.client.set_terminated(run_id)
    as_a_new_process()
    page.look()
    assert page.button("send ").disabled
    assert "The training has finished at step 50" in page.said


def test_a_run_that_is_gone_is_said_to_be(runs: Runs) -> None:
    run_id = live(runs)
    page = ChatPage().ask(PROPOSE)
    runs.client.delete_run(run_id)
    as_a_new_process()
    assert "The run cannot be read now" in page.look().said
