"""A scripted peer: the public protocol over a real WebSocket, real speech, and every misbehaviour on demand.

It hears by energy, answers with synthesised speech and keeps a record of all that the page sent. The page cannot tell
it from a server; tests can tell it to be slow, to refuse, to lose the connection or to die. Alone it serves the page to
a person: `python -m tests.demo.peer`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.demo.speech import say

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE = Path(__file__).parents[2] / "client_demo"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; connect-src 'self'; worker-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"permissions-policy": b"microphone=(self), camera=(self)",
    b"x-content-type-options": b"nosniff",
    b"cache-control": b"no-cache",
}
LOUD = 700  # root mean square of int16 above which a frame is speech
RATE_IN, RATE_OUT = 16_000, 24_000


@dataclass
class Script:
    """How the peer behaves from now on."""

    answers: list[str] = field(default_factory=lambda: ["Certainly. The tide is coming in."])
    question: str = "What is the sea doing today?"
    creating_ms: int = 0  # from the request to response.created
    thinking_ms: int = 60
    lead_ms: int = 400
    packet_ms: int = 80
    speed: float = 4.0  # sound made per second
    silence_ms: int = 400
    transcribe: bool = True
    refuse: int = 0  # status of a refused handshake; 0 accepts
    ready: tuple[int, dict[str, Any]] = (200, {"status": "ready"})
    close_at_once: tuple[int, str] | None = None
    fail_response: str = ""
    mute_ms: int = 0  # between the first words and the first sound
    silent_after_hello: bool = False  # accepts and never says a word


@dataclass
class Heard:
    """What one connection sent."""

    events: list[dict[str, Any]] = field(default_factory=list)
    pcm: bytearray = field(default_factory=bytearray)
    jpegs: list[bytes] = field(default_factory=list)
    clips: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)
    num_bytes: int = 0
    began: float = field(default_factory=time.monotonic)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]


class Talk:
    """One connection: hears, answers, and can be cut short."""

    def __init__(self, socket: WebSocket, script: Script, heard: Heard) -> None:
        self.socket, self.script, self.heard = socket, script, heard
        self.ids = count(1)
        self.session: dict[str, Any] = {}
        self.items: dict[str, dict[str, Any]] = {}
        self.reply: asyncio.Task[None] | None = None
        self.response: dict[str, Any] | None = None
        self.num_samples = 0
        self.speech_ms = self.silence_ms = 0.0
        self.speaking_item = ""
        self.num_answers = 0
        self.reason = "client_cancelled"
        self.untranscribed = ""
        self.is_created = False

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send_text(
            json.dumps({"type": kind, "event_id": self.new("event"), **fields})
        )

    def new(self, kind: str) -> str:
        return f"{kind}_{id(self):x}{next(self.ids):04d}"

    async def run(self) -> None:
        await self.send("session.created", session=self._shown())
        while True:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            text, data = message.get("text"), message.get("bytes")
            self.heard.num_bytes += len(text or data or b"")
            if data is not None:
                line, payload = data.split(b"\n", 1)
                event = json.loads(line)
            else:
                event, payload = json.loads(text or "{}"), b""
            await self.receive(event, payload)

    async def receive(self, event: dict[str, Any], payload: bytes) -> None:
        kind = event["type"]
        if kind == "input_audio_buffer.append":
            return await self.hear(payload or base64.b64decode(event["audio"]))
        if kind == "input_image_buffer.append":
            return self.heard.jpegs.append(payload)
        if kind == "input_video_buffer.append":
            return self.heard.clips.append((event, payload))
        self.heard.events.append(event | {"at": time.monotonic()})
        if kind == "session.update":
            self.session = event["session"]
            await self.send("session.updated", session=self._shown())
        elif kind == "conversation.item.create":
            self.items[event["item"]["id"]] = event["item"]
            await self.send("conversation.item.added", previous_item_id=None, item=event["item"])
        elif kind == "conversation.item.retrieve" and event["item_id"] in self.items:
            await self.send("conversation.item.retrieved", item=self.items[event["item_id"]])
        elif kind == "conversation.item.truncate":
            await self.truncate(event)
        elif kind == "input_audio_buffer.commit":
            await self.commit(self.speaking_item or self.new("item"))
        elif kind == "response.create":
            await self.answer()
        elif kind == "response.cancel":
            await self.cancel("client_cancelled")
        return None

    def _shown(self) -> dict[str, Any]:
        output = {"voice": "Chelsie"} | self.session.get("audio", {}).get("output", {})
        return {
            "id": "sess_1",
            "type": "realtime",
            "object": "realtime.session",
            **self.session,
            "audio": {"output": output},
        }

    # --- hearing -------------------------------------------------------------

    async def hear(self, pcm: bytes) -> None:
        self.heard.pcm += pcm
        samples = np.frombuffer(pcm, "<i2")
        self.num_samples += len(samples)
        span_ms = 1000 * len(samples) / RATE_IN
        if self.session.get("audio", {}).get("input", {}).get("turn_detection", {}) is None:
            return
        is_loud = np.sqrt(np.mean(samples.astype(np.float64) ** 2)) > LOUD
        self.speech_ms = (
            self.speech_ms + span_ms
            if is_loud
            else (0 if not self.speaking_item else self.speech_ms)
        )
        self.silence_ms = 0 if is_loud else self.silence_ms + span_ms
        now_ms = self.num_samples * 1000 // RATE_IN
        if not self.speaking_item and self.speech_ms >= 120:
            self.speaking_item = self.new("item")
            await self.send(
                "input_audio_buffer.speech_started",
                audio_start_ms=now_ms,
                item_id=self.speaking_item,
            )
            await self.cancel("turn_detected")
        elif self.speaking_item and self.silence_ms >= self.script.silence_ms:
            item, self.speaking_item, self.speech_ms = self.speaking_item, "", 0
            await self.send("input_audio_buffer.speech_stopped", audio_end_ms=now_ms, item_id=item)
            await self.commit(item)
            await self.answer()

    async def commit(self, item: str) -> None:
        await self.send("input_audio_buffer.committed", previous_item_id=None, item_id=item)
        content = [{"type": "input_audio", "transcript": None}]
        self.items[item] = {"id": item, "type": "message", "role": "user", "content": content}
        await self.send("conversation.item.added", previous_item_id=None, item=self.items[item])
        self.untranscribed = item

    async def transcribe(self) -> None:
        item, self.untranscribed = self.untranscribed, ""
        if not item or not self.script.transcribe:
            return
        kind = "conversation.item.input_audio_transcription"
        for word in self.script.question.split(" "):
            await self.send(f"{kind}.delta", item_id=item, content_index=0, delta=f"{word} ")
        await self.send(
            f"{kind}.completed", item_id=item, content_index=0, transcript=self.script.question
        )

    # --- answering -----------------------------------------------------------

    async def answer(self) -> None:
        if self.response:
            error = {
                "type": "invalid_request_error",
                "code": "conversation_already_has_active_response",
            }
            return await self.send(
                "error", error=error | {"message": "busy", "param": None, "event_id": None}
            )
        self.response = {
            "id": self.new("resp"),
            "object": "realtime.response",
            "status": "in_progress",
            "output": [],
        }
        answers = self.script.answers
        text = answers[self.num_answers % len(answers)]
        self.num_answers += 1
        self.reply = asyncio.create_task(
            self._answer(self.response, self.new("item"), text), name="reply"
        )
        return None

    async def _answer(self, response: dict[str, Any], item: str, text: str) -> None:
        try:
            await asyncio.sleep(self.script.creating_ms / 1000)
            await self.send("response.created", response=response)
            self.is_created = True
            await asyncio.sleep(self.script.thinking_ms / 1000)
            if self.script.fail_response:
                error = {
                    "type": "server_error",
                    "code": "server_error",
                    "message": self.script.fail_response,
                }
                return await self._done(response, "failed", {"type": "failed", "error": error})
            where = {
                "response_id": response["id"],
                "item_id": item,
                "output_index": 0,
                "content_index": 0,
            }
            view = {
                "id": item,
                "type": "message",
                "role": "assistant",
                "status": "in_progress",
                "content": [],
            }
            self.items[item] = view | {"words": text, "sent_ms": 0}
            response["output"] = [view]
            await self.send(
                "response.output_item.added", response_id=response["id"], output_index=0, item=view
            )
            if self.session.get("output_modalities") == ["text"]:
                await self.send("response.output_text.delta", **where, delta=text)
            else:
                await self._speak(where, text)
            await self.send(
                "response.output_item.done", response_id=response["id"], output_index=0, item=view
            )
            await self._done(response, "completed", None)
        except asyncio.CancelledError:
            await self._done(response, "cancelled", {"type": "cancelled", "reason": self.reason})
        except (WebSocketDisconnect, RuntimeError):
            return  # the page left in the middle of a sentence
        return None

    async def _speak(self, where: dict[str, Any], text: str) -> None:
        sound = say(text, RATE_OUT)
        packet = RATE_OUT * self.script.packet_ms // 1000
        num_packets = -(-len(sound) // packet)
        words, began = re.findall(r"[\u3000-\u9fff]|[^\s\u3000-\u9fff]+\s*", text), time.monotonic()
        if self.script.mute_ms:
            await self.send("response.output_audio_transcript.delta", **where, delta=words.pop(0))
            await asyncio.sleep(self.script.mute_ms / 1000)
        for n in range(num_packets):
            # The text of a stretch of speech never comes after its sound.
            share = [-(-len(words) * k // num_packets) for k in (n, n + 1)]
            for delta in words[slice(*share)]:
                await self.send("response.output_audio_transcript.delta", **where, delta=delta)
            header = json.dumps({"type": "response.output_audio.delta", **where})
            await self.socket.send_bytes(
                header.encode() + b"\n" + sound[n * packet : (n + 1) * packet].tobytes()
            )
            self.items[where["item_id"]]["sent_ms"] = (
                1000 * min(len(sound), (n + 1) * packet) // RATE_OUT
            )
            if n == 2:
                await self.transcribe()
            made_s = (n + 1) * packet / RATE_OUT
            due = began + max(made_s / self.script.speed, made_s - self.script.lead_ms / 1000)
            await asyncio.sleep(max(0, due - time.monotonic()))
        await self.send("response.output_audio.done", **where)
        await self.send("response.output_audio_transcript.done", **where, transcript=text)
        if num_packets <= 2:
            await self.transcribe()

    async def _done(
        self, response: dict[str, Any], status: str, details: dict[str, Any] | None
    ) -> None:
        self.response, self.is_created = None, False
        shown = response | {"status": status, "status_details": details}
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self.send("response.done", response=shown)

    async def cancel(self, reason: str) -> None:
        if self.reply and not self.reply.done() and self.is_created:
            self.reason = reason
            reply, self.reply = self.reply, None
            reply.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reply
            await self.transcribe()

    async def truncate(self, event: dict[str, Any]) -> None:
        item = self.items[event["item_id"]]
        sent_ms = max(1, item.get("sent_ms", 1))
        words = item.get("words", "").split(" ")
        total_ms = 1000 * len(say(item["words"], RATE_OUT)) // RATE_OUT
        kept = " ".join(words[: round(len(words) * min(event["audio_end_ms"], sent_ms) / total_ms)])
        item["content"] = [{"type": "output_audio", "transcript": kept}]
        await self.send(
            "conversation.item.truncated",
            **{k: event[k] for k in ("item_id", "content_index", "audio_end_ms")},
        )


class Peer:
    """The peer's server in a thread of its own; `stop` and `start` are its death and return."""

    def __init__(self, page: Path = PAGE) -> None:
        self.page = page
        self.script = Script()
        self.connections: list[Heard] = []
        self.talks: list[Talk] = []
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def last(self) -> Heard:
        return self.connections[-1]

    def reset(self) -> None:
        self.script = Script()
        self.connections.clear()

    def start(self) -> None:
        config = uvicorn.Config(
            self._app(), host="127.0.0.1", port=self.port, log_level="critical", lifespan="off",
            ws="websockets-sansio", ws_per_message_deflate=False, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, name="peer", daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()

    def lose_connections(self, code: int = 1011, reason: str = "") -> None:
        """Closes every open connection as a server would."""
        for talk in self.talks:
            asyncio.run_coroutine_threadsafe(talk.socket.close(code, reason), self.loop).result()

    def say(self, kind: str, **fields: Any) -> None:
        """Sends an event of the test's choice on the newest connection."""
        asyncio.run_coroutine_threadsafe(self.talks[-1].send(kind, **fields), self.loop).result()

    def _app(self) -> ASGIApp:
        async def readyz(_request: Request) -> JSONResponse:
            status, body = self.script.ready
            return JSONResponse(body, status)

        async def healthz(_request: Request) -> JSONResponse:
            return JSONResponse({"status": "ok"})

        async def realtime(socket: WebSocket) -> None:
            self.loop = asyncio.get_running_loop()
            if self.script.refuse:
                return await socket.send_denial_response(JSONResponse({}, self.script.refuse))
            await socket.accept("realtime")
            if self.script.close_at_once:
                return await socket.close(*self.script.close_at_once)
            self.connections.append(Heard())
            talk = Talk(socket, self.script, self.connections[-1])
            self.talks.append(talk)
            try:
                await talk.run()
            except (WebSocketDisconnect, RuntimeError):
                pass
            finally:
                self.talks.remove(talk)
                if talk.reply:
                    talk.reply.cancel()
            return None

        routes = [
            WebSocketRoute("/v1/realtime", realtime),
            Route("/readyz", readyz),
            Route("/healthz", healthz),
            Mount("/", StaticFiles(directory=self.page, html=True)),
        ]
        app = Starlette(routes=routes, middleware=[Middleware(GZipMiddleware)])
        return _with_headers(app)


def _with_headers(app: ASGIApp) -> ASGIApp:
    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS.items()]
            await send(message)

        await app(scope, receive, send_with_headers if scope["type"] == "http" else send)

    return wrapped


if __name__ == "__main__":
    peer = Peer()
    print(peer.url)  # noqa: T201
    peer.thread.join()
