"""Renderer: server events as the messages that a client's dialect expects."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.dialect import Dialect
    from server.events import ServerEvent
    from server.identity import Identity
    from server.settings import Delivery, Settings


class Renderer:
    """Writes the events of one connection.

    `dialect` may be changed between events, as the session corrects it.
    """

    def __init__(self, dialect: Dialect, identity: Identity) -> None:
        self.dialect = dialect
        self._identity = identity

    def render(self, event: ServerEvent, delivery: Delivery = "base64") -> list[str | bytes]:
        """Return the messages of an event, each at most 512 KiB; none if the dialect has no such event."""
        raise NotImplementedError


def session_object(settings: Settings, identity: Identity, dialect: Dialect) -> dict[str, object]:
    """Return the session object that the dialect shows, for events and for REST answers."""
    raise NotImplementedError
