"""CUDA graphs of decode steps, behind the same call as eager.

A graph is captured per sub-model and batch-size bucket the first time it is needed (or by `warm_up`). Smaller batches
are padded up to their bucket; padding rows write to and read from one scratch page that no sequence ever holds, and
their reply rows go to a scratch row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from streaming.engine.batch import StepInputs
    from streaming.engine.scheduler import StepPlan
    from streaming.engine.sequence import Role


class DecodeGraphs:
    """Placeholder call site: eager until graphs are captured."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled

    def table_width(self, plan: StepPlan) -> int | None:
        return None

    def run(
        self, role: Role, inputs: StepInputs, forward: Callable[[StepInputs], Tensor]
    ) -> Tensor:
        return forward(inputs)
