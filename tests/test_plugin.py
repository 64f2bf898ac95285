"""The MLflow plugin: every run says what reproduces it, and no secret."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from ftlab_mlflow import plugin
from ftlab_mlflow.control import tags

SCRIPT = """
import mlflow
with mlflow.start_run() as run:
    print(run.info.run_id)
"""


def git(folder: Path, *args: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *who, *args], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def start_run(folder: Path, *arguments: str) -> dict[str, str]:
    """Tags of a run that a fresh process starts with ``mlflow.start_run``, warnings being errors."""
    uri = f"sqlite:///{folder}/plugin.db"
    command = [sys.executable, "-W", "error:Failure attempting", str(folder / "train.py"), *arguments]
    environment = {"PATH": "/usr/bin:/bin", "MLFLOW_TRACKING_URI": uri, "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    from ftlab_mlflow import MlflowRunStore

    return MlflowRunStore(uri).get(done.stdout.split()[-1]).tags


def test_a_run_is_tagged_by_the_installed_plugin(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "train.py")
    git(tmp_path, "commit", "-qm", "first")
    clean = start_run(tmp_path, "--hub_token", "abc", "--lr", "1e-4")
    (tmp_path / "train.py").write_text(SCRIPT + "\n# changed\n")
    dirty = start_run(tmp_path)

    assert clean[tags.GIT_COMMIT] == dirty[tags.GIT_COMMIT] == git(tmp_path, "rev-parse", "HEAD")
    assert (clean[tags.GIT_DIRTY], dirty[tags.GIT_DIRTY]) == ("false", "true")
    versions = json.loads(clean[tags.PACKAGES])
    assert versions["torch"] == metadata.version("torch")
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert clean[tags.HOST]
    assert clean[tags.ACCELERATORS]
    assert clean[tags.COMMAND_LINE].endswith("train.py --hub_token '***' --lr 1e-4")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["t.py", "--hub_token=abc"], "t.py '--hub_token=***'"),
        (["t.py", "--api-key", "abc", "x"], "t.py --api-key '***' x"),
        (["t.py", "HF_TOKEN=abc"], "t.py 'HF_TOKEN=***'"),
        (["t.py", "--password", "--lr", "1"], "t.py --password --lr 1"),
        (["t.py", "postgresql://ann:pw@db/x"], "t.py 'postgresql://***@db/x'"),
        (["t.py", "--note", "uses hf_abcdefghijklmnopqrst here"], "t.py --note 'uses *** here'"),
        (["t.py", "--eos_token", "<|im_end|>"], "t.py --eos_token '<|im_end|>'"),
        (["t.py", "--max_tokens", "5", "--author", "ann"], "t.py --max_tokens 5 --author ann"),
    ],
)
def test_the_command_line_leaves_secrets_out(arguments: list[str], shown: str) -> None:
    assert plugin.command_line(arguments) == shown


def test_outside_of_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "main.py"), raising=False)
    assert plugin.git_tags() == {}
