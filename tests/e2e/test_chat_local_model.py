"""A conversation with a real language model of this machine: SmolLM2-135M behind `transformers serve`.

It shows that the chat and a server that was not written for it understand each other. What the model says is
no matter: it is far too small to call a tool.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from ftlab_mlflow.errors import FTLabError
from ftlab_mlflow.training.real_model import real_model

Require = Callable[[str, bool, str], None]
NAME = "SmolLM2-135M-Instruct"
START_S, ANSWER_S = 180, 600


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """`transformers serve` of the model in this folder, by its name; gives its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", NAME, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = folder / "serve.log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out)
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"transformers serve did not start: {log.read_text()[-2000:]}")


def ftlab(*arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ftlab_mlflow.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=ANSWER_S)


def pieces(*arguments: str, environment: Mapping[str, str]) -> list[str]:
    """What `ftlab` prints, in the pieces in which it comes."""
    command = [sys.executable, "-m", "ftlab_mlflow.cli", *arguments]
    found: list[str] = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while piece := os.read(process.stdout.fileno(), 65536):
            found.append(piece.decode())
        assert process.wait(ANSWER_S) == 0
    return found


@pytest.mark.slow
def test_a_conversation_with_a_real_model(
    require: Require, new_sqlite: Callable[[Path], str], tmp_path: Path
) -> None:
    try:
        folder = real_model(print)
    except FTLabError as error:
        require("smollm2", False, str(error))
        return
    (tmp_path / NAME).symlink_to(folder)
    uri = new_sqlite(tmp_path)
    with served(tmp_path) as url:
        models = tmp_path / "models.toml"
        models.write_text(
            f'[endpoints.smol]\nbase_url = "{url}"\nmodels = ["{NAME}"]\n'
            "has_tools = true\ncontext_tokens = 8192\n"
        )
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
            "FTLAB_MODELS": str(models),
            "FTLAB_DATABASE_URL": f"sqlite:///{tmp_path}/app.db",
            "MLFLOW_TRACKING_URI": uri,
        }
        model = ("--model", f"smol/{NAME}", "--temperature", "0", "--max-tokens", "256")
        done = ftlab("chat", "Say good morning to me.", *model, "--json", environment=environment)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["answer"].strip()
        assert answer["model"] == f"smol/{NAME}"
        assert answer["usage"]["input_tokens"] > 100  # the task, at least
        assert 0 < answer["usage"]["output_tokens"] <= 256
        assert answer["cost_usd"] is None
        assert answer["stopped"] in (None, "tokens")

        (chat,) = json.loads(ftlab("chats", "list", "--json", environment=environment).stdout)["chats"]
        assert (chat["title"], chat["messages"]) == ("Say good morning to me.", 2)
        said = pieces(
            "chat", "Now tell me a story about a ship.", *model, "--chat", chat["id"], environment=environment
        )
        assert "".join(said).strip()
        assert len(said) > 10, said  # word by word, not all at the end
        (chat,) = json.loads(ftlab("chats", "list", "--json", environment=environment).stdout)["chats"]
        assert chat["messages"] == 4
