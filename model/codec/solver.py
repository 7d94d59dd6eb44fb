"""Fixed-step solvers that carry noise to mel along the learned velocity field.

Time runs from 0 (noise) to 1 (mel). Its points crowd towards 0 by the *sway*, where the field turns
fastest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from model.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class SolverConfig:
    """How the flow is integrated; the defaults are the published ones (36 evaluations).

    `num_points` time points make `num_points - 1` steps of four evaluations (rk4, the 3/8 rule) or
    one (euler). `guidance` 0 leaves out the unconditioned row and halves the work.
    """

    method: Literal["rk4", "euler"] = "rk4"
    num_points: int = 10
    guidance: float = 0.5
    sway: float = -1.0

    def __post_init__(self) -> None:
        if self.method not in ("rk4", "euler"):
            raise ConfigError(f"solver method is {self.method!r}; it must be 'rk4' or 'euler'")
        if self.num_points < 2:
            raise ConfigError(f"solver num_points is {self.num_points}; it must be at least 2")
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ConfigError(f"solver guidance is {self.guidance}; it must be 0 or positive")
        if not -1 <= self.sway <= 1:
            raise ConfigError(f"solver sway is {self.sway}; it must lie in -1…1")

    @property
    def num_evaluations(self) -> int:
        return (self.num_points - 1) * (4 if self.method == "rk4" else 1)

    @property
    def num_rows(self) -> int:
        """Network rows per stream: conditioned, and with guidance also unconditioned."""
        return 2 if self.guidance > 0 else 1


@dataclass(frozen=True, slots=True)
class TimePlan:
    """Where in time each evaluation falls: `times[time_of_evaluation[e]]`. Everything time alone
    decides is cached per distinct time (28 of them for the 36 published evaluations).
    """

    times: tuple[float, ...]
    time_of_evaluation: tuple[int, ...]
    steps: tuple[float, ...]


def time_plan(config: SolverConfig) -> TimePlan:
    """Lay out the evaluations of one integration.

    The arithmetic is float32, as in the published sampler: time is multiplied by 1000 inside the
        time embedding, so a
    last-bit difference here would be visible there.
    """
    points = torch.linspace(0, 1, config.num_points, dtype=torch.float32)
    points += config.sway * (torch.cos(torch.pi / 2 * points) - 1 + points)
    steps = points[1:] - points[:-1]
    if config.method == "rk4":
        inner = [points[:-1], points[:-1] + steps * (1 / 3), points[:-1] + steps * (2 / 3)]
        evaluated = torch.stack([*inner, points[1:]], dim=1).flatten().tolist()
    else:
        evaluated = points[:-1].tolist()
    times = tuple(sorted(set(evaluated)))
    where = {t: i for i, t in enumerate(times)}
    return TimePlan(times, tuple(where[t] for t in evaluated), tuple(steps.tolist()))


def integrate(
    velocity: Callable[[int, Tensor], Tensor], x: Tensor, config: SolverConfig, plan: TimePlan
) -> Tensor:
    """Carry `x` from time 0 to 1; `velocity(e, x)` answers evaluation number `e` of `plan`."""
    if config.method == "euler":
        for e, step in enumerate(plan.steps):
            x = torch.add(x, velocity(e, x), alpha=step)
        return x
    for i, step in enumerate(plan.steps):
        k1 = velocity(4 * i, x)
        k2 = velocity(4 * i + 1, torch.add(x, k1, alpha=step / 3))
        k3 = velocity(4 * i + 2, torch.add(x, torch.add(k2, k1, alpha=-1 / 3), alpha=step))
        k4 = velocity(4 * i + 3, torch.add(x, k1 - k2 + k3, alpha=step))
        x = torch.add(x, k1 + 3 * (k2 + k3) + k4, alpha=step / 8)
    return x
