"""The REST part of the protocol: client secrets for browsers, and the list of models."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse, Response
from starlette.routing import Route

from server.admission import TOO_MANY_FAILED_KEYS, address_group
from server.auth import LONGEST_SECRET_S, SHORTEST_SECRET_S
from server.connection import now_ms
from server.dialect import Dialect
from server.identity import Identity, new_id
from server.session_object import session_object
from server.settings import Settings
from server.settings_parsing import apply_session_update
from streaming.errors import ClientError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastapi import FastAPI, Request

    from server.auth import Principal
    from server.gateway import Gateway

PREFIXES = ("", "/openai")
MAX_BODY_BYTES = 512 * 1024
BODY_LIMIT_S = 10.0
DEFAULT_SECRET_S = 600
BETA_SECRET_S = 60
UNSUPPORTED = ("calls", "transcription_sessions", "translations")


def http_error(status: int, code: str, message: str, param: str | None = None) -> JSONResponse:
    """An error as the protocol writes it over HTTP."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "code": code, "param": param}
    return JSONResponse({"error": error}, status)


def key_of(gateway: Gateway, request: Request) -> Principal | None:
    """Whose full key came with a request."""
    door = gateway.doorkeeper
    key = door.presented(dict(request.headers), (), {})
    if key is None:
        return None
    principal = door.identify(key, int(time.time()))
    return principal if principal is not None and principal.is_full else None


def add_rest(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes of `docs/protocol.md`, section 11, also under `/openai`."""
    rest = Rest(gateway)
    for prefix in PREFIXES:
        base = f"{prefix}/v1/realtime"
        routes = [
            Route(f"{base}/client_secrets", rest.client_secrets, methods=["POST", "OPTIONS"]),
            Route(f"{base}/sessions", rest.beta_sessions, methods=["POST", "OPTIONS"]),
            Route(f"{prefix}/v1/models", rest.models),
            Route(f"{prefix}/v1/models/{{name:path}}", rest.model),
        ]
        routes += [
            Route(f"{base}/{name}{rest_of_path}", unsupported, methods=["GET", "POST"])
            for name in UNSUPPORTED
            for rest_of_path in ("", "/{path:path}")
        ]
        app.router.routes.extend(routes)


async def unsupported(_: Request) -> Response:
    return http_error(404, "unsupported_endpoint", "This server has no such endpoint.")


class Rest:
    """The handlers; each answers 401 without a full key, where keys are configured."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._started_s = int(time.time())

    async def client_secrets(self, request: Request) -> Response:
        return await self._answer(request, self._client_secret)

    async def beta_sessions(self, request: Request) -> Response:
        return await self._answer(request, self._beta_session)

    async def models(self, request: Request) -> Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        return self._for_pages(request, JSONResponse({"object": "list", "data": [self._model()]}))

    async def model(self, request: Request) -> Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        if request.path_params["name"] != self._gateway.model:
            message = f"The model served here is {self._gateway.model}."
            return self._for_pages(request, http_error(404, "model_not_found", message))
        return self._for_pages(request, JSONResponse(self._model()))

    # ---- answers

    def _model(self) -> dict[str, object]:
        name = self._gateway.model
        return {"id": name, "object": "model", "created": self._started_s, "owned_by": "parley"}

    def _client_secret(self, principal: Principal, body: Mapping[str, Any]) -> dict[str, object]:
        lifetime_s = _lifetime_s(body.get("expires_after"))
        session = _object(body.get("session"), "session")
        settings = self._settings(session, Dialect.GA)
        value, expires_s = self._issue(principal, lifetime_s, session)
        return {
            "value": value,
            "expires_at": expires_s,
            "session": session_object(settings, self._identity(session), Dialect.GA),
        }

    def _beta_session(self, principal: Principal, body: Mapping[str, Any]) -> dict[str, object]:
        settings = self._settings(body, Dialect.BETA)
        value, expires_s = self._issue(principal, BETA_SECRET_S, body)
        shown = session_object(settings, self._identity(body), Dialect.BETA)
        return shown | {"client_secret": {"value": value, "expires_at": expires_s}}

    def _settings(self, session: Mapping[str, Any], dialect: Dialect) -> Settings:
        """What a session with this configuration would begin with. Raises ClientError."""
        gateway = self._gateway
        voices = gateway.voices
        settings = Settings.default(dialect, voices, gateway.config.instructions)
        return apply_session_update(settings, session, dialect, voices)

    def _issue(
        self, principal: Principal, lifetime_s: int, session: Mapping[str, Any]
    ) -> tuple[str, int]:
        mint = self._gateway.doorkeeper.mint
        return mint.issue(principal.name, lifetime_s, int(time.time()), session)

    def _identity(self, session: Mapping[str, Any]) -> Identity:
        asked = session.get("model")
        name = self._gateway.shown_model(asked if isinstance(asked, str) else None)
        expires_s = int(time.time() + self._gateway.config.session_limit_s)
        return Identity(new_id("sess"), new_id("conv"), name, expires_s)

    # ---- around them

    async def _answer(
        self,
        request: Request,
        make: Callable[[Principal, Mapping[str, Any]], dict[str, object]],
    ) -> Response:
        if request.method == "OPTIONS":
            return self._for_pages(request, Response(status_code=204))
        if (refusal := self._refusal(request)) is not None:
            return refusal
        principal = self._principal(request)
        assert principal is not None
        try:
            answer: Response = JSONResponse(make(principal, await _body(request)))
        except ClientError as fault:
            answer = http_error(400, fault.code, fault.message, fault.param)
        return self._for_pages(request, answer)

    def _principal(self, request: Request) -> Principal | None:
        door = self._gateway.doorkeeper
        found = key_of(self._gateway, request)
        return door.identify(None, 0) if found is None and door.keyring.is_open else found

    def _refusal(self, request: Request) -> Response | None:
        """401 without a key; 429 after too many wrong ones."""
        if self._principal(request) is not None:
            return None
        address = address_group(request.client.host) if request.client else "local"
        if not self._gateway.admission.may_explain(address, now_ms()):
            message = TOO_MANY_FAILED_KEYS.message
            return self._for_pages(request, http_error(429, TOO_MANY_FAILED_KEYS.code, message))
        message = "Incorrect API key provided."
        return self._for_pages(request, http_error(401, "invalid_api_key", message))

    def _for_pages(self, request: Request, response: Response) -> Response:
        """Let pages of configured origins read the answer."""
        origin = request.headers.get("origin")
        if origin is not None and self._gateway.origins.allows_reading(origin):
            response.headers["access-control-allow-origin"] = origin
            response.headers["access-control-allow-headers"] = (
                "authorization, api-key, content-type"
            )
            response.headers["access-control-allow-methods"] = "GET, POST"
        response.headers["vary"] = "origin"
        return response


async def _body(request: Request) -> Mapping[str, Any]:
    """The JSON object of a request. Raises ClientError."""
    received = bytearray()
    try:
        async with asyncio.timeout(BODY_LIMIT_S):
            async for piece in request.stream():
                received += piece
                if len(received) > MAX_BODY_BYTES:
                    raise ClientError(
                        "invalid_request_error", "The body is too long.", limit=MAX_BODY_BYTES
                    )
    except TimeoutError:
        raise ClientError("invalid_request_error", "The body did not arrive in time.") from None
    if not received:
        return {}
    try:
        body = json.loads(received)
    except (ValueError, RecursionError):
        raise ClientError("invalid_json", "The body is not JSON.") from None
    return _object(body, None)


def _object(value: Any, param: str | None) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ClientError("invalid_value", "An object is expected.", param=param)
    return value


def _lifetime_s(given: Any) -> int:
    seconds = _object(given, "expires_after").get("seconds", DEFAULT_SECRET_S)
    is_number = isinstance(seconds, int) and not isinstance(seconds, bool)
    if not is_number or not SHORTEST_SECRET_S <= seconds <= LONGEST_SECRET_S:
        limits = f"{SHORTEST_SECRET_S} to {LONGEST_SECRET_S}"
        raise ClientError(
            "invalid_value", f"An integer from {limits} is expected.", param="expires_after.seconds"
        )
    return int(seconds)
