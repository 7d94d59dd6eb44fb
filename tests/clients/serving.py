"""The server that clients talk to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.clients.material import KEY
from tests.e2e.house import House

if TYPE_CHECKING:
    from pathlib import Path


def serve(checkpoint: Path, **settings: object) -> House:
    """Start `parley serve` with a real worker; one must have the key to enter.

    A busy machine is no reason to turn a client away: this is about what is said, not about how fast.
    """
    patience = {"max_memory_part": 1, "tick_missing_s": 60, "tick_lost_s": 90, "step_stuck_s": 90}
    return House(
        ["--dtype", "fp32", "--num-lanes", "16", "--context-tokens", "4096"],
        model=checkpoint,
        api_keys=KEY,
        **patience,
        **settings,
    )
