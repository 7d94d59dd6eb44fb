"""The codec decoder with its lanes, run in the step loop or in a thread of its own.

On a CPU sound takes about as long as all else together, and nothing waits for it but the listener: a second core makes
it while the step loop goes on. Everything that touches a lane goes through one queue, so a lane that is given to a
new reply while its last window is still being made needs no lock.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from model.codec.decoder import CodecDecoder
    from model.codec.voice import Voice
    from streaming.engine.reply import SpokenReply

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WindowContent:
    """Codec tokens that complete a lane's next window, or its last."""

    lane: int
    codes: tuple[int, ...]
    is_last: bool
    owner: SpokenReply
    """Whose sound it is; by the time it is made, the reply may be over."""


class CodecStage:
    """Owns the decoder's state. Calls are carried out one after the other."""

    def __init__(self, codec: CodecDecoder, num_lanes: int, *, has_thread: bool) -> None:
        self._codec = codec
        self._thread = ThreadPoolExecutor(1, "codec", _one_torch_thread) if has_thread else None
        self._conditions: dict[str, Tensor] = {}
        with torch.inference_mode():
            self._state = codec.init_state(num_lanes)

    @property
    def has_thread(self) -> bool:
        return self._thread is not None

    def assign(self, lane: int, voice: Voice, noise_seed: int) -> None:
        """Give a lane its voice and noise for one reply; what is still being made for it is finished first."""
        self._do(lambda: self._assign(lane, voice, noise_seed))

    def decode(self, windows: Sequence[WindowContent]) -> Future[list[bytes]]:
        """Make the sound of windows of equal phase, int16 little-endian. Without a thread it is made on return."""
        return self._do(lambda: self._decode(windows))

    def _do(self, call: Callable[[], T]) -> Future[T]:
        if self._thread is not None:
            return self._thread.submit(_inference, call)
        done: Future[T] = Future()
        done.set_result(_inference(call))
        return done

    def _assign(self, lane: int, voice: Voice, noise_seed: int) -> None:
        if voice.name not in self._conditions:
            self._conditions[voice.name] = self._codec.condition(voice)
        self._codec.assign(self._state, lane, self._conditions[voice.name], noise_seed)

    def _decode(self, windows: Sequence[WindowContent]) -> list[bytes]:
        lanes = [w.lane for w in windows]
        pieces = []
        if windows[0].codes:
            codes = torch.tensor([w.codes for w in windows])
            pieces.append(self._codec.step(codes, self._state, lanes))
        if windows[0].is_last:
            pieces.append(self._codec.flush(self._state, lanes))
        pcm = torch.cat(pieces, dim=1)
        levels = pcm.mul(32767).round_().clamp_(-32768, 32767).to(torch.int16).cpu().numpy()
        return [row.tobytes() for row in levels]


def _inference(call: Callable[[], T]) -> T:
    with torch.inference_mode():
        return call()


def _one_torch_thread() -> None:
    torch.set_num_threads(1)  # the setting of a thread is its own
