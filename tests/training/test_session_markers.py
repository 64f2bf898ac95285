"""The marks that a real session's answers make, over a resume that applies them again."""

import json

from training_doubles import Desk, Trainee, entry, new_session, request

from ftlab_mlflow.control import tags
from ftlab_mlflow.control.ledger import Ledger
from ftlab_mlflow.control.markers import markers


def test_every_applied_request_has_one_mark_also_after_a_resume() -> None:
    asked = {
        "a": {"set": {"rate": 0.2, "mode": "hold"}, "by": "alice", "via": "cli", "reason": "plateau"},
        "b": {"command": "checkpoint"},
        "c": {"set": {"rate": 9}},
        "d": {"set": {"rate": 0.3}},
        "e": {"set": {"steps": 9}},
    }
    trainee, desk = Trainee(), Desk()
    session = new_session(trainee, desk)
    session.begin(0, {}, Ledger.read({}))
    session.running()
    for step, ids in enumerate(("a", "bcd", "e"), start=1):
        session.deliver([entry(i, **asked[i]) for i in ids], sent_before=False)
        session.boundary(step)
        if step == 1:
            saved = json.loads(json.dumps(session.saved_state()))
    run_tags = {tags.UPDATE_PREFIX + i: request(**fields) for i, fields in asked.items()}
    run_tags |= {key: text for post, _ in desk.posts for key, text in post.items() if ".ack." in key}

    before = markers(Ledger.read(run_tags).entries)
    assert [(m.id, m.step, m.nth, m.command, m.text) for m in before] == [
        ("a", 1, 0, None, "rate 0.1 → 0.2; mode keep → hold"),
        ("b", 2, 0, "checkpoint", "checkpoint"),
        ("d", 2, 1, None, "rate 0.2 → 0.3"),
        ("e", 3, 0, None, "steps 5 → 9"),
    ]
    assert (before[0].by, before[0].via, before[0].reason) == ("alice", "cli", "plateau")

    again, later = Trainee(), Desk()
    resumed = new_session(again, later, session_id="s2")
    resumed.begin(1, saved, Ledger.read(run_tags))
    resumed.running()
    resumed.boundary(2)
    assert (again.rate, again.mode, again.steps) == (0.3, "hold", 9), "all of it is applied again"
    run_tags |= {key: text for post, _ in later.posts for key, text in post.items() if ".ack." in key}
    assert markers(Ledger.read(run_tags).entries) == before
