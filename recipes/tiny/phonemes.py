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

# What is said, without stress, length and pauses: those are for the mel to teach.
PHONEMES = "abdefhijklmnoprstuvwzæðŋɐɑɔəɚɛɜɡɪɹɾʃʊʌʒʔθᵻɬxβɲ"


@functools.cache
def phoneme_ids(text: str) -> Tensor:
    """Return 1-based ids of the phonemes in `text`; 0 is the CTC blank."""
    return torch.tensor([1 + PHONEMES.index(c) for c in ipa(text) if c in PHONEMES])


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
        phonemes = word_phonemes(word[0])
        for i, phoneme in enumerate(phonemes):
            if letters:
                shares[letters[i * len(letters) // len(phonemes)]].append(phoneme)
    return shares


@functools.cache
def word_phonemes(word: str) -> tuple[int, ...]:
    """Phonemes of one word as espeak-ng says it, 1-based."""
    return tuple(1 + PHONEMES.index(c) for c in ipa(word) if c in PHONEMES)
