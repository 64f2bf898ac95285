"""Live control in processes of their own: signals, what is left when a program ends, several ranks."""

from collections.abc import Callable
from pathlib import Path

import pytest
from forked_cases import Ended, ended_cases

CASES = (
    "sigint",
    "sigterm",
    "sigterm without saving",
    "late sigint",
    "sigterm while paused",
    "stopped in with",
    "caught in with",
    "one rank fails",
)


@pytest.fixture(scope="module")
def ended(new_sqlite: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    folders = {case: tmp_path_factory.mktemp("process") for case in CASES}
    uris = {case: new_sqlite(folder) for case, folder in folders.items()}
    return ended_cases(Path(__file__).with_name("process_child.py"), uris, folders)


def checkpoints(end: Ended) -> list[str]:
    return sorted(path.name for path in (end.folder / "out").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("case", "code", "saved"),
    [
        ("sigint", -2, ["checkpoint-6"]),
        ("sigterm", 143, ["checkpoint-6"]),
        ("sigterm without saving", 143, []),
        ("late sigint", -2, []),
    ],
)
def test_a_signal_ends_the_training_cleanly(
    ended: dict[str, Ended], case: str, code: int, saved: list[str]
) -> None:
    end = ended[case]
    assert end.codes == [code], end.output
    assert (end.status.state, end.status.step, end.status.error) == ("stopped", 6, None), end.output
    assert end.run.status == "KILLED"
    assert checkpoints(end) == saved
    assert "never printed" not in end.output


def test_a_signal_ends_a_paused_training(ended: dict[str, Ended]) -> None:
    end = ended["sigterm while paused"]
    assert end.codes == [143], end.output
    assert end.status.state == "stopped"
    assert end.run.status == "KILLED"
    assert checkpoints(end) == [f"checkpoint-{end.status.step}"]


@pytest.mark.parametrize(
    ("case", "state", "status"),
    [("stopped in with", "stopped", "KILLED"), ("caught in with", "failed", "FAILED")],
)
def test_a_run_of_the_users_has_a_truthful_status_when_the_program_has_ended(
    ended: dict[str, Ended], case: str, state: str, status: str
) -> None:
    end = ended[case]
    assert end.codes == [0], end.output
    assert "the program goes on" in end.output
    assert (end.status.state, end.run.status) == (state, status), end.output


def test_a_rank_that_fails_fails_the_run(ended: dict[str, Ended]) -> None:
    end = ended["one rank fails"]
    assert end.codes == [1, 1], end.output
    assert (end.status.state, end.run.status) == ("failed", "FAILED")
    assert "never printed" not in end.output
