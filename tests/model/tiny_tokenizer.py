"""The byte tokenizer at the ids of the tiny configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes import random_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenizers import Tokenizer

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
    return random_checkpoint.byte_tokenizer(control, FIRST_BYTE_ID)
