"""A model of some thousand weights, and its tokenizer: 28 words."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, PreTrainedTokenizerFast


def tiny_config(**options: Any) -> LlamaConfig:
    """One layer; `options` go on top."""
    return LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **options,
    )


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words ``w0`` to ``w27``, with a space between them."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(28))]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
