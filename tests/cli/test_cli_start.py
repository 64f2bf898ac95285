"""What `ftlab` is before it does anything: its verbs, their help and documentation, how fast it starts."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import click
import pytest
from cli_helpers import Ftlab, ftlab_process

import ftlab_mlflow
from ftlab_mlflow.cli import VERBS, cli

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
HEAVY = (
    "mlflow",
    "torch",
    "transformers",
    "trl",
    "datasets",
    "streamlit",
    "openai",
    "anthropic",
    "sqlalchemy",
)

_HELP_OF_ALL = """
import contextlib, io, json, sys
from ftlab_mlflow.cli import run
lines = json.loads(sys.argv[1])
texts = {}
for line in lines:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run(line) == 0, line
    texts[" ".join(line)] = printed.getvalue()
print(json.dumps([texts, sorted(sys.modules)]))
"""


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every verb, and every verb of a verb."""
    context = click.Context(cli)
    for name in VERBS:
        command = cli.get_command(context, name)
        assert command is not None
        yield (name,), command
        if isinstance(command, click.Group):
            for inner, subcommand in command.commands.items():
                yield (name, inner), subcommand


def test_help_is_fast_and_loads_only_what_it_prints() -> None:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        out, err = ftlab_process("--help").communicate(timeout=30)
        times.append(time.perf_counter() - began)
        assert err == ""
        assert all(verb in out for verb in VERBS)
    assert min(times) < 0.5
    code = "import sys; from ftlab_mlflow.cli import run; run(['--help']); print(*sorted(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = printed.splitlines()[-1].split()
    assert [name for name in loaded if name.startswith("ftlab_mlflow")] == [
        "ftlab_mlflow",
        "ftlab_mlflow.cli",
    ]
    assert not {*HEAVY, "rich", "requests"} & set(loaded)


def test_the_help_of_every_verb_loads_nothing_heavy() -> None:
    lines = json.dumps([[*path, "--help"] for path, _ in commands()])
    printed = subprocess.run(
        [sys.executable, "-c", _HELP_OF_ALL, lines], capture_output=True, text=True, check=False
    )
    assert printed.returncode == 0, printed.stderr
    texts, loaded = json.loads(printed.stdout)
    assert not set(HEAVY) & set(loaded)
    for line, text in texts.items():
        assert text.startswith(f"Usage: ftlab {line.removesuffix(' --help')}")


def test_every_verb_and_option_has_a_help_text() -> None:
    for path, command in commands():
        assert command.get_short_help_str(), path
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (path, parameter.name)


def test_every_verb_takes_json() -> None:
    for path, command in commands():
        if not isinstance(command, click.Group):
            assert any("--json" in parameter.opts for parameter in command.params), path


def test_every_verb_and_option_is_documented_with_an_example() -> None:
    sections = dict(re.findall(r"^### `ftlab ([a-z ]+)`\n(.*?)(?=^##|\Z)", DOCS.read_text(), re.M | re.S))
    everywhere = {"--tracking-uri", "--json", "--help"}
    for path, command in commands():
        if isinstance(command, click.Group):
            continue
        section = sections.pop(" ".join(path), "")
        example = re.search(r"```(?:sh|console)\n(.*?)```", section, re.S)
        assert example, path
        assert f"ftlab {' '.join(path)}" in example[1], path
        documented = set(re.findall(r"(?<![\w-])--[a-z_][\w-]*(?:\.\w+)?", section))
        options = {
            opt for p in command.params for opt in (*p.opts, *p.secondary_opts) if opt.startswith("--")
        }
        assert options - everywhere <= documented, path
    assert not sections, "verbs that do not exist"
    for option in everywhere:
        assert f"`{option}" in DOCS.read_text()


def test_examples_of_the_documentation_are_right_usage() -> None:
    examples = [
        shlex.split(line, comments=True)[1:]
        for block in re.findall(r"```sh\n(.*?)```", DOCS.read_text(), re.S)
        for line in block.splitlines()
        if line.startswith("ftlab ")
    ]
    assert len(examples) >= len(VERBS)
    for name, *arguments in examples:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        command.make_context(name, arguments)


def test_no_verb_prints_the_help_and_the_version_is_the_package_s(ftlab: Ftlab) -> None:
    assert ftlab() == ftlab("--help")
    assert ftlab("-h").out.startswith("Usage: ftlab")
    assert ftlab("--version").out == f"ftlab, version {ftlab_mlflow.__version__}\n"
    assert ftlab_mlflow.__version__ == metadata.version("ftlab-mlflow")


def test_the_console_script_is_the_same_command(monkeypatch: pytest.MonkeyPatch) -> None:
    (script,) = (entry for entry in metadata.entry_points(group="console_scripts") if entry.name == "ftlab")
    assert script.value == "ftlab_mlflow.cli:main"
    monkeypatch.setattr(sys, "argv", ["ftlab", "fly"])
    main = script.load()
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
