"""Sample rates: a streaming resampler in exact integer arithmetic.

A windowed sinc, 32 samples of the lower rate to each side: 2 ms of delay towards 16 kHz, above 75 dB of rejection.
Samples and coefficients are integers small enough that every sum is exact in float64, so neither slicing nor the
machine can change a bit of the output (see `docs/decisions/0005-own-resampler.md`).

Outputs are computed in blocks of 32. A block looks at one stretch of input and is one matrix product; after
`period` blocks input and output are in step again and the same matrices serve anew:

    input     ├─────────────────────────── M·32/L samples per block ────────────┤
              x x x x x x x x x x x x x …
              └──── span of block 0 ────┘
                    └──── span of block 1 ────┘
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from streaming.errors import ClientError

Samples = npt.NDArray[np.int16]

BLOCK_SAMPLES = 32
HALF_WIDTH = 32
"""Samples of the lower of both rates that the filter reaches to each side."""
CUTOFF = 0.475
"""Of the lower rate: where the response is halved."""
KAISER_BETA = 8.0
COEFFICIENT_BITS = 24
"""16 (sample) + 24 (coefficient) + 8 (up to 200 products) bits: below the 53 of float64, hence exact."""
MULTIPLICATIONS_AT_ONCE = 2**18
"""BLAS spreads larger products over threads, and then waits, spinning, for a core that a worker is using."""
LEAST_COMMON_HZ = 25
"""Both rates are multiples of it, which bounds the number of matrices."""
LOWEST_RATE, HIGHEST_RATE = 8_000, 48_000


def require_rate(rate: int, param: str | None = None) -> None:
    """Check a sample rate given from outside.

    Raises:
        ClientError: not a multiple of 25 Hz between 8 and 48 kHz.
    """
    if not LOWEST_RATE <= rate <= HIGHEST_RATE or rate % LEAST_COMMON_HZ:
        raise ClientError(
            "invalid_value",
            f"{rate} Hz is not a sample rate we take; use a multiple of {LEAST_COMMON_HZ} "
            f"from {LOWEST_RATE} to {HIGHEST_RATE}",
            param=param,
        )


@dataclass(frozen=True, slots=True)
class _Block:
    """32 outputs: which input they look at, relative to the start of their period, and with what weights."""

    start: int
    coefficients: npt.NDArray[np.float64]  # [span, 32]


@dataclass(frozen=True, slots=True)
class _Filter:
    blocks: tuple[_Block, ...]
    period_input: int
    """Input samples after which the blocks repeat."""
    history: int
    """Samples before the first that the first block looks at."""


@cache
def _filter(in_rate: int, out_rate: int) -> _Filter:
    common = math.gcd(in_rate, out_rate)
    up, down = out_rate // common, in_rate // common
    num_blocks = up // math.gcd(up, BLOCK_SAMPLES)
    reach = HALF_WIDTH * max(1.0, in_rate / out_rate)  # input samples to each side
    cutoff = CUTOFF * min(1.0, out_rate / in_rate)  # cycles per input sample
    blocks = []
    for k in range(num_blocks):
        centres = np.arange(k * BLOCK_SAMPLES, (k + 1) * BLOCK_SAMPLES) * down / up
        start = math.floor(centres[0] - reach)
        end = math.floor(centres[-1] + reach) + 1
        distance = np.arange(start, end)[:, None] - centres  # [span, 32]
        window = np.i0(KAISER_BETA * np.sqrt(np.maximum(0.0, 1.0 - (distance / reach) ** 2)))
        weights = np.where(np.abs(distance) <= reach, np.sinc(2 * cutoff * distance) * window, 0.0)
        # Every output weighs a constant input alike, or the zero-frequency gain would ripple with the phase.
        weights /= weights.sum(axis=0)
        blocks.append(_Block(start, np.rint(weights * 2.0**COEFFICIENT_BITS)))
    return _Filter(tuple(blocks), num_blocks * BLOCK_SAMPLES * down // up, -blocks[0].start)


class Resampler:
    """int16 samples at `in_rate` to int16 at `out_rate`; grouping: exact.

    The first output coincides with the first input; n inputs make ceil(n · out / in) outputs once `flush` is called.

    Raises:
        ClientError: a rate is out of range (`require_rate`).
    """

    def __init__(self, in_rate: int, out_rate: int) -> None:
        require_rate(in_rate)
        require_rate(out_rate)
        self._ratio = out_rate, in_rate
        self._filter = None if in_rate == out_rate else _filter(in_rate, out_rate)
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next sample is the first of a stream."""
        self._num_in = 0
        self._num_out = 0
        self._buffer = np.zeros(self._filter.history if self._filter else 0, np.int16)
        self._buffer_start = -len(self._buffer)

    def push(self, samples: Samples) -> Samples:
        """Take more input; return the output that became final."""
        self._num_in += len(samples)
        if self._filter is None:
            self._num_out += len(samples)
            return samples
        self._buffer = np.concatenate((self._buffer, samples))
        return self._run()

    def flush(self) -> Samples:
        """Return the rest, as if silence followed, and begin anew."""
        up, down = self._ratio
        num_missing = -(-self._num_in * up // down) - self._num_out
        rest = np.zeros(0, np.int16)
        if self._filter is not None and num_missing:
            # What the blocks that hold the missing outputs look at, and a little more.
            padding = (num_missing + BLOCK_SAMPLES) * down // up + 2 * self._filter.history + 2
            self._buffer = np.concatenate((self._buffer, np.zeros(padding, np.int16)))
            rest = self._run()[:num_missing]
        self.reset()
        return rest

    def _run(self) -> Samples:
        """Compute every block whose stretch of input has arrived; drop input that no later block looks at."""
        assert self._filter is not None
        blocks, period = self._filter.blocks, self._filter.period_input
        end = self._buffer_start + len(self._buffer)
        first = self._num_out // BLOCK_SAMPLES
        num_ready = _num_ready(self._filter, end) - first
        if num_ready <= 0:
            return np.zeros(0, np.int16)
        output = np.empty((num_ready, BLOCK_SAMPLES))
        for k in range(min(len(blocks), num_ready)):
            cycle, which = divmod(first + k, len(blocks))
            block = blocks[which]
            offset = cycle * period + block.start - self._buffer_start
            num_rows = len(range(k, num_ready, len(blocks)))
            rows = _windows(self._buffer, offset, period, num_rows, len(block.coefficients))
            output[k :: len(blocks)] = _product(rows, block.coefficients)
        results: npt.NDArray[np.float64] = np.rint(output.ravel() * 2.0**-COEFFICIENT_BITS)
        self._num_out += results.size
        cycle, which = divmod(first + num_ready, len(blocks))
        needed = cycle * period + blocks[which].start
        self._buffer = self._buffer[needed - self._buffer_start :].copy()
        self._buffer_start = needed
        return np.clip(results, -32768, 32767).astype(np.int16)


def _num_ready(filter_: _Filter, end: int) -> int:
    """Blocks from the stream's start that look at nothing at or behind input sample `end`."""
    blocks = filter_.blocks
    # Block ends grow by a period per cycle: count whole cycles by the first block, then look at each.
    cycles = max(0, (end - blocks[-1].start - len(blocks[-1].coefficients)) // filter_.period_input)
    ready = cycles * len(blocks)
    while True:
        cycle, which = divmod(ready, len(blocks))
        block = blocks[which]
        if cycle * filter_.period_input + block.start + len(block.coefficients) > end:
            return ready
        ready += 1


def _product(rows: Samples, coefficients: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Multiply [rows, span] by [span, 32], as many rows at a time as one thread does alone."""
    count = MULTIPLICATIONS_AT_ONCE // coefficients.size
    pieces = [
        rows[i : i + count].astype(np.float64) @ coefficients for i in range(0, len(rows), count)
    ]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _windows(samples: Samples, offset: int, step: int, num_rows: int, num_columns: int) -> Samples:
    """Return a view [rows, columns]: row j begins at `offset + j · step`."""
    assert offset >= 0 and offset + (num_rows - 1) * step + num_columns <= len(samples)
    stride = samples.strides[0]
    return np.lib.stride_tricks.as_strided(
        samples[offset:], (num_rows, num_columns), (step * stride, stride), writeable=False
    )
