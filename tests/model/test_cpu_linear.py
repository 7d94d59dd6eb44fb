"""Prepacked and int8 layers: same numbers, or numbers as close as their bits allow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from model.cpu_linear import Int8Linear, PrepackedLinear, _ConvertingKernel, prepack
from model.layers import PackedLinear


def rows(count: int, size: int = 128, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def linear(*, bias: bool = True, packed: bool = False) -> nn.Linear | PackedLinear:
    torch.manual_seed(1)
    if packed:
        layer = PackedLinear(128, {"q_proj": 96, "k_proj": 32}, bias=bias)
    else:
        layer = nn.Linear(128, 128, bias=bias)
    return layer.requires_grad_(False)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("count", [1, 5, 64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_a_prepacked_layer_gives_the_same_product(count: int, bias: bool, packed: bool) -> None:
    layer, x = linear(bias=bias, packed=packed), rows(count)
    # float32; another kernel sums 128 products in another order
    torch.testing.assert_close(PrepackedLinear(layer)(x), layer(x), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_as_close_as_eight_bits_allow(count: int, dtype: torch.dtype) -> None:
    layer, x = linear(), rows(count)
    y = Int8Linear(layer.to(dtype))(x.to(dtype))
    assert y.dtype == dtype
    # Rounding to 1/127 of a row's peak (about 3 sigma) costs 0.7 % of a Gaussian's norm, for weights and for rows.
    assert relative_error(y, layer.float()(x)) < 0.02


def test_the_converting_kernel_quantises_weights_only() -> None:
    layer, x = linear(bias=False), rows(7)
    scale = layer.weight.abs().amax(dim=1) / 127
    quantised = (layer.weight / scale[:, None]).round().to(torch.int8)
    y = _ConvertingKernel(quantised, scale)(x)
    assert relative_error(y, layer(x)) < 0.011


def test_a_loud_row_takes_no_precision_from_a_quiet_one() -> None:
    """Rows of several conversations share a batch; without a range each, the quiet one would round to nothing."""
    layer = linear()
    quiet, loud = rows(1) * 1e-3, rows(1, seed=5) * 1e3
    together = Int8Linear(layer)(torch.cat((quiet, loud)))
    layer.bias.zero_()
    weights_only = Int8Linear(linear(bias=False))
    alone = weights_only(quiet)
    assert relative_error(together[:1] - linear().bias, alone) < 0.02


def test_a_silent_row_stays_silent() -> None:
    y = Int8Linear(linear(bias=False))(torch.zeros(2, 128))
    assert torch.equal(y, torch.zeros(2, 128))


def test_quantising_leaves_the_process_as_it_was() -> None:
    before = torch.backends.quantized.engine
    Int8Linear(linear())
    assert torch.backends.quantized.engine == before


def test_prepack_replaces_the_layers_that_gain_and_nothing_else() -> None:
    wide, half = nn.Linear(128, 128), nn.Linear(128, 128).half()
    model = nn.Sequential(wide, nn.LayerNorm(128), nn.Sequential(half, nn.Linear(128, 4)))
    prepack(model)
    kinds = [type(m).__name__ for m in model.modules()]
    assert kinds == ["Sequential", "PrepackedLinear", "LayerNorm", "Sequential", "Linear", "Linear"]
