"""Small layers that several parts share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain, statistics in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Differs from reference in bf16: the gain is applied before the result is rounded, not
        # after (one rounding instead of two). In float32 there is no difference.
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class PackedLinear(nn.Module):
    """Several linear layers on one input, stored as one matrix so that they are one kernel.

    In a state dict the parts keep their published names, side by side in the parent: packing `q_proj`, `k_proj`
    and `v_proj` in attribute `qkv` of `self_attn` yields `self_attn.q_proj.weight` and so on, each a view of the
    packed matrix. A loader may therefore fill the views in place. The parent must be a `Packed`.
    """

    def __init__(self, in_features: int, parts: Mapping[str, int], *, bias: bool) -> None:
        super().__init__()
        self.parts = dict(parts)
        out_features = sum(self.parts.values())
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] to […, sum of parts]; split the result by `parts.values()`."""
        return F.linear(x, self.weight, self.bias)

    def named_views(self) -> dict[str, Tensor]:
        """Views of the packed parameters under the names of their parts (`q_proj.weight`, …)."""
        views: dict[str, Tensor] = {}
        packed = {"weight": self.weight} | ({"bias": self.bias} if self.bias is not None else {})
        for kind, tensor in packed.items():
            pieces = torch.split(tensor.detach(), list(self.parts.values()))
            views |= {f"{name}.{kind}": p for name, p in zip(self.parts, pieces, strict=True)}
        return views

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        parent = _parent_prefix(prefix)
        for name, view in self.named_views().items():
            destination[parent + name] = view

    def _load_from_state_dict(  # type: ignore[no-untyped-def]
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        for name, view in self.named_views().items():
            tensor = state_dict.get(prefix + name)
            published = _parent_prefix(prefix) + name
            if tensor is None:
                missing_keys.append(published)
            elif tensor.shape != view.shape:
                error_msgs.append(f"{published}: {list(tensor.shape)}, not {list(view.shape)}")
            else:
                view.copy_(tensor)


class Packed(nn.Module):
    """A module with `PackedLinear` children: `load_state_dict` finds their parts under its own prefix."""

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        for child, packed in self.named_children():
            for name in packed.named_views() if isinstance(packed, PackedLinear) else ():
                if prefix + name in state_dict:
                    state_dict[f"{prefix}{child}.{name}"] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def gated_mlp(gate_and_up: Tensor) -> Tensor:
    """The inside of a SwiGLU: `silu(gate) * up` of a packed projection [N, 2 · size]."""
    gate, up = gate_and_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _parent_prefix(prefix: str) -> str:
    """`layers.0.self_attn.qkv.` to `layers.0.self_attn.`."""
    return prefix[: prefix.rstrip(".").rfind(".") + 1]
