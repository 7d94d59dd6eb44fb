"""TMRoPE: time-aligned rotary positions, assigned while the media arrives, and applied (technical report, 3.2).

Every token has three positions (time, height, width). One id of time is 40 ms. Text and audio advance all three
together; a video row adds its place in the frame. A live audio-and-video segment looks like this:

    vision_bos audio_bos | pair 0, pair 1, audio 0–49 | pair 2, pair 3, audio 50–99 | … | audio_eos vision_eos
        P         P        └────── 2 seconds ───────┘                                        E         E

Nothing that has been assigned depends on what comes later; only the closing positions depend on how the segment ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from model.config import DecoderConfig, ThinkerConfig


@dataclass(slots=True)
class Timeline:
    """Assigns TMRoPE positions to one conversation, piece by piece.

    All methods return int64 positions [3, n] on the CPU. `snapshot()` is a value: to roll back, keep it and continue
    from it. Reference: `get_rope_index` over the whole sequence gives the same positions.
    """

    ids_per_second: int = 25
    seconds_per_pair: float = 1.0
    next_position: int = 0
    max_position: int = -1
    segment_start: int | None = None
    segment_has_audio: bool = False
    num_audio_rows: int = 0
    last_part_max: int = 0

    @classmethod
    def for_config(cls, config: ThinkerConfig, seconds_per_pair: float = 1.0) -> Timeline:
        """Raises ValueError for pairs further apart than a chunk: the reference's interleave breaks down there."""
        if not 0 < seconds_per_pair <= config.seconds_per_chunk:
            raise ValueError(
                f"seconds_per_pair {seconds_per_pair} must be in (0, {config.seconds_per_chunk}]"
            )
        return cls(config.position_id_per_seconds, seconds_per_pair)

    def snapshot(self) -> Timeline:
        return replace(self)

    def text(self, num_tokens: int) -> Tensor:
        """Positions of plain tokens; also of an audio clip (bos, rows, eos), which counts like text."""
        assert self.segment_start is None, "text inside an open video segment"
        start = self.next_position
        self.next_position += num_tokens
        self.max_position = max(self.max_position, self.next_position - 1)
        return torch.arange(start, start + num_tokens).expand(3, -1)

    def open_segment(self, *, with_audio: bool) -> Tensor:
        """Positions of vision_bos, and of audio_bos at the same place if the video carries sound."""
        start = self.text(1)
        self.segment_start = self.next_position
        self.segment_has_audio = with_audio
        self.num_audio_rows = 0
        self.last_part_max = self.next_position - 1
        return start.expand(3, 2) if with_audio else start

    def pair(self, index: int, height: int, width: int) -> Tensor:
        """Positions of frame pair `index`, `height` × `width` rows (after merging), row by row."""
        start = self._open_start()
        time = start + self.pair_time(index)
        self._extend(max(time, start + height - 1, start + width - 1))
        positions = torch.empty(3, height, width, dtype=torch.int64)
        positions[0] = time
        positions[1] = torch.arange(start, start + height)[:, None]
        positions[2] = torch.arange(start, start + width)
        return positions.view(3, -1)

    def audio(self, num_rows: int) -> Tensor:
        """Positions of the next audio rows inside an open segment."""
        start = self._open_start() + self.num_audio_rows
        self.num_audio_rows += num_rows
        if num_rows:
            self._extend(start + num_rows - 1)
        return torch.arange(start, start + num_rows).expand(3, -1)

    def close_segment(self) -> Tensor:
        """Positions of audio_eos (if the segment has sound) and vision_eos.

        Reference quirk: they follow the maximum of the *last appended part* only, so a video that outlasts its audio
        inside the final chunk can close below earlier positions.
        """
        self._open_start()
        self.segment_start = None
        self.next_position = self.last_part_max + 1
        end = self.text(1)
        return end.expand(3, 2) if self.segment_has_audio else end

    def pair_time(self, index: int) -> int:
        """Time of a frame pair relative to its segment, in position ids (truncated in float32, as the reference)."""
        return int(np.float32(index) * np.float32(self.seconds_per_pair) * self.ids_per_second)

    def talker_start(self) -> tuple[int, int, int]:
        """Talker positions of a reply that starts now: voice token, first reply row, second reply row.

        Reference quirk: the third continues from the maximum over the whole prompt, not from the second.
        """
        voice = self.next_position
        return voice, voice + 1, max(self.max_position, voice + 1) + 1

    def _open_start(self) -> int:
        assert self.segment_start is not None, "no video segment is open"
        return self.segment_start

    def _extend(self, part_max: int) -> None:
        self.last_part_max = part_max
        self.max_position = max(self.max_position, part_max)


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """Frequencies of one decoder: which axis drives each of them, and how fast."""

    inv_freq: Tensor
    """[D/2] float32."""
    axis: Tensor
    """[D/2] int64: 0 time, 1 height, 2 width."""

    @classmethod
    def build(cls, config: DecoderConfig, device: torch.device) -> RotaryTable:
        exponent = torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim
        sections = torch.tensor(config.mrope_section, device=device)
        axis = torch.repeat_interleave(torch.arange(3, device=device), sections)
        return cls(1.0 / config.rope_theta**exponent, axis)

    def cos_sin(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Factors for `rotate` at `positions` [3, N], each [N, 1, D]: float32 inside, cast before use."""
        angles = positions[self.axis].T.float() * self.inv_freq  # [N, D/2]
        cos, signed_sin = rotation_factors(angles)
        return cos.to(dtype), signed_sin.to(dtype)


def rotation_factors(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Factors for `rotate`, each [N, 1, D], of `angles` [N, D/2]."""
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=1)[:, None], torch.cat((-sin, sin), dim=1)[:, None]


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Turn `x` [N, H, D] by the half-split convention: element i pairs with element i + D/2."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), signed_sin)
