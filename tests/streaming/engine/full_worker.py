"""A worker whose device has no memory left once it serves: python -m tests.streaming.engine.full_worker SOCKET …"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch

from streaming.engine import worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from streaming.engine.engine import Engine
    from streaming.engine.scheduler import StepPlan

warm_up = worker.warm_up


def warm_up_and_fill(engine: Engine, now_ms: Callable[[], float]) -> None:
    warm_up(engine, now_ms)

    def run(plan: StepPlan) -> None:
        raise torch.OutOfMemoryError(f"no room for {plan.role.name}")

    engine.runner.run = run  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    worker.warm_up = warm_up_and_fill
    sys.exit(worker.main())
