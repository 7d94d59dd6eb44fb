"""Linear layers for inference on a CPU: weights laid out, or quantised, once and for the kernel that reads them.

Figures are CPU time of one core with AVX-512 (bf16, VNNI) for the layers of a 135M decoder, against `F.linear` in bf16.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import PackedLinear

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AnyLinear = nn.Linear | PackedLinear
_MIN_WIDTH = 128


def packed_linear(
    weight: Tensor, bias: Tensor | None, *, gelu: bool = False
) -> Callable[[Tensor], Tensor]:
    """Return x -> x Wᵀ + b, or tanh-GELU of it, the weights laid out once the way oneDNN's kernels want them.

    `F.linear` lets the library convert at every call: 2× slower for one row, 1.3× for 16, 1.05× for 512, with bit-equal
    results in bf16. Narrow layers, GPUs and float16 keep `F.linear`. Later changes of `weight` may go unseen.
    """
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if suits_onednn(weight):
        activation, flavour = ("gelu", "tanh") if gelu else ("none", "")
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)

        def run(x: Tensor) -> Tensor:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], flavour)
            return y

        return run
    if gelu:
        return lambda x: F.gelu(F.linear(x, weight, bias), approximate="tanh")
    return lambda x: F.linear(x, weight, bias)


def suits_onednn(weight: Tensor) -> bool:
    """Whether a layout of its own helps: below a width of about 128 the call costs more than it saves."""
    if weight.device.type != "cpu" or min(weight.shape) < _MIN_WIDTH:
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


class PrepackedLinear(nn.Module):
    """A linear layer for inference in its own precision; see `packed_linear`."""

    def __init__(self, linear: AnyLinear) -> None:
        super().__init__()
        # Not a parameter: the layout is opaque, and nothing may cast or copy it.
        self._product = packed_linear(linear.weight, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._product(x)


class Int8Linear(nn.Module):
    """A linear layer with symmetric int8 weights, one scale per output row.

    A decode step reads every weight once and does little else, so bytes are time. With FBGEMM (x86) the activations are
    quantised too, each row by its own range, and products are int8: 2.2–3.5× for one row, 1.5× for 16 to 512. Elsewhere
    the weights are converted as they are read and activations stay as they are.
    """

    def __init__(self, linear: AnyLinear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        quantised = (weight / scale[:, None]).round_().to(torch.int8)
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._kernel: Kernel = (
            _FbgemmKernel(quantised, scale)
            if _has_fbgemm(weight.device)
            else _ConvertingKernel(quantised, scale.to(linear.weight.dtype))
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, in] to [N, out] in the dtype of `x`."""
        y = self._kernel(x)
        return y if self._bias is None else y.add_(self._bias)


class Kernel(Protocol):
    """The product of rows [N, in] with int8 weights [out, in], in the dtype of the rows."""

    def __call__(self, x: Tensor) -> Tensor: ...


class _ConvertingKernel:
    """Any device: int8 is exact in bf16 and fp16, so the weights are converted for one call and the output scaled."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self._weight, self._scale = weight, scale

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight.to(x.dtype)).mul_(self._scale)


class _FbgemmKernel:
    """x86: int8 products, with the activations quantised as they come."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        zero_points = torch.zeros(len(weight), dtype=torch.int64)
        with _fbgemm_engine(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # quantised tensors are deprecated in torch
            tensor = torch._make_per_channel_quantized_tensor(
                weight, scale.double(), zero_points, 0
            )
            self._packed = torch.ops.quantized.linear_prepack(tensor, None)
        # Without VNNI the kernel adds pairs of products in 16 bits; seven bits of activation cannot overflow them.
        self._reduce_range = not torch.cpu._is_vnni_supported()

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.float()
        if len(rows) == 1:
            return self._product(rows).to(x.dtype)
        # The kernel has one range for all rows. Scaled to a common peak, every row fills it by itself, so the
        # rows of one conversation do not take precision from another's.
        peaks = rows.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12)
        return self._product(rows / peaks).mul_(peaks).to(x.dtype)

    def _product(self, rows: Tensor) -> Tensor:
        y: Tensor = torch.ops.quantized.linear_dynamic(rows, self._packed, self._reduce_range)
        return y


def prepack(module: nn.Module) -> None:
    """Replace every linear layer below `module` that gains by it; what they held is freed."""
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.Linear | PackedLinear) and suits_onednn(child.weight):
            module.set_submodule(name, PrepackedLinear(child))


def _has_fbgemm(device: torch.device) -> bool:
    return device.type == "cpu" and "fbgemm" in torch.backends.quantized.supported_engines


@contextmanager
def _fbgemm_engine() -> Iterator[None]:
    """The packing function takes its library from a global; leave that as it was."""
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = engine
