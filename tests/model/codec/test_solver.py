"""Solvers: time points, order of accuracy, refusal of nonsense."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from model.codec.solver import integrate, time_plan
from model.config import ConfigError, SolverConfig


def test_published_times() -> None:
    plan = time_plan(SolverConfig())
    assert len(plan.time_of_evaluation) == SolverConfig().num_evaluations == 36
    assert len(plan.times) == 28  # the end of a step is the start of the next
    points = [plan.times[i] for i in plan.time_of_evaluation[::4]]
    expected = [0, 0.015192, 0.060307, 0.133975, 0.233956, 0.357212, 0.5, 0.65798, 0.826352]
    assert points == pytest.approx(expected, abs=1e-6)
    assert sum(plan.steps) == pytest.approx(1)


def test_euler_evaluates_once_per_step() -> None:
    config = SolverConfig("euler", 5)
    plan = time_plan(config)
    assert len(plan.steps) == len(plan.times) == config.num_evaluations == 4
    assert plan.time_of_evaluation == (0, 1, 2, 3)


def test_sway_zero_spaces_time_evenly() -> None:
    plan = time_plan(SolverConfig("euler", 5, sway=0.0))
    assert plan.times == pytest.approx([0, 0.25, 0.5, 0.75])


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("rk4", 4)])
def test_error_falls_with_the_methods_order(method: Any, order: int) -> None:
    """x' = cos(3t) x has a closed solution; twice the steps must divide the error by 2^order."""

    def error(num_points: int) -> float:
        config = SolverConfig(method, num_points, sway=0.0)
        plan = time_plan(config)

        def velocity(e: int, x: Tensor) -> Tensor:
            return math.cos(3 * plan.times[plan.time_of_evaluation[e]]) * x

        end = integrate(velocity, torch.ones(1, dtype=torch.float64), config, plan)
        return abs(float(end) - math.exp(math.sin(3) / 3))

    # at few points the ratio is not yet the limit
    assert order - 0.3 < math.log2(error(5) / error(9)) < order + 0.8


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"method": "heun"}, "method"),
        ({"num_points": 1}, "num_points"),
        ({"guidance": -0.1}, "guidance"),
        ({"guidance": math.nan}, "guidance"),
        ({"sway": 2.0}, "sway"),
    ],
)
def test_unusable_settings_are_named(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        SolverConfig(**settings)
