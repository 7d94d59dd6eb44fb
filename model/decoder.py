"""The decoder-only transformer that Thinker and Talker share: Qwen2.5 with three-axis rotary positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attention, ForwardBatch, KVCache, choose_attention, store
from model.layers import Packed, PackedLinear, RMSNorm, gated_mlp
from model.rope import RotaryTable, rotate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.config import DecoderConfig


class SelfAttention(Packed):
    """Grouped-query attention; queries, keys and values have biases, the output has none."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        size, kv_size = (
            heads * config.head_dim
            for heads in (config.num_attention_heads, config.num_key_value_heads)
        )
        parts = {"q_proj": size, "k_proj": kv_size, "v_proj": kv_size}
        self.qkv = PackedLinear(config.hidden_size, parts, bias=True)
        self.o_proj = nn.Linear(size, config.hidden_size, bias=False)
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        kv: Tensor,
        batch: ForwardBatch,
        attend: Attention,
    ) -> Tensor:
        qk, v = self._project(x, rotary)
        q, k = torch.split(qk, [self.num_heads, self.num_kv_heads], dim=1)
        store(kv, torch.stack((k, v), dim=1), batch)
        return self.o_proj(attend(q, kv, batch).flatten(1))  # type: ignore[no-any-return]

    def whole(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None = None) -> Tensor:
        """Whole sequences [B, T, hidden] from their start, without a cache."""
        num_seqs, length, _ = x.shape
        qk, v = self._project(x.flatten(0, 1), rotary)
        q, k = torch.split(qk, [self.num_heads, self.num_kv_heads], dim=1)
        q, k, v = (
            t.view(num_seqs, length, -1, self.head_dim).transpose(1, 2) for t in (q, k, v)
        )  # [B, heads, T, D]
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return self.o_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _project(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """[N, hidden] to rotated queries and keys side by side [N, H + K, D], and values [N, K, D]."""
        heads = self.qkv(x).view(len(x), -1, self.head_dim)
        qk, v = torch.split(heads, [self.num_heads + self.num_kv_heads, self.num_kv_heads], dim=1)
        return rotate(qk, *rotary), v


class Mlp(Packed):
    """SwiGLU without biases."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        parts = {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size}
        self.gate_up = PackedLinear(config.hidden_size, parts, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(gated_mlp(self.gate_up(x)))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        kv: Tensor,
        batch: ForwardBatch,
        attend: Attention,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, kv, batch, attend)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]

    def whole(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None = None) -> Tensor:
        x = x + self.self_attn.whole(self.input_layernorm(x), rotary, mask)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Embedding table, layers, final norm. `prepare` must be called once after loading."""

    def __init__(self, config: DecoderConfig, embedding_size: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, embedding_size or config.hidden_size)
        layers = [DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary: RotaryTable | None = None
        self.attend: Attention | None = None

    def prepare(self) -> None:
        """Choose the attention kernel and build the rotary table for the device the weights are on."""
        weight = self.norm.weight
        self.rotary = RotaryTable.build(self.config, weight.device)
        self.attend = choose_attention(weight.device, weight.dtype)

    def forward(self, x: Tensor, batch: ForwardBatch, kv: KVCache) -> Tensor:
        """Rows [N, hidden] of packed sequences to hidden states after the final norm [N, hidden].

        Writes the keys and values of these rows into `kv`.
        """
        assert self.attend is not None, "prepare() was not called after loading"
        rotary = self._rotary(batch.positions, x.dtype)
        for layer, layer_kv in zip(self._layers(), kv.layers(), strict=True):
            x = layer(x, rotary, layer_kv, batch, self.attend)
        return self.norm(x)  # type: ignore[no-any-return]

    def whole(self, x: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Whole sequences [B, T, hidden] at `positions` [3, B, T] without a cache: training and checks.

        Shorter sequences are padded at their end; attention is causal, so the padding changes nothing before it. A
        `mask` [B, 1, T, T], true where a row may look, takes the causal one's place.
        """
        rotary = self._rotary(positions.flatten(1), x.dtype)
        for layer in self._layers():
            x = layer.whole(x, rotary, mask)
        return self.norm(x)  # type: ignore[no-any-return]

    def _layers(self) -> Iterator[DecoderLayer]:
        return cast("Iterator[DecoderLayer]", iter(self.layers))

    def _rotary(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        assert self.rotary is not None, "prepare() was not called after loading"
        return self.rotary.cos_sin(positions, dtype)
