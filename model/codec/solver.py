"""Fixed-step solvers that carry noise to mel along the learned velocity field.

Time runs from 0 (noise) to 1 (mel). Its points crowd towards 0 by the *sway*, where the field turns
fastest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from model.config import SolverConfig


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
