"""Low-rank additions: merged into the weights they do what they did while they were trained."""

from __future__ import annotations

import torch
from torch import nn

from recipes.tiny import tree
from recipes.tiny.adapters import RANK, Adapted
from recipes.tiny.assemble import TEXT, add_adapters

QUERY, KEY = 64, 32


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_a_merged_adapter_is_the_adapter_part_by_part() -> None:
    base = nn.Linear(tree.HIDDEN, QUERY + 2 * KEY, bias=False)
    adapted = Adapted(base, tree.SOURCE_HIDDEN, QUERY + 2 * KEY)
    nn.init.normal_(adapted.up)
    x = drawn(5, tree.HIDDEN)
    expected = adapted(x).split([QUERY, KEY, KEY], dim=1)
    names = [f"{TEXT}layers.3.self_attn.{x}_proj.weight" for x in "qkv"]
    parts = base.weight.detach().clone().split([QUERY, KEY, KEY])
    tensors = {name: part.clone() for name, part in zip(names, parts, strict=True)}
    add_adapters(tensors, {"3_qkv_down": adapted.down.detach(), "3_qkv_up": adapted.up.detach()})
    for name, wanted in zip(names, expected, strict=True):
        torch.testing.assert_close(x @ tensors[name].T, wanted, atol=1e-4, rtol=1e-4)


def test_what_writes_into_the_stream_leaves_spellings_alone() -> None:
    base = nn.Linear(48, tree.HIDDEN, bias=False)
    nn.init.zeros_(base.weight)
    adapted = Adapted(base, 48, tree.SOURCE_HIDDEN)
    nn.init.normal_(adapted.up)
    y = adapted(drawn(2, 48))
    assert y[:, : tree.SOURCE_HIDDEN].any() and not y[:, tree.SOURCE_HIDDEN :].any()
    tensors = {f"{TEXT}layers.0.mlp.down_proj.weight": base.weight.detach().clone()}
    adapters = {"0_down_proj_down": adapted.down.detach(), "0_down_proj_up": adapted.up.detach()}
    add_adapters(tensors, adapters)
    [merged] = tensors.values()
    torch.testing.assert_close(drawn(2, 48) @ merged.T, y, atol=1e-4, rtol=1e-4)


def test_switched_off_it_is_not_there() -> None:
    base = nn.Linear(8, 8)
    adapted = Adapted(base, 8, 8)
    nn.init.normal_(adapted.up)
    adapted.is_on = False
    assert adapted(drawn(2, 8)).equal(base(drawn(2, 8)))
    assert adapted.down.shape == (RANK, 8)
