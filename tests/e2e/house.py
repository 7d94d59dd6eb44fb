"""A running `parley serve` as a test sees it: its process, its figures, and callers."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import queue
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import ClientConnection, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

ROOT = Path(__file__).parents[2]
STAND_IN = f"{sys.executable},{ROOT / 'benchmarks' / 'stand_in_worker.py'}"
READY = re.compile(r"Parley is ready: open (https?)://[^ ]*:(\d+)")
START_LIMIT_S = 60.0
STEP_LIMIT_S = 20.0

Event = dict[str, Any]


class House:
    """A server process. Close it in the end.

    Args:
        settings: as PARLEY_* environment variables.
        arguments: of `parley serve`; unknown ones go to the worker.
        wrapper: a command that becomes it.
    """

    def __init__(
        self, arguments: Sequence[str] = (), wrapper: Sequence[str] = (), **settings: object
    ) -> None:
        settings = {"port": 0, "demo": False, **settings}
        environment = {f"PARLEY_{name.upper()}": str(value) for name, value in settings.items()}
        self.process = subprocess.Popen(
            [
                *wrapper,
                sys.executable,
                "-c",
                "from server.cli import app; app()",
                "serve",
                *arguments,
            ],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # killing it must not kill the test
        )
        self.lines: list[str] = []
        """Everything it wrote."""
        self._arrived: queue.Queue[str | None] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (self.process.stdout, self.process.stderr)
        ]
        for reader in self._readers:
            reader.start()
        self.scheme, self.port = "http", 0

    def _read(self, stream: Any) -> None:
        with stream:
            for line in stream:
                self.lines.append(line)
                self._arrived.put(line)
        self._arrived.put(None)

    def wait_for_line(
        self, pattern: str | re.Pattern[str], limit_s: float = START_LIMIT_S
    ) -> re.Match[str]:
        """Return the first match in what it has written or will write."""
        until = time.monotonic() + limit_s
        num_ended, position = 0, 0
        while True:
            while position < len(self.lines):
                position += 1
                if found := re.search(pattern, self.lines[position - 1]):
                    return found
            left_s = until - time.monotonic()
            assert left_s > 0 and num_ended < 2, f"no {pattern} in:\n{self.text}"
            try:
                num_ended += self._arrived.get(timeout=left_s) is None
            except queue.Empty:
                continue

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def wait_ready(self) -> House:
        found = self.wait_for_line(READY)
        self.scheme, self.port = found[1], int(found[2])
        return self

    @property
    def worker_pid(self) -> int:
        """Of the newest worker."""
        lines = [json.loads(x) for x in list(self.lines) if '"worker started"' in x]
        return int(lines[-1]["pid"])

    def http(
        self,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        method: str | None = None,
    ) -> tuple[int, str, dict[str, str]]:
        """Return status, body and headers of a request."""
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, data, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=STEP_LIMIT_S) as answer:
                return answer.status, answer.read().decode(), dict(answer.headers)
        except urllib.error.HTTPError as answer:
            return answer.code, answer.read().decode(), dict(answer.headers)

    def figure(self, name: str) -> float:
        """A metric, summed over its labels."""
        _, text, _ = self.http("/metrics")
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def wait_until(self, is_so: Callable[[], bool], limit_s: float = STEP_LIMIT_S) -> None:
        """Poll a figure; for what no event tells."""
        until = time.monotonic() + limit_s
        while not is_so():
            assert time.monotonic() < until, (
                f"did not come true in {limit_s} s\n{self.text[-3000:]}"
            )
            time.sleep(0.02)

    def num_fds(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def rss_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def url(self) -> str:
        return f"{self.scheme.replace('http', 'ws')}://127.0.0.1:{self.port}/v1/realtime"

    @asynccontextmanager
    async def call(self, query: str = "", **options: Any) -> AsyncIterator[Caller]:
        if self.scheme == "https":
            options["ssl"] = ssl.create_default_context()
            options["ssl"].check_hostname = False
            options["ssl"].verify_mode = ssl.CERT_NONE
        options = {"compression": None, "max_size": 2**24, "close_timeout": 1, **options}
        async with connect(self.url + query, **options) as socket:
            yield Caller(socket)

    def stop(self, number: int = signal.SIGTERM, limit_s: float = STEP_LIMIT_S) -> int:
        """Ask it to end; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(limit_s)
        for reader in self._readers:
            reader.join(STEP_LIMIT_S)
        return status

    def close(self) -> None:
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


class Caller:
    """One client."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.heard: list[Event] = []

    async def send(self, kind: str, **members: object) -> None:
        await self.socket.send(json.dumps({"type": kind, **members}))

    async def next(self) -> Event:
        async with asyncio.timeout(STEP_LIMIT_S):
            message = await self.socket.recv()
        event: Event = (
            {"type": "binary", "content": message}
            if isinstance(message, bytes)
            else json.loads(message)
        )
        self.heard.append(event)
        return event

    async def until(self, kind: str) -> Event:
        """The next event of a type; those before it are in `heard`."""
        while True:
            event = await self.next()
            if event["type"] == kind:
                return event

    async def append(self, pcm: bytes) -> None:
        await self.send("input_audio_buffer.append", audio=base64.b64encode(pcm).decode())

    async def configure(self, **members: object) -> Event:
        await self.send("session.update", session={"type": "realtime", **members})
        return await self.until("session.updated")

    async def speak(self, pcm: bytes) -> None:
        """Append sound in pieces of 100 ms at 16 kHz, as fast as it goes."""
        for start in range(0, len(pcm), 3200):
            await self.append(pcm[start : start + 3200])

    async def type(self, text: str) -> None:
        """Say something in writing."""
        content = [{"type": "input_text", "text": text}]
        await self.send(
            "conversation.item.create", item={"type": "message", "role": "user", "content": content}
        )

    async def ask(self, text: str) -> Event:
        """A whole typed turn; returns the finished response."""
        await self.type(text)
        await self.send("response.create")
        done = await self.until("response.done")
        return dict(done["response"])

    def text_heard(self) -> str:
        return "".join(e["delta"] for e in self.heard if e["type"].endswith("transcript.delta"))

    def sound_heard(self) -> bytes:
        kind = "response.output_audio.delta"
        return b"".join(base64.b64decode(e["delta"]) for e in self.heard if e["type"] == kind)


def stale_events(heard: Sequence[Event]) -> list[str]:
    """What came of a response after its `response.done`."""
    ended: set[str] = set()
    stale = []
    for event in heard:
        if event.get("response_id") in ended:
            stale.append(event["type"])
        if event["type"] == "response.done":
            ended.add(event["response"]["id"])
    return stale


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
