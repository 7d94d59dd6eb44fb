"""Low-rank additions (LoRA, Hu et al. 2021) to the matrices of the frozen Thinker; `assemble.py` merges them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.tiny import tree
from recipes.tiny.assemble import ADAPTER_SCALE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.decoder import DecoderLayer
    from recipes.tiny.frozen import FrozenThinker

RANK = 8


class Adapted(nn.Module):
    """A frozen matrix plus a trained one of low rank: `base(x) + ADAPTER_SCALE * up(down(x))`.

    Only the source's width is read and written, so that spellings pass untouched.
    """

    def __init__(self, base: nn.Module, num_in: int, num_out: int) -> None:
        super().__init__()
        self.base = base
        self.is_on = True
        self.down = nn.Parameter(torch.randn(RANK, num_in) * num_in**-0.5)
        self.up = nn.Parameter(torch.zeros(num_out, RANK))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        if not self.is_on:
            return y
        inside = x[..., : self.down.shape[1]]
        added = F.linear(F.linear(inside, ADAPTER_SCALE * self.down), self.up)
        return y + F.pad(added, (0, y.shape[-1] - added.shape[-1])).to(y.dtype)


class Adapters(nn.Module):
    """The trained numbers of all adapters of a Thinker: what is averaged, kept and shipped."""

    def __init__(self, adapted: dict[str, Adapted]) -> None:
        super().__init__()
        self._adapted = list(adapted.values())
        for name, adapter in adapted.items():
            self.register_parameter(f"{name}_down", adapter.down)
            self.register_parameter(f"{name}_up", adapter.up)

    @classmethod
    def around(cls, source: FrozenThinker) -> Adapters:
        """Put an adapter around every matrix of every layer; names are the layer's and the matrix's."""
        width, config = tree.SOURCE_HIDDEN, source.config.thinker.decoder
        heads = config.num_attention_heads * config.head_dim
        kv_heads = config.num_key_value_heads * config.head_dim
        adapted: dict[str, Adapted] = {}
        for i, layer in enumerate(cast("list[DecoderLayer]", list(source.thinker.model.layers))):
            for owner, name, num_in, num_out in (
                (layer.self_attn, "qkv", width, heads + 2 * kv_heads),
                (layer.self_attn, "o_proj", heads, width),
                (layer.mlp, "gate_up", width, 2 * config.intermediate_size),
                (layer.mlp, "down_proj", config.intermediate_size, width),
            ):
                adapter = Adapted(getattr(owner, name), num_in, num_out).to(source.device)
                setattr(owner, name, adapter)
                adapted[f"{i}_{name}"] = adapter
        return cls(adapted)

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Let the Thinker be as it was."""
        for adapter in self._adapted:
            adapter.is_on = False
        try:
            yield
        finally:
            for adapter in self._adapted:
                adapter.is_on = True
