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
    log_probs: NDArray[np.float32], targets: Sequence[int], moments: NDArray[np.float64]
) -> Ints:
    """Say for each of the `moments`, in frames of `log_probs`, which of the targets sounds, by its place.

    Between two targets the nearer one counts; behind the last one, and of an empty list, none: -1.

    Raises:
        ValueError: there are fewer frames than targets need.
    """
    if not targets:
        return np.full(len(moments), -1)
    at = forced_path(log_probs, targets)
    nearest = np.searchsorted((at[1:] + at[:-1]) / 2, moments)
    return np.where(moments > at[-1] + 4, -1, nearest)
