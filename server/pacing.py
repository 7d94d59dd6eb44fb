"""Pacing: replies are paused while their client does not take what is made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streaming.packets import HoldTurn

if TYPE_CHECKING:
    from server.responses import Wiring


class Pacing:
    """Owned by the session; compares what waits for the client with a high and a low mark."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._held: set[tuple[str, int]] = set()

    def update(self, running: set[tuple[str, int]]) -> None:
        """Hold the running replies, given by worker session and turn, or let them go on."""
        if not self._held and not running:
            return
        unsent, limit = self._wiring.outbox.unsent_bytes, self._wiring.limits.hold_bytes
        self._held &= running  # the others are over
        if unsent > limit:
            self._say(running - self._held, is_held=True)
            self._held |= running
        elif unsent < limit // 2:
            self._say(self._held, is_held=False)
            self._held.clear()

    def forget(self) -> None:
        """The worker is gone."""
        self._held.clear()

    def _say(self, turns: set[tuple[str, int]], *, is_held: bool) -> None:
        for session_id, turn_id in sorted(turns):
            self._wiring.send(HoldTurn(session_id, turn_id, is_held))
