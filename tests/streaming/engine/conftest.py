"""One loaded tiny checkpoint and small engines on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from model.config import SolverConfig
from model.omni import Omni, load
from streaming.engine.config import EngineConfig
from streaming.engine.engine import Engine
from tests.streaming.engine.driving import Driver

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streaming.engine.graphs import Capture


@pytest.fixture(scope="session")
def omni(checkpoint_dir: Path) -> Omni:
    """Few solver steps: the codec has its own tests, and this one checks who gets which window."""
    return load(checkpoint_dir, dtype=torch.float32, solver=SolverConfig(num_points=2))


@pytest.fixture
def new_driver(omni: Omni) -> Callable[..., Driver]:
    """Build an engine whose unused cache memory is NaN, so that a wrong read is loud."""

    def build(capture: Capture | None = None, **settings: int) -> Driver:
        defaults = {"num_lanes": 4, "context_tokens": 1024, "max_text_tokens": 64}
        sizes = defaults | {"use_codec_thread": False} | settings
        engine = Engine(omni, EngineConfig(**sizes), capture)  # type: ignore[arg-type]
        with torch.inference_mode():
            for cache in engine.runner._caches.values():
                cache.slots.fill_(float("nan"))
        return Driver(engine)

    return build
