"""A tokenizer of bytes and a few control tokens, for the tiny configuration: complete, no training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

if TYPE_CHECKING:
    from collections.abc import Mapping

FIRST_BYTE_ID = 64
CONTROL = {
    "<|audio_pad|>": 50,
    "<|image_pad|>": 51,
    "<|video_pad|>": 52,
    "<|audio_bos|>": 53,
    "<|audio_eos|>": 54,
    "<|vision_bos|>": 55,
    "<|vision_eos|>": 56,
    "<|im_start|>": 57,
    "<|im_end|>": 58,
}


def byte_tokenizer(control: Mapping[str, int] = CONTROL) -> Tokenizer:
    """Control tokens at their ids, the 256 bytes (in the byte-level alphabet's order) from 64 on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: FIRST_BYTE_ID + i for i, char in enumerate(alphabet)} | dict(control)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in control])
    return tokenizer
