"""An addition that says nothing moves no reply; one that does is noticed, in what is typed and in what is spoken."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recipes.tiny.adapters import Adapters
from recipes.tiny.callers import Call
from recipes.tiny.frozen import FrozenThinker
from recipes.tiny.holding import Holder
from recipes.tiny.showing import Showing
from tests.e2e.embedded import CHECKPOINT

pytestmark = pytest.mark.skipif(
    not (CHECKPOINT / "model.safetensors").exists(), reason="make test assembles omni-tiny first"
)


@torch.no_grad()
def test_what_is_held_is_what_was_said_without_the_addition() -> None:
    torch.manual_seed(3)  # of the addition
    source = FrozenThinker.load(CHECKPOINT, "cpu", torch.float32)
    adapters, hiss = Adapters.around(source), np.random.default_rng(1).integers(-900, 900, 20_000)
    call = Call("What color is the sky?", "The sky is blue.", "blue", "nobody", 0, len(hiss))
    typed, both = (
        Holder(source, adapters, Showing(source), calls)
        for calls in ([], [(call, hiss.astype(np.int16))])
    )
    assert _moved(both) == pytest.approx(0, abs=1e-6)
    for name, numbers in adapters.named_parameters():
        if name.endswith("o_proj_up"):
            numbers.normal_(0, 2)
    assert _moved(typed) > 0.001
    assert _moved(both) != pytest.approx(_moved(typed))


def _moved(holder: Holder) -> float:
    return holder.loss(np.random.default_rng(5)).item()
