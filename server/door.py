"""The WebSocket paths: who may come in, in which dialect, and with what settings; then a Connection.

Whoever is refused is refused as cheaply as they can understand: before the upgrade by HTTP, but for pages and keys, as
browsers show their page no HTTP status and stock clients try a 401 again until they give up.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from server.admission import (
    DRAINING,
    FULL,
    LOADING,
    Place,
    Refusal,
    address_group,
)
from server.connection import Channel, Closing, Connection, Message, now_ms
from server.dialect import choose_dialect, is_dialect_fixed
from server.events import ErrorEvent
from server.identity import Identity, new_id
from server.logs import say
from server.render import Renderer
from server.session import Session
from server.settings import Settings
from server.settings_parsing import apply_session_update
from streaming.errors import ClientError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from server.auth import Principal
    from server.dialect import Dialect
    from server.gateway import Gateway
    from server.worker_client import WorkerClient

    Scope = Message
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger(__name__)

PATHS = (
    "/v1/realtime",
    "/realtime",
    "/openai/v1/realtime",
    "/openai/realtime",
    "/api-ws/v1/realtime",
)
SUBPROTOCOL = "realtime"
ORIGIN_REFUSED = Closing(1008, "origin_refused")
PAGES_LIMIT_S = 1.0
MAX_LOGGED = 100


@dataclass(frozen=True, slots=True)
class Caller:
    """What a handshake brought."""

    path: str
    address: str
    headers: Mapping[str, str]
    query: Mapping[str, str]
    subprotocols: tuple[str, ...]

    @classmethod
    def of(cls, scope: Scope) -> Caller:
        client = scope.get("client")
        names = scope["headers"]
        return cls(
            scope["path"],
            address_group(client[0]) if client else "local",
            {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in names},
            dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)),
            tuple(scope.get("subprotocols", ())),
        )

    @property
    def dialect(self) -> Dialect:
        return choose_dialect(self.path, self.query, self.headers, self.subprotocols)


class Door:
    """ASGI application of the WebSocket paths."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway = self._gateway
        gateway.metrics.handshakes.inc()
        await receive()  # websocket.connect
        caller, now = Caller.of(scope), now_ms()
        refusal = gateway.admission.knock(caller.address, now)
        if refusal is not None:
            await self._deny(send, refusal)
            return
        door = gateway.doorkeeper
        key = door.presented(caller.headers, caller.subprotocols, caller.query)
        principal = door.identify(key, int(time.time()))
        place = gateway.admission.enter(caller.address, principal.name if principal else "")
        if isinstance(place, Refusal):
            await self._deny(send, place)
            return
        try:
            await self._receive(Channel(receive, send), caller, principal)
        finally:
            self._leave(place)

    def _leave(self, place: Place) -> None:
        self._gateway.admission.leave(place)

    async def _receive(self, channel: Channel, caller: Caller, principal: Principal | None) -> None:
        gateway = self._gateway
        if not gateway.origins.admits(caller.headers.get("origin"), caller.headers.get("host")):
            await self._refuse_origin(channel, caller)
            return
        if principal is None:
            gateway.admission.count_failed_key(caller.address, now_ms())
            fault = ClientError("invalid_api_key", "Incorrect API key provided.")
            await self._refuse(channel, caller, fault, 3000)
            return
        if (fault_or_none := self._unsupported(caller)) is not None:
            await self._refuse(channel, caller, fault_or_none, 4000)
            return
        worker = await self._worker_with_room()
        if isinstance(worker, Refusal):
            await self._deny(channel.send, worker)
            return
        await self._converse(channel, caller, principal, worker)

    async def _converse(
        self, channel: Channel, caller: Caller, principal: Principal, worker: WorkerClient
    ) -> None:
        gateway = self._gateway
        config = gateway.config
        assert worker.capacity is not None
        begun_ms = now_ms()
        identity = Identity(
            new_id("sess"),
            new_id("conv"),
            gateway.shown_model(caller.query.get("model") or caller.query.get("deployment")),
            int(time.time() + config.session_limit_s),
        )
        dialect = caller.dialect
        settings = first_settings(gateway, dialect, principal)
        session = Session(
            identity,
            settings,
            dialect,
            worker.capacity,
            gateway.limits,
            new_id,
            begun_ms,
            is_dialect_fixed=is_dialect_fixed(caller.query),
        )
        await channel.send(_accept(caller))
        say(
            log, "session opened", session=identity.session_id, principal=principal.name,
            address=caller.address, dialect=dialect, worker=worker.index,
        )  # fmt: skip
        connection = Connection(
            identity.session_id,
            principal.name,
            session,
            Renderer(dialect, identity),
            channel,
            worker,
            gateway.services,
        )
        with gateway.holding(connection):
            closing = await connection.run()
        gateway.metrics.count_close(closing.code)
        say(
            log, "session closed", session=identity.session_id, code=closing.code,
            duration_ms=now_ms() - begun_ms,
        )  # fmt: skip

    def _unsupported(self, caller: Caller) -> ClientError | None:
        query = caller.query
        if query.get("intent", "conversation") != "conversation":
            return ClientError(
                "unsupported_session_type", "Only conversations are served here.", param="intent"
            )
        if "call_id" in query:
            return ClientError(
                "invalid_value", "There are no calls to attach to here.", param="call_id"
            )
        asked = query.get("model")
        if self._gateway.config.strict_model_names and asked not in (None, self._gateway.model):
            return ClientError(
                "model_not_found", f"The model served here is {self._gateway.model}.", param="model"
            )
        return None

    async def _worker_with_room(self) -> WorkerClient | Refusal:
        """The worker with the fewest sessions, once it has a page to begin one in."""
        until_s = time.monotonic() + PAGES_LIMIT_S
        while True:
            worker = self._gateway.least_busy()
            if worker is None:
                return DRAINING if self._gateway.admission.is_draining else LOADING
            if worker.status is None or worker.status.num_pages_free > 0:
                return worker
            if time.monotonic() > until_s:
                return FULL
            await asyncio.sleep(0.1)

    # ---- saying no

    async def _deny(self, send: Send, refusal: Refusal) -> None:
        """Answer by HTTP instead of upgrading."""
        self._gateway.metrics.refusals.labels(refusal.code).inc()
        # A storm is counted, not told.
        say(log, "refused", logging.DEBUG, status=refusal.status, code=refusal.code)
        await send_denial(send, refusal)

    async def _refuse_origin(self, channel: Channel, caller: Caller) -> None:
        gateway = self._gateway
        gateway.metrics.refusals.labels("origin_refused").inc()
        origin = caller.headers.get("origin", "")[:MAX_LOGGED]
        say(log, "page refused", logging.WARNING, address=caller.address, origin=origin)
        if not gateway.admission.may_explain_page(caller.address, now_ms()):
            await send_denial(
                channel.send, Refusal(403, "origin_refused", "This page may not connect.")
            )
            return
        await channel.send(_accept(caller))
        await _close(channel, ORIGIN_REFUSED)
        gateway.metrics.count_close(ORIGIN_REFUSED.code)

    async def _refuse(
        self, channel: Channel, caller: Caller, fault: ClientError, code: int
    ) -> None:
        """Accept, say what is wrong in one event, close."""
        gateway = self._gateway
        gateway.metrics.refusals.labels(fault.code).inc()
        say(log, "caller refused", address=caller.address, code=fault.code)
        await channel.send(_accept(caller))
        identity = Identity(new_id("sess"), new_id("conv"), gateway.model, 0)
        for message in Renderer(caller.dialect, identity).render(ErrorEvent.of(fault)):
            assert isinstance(message, str)
            await channel.send({"type": "websocket.send", "text": message})
        await _close(channel, Closing(code, f"invalid_request_error.{fault.code}"))
        gateway.metrics.count_close(code)


def first_settings(gateway: Gateway, dialect: Dialect, principal: Principal) -> Settings:
    """What a session begins with: defaults, and what was stored with a client secret."""
    voices = gateway.voices
    settings = Settings.default(dialect, voices, gateway.config.instructions)
    if principal.configuration:
        settings = apply_session_update(settings, principal.configuration, dialect, voices)
    return settings


async def send_denial(send: Send, refusal: Refusal) -> None:
    """The JSON answer of a refused upgrade."""
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    error = {"message": refusal.message, "type": kind, "code": refusal.code, "param": None}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % refusal.retry_after_s))
    await send(
        {"type": "websocket.http.response.start", "status": refusal.status, "headers": headers}
    )
    await send({"type": "websocket.http.response.body", "body": body})


def _accept(caller: Caller) -> Message:
    chosen = SUBPROTOCOL if SUBPROTOCOL in caller.subprotocols else None
    return {"type": "websocket.accept", "subprotocol": chosen, "headers": []}


async def _close(channel: Channel, closing: Closing) -> None:
    message: dict[str, Any] = {"type": "websocket.close"}
    await channel.send(message | {"code": closing.code, "reason": closing.reason})
