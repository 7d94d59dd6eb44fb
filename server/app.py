"""create_app: routes, health, metrics, the demo page, and JSON for everything that goes wrong over HTTP."""

from __future__ import annotations

import mimetypes
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from server.admission import Refusal
from server.config import is_loopback
from server.door import PATHS, Door, send_denial
from server.rest import add_rest, http_error, key_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

    from server.gateway import Gateway

DEMO = Path(__file__).parent.parent / "client_demo"
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "media-src 'self' blob:; connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "permissions-policy": "microphone=(self), camera=(self)",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # An upgraded server must not talk to yesterday's page.
    "cache-control": "no-cache",
}
NOT_FOUND = Refusal(404, "not_found", "There is nothing at this path.")
FORWARDED = ("x-forwarded-for", "forwarded", "x-real-ip", "via")


class DemoPage(StaticFiles):
    """The demo's files, with the headers that keep strangers' scripts out of it."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(PAGE_HEADERS)
        return response


class SocketsFirst:
    """WebSockets go to the door, all else to FastAPI, whose middleware would wrap every message that is sent."""

    def __init__(self, app: FastAPI, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
        elif scope["path"].rstrip("/") in PATHS:
            await self._door(scope, receive, send)  # type: ignore[arg-type]  # a mapping is a dict here
        else:
            await receive()
            await send_denial(send, NOT_FOUND)


def create_app(gateway: Gateway, demo: Path | None = None) -> SocketsFirst:
    """The ASGI application around a gateway that runs while the application does.

    Args:
        demo: folder of the page; None takes ours if there is one and the settings want it.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(HTTPException, _to_json)
    _add_health(app, gateway)
    add_rest(app, gateway)
    for path in PATHS:
        for spelling in (path, f"{path}/"):
            app.router.routes.append(Route(spelling, _upgrade_required))
    folder = demo or DEMO
    if gateway.config.demo and folder.is_dir():
        mimetypes.add_type("text/javascript", ".js")  # a module of another type is refused
        app.mount("/", GZipMiddleware(DemoPage(directory=folder, html=True)))
    return SocketsFirst(app, Door(gateway))


def _add_health(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        headers = {} if gateway.is_ready else {"retry-after": "2"}
        return JSONResponse(gateway.describe(), 200 if gateway.is_ready else 503, headers)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        if not _may_see_metrics(gateway, request):
            raise HTTPException(404)
        return Response(gateway.render_metrics(), media_type=CONTENT_TYPE_LATEST)


def _may_see_metrics(gateway: Gateway, request: Request) -> bool:
    """From this machine, and not through a proxy on it; or with a key."""
    if key_of(gateway, request) is not None:
        return True
    is_direct = not any(name in request.headers for name in FORWARDED)
    return is_direct and request.client is not None and is_loopback(request.client.host)


async def _upgrade_required(_: Request) -> Response:
    response = http_error(426, "upgrade_required", "This path speaks WebSocket only.")
    response.headers["upgrade"] = "websocket"
    return response


async def _to_json(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "invalid_request_error")
    return http_error(error.status_code, code, str(error.detail))
