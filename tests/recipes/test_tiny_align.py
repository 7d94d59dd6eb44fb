"""Alignment: words share their phonemes out among tokens, and the best path through the reader's odds is found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from recipes.tiny import align, phonemes


def test_every_phoneme_of_a_word_goes_to_one_of_its_tokens_in_order() -> None:
    pytest.importorskip("piper", reason="espeak-ng comes with the recipes' own requirements")
    shares = phonemes.token_phonemes(["The", " cap", "ital", " of", " France", ".", " 2", "0"])
    words = [["The"], ["capital"], ["of"], ["France."], ["20"]]
    owners = [[0], [1, 2], [3], [4, 5], [6, 7]]
    for (word,), tokens in zip(words, owners, strict=True):
        joined = [p for i in tokens for p in shares[i]]
        assert joined == list(phonemes.text_phonemes(word))
        assert all(shares[i] for i in tokens if i != 5)
    assert shares[5] == []


def test_the_path_is_the_likeliest_of_all() -> None:
    rng = np.random.default_rng(0)
    for targets in ([1, 2, 1], [2, 2], [3]):
        log_probs = np.log(rng.dirichlet(np.ones(4), 6)).astype(np.float32)
        best, times = -np.inf, []
        for path in itertools.product(range(4), repeat=6):
            kept = [(s, t) for t, s in enumerate(path) if s and (t == 0 or path[t - 1] != s)]
            score = sum(log_probs[t, s] for t, s in enumerate(path))
            if [s for s, _ in kept] == targets and score > best:
                runs = [list(g) for s, g in itertools.groupby(range(6), lambda t: path[t]) if s]  # noqa: B023
                best, times = score, [(run[0] + run[-1]) // 2 for run in runs]
        assert align.forced_path(log_probs, targets).tolist() == times


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        align.forced_path(np.zeros((2, 4), np.float32), [1, 2, 3])


def test_a_code_belongs_to_the_nearest_phoneme_and_to_none_after_the_last() -> None:
    log_probs = np.full((24, 3), -9.0, np.float32)
    log_probs[:, 0] = -0.1
    log_probs[4, 1] = log_probs[10, 2] = 0.0
    codes = 2 * np.arange(12) + 0.5
    assert align.sounding(log_probs, [1, 2], codes).tolist() == [0] * 4 + [1] * 3 + [-1] * 5
    assert align.sounding(log_probs, [], codes).tolist() == [-1] * 12
