"""The flow-matching transformer: which way noisy mel should move, given codec tokens and a voice.

Time is cut into blocks of `block_size` mel frames. Attention stays inside a block, except in a few
layers that also see the block before (`look_backward_layers`) or after (`look_ahead_layers`):

    block      b-2    b-1     b     b+1
    layer 0     └──────┴──────┘             published sizes: one evaluation of block b
    layer 10                  └──────┘      sees b-2 … b+1
    layer 20           └──────┘
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.codec.block_attention import Geometry, Rotary, attend, attention_runs
from model.codec.speaker_encoder import SpeakerEncoder
from model.cpu_linear import packed_linear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model.config import DitConfig

_NORM_EPS = 1e-6
_TIME_FREQUENCIES = 128
_TIME_SCALE = 1000.0


@dataclass(frozen=True, slots=True)
class Modulation:
    """What time does to one layer: [C] each where all rows share the time, else [N, 1, C].

    Scales already hold their `1 +`.
    """

    attn_shift: Tensor
    attn_scale: Tensor
    attn_gate: Tensor
    ff_shift: Tensor
    ff_scale: Tensor
    ff_gate: Tensor


@dataclass(frozen=True, slots=True)
class TimeModulations:
    """What one time does to the whole network."""

    layers: tuple[Modulation, ...]
    out_scale: Tensor
    out_shift: Tensor


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm without weights of its own, then `· scale + shift`."""
    width = (x.shape[-1],)
    if scale.dim() == 1:
        return F.layer_norm(x, width, scale, shift, _NORM_EPS)
    return torch.addcmul(shift, F.layer_norm(x, width, eps=_NORM_EPS), scale)


class Attention(nn.Module):
    """Multi-head attention in block neighbourhoods."""

    def __init__(self, config: DitConfig, back: int, ahead: int) -> None:
        super().__init__()
        inner = config.num_attention_heads * config.head_dim
        self.head_shape = (config.num_attention_heads, config.head_dim)
        self.back, self.ahead = back, ahead
        self.to_q = nn.Linear(config.hidden_size, inner)
        self.to_k = nn.Linear(config.hidden_size, inner)
        self.to_v = nn.Linear(config.hidden_size, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, config.hidden_size)])

    def pack(self) -> tuple[Tensor, Tensor]:
        """Lay the three input projections side by side in memory, as one weight and bias.

        The parameters become views of them: names, values and training stay as they are, and
        memory is not doubled.
        """
        projections = (self.to_q, self.to_k, self.to_v)
        with torch.no_grad():
            weight = torch.cat([p.weight for p in projections])
            bias = torch.cat([p.bias for p in projections])
            for i, projection in enumerate(projections):
                projection.weight.data = weight.chunk(3)[i]
                projection.bias.data = bias.chunk(3)[i]
        return weight, bias

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values side by side, [N, T, 3·H·D]."""
        projections = (self.to_q, self.to_k, self.to_v)
        return torch.cat([F.linear(x, p.weight, p.bias) for p in projections], dim=-1)

    def mix(self, qkv: Tensor, geometry: Geometry, past_kv: Tensor | None) -> Tensor:
        """Rotate in place and attend: [N, T, 3, H, D] to [N, T, H·D].

        `past_kv` [N, block, 2, H, D] (keys not rotated) precedes frame 0; given only where `back`
        is 1.
        """
        q, kv = qkv[:, :, 0], qkv[:, :, 1:]
        # Reference quirk: only head 0 is rotated. The published weights were trained that way.
        if past_kv is None:
            geometry.rotary.rotate_(qkv[:, :, :2, 0])
        else:
            kv = torch.cat([past_kv, kv], dim=1)
            geometry.rotary.rotate_(q[:, :, :1])
            geometry.rotary_with_past.rotate_(kv[:, :, 0, :1])
        return attend(q, kv, geometry.runs[self.back, self.ahead])


class FeedForward(nn.Module):
    """Linear, tanh-GELU, Linear."""

    def __init__(self, width: int, mult: int) -> None:
        super().__init__()
        # The empty place is the published dropout; it keeps the second projection's name `ff.3`.
        self.ff = nn.ModuleList(
            [
                nn.Linear(width, width * mult),
                nn.GELU(approximate="tanh"),
                nn.Identity(),
                nn.Linear(width * mult, width),
            ]
        )


class AdaptiveNorm(nn.Module):
    """Time embedding [B, C] to `parts` modulation vectors [B, C] each."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:
        y: Tensor = self.linear(F.silu(time))
        return y.chunk(self.parts, dim=-1)


@dataclass(frozen=True, slots=True)
class BlockLinears:
    """The four matrix products of a layer; `expand` ends in its activation."""

    project: Callable[[Tensor], Tensor]  # [N, T, C] to [N, T, 3·H·D]
    mix: Callable[[Tensor], Tensor]
    expand: Callable[[Tensor], Tensor]
    contract: Callable[[Tensor], Tensor]


class Block(nn.Module):
    """One transformer layer."""

    def __init__(self, config: DitConfig, back: int, ahead: int) -> None:
        super().__init__()
        self.attn_norm = AdaptiveNorm(config.hidden_size, 6)
        self.attn = Attention(config, back, ahead)
        self.ff = FeedForward(config.hidden_size, config.ff_mult)

    def modulation(self, time: Tensor) -> Modulation:
        """Time embedding [C] or [B, C] to what it does to this layer."""
        parts = self.attn_norm(time)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = (
            p if p.dim() == 1 else p[:, None] for p in parts
        )
        return Modulation(shift, 1 + scale, gate, ff_shift, 1 + ff_scale, ff_gate)

    def linears(self) -> BlockLinears:
        """The products as the parameters define them, differentiable."""
        expand, gelu, _, contract = self.ff.ff
        return BlockLinears(
            self.attn.project, self.attn.to_out[0], lambda x: gelu(expand(x)), contract
        )

    def packed_linears(self) -> BlockLinears:
        """The same, arranged for inference; weights that change later need new ones."""
        out, expand, contract = (
            cast("nn.Linear", m) for m in (self.attn.to_out[0], self.ff.ff[0], self.ff.ff[3])
        )
        return BlockLinears(
            packed_linear(*self.attn.pack()),
            packed_linear(out.weight, out.bias),
            packed_linear(expand.weight, expand.bias, gelu=True),
            packed_linear(contract.weight, contract.bias),
        )

    def forward(
        self,
        x: Tensor,
        mod: Modulation,
        geometry: Geometry,
        linears: BlockLinears,
        past: PastBlock | None = None,
    ) -> Tensor:
        qkv = linears.project(modulated_norm(x, mod.attn_scale, mod.attn_shift))
        qkv = qkv.view(*x.shape[:2], 3, *self.attn.head_shape)
        past_kv = past.exchange(qkv[:, :, 1:]) if past is not None else None
        mixed = linears.mix(self.attn.mix(qkv, geometry, past_kv))
        x = torch.addcmul(x, mod.attn_gate, mixed)
        y = linears.expand(modulated_norm(x, mod.ff_scale, mod.ff_shift))
        return torch.addcmul(x, mod.ff_gate, linears.contract(y))


class PastBlock(Protocol):
    """What one back-looking layer remembers, in one evaluation, of the block before the window."""

    def exchange(self, kv: Tensor) -> Tensor | None:
        """Return what is remembered, and remember what the next window needs of `kv`.

        Both [N, frames, 2, H, D] with keys not rotated; None at the start of a clip.
        """


class TimeEmbedding(nn.Module):
    """Times [B] in 0…1 to [B, C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_mlp = nn.ModuleList(
            [nn.Linear(2 * _TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)]
        )

    def forward(self, t: Tensor) -> Tensor:
        octaves = torch.arange(_TIME_FREQUENCIES, dtype=torch.float32, device=t.device)
        frequencies = torch.exp(octaves * -(math.log(10000) / (_TIME_FREQUENCIES - 1)))
        angles = _TIME_SCALE * t.float()[:, None] * frequencies
        first = cast("nn.Linear", self.time_mlp[0])
        x = torch.cat([angles.sin(), angles.cos()], dim=-1).to(first.weight.dtype)
        for part in self.time_mlp:
            x = part(x)
        return x


class CodeEmbedding(nn.Module):
    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.codec_embed = nn.Embedding(config.num_embeds + 1, config.emb_dim)


class InputEmbedding(nn.Module):
    """Noisy mel, speaker vector, code and `cond`, side by side, to the network's width."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.sizes = (config.mel_dim, config.enc_dim, config.emb_dim, config.enc_emb_dim)
        self.proj = nn.Linear(sum(self.sizes), config.hidden_size)
        self.spk_encoder = SpeakerEncoder(config)

    def split_weight(self) -> tuple[Tensor, ...]:
        """The projection's columns for mel, speaker vector, code and `cond`."""
        return torch.split(self.proj.weight, list(self.sizes), dim=1)


class Dit(nn.Module):
    """The network.

    `velocity` trains and defines it; `FlowSampler` runs the same layers with everything cached.
    """

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.config = config
        self.time_embed = TimeEmbedding(config.hidden_size)
        self.text_embed = CodeEmbedding(config)
        self.input_embed = InputEmbedding(config)
        self.transformer_blocks = nn.ModuleList(
            Block(config, int(i in config.look_backward_layers), int(i in config.look_ahead_layers))
            for i in range(config.num_hidden_layers)
        )
        self.norm_out = AdaptiveNorm(config.hidden_size, 2)
        self.proj_out = nn.Linear(config.hidden_size, config.mel_dim)

    def reset_parameters(self) -> None:
        """Initialise for training from scratch: layers start as the identity, velocity as zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding):
                module.reset_parameters()
        modulated = [block.attn_norm.linear for block in self.blocks]
        for linear in (*modulated, self.norm_out.linear, self.proj_out):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    @property
    def blocks(self) -> list[Block]:
        return [cast("Block", block) for block in self.transformer_blocks]

    @property
    def num_codes(self) -> int:
        """Codec tokens below this are in the table."""
        return self.config.num_embeds + 1

    def velocity(
        self,
        x: Tensor,
        codes: Tensor,
        cond: Tensor,
        ref_mel: Tensor,
        t: Tensor,
        is_null: Tensor | None = None,
    ) -> Tensor:
        """Predict d(mel)/dt; differentiable in every weight.

        Args:
            x: noisy mel [B, T, M] at the times `t` [B]; a clip from its start, any T that is a
                multiple of `repeats`.
            codes: codec tokens [B, T / repeats].
            cond, ref_mel: the voices, [B, enc_emb_dim] and [B, T_ref, M].
            is_null: rows [B] to compute without code and voice (the second row of classifier-free
                guidance).

        Returns:
            [B, T, M]

        Raises:
            ValueError: lengths disagree, or a code is outside the table.
        """
        self.check_codes(codes)
        if x.shape[1] != codes.shape[1] * self.config.repeats:
            raise ValueError(
                f"{codes.shape[1]} codes make {codes.shape[1] * self.config.repeats} mel frames, "
                f"not {x.shape[1]}"
            )
        if is_null is not None:
            codes = codes.masked_fill(is_null[:, None], 0)
            cond = cond.masked_fill(is_null[:, None], 0)
            ref_mel = ref_mel.masked_fill(is_null[:, None, None], 0)
        speaker = self.input_embed.spk_encoder(ref_mel)
        embedded = self.text_embed.codec_embed(codes).repeat_interleave(self.config.repeats, dim=1)
        length = x.shape[1]
        wide = [v[:, None].expand(-1, length, -1) for v in (speaker, cond)]
        h = self.input_embed.proj(torch.cat([x, wide[0], embedded, wide[1]], dim=-1))
        modulations = self.modulations(self.time_embed(t))
        linears = [block.linears() for block in self.blocks]
        return self.run_layers(h, modulations, self.geometry(length), linears)

    def run_layers(
        self,
        h: Tensor,
        modulations: TimeModulations,
        geometry: Geometry,
        linears: Sequence[BlockLinears],
        past: Sequence[PastBlock | None] | None = None,
    ) -> Tensor:
        """Embedded input [N, T, C] to velocity [N, T, M]; sequences have an entry per layer."""
        for i, block in enumerate(self.transformer_blocks):
            before = past[i] if past else None
            h = block(h, modulations.layers[i], geometry, linears[i], before)
        h = modulated_norm(h, modulations.out_scale, modulations.out_shift)
        return F.linear(h, self.proj_out.weight, self.proj_out.bias)

    def modulations(self, time: Tensor) -> TimeModulations:
        """Time embedding [C] or [B, C] to what it does to every layer."""
        # Scale before shift here, the other way round inside the layers: both as published.
        scale, shift = self.norm_out(time)
        if time.dim() > 1:
            scale, shift = scale[:, None], shift[:, None]
        layers = tuple(block.modulation(time) for block in self.blocks)
        return TimeModulations(layers, 1 + scale, shift)

    def geometry(self, num_frames: int, past: int = 0) -> Geometry:
        """Lay out attention over `num_frames` frames, `past` remembered frames before them.

        Positions count from the window's first frame: rotary attention only sees differences.
        """
        config = self.config
        if past + num_frames > config.max_position_embeddings:
            raise ValueError(
                f"{num_frames} mel frames are more than max_position_embeddings "
                f"{config.max_position_embeddings}; decode in windows, or a shorter clip"
            )
        reaches = {(b.attn.back, b.attn.ahead) for b in self.blocks}
        runs = {
            (back, ahead): attention_runs(
                num_frames, config.block_size, back, ahead, past if back else 0
            )
            for back, ahead in reaches
        }
        rotary = Rotary.of(-past, num_frames, config.head_dim, self.proj_out.weight.device)
        return Geometry(runs, rotary.from_frame(past), rotary)

    def check_codes(self, codes: Tensor) -> None:
        """Refuse codec tokens that the table lacks; waits for the device if they are on one.

        Raises:
            ValueError: names the first bad code.
        """
        bad = (codes < 0) | (codes >= self.num_codes)
        if bad.any():
            code = int(codes[bad][0])
            raise ValueError(
                f"codec token {code} is not in the decoder's table of {self.num_codes}; stop "
                "tokens end a reply and are not decoded, higher ids must be suppressed"
            )
