"""Alignment: words share their phonemes out among tokens, and the best path through the reader's odds is found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def spikes(*at: int, frames: int) -> np.ndarray:
    """Odds of one target after the other, 1, 2, …, each heard at one frame."""
    log_probs = np.full((frames, 1 + len(at)), -9.0, np.float32)
    log_probs[:, 0] = -0.1
    for target, frame in enumerate(at, 1):
        log_probs[frame, target] = 0.0
    return log_probs


def test_a_code_belongs_to_the_nearest_phoneme() -> None:
    loud = np.zeros(12, bool)
    assert align.sounding(spikes(4, 10, frames=24), [1, 2], loud).tolist() == [0] * 4 + [1] * 8
    assert align.sounding(spikes(4, 10, frames=24), [], loud).tolist() == [-1] * 12


def test_silence_belongs_to_none_at_either_end_and_in_a_pause_but_not_in_a_stop() -> None:
    quiet = np.zeros(16, bool)
    quiet[[0, 4, 5, 8, 9, 10, 15]] = True
    places = align.sounding(spikes(4, 14, 26, frames=32), [1, 2, 3], quiet).tolist()
    assert places == [-1] + [0] * 4 + [1] * 3 + [-1] * 3 + [2] * 4 + [-1]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_phoneme_has_a_code_however_they_crowd(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    frames = data.draw(st.lists(st.integers(0, 2 * count - 1), unique=True, max_size=count))
    quiet = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    at = sorted(frames)
    places = align.sounding(spikes(*at, frames=2 * count), list(range(1, 1 + len(at))), quiet)
    spoken = places[places >= 0]
    assert (np.diff(spoken) >= 0).all()
    assert set(spoken.tolist()) == set(range(len(at)))


def test_more_phonemes_than_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        align.sounding(spikes(0, 1, 2, frames=4), [1, 2, 3], np.zeros(2, bool))
