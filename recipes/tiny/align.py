"""When in a clip each phoneme of its text sounds: forced alignment.

Something that hears phonemes gives, every 20 ms, the odds of each; the best monotonic path through the text's phonemes
says when each one sounds. It tells the codec what to keep and the Talker where to look; nothing of it runs in the
product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

BLANK = 0
PAUSE = 3  # codes; a stop consonant is shorter


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


def sounding(
    log_probs: NDArray[np.float32],
    targets: Sequence[int],
    is_quiet: NDArray[np.bool_],
) -> Ints:
    """Say for each code, two frames of `log_probs` long, which of the targets sounds, by its place (-1: none).

    Each target has a code of its own at least, near the middle of its sound; of the others each belongs to the nearer
    neighbour. None sounds before the first one or after the last where it `is_quiet` [codes], nor in a longer pause.

    Raises:
        ValueError: there are fewer codes than targets.
    """
    count = len(is_quiet)
    if not targets:
        return np.full(count, -1)
    if len(targets) > count:
        raise ValueError(f"{count} codes are too few for {len(targets)} phonemes")
    middles = (forced_path(log_probs, targets) - 0.5) / 2  # in codes
    own = _apart(np.round(middles).astype(np.int64), count)
    codes = np.arange(count)
    nearest = np.searchsorted((middles[1:] + middles[:-1]) / 2, codes)
    before = np.searchsorted(own, codes, side="right") - 1
    places = nearest.clip(before, before + 1).clip(0, len(targets) - 1)
    places[own] = np.arange(len(targets))
    silent = is_quiet.copy()
    silent[own] = False
    for start, stop in _runs(silent):
        if stop - start >= PAUSE or start == 0 or stop == count:
            places[start:stop] = -1
    return places


def _apart(at: Ints, count: int) -> Ints:
    """Move places that rise until no two are the same, all of them below `count`."""
    order = np.arange(len(at))
    later = np.maximum.accumulate(at - order) + order
    return np.minimum(later, count - len(at) + order)


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Starts and ends of what is true without a break."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
