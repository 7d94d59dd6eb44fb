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
            pieces = tensor.detach().split(list(self.parts.values()))
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


class Int8Linear(nn.Module):
    """A linear layer with symmetric int8 weights, one scale per output row.

    A decode step reads every weight once and does little else, so halving the bytes halves its time. Few rows go through
    the int8 kernel of the CPU; many rows convert the weights for one call (int8 is exact in bf16 and fp16), which costs
    one pass over them, and scale the output instead of the weights.
    """

    MAX_KERNEL_ROWS = 12
    """Above this many rows the bf16 product overtakes the int8 kernel (measured on AVX-512)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, parts: Mapping[str, int]) -> None:
        super().__init__()
        self.parts = dict(parts)
        scale = weight.float().abs().amax(dim=1).clamp(min=1e-12) / 127
        quantised = (weight.float() / scale[:, None]).round_().to(torch.int8)
        self.weight = nn.Parameter(quantised, requires_grad=False)
        self.scale = nn.Parameter(scale.to(weight.dtype), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def quantise(cls, linear: nn.Linear | PackedLinear) -> Int8Linear:
        parts = linear.parts if isinstance(linear, PackedLinear) else {}
        return cls(linear.weight.detach(), linear.bias, parts)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in] to [N, out] in the dtype of `x`."""
        if x.dtype == torch.bfloat16 and x.device.type == "cpu" and len(x) <= self.MAX_KERNEL_ROWS:
            y: Tensor = torch._weight_int8pack_mm(x, self.weight, self.scale)
        else:
            y = F.linear(x, self.weight.to(x.dtype)).mul_(self.scale)
        return y if self.bias is None else y.add_(self.bias)


def gated_mlp(gate_and_up: Tensor) -> Tensor:
    """The inside of a SwiGLU: `silu(gate) * up` of a packed projection [N, 2 · size]."""
    gate, up = gate_and_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _parent_prefix(prefix: str) -> str:
    """`layers.0.self_attn.qkv.` to `layers.0.self_attn.`."""
    return prefix[: prefix.rstrip(".").rfind(".") + 1]
