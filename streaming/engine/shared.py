"""What all conversations of a worker use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from model.mel import LogMel
    from model.omni import Omni
    from streaming.engine.config import EngineConfig
    from streaming.engine.runner import Runner
    from streaming.engine.scheduler import Scheduler
    from streaming.packets import Reply


@dataclass(frozen=True, slots=True)
class Shared:
    """Owned by the engine; conversations change only what is theirs in it."""

    omni: Omni
    config: EngineConfig
    context_tokens: int
    scheduler: Scheduler
    runner: Runner
    log_mel: LogMel
    emit: Callable[[Reply], None]
