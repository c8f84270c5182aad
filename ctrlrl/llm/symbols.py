"""Tokenizers of characters and of bytes, and a small Llama, all made on the spot: nothing is downloaded."""

from __future__ import annotations

from typing import Any

SYMBOLS = "_^$0123456789+=>abcdef"
PAD, BOS, EOS = "_", "^", "$"


def need_transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError("token tasks need the transformers package: pip install 'ctrlrl[llm]'") from None
    return transformers


def symbol_tokenizer() -> Any:
    """One token a character of SYMBOLS: `_` pads, `^` begins, `$` ends."""
    transformers = need_transformers()
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split

    words = Tokenizer(WordLevel({symbol: i for i, symbol in enumerate(SYMBOLS)}, unk_token=PAD))
    words.pre_tokenizer = Split(Regex("."), "isolated")
    words.decoder = Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PAD, bos_token=BOS, eos_token=EOS)


def byte_tokenizer() -> Any:
    """One token a byte of UTF-8, so that it knows every text; then `<end>` and `<pad>`."""
    transformers = need_transformers()
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(BPE({symbol: i for i, symbol in enumerate([*alphabet, "<end>", "<pad>"])}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>")


def small_llama(
    tokenizer: Any, *, hidden_size: int, n_layers: int, n_heads: int, context: int, init_std: float = 0.02
) -> Any:
    """Random weights, from torch's generator; about 84 thousand of them at 64 x 2."""
    transformers = need_transformers()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        max_position_embeddings=context,
        initializer_range=init_std,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return transformers.LlamaForCausalLM(config)
