"""What a text sounds like: phonemes of texts, words and tokens, as espeak-ng says them."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recipes.tiny.speech import ipa

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.tokenizer import TextTokenizer

# What is said, without stress, length and pauses: those are for the mel to teach.
PHONEMES = "abdefhijklmnoprstuvwzæðŋɐɑɔəɚɛɜɡɪɹɾʃʊʌʒʔθᵻɬxβɲ"


Phonemes = tuple[int, ...]
"""1-based; 0 is the CTC blank, and stands for none."""


@functools.cache
def text_phonemes(text: str) -> Phonemes:
    """Phonemes of a word or a sentence."""
    return tuple(1 + PHONEMES.index(c) for c in ipa(text) if c in PHONEMES)


def spelling(tokenizer: TextTokenizer, tokens: Sequence[int]) -> tuple[Phonemes, ...]:
    """Phonemes of each token of a text."""
    return tuple(tuple(own) for own in token_phonemes([tokenizer.decode([t]) for t in tokens]))


def padded(spelled: Sequence[Phonemes], slots: int) -> Tensor:
    """The first phonemes of each [n, slots], zeros behind them."""
    rows = [(own + (0,) * slots)[:slots] for own in spelled]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, slots)


def token_phonemes(pieces: Sequence[str]) -> list[list[int]]:
    """Share out the phonemes (1-based) of each word among its tokens, in proportion to their letters.

    `pieces` are the tokens' own texts, in order. Punctuation gets none.
    """
    text = "".join(pieces)
    owner = [i for i, piece in enumerate(pieces) for _ in piece]
    shares: list[list[int]] = [[] for _ in pieces]
    for word in re.finditer(r"\S+", text):
        letters = [
            owner[at] for at in range(*word.span()) if text[at].isalnum() or text[at] in "$%"
        ]
        phonemes = text_phonemes(word[0])
        for i, phoneme in enumerate(phonemes):
            if letters:
                shares[letters[i * len(letters) // len(phonemes)]].append(phoneme)
    return shares
