"""The published files are read as they are; what they leave out has the published value."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from model.config import ConfigError, OmniConfig, SolverConfig
from recipes.random_checkpoint import SHAPES


def tree(**solver: Any) -> dict[str, Any]:
    made: dict[str, Any] = copy.deepcopy(SHAPES["small"])
    if solver:
        made["token2wav_config"]["solver_config"] = solver
    return made


def solver_of(config: OmniConfig) -> SolverConfig:
    assert config.token2wav is not None
    return config.token2wav.solver


def test_a_checkpoint_without_a_solver_has_the_published_one() -> None:
    assert solver_of(OmniConfig.from_json(tree())).num_evaluations == 36


def test_a_checkpoint_may_bring_its_own_solver() -> None:
    config = OmniConfig.from_json(tree(method="euler", num_points=5, guidance=0))
    assert solver_of(config) == SolverConfig("euler", 5, 0.0)
    assert solver_of(config).num_evaluations == 4


@pytest.mark.parametrize("value", [0, -0.4, float("inf"), float("nan")])
def test_a_flow_that_starts_from_no_noise_is_refused(value: float) -> None:
    made = tree()
    made["token2wav_config"]["dit_config"]["noise_scale"] = value
    with pytest.raises(ConfigError, match="dit_config.noise_scale is"):
        OmniConfig.from_json(made)


@pytest.mark.parametrize(
    ("name", "value"), [("method", "heun"), ("num_points", 1), ("guidance", -1), ("sway", 2)]
)
def test_a_solver_that_cannot_be_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"solver_config.{name} is"):
        OmniConfig.from_json(tree(**{name: value}))
