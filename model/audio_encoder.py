"""Audio encoder: mel blocks to rows, 25 a second; every block of 2 s stands alone.

    mel ─▶ conv1 ─▶ conv2, stride 2 ─▶ + positions ─▶ layers ─▶ mean of pairs ─▶ ln_post, proj
    200     200          100                            100           50              50 rows

Convolutions see zeros beyond the block, positions restart in it, attention stays inside it, and its
100 frames pair up. So a clip may be encoded block by block while it arrives, and blocks of many
conversations in one call. A block cannot be extended, though: attention runs both ways, its last
frame changes its first row. Until a block is full, it is encoded from scratch whenever somebody
wants its rows.

After the convolutions the frames of all blocks lie packed, [N, C], longest block first. Only
attention and pooling need to know where a block ends; they view equally long blocks as one batch.
Nothing is ever padded, so nothing needs a mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.config import AudioConfig
    from model.mel import LogMel

MAX_TIMESCALE = 10_000
# Reference quirk: in float16 the residual stream is kept this far inside the largest finite number.
FP16_LIMIT = torch.finfo(torch.float16).max - 1000


class AudioShapeError(ValueError):
    """Mel frames that do not fit the encoder; the message names what was expected."""


def num_positions(num_frames: int) -> int:
    """Frames that the stride-2 convolution leaves of `num_frames`."""
    return (num_frames + 1) // 2


def num_rows(num_frames: int) -> int:
    """Rows of a block or a whole clip of `num_frames` mel frames; a rest of 1 or 2 yields none.

    Raises:
        AudioShapeError: the count is negative.
    """
    if num_frames < 0:
        raise AudioShapeError(f"a clip cannot have {num_frames} mel frames")
    return num_positions(num_frames) // 2


@dataclass(frozen=True, slots=True)
class _Packing:
    """How packed frames [N, C] divide: runs of equally long blocks, as (blocks, frames of each)."""

    runs: list[tuple[int, int]]

    def batches(self, x: Tensor) -> list[Tensor]:
        """View [N, C] as one [B, S, C] per run."""
        parts = torch.split(x, [blocks * size for blocks, size in self.runs])
        return [part.view(*run, -1) for part, run in zip(parts, self.runs, strict=True)]


class AudioAttention(nn.Module):
    """Full attention inside each block."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        width = config.d_model
        self.num_heads = config.encoder_attention_heads
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, packing: _Packing) -> Tensor:
        """[N, C] to [N, C]."""
        q, k, v = map(packing.batches, (self.q_proj(x), self.k_proj(x), self.v_proj(x)))
        h = torch.cat([self._attend(*run) for run in zip(q, k, v, strict=True)])
        out: Tensor = self.out_proj(h)
        return out

    def _attend(self, *qkv: Tensor) -> Tensor:
        """Attend within each block of a batch: three [B, S, C] to [B·S, C]."""
        q, k, v = (x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2) for x in qkv)
        h = F.scaled_dot_product_attention(q, k, v)  # [B, H, S, D]
        return h.transpose(1, 2).flatten(2).flatten(0, 1)


class AudioLayer(nn.Module):
    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.self_attn = AudioAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)  # before the MLP, despite its name

    def forward(self, x: Tensor, packing: _Packing) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), packing)
        x = x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))
        return x.clamp(-FP16_LIMIT, FP16_LIMIT) if x.dtype == torch.float16 else x


class AudioEncoder(nn.Module):
    """Log-mel frames to rows of the Thinker, under the published parameter names.

    Call `prepare` once after loading. Rows have the dtype of the weights; mel frames may be
    float32.

    Blocks are independent: encoding many in one call equals encoding each alone, up to the order in
    which a matrix product sums when it has another number of rows (1e-6 in float32).
    """

    positions: Tensor | None

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        width = config.d_model
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        # In every published checkpoint, used by nothing: the markers' rows are text embeddings.
        self.audio_bos_eos_token = nn.Embedding(2, config.output_dim)
        self.layers = nn.ModuleList([AudioLayer(config) for _ in range(config.encoder_layers)])
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Linear(width, config.output_dim)
        self.register_buffer("positions", None, persistent=False)

    def prepare(self) -> None:
        """Compute the position table; call once after loading."""
        table = sinusoids(num_positions(self.config.block_frames), self.config.d_model)
        self.positions = table.to(self.conv1.weight)  # [S, C]

    def forward(self, mel: Tensor) -> Tensor:
        """Encode a whole clip: frames [T, M] to rows [num_rows(T), output_dim].

        Raises:
            AudioShapeError: `mel` is not [T, num_mel_bins].
        """
        return torch.cat(self.encode_blocks(torch.split(mel, self.config.block_frames)))

    def encode_blocks(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """Encode blocks [t_i, M] of any clips in one call; return the rows of each.

        Rows are [num_rows(t_i), output_dim]. The cost of a call is that of its frames, plus a few
        kernels per layer for every distinct length; live speech has one, that of a full block.

        Raises:
            AudioShapeError: a block is not [t, num_mel_bins], or longer than a block may be.
        """
        for i, block in enumerate(blocks):
            self._check(block, i)
        rows = [self.conv1.weight.new_empty(0, self.config.output_dim) for _ in blocks]
        audible = [i for i, block in enumerate(blocks) if num_rows(len(block))]
        if not audible:
            return rows
        audible.sort(key=lambda i: -len(blocks[i]))
        encoded = self._encode_sorted([blocks[i] for i in audible])
        for i, block_rows in zip(audible, encoded, strict=True):
            rows[i] = block_rows
        return rows

    def _encode_sorted(self, blocks: list[Tensor]) -> Sequence[Tensor]:
        sizes = [num_positions(len(block)) for block in blocks]
        packing = _Packing([(len(list(run)), size) for size, run in groupby(sizes)])
        x = torch.cat([self._embed(torch.stack(list(run))) for _, run in groupby(blocks, len)])
        for layer in self.layers:
            x = layer(x, packing)
        x = torch.cat([_mean_of_pairs(run) for run in packing.batches(x)])
        return torch.split(self.proj(self.ln_post(x)), [size // 2 for size in sizes])

    def _embed(self, mel: Tensor) -> Tensor:
        """Equally long blocks [B, T, M] to frames with positions, packed [B·S, C]."""
        if self.positions is None:
            raise RuntimeError("call AudioEncoder.prepare() after loading the weights")
        x = F.gelu(self.conv1(mel.to(self.positions).transpose(1, 2)))  # [B, C, T]
        x = F.gelu(self.conv2(x)).transpose(1, 2)  # [B, S, C]
        return (x + self.positions[: x.shape[1]]).flatten(0, 1)

    def _check(self, block: Tensor, index: int) -> None:
        bins, longest = self.config.num_mel_bins, self.config.block_frames
        if block.ndim != 2 or block.shape[1] != bins or len(block) > longest:
            raise AudioShapeError(
                f"block {index} has shape {list(block.shape)}; expected [t ≤ {longest}, {bins}]"
            )


class AudioStream:
    """One clip on its way from samples to rows; the owner keeps it for the clip's length."""

    def __init__(self, log_mel: LogMel, encoder: AudioEncoder) -> None:
        self._log_mel = log_mel
        self._encoder = encoder
        self._state = log_mel.init_state(1)

    def push(self, samples: Tensor) -> Tensor:
        """Take samples [n]; return the rows that became final, 50 for every block of 2 s or none.

        Raises:
            AudioInputError: the samples are not finite float32 mono; none has been taken.
        """
        return self._rows(self._log_mel.step(samples[None], self._state, (0,)))

    def peek(self) -> Tensor:
        """Return the rows of the unfinished block as if the clip ended now; it may still go on.

        If it does, these rows are void: the block's final ones come from `push`.
        """
        return self._rows(self._log_mel.peek(self._state, (0,)))

    def flush(self) -> Tensor:
        """Return the rows of the unfinished block and begin a new clip."""
        return self._rows(self._log_mel.flush(self._state, (0,)))

    def _rows(self, mel: Tensor) -> Tensor:
        rows: Tensor = self._encoder(mel[0])
        return rows


def _mean_of_pairs(x: Tensor) -> Tensor:
    """[B, S, C] to [B · (S // 2), C]; an odd last frame is dropped."""
    num_pairs = x.shape[1] // 2
    pairs = x[:, : 2 * num_pairs].view(len(x), num_pairs, 2, -1)
    # (a + b) / 2 makes infinity of two saturated float16 frames; the reference does.
    return pairs.mean(2).flatten(0, 1)


def sinusoids(length: int, width: int) -> Tensor:
    """Return positions [length, width]: sines, then cosines, of width / 2 geometric timescales."""
    half = width // 2
    step = math.log(MAX_TIMESCALE) / (half - 1)
    rates = torch.exp(torch.arange(half, device="cpu") * -step)
    angles = torch.arange(length, device="cpu")[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1)
