"""A process that is killed in the middle of a write leaves SQLite a journal: the next one takes it back."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from ftlab_mlflow.cli.opening import open_store, sqlite_file

DIES_WHILE_IT_WRITES = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")  # so that the file itself is written before the commit
connection.execute("BEGIN")
for i in range(2000):
    connection.execute("INSERT INTO tags (run_uuid, key, value) VALUES ('r', ?, ?)", (str(i), "x" * 200))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_verbs_work_after_a_kill_in_the_middle_of_a_write(tracking_uri: str) -> None:
    file = sqlite_file(tracking_uri)
    assert file is not None
    command = [sys.executable, "-c", DIES_WHILE_IT_WRITES, str(file)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    journal = Path(f"{file}-journal")
    assert journal.stat().st_size > 0, "there is something to take back"
    assert open_store(tracking_uri).find() == []
    assert not journal.exists()
