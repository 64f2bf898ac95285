"""A small model with its tokenizer, made on the spot: a model that needs no network."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from ftlab_mlflow.training.model_cache import cached

_RECIPE = 1
"""Goes up with every change of what is built here, so that a cached model of an older recipe is not used."""
_PAD, _END, _USER, _ASSISTANT = _SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_VOCABULARY = 2048
_MAX_TOKENS = 512


def demo_model() -> str:
    """The folder of the demo model: Llama architecture, random weights, about 2 million parameters.

    It is built once, from a fixed seed, and kept in the cache.
    """
    return cached(f"demo-{_fingerprint()}", _build)


def _fingerprint() -> str:
    """Of everything that the built files depend on."""
    parts = [str(_RECIPE), *(version(p) for p in ("torch", "transformers", "tokenizers")), *_texts()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _texts() -> list[str]:
    return [topics[name] for name in sorted(topics)]


def _build(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=5,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=_MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END,
        pad_token=_PAD,
        additional_special_tokens=[_USER, _ASSISTANT],
        chat_template=_CHAT_TEMPLATE,
        model_max_length=_MAX_TOKENS,
    )
