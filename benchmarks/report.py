"""What every benchmark ends with: its table on the screen and, with the machine, in benchmarks/README.md."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

README = Path(__file__).with_name("README.md")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def machine() -> str:
    """This machine, the versions that matter and the time, in one line."""
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB RAM"
    system = f"{platform.system()} {platform.release()}"
    packages = ("torch", "transformers", "mlflow", "ftlab-mlflow")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"{_cpu_model()}, {os.cpu_count()} cores, {memory}; {system}, "
        f"Python {platform.python_version()}, {versions}; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )


def publish(section: str, text: str, *, quick: bool) -> None:
    """Prints a result and writes it between its markers in the README; a quick one is only printed."""
    text = f"{text}\n\n{machine()}"
    print(f"\n{text}", flush=True)
    if quick:
        return
    old = README.read_text()
    pattern = re.compile(rf"(<!-- {section} -->\n).*?(<!-- /{section} -->)", re.DOTALL)
    new, count = pattern.subn(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", old)
    if count != 1:
        raise ValueError(f"{README} must have the markers of {section} once, found {count}")
    README.write_text(new)


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    found = re.search(r"model name\s*: (.+)", text)
    return found[1] if found else platform.machine()
