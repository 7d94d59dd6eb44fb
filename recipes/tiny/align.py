"""Where in a clip each token of its text is spoken: phonemes per token, and a forced alignment of codes with them.

The codec's phoneme reader gives, twice per code, the odds of every phoneme; the best monotonic path through the
text's phonemes says when each one sounds. It teaches the Talker where to look; nothing of it runs in the product.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

import numpy as np

from recipes.tiny.codec import PHONEMES
from recipes.tiny.speech import ipa

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

BLANK = 0


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


def forced_path(log_probs: NDArray[np.float32], targets: Sequence[int]) -> Ints:
    """Return the frame at whose middle each target sounds on the best CTC path [len(targets)].

    `log_probs` is [frames, 1 + phonemes] with the blank first.

    Raises:
        ValueError: there are fewer frames than targets need.
    """
    states = np.full(2 * len(targets) + 1, BLANK)
    states[1::2] = targets
    # A blank may be left out between two different phonemes.
    may_skip = np.zeros(len(states), bool)
    may_skip[3::2] = states[3::2] != states[1:-2:2]
    emitted = log_probs[:, states]
    score = np.full(len(states), -np.inf, np.float32)
    score[:2] = emitted[0, :2]
    came_from = np.zeros((len(log_probs), len(states)), np.int8)
    for t in range(1, len(log_probs)):
        stay, step = score, np.concatenate([[-np.inf], score[:-1]])
        skip = np.where(may_skip, np.concatenate([[-np.inf, -np.inf], score[:-2]]), -np.inf)
        options = np.stack([stay, step, skip])
        came_from[t] = options.argmax(0)
        score = options.max(0) + emitted[t]
    state = len(states) - 1 if score[-1] >= score[-2] else len(states) - 2
    if not np.isfinite(score[state]):
        raise ValueError(f"{len(log_probs)} frames are too few for {len(targets)} phonemes")
    path = np.zeros(len(log_probs), np.int64)
    for t in range(len(log_probs) - 1, -1, -1):
        path[t] = state
        state -= int(came_from[t, state])
    inside = [np.flatnonzero(path == 2 * i + 1) for i in range(len(targets))]
    return np.array([(frames[0] + frames[-1]) // 2 for frames in inside], np.int64)


def spoken_at(
    log_probs: NDArray[np.float32], phonemes_by_token: Sequence[Sequence[int]]
) -> tuple[Ints, Ints]:
    """Say for each code [N] which token is being spoken and which phoneme; `log_probs` [2 N, 1 + phonemes].

    Between two phonemes the nearer one counts; behind the last one, and where the text has none, token and phoneme
    are -1 and 0.
    """
    tokens = np.array([i for i, own in enumerate(phonemes_by_token) for _ in own], np.int64)
    phonemes = np.array([p for own in phonemes_by_token for p in own], np.int64)
    num_codes = len(log_probs) // 2
    if not len(phonemes):
        return np.full(num_codes, -1), np.zeros(num_codes, np.int64)
    at = forced_path(log_probs, phonemes.tolist())
    middle = 2 * np.arange(num_codes) + 0.5
    nearest = np.searchsorted((at[1:] + at[:-1]) / 2, middle)
    is_past = middle > at[-1] + 4
    return np.where(is_past, -1, tokens[nearest]), np.where(is_past, 0, phonemes[nearest])
