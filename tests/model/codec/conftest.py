"""Our DiT and the reference's, on the same tiny weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from model.codec.dit import Dit
from model.codec.sampler import FlowSampler
from model.codec.voice import Voice
from model.config import SolverConfig
from tests.model.reference import voice as published_voice

if TYPE_CHECKING:
    from collections.abc import Callable

DIT = "token2wav.code2wav_dit_model."

# One RK4 step with guidance: both time rules and both rows, at a ninth of the published work.
SHORT = SolverConfig(num_points=2)


@pytest.fixture(scope="session")
def dit(config, part) -> Dit:  # type: ignore[no-untyped-def]
    with torch.device("meta"):
        net = Dit(config.token2wav.dit)
    net.load_state_dict(part(DIT), strict=True, assign=True)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def reference_dit(reference) -> Any:  # type: ignore[no-untyped-def]  # transformers has no usable types
    return reference.token2wav.code2wav_dit_model


def make_voice(seed: int) -> Voice:
    entry = published_voice(seed)
    return Voice(f"voice {seed}", entry["bos_token"], entry["cond"][0], entry["ref_mel"][0])


@pytest.fixture(scope="session")
def chelsie() -> Voice:
    return make_voice(7)


@pytest.fixture(scope="session")
def ethan() -> Voice:
    return make_voice(8)


@pytest.fixture(scope="session")
def samplers(dit: Dit) -> Callable[[SolverConfig], FlowSampler]:
    made: dict[SolverConfig, FlowSampler] = {}

    def sampler(solver: SolverConfig) -> FlowSampler:
        if solver not in made:
            made[solver] = FlowSampler(dit, solver)
        return made[solver]

    return sampler


def random_codes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(seed))


def random_noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
