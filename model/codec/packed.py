"""Linear layers for inference, arranged once for the machine at hand.

On CPUs a weight that oneDNN has laid out for itself, with bias and activation in the same pass, is
15 to 35 % faster than `F.linear` from widths of about 128; below, its overhead costs more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

_MIN_WIDTH = 128
_TYPICAL_ROWS = 96  # a hint for the layout: two guided rows of a two-block window


def packed_linear(
    weight: Tensor, bias: Tensor, *, gelu: bool = False
) -> Callable[[Tensor], Tensor]:
    """Return x -> x Wᵀ + b, or tanh-GELU of it. Later changes of `weight` may go unseen."""
    weight, bias = weight.detach(), bias.detach()
    if _suits_onednn(weight):
        onednn = torch.ops.mkldnn
        packed = onednn._reorder_linear_weight(weight, _TYPICAL_ROWS)
        activation, flavour = ("gelu", "tanh") if gelu else ("none", "")

        def run(x: Tensor) -> Tensor:
            y: Tensor = onednn._linear_pointwise(x, packed, bias, activation, [], flavour)
            return y

        return run
    if gelu:
        return lambda x: F.gelu(F.linear(x, weight, bias), approximate="tanh")
    return lambda x: F.linear(x, weight, bias)


def _suits_onednn(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or min(weight.shape) < _MIN_WIDTH:
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
