"""Pacing: a reply is paused while its client does not take what is made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streaming.packets import HoldTurn

if TYPE_CHECKING:
    from server.context import Context
    from server.responses import Wiring


class Pacing:
    """Owned by the session; compares what waits for the client with a high and a low mark."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._held: tuple[str, int] | None = None

    def update(self, context: Context) -> None:
        """Hold the running reply of a worker session, or let it go on."""
        unsent, limit = self._wiring.outbox.unsent_bytes, self._wiring.limits.hold_bytes
        running = context.running
        if self._held is not None and self._held != running:
            self._held = None  # that one is over
        if self._held is None and running is not None and unsent > limit:
            self._held = running
            self._wiring.send(HoldTurn(*running, True))
        elif self._held is not None and unsent < limit // 2:
            self._wiring.send(HoldTurn(*self._held, False))
            self._held = None

    def forget(self) -> None:
        """The worker is gone."""
        self._held = None
