"""Settings of a worker are refused by name, with what they may be."""

from __future__ import annotations

import pytest

from model.config import SolverConfig
from streaming.engine.config import EngineConfig, EngineConfigError


def test_the_solver_is_the_checkpoints_unless_one_is_named() -> None:
    assert EngineConfig().solver is None
    assert EngineConfig(codec_solver="euler:5:0").solver == SolverConfig("euler", 5, 0.0)


@pytest.mark.parametrize(
    "text", ["euler", "euler:5", "heun:5:0", "euler:x:0", "rk4:1:0", "rk4:4:-1"]
)
def test_a_solver_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(EngineConfigError, match="such as euler:5:0"):
        EngineConfig(codec_solver=text)


@pytest.mark.parametrize("name", ["num_lanes", "prefill_tokens", "max_codes", "threads"])
def test_sizes_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(EngineConfigError, match=f"{name} is 0; it must be at least 1"):
        EngineConfig(**{name: 0})  # type: ignore[arg-type]
