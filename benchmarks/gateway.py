"""What the gateway costs, with a worker that costs nothing: sessions per core, and CPU per second of sound.

    python -m benchmarks.gateway [--sessions 50,100,200,300] [--seconds 10] [--core 0]

Every caller sends 100 ms of speech every 100 ms, in JSON or in binary frames; turns are detected and answered with a
second of sound. The gateway has one core of its own (`--core`), the callers take what is left. The lag is that of a
20 ms timer in the gateway's event loop: what every socket waits behind.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from streaming.pcm import read_wav

ROOT = Path(__file__).resolve().parent.parent
SPEECH = ROOT / "tests" / "streaming" / "one_two_three.wav"
PIECE_S = 0.1
MAX_LAG_S = 0.020
HANDSHAKE = (
    "GET /v1/realtime HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    is_binary: bool
    detects_turns: bool


@dataclass(frozen=True, slots=True)
class Result:
    cpu: float
    """Of one core."""
    lag_p50_ms: float
    lag_p99_ms: float
    num_replies: float
    rss_mib: float


TEXT = Case("JSON, turns detected", is_binary=False, detects_turns=True)
CASES = (
    TEXT,
    Case("binary, turns detected", is_binary=True, detects_turns=True),
    Case("JSON, no detection", is_binary=False, detects_turns=False),
    Case("binary, no detection", is_binary=True, detects_turns=False),
)


def frame(opcode: int, body: bytes) -> bytes:
    """A client's frame; its mask is zero, which leaves the body as it is and costs the callers nothing."""
    size = len(body)
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + bytes(4) + body


def pieces(case: Case) -> list[bytes]:
    """Frames of one round of speech and silence, 100 ms each, at 16 kHz."""
    pcm, rate = read_wav(SPEECH.read_bytes())
    assert rate == 16_000
    pcm += bytes(2 * rate)
    size = round(rate * PIECE_S) * 2
    sounds = [pcm[i : i + size].ljust(size, b"\0") for i in range(0, len(pcm), size)]
    if case.is_binary:
        return [frame(2, b'{"type":"input_audio_buffer.append"}\n' + sound) for sound in sounds]
    head = '{"type":"input_audio_buffer.append","audio":"'
    return [frame(1, f'{head}{base64.b64encode(s).decode()}"}}'.encode()) for s in sounds]


class Caller(asyncio.Protocol):
    """Sends its pieces in real time and throws away what it hears."""

    def __init__(self, case: Case, sounds: list[bytes], start: int) -> None:
        detection = {"type": "server_vad"} if case.detects_turns else None
        heard_as = {"format": {"type": "audio/pcm", "rate": 16_000}, "turn_detection": detection}
        update = {
            "type": "session.update",
            "session": {"type": "realtime", "audio": {"input": heard_as}},
        }
        self._hello = frame(1, json.dumps(update).encode())
        self._sounds, self._next = sounds, start
        self._transport: asyncio.Transport | None = None
        self.is_in = asyncio.Event()
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(HANDSHAKE.encode())

    def data_received(self, data: bytes) -> None:
        if not self.is_in.is_set() and data.startswith(b"HTTP/1.1 101"):
            assert self._transport is not None
            self._transport.write(self._hello)
            self.is_in.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True

    def say(self) -> None:
        assert self._transport is not None
        self._transport.write(self._sounds[self._next])
        self._next = (self._next + 1) % len(self._sounds)

    def hang_up(self) -> None:
        assert self._transport is not None
        self._transport.close()


class Gateway:
    """`parley serve` on a core of its own."""

    def __init__(self, core: int, places: int) -> None:
        stand_in = f"{sys.executable},{ROOT / 'benchmarks' / 'stand_in_worker.py'}"
        settings = {
            "PORT": 0,
            "WORKER_COMMAND": stand_in,
            "MODEL": "stand-in",
            "LOG_LEVEL": "WARNING",
        }
        settings |= {"SESSIONS_PER_WORKER": places, "HANDSHAKES_PER_S": 10_000, "DRAIN_S": 0}
        settings |= {"HANDSHAKES_PER_S_PER_ADDRESS": 10_000, "DEMO": False}
        environment = {f"PARLEY_{name}": str(value) for name, value in settings.items()}
        command = [
            sys.executable,
            "-c",
            "from server.cli import app; app()",
            "serve",
            "--pace",
            "4",
        ]
        self._process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            cwd=ROOT, env=os.environ | environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.port = self._wait_ready()

    def _wait_ready(self) -> int:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := re.search(r"ready: open http://[^ ]*:(\d+)", line):
                return int(found[1])
        raise SystemExit("the gateway did not start")

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self) -> float:
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2

    def figures(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=20) as answer:
            return str(answer.read().decode())

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        assert self._process.stderr is not None
        self._process.stderr.close()


def lags(figures: str) -> dict[float, float]:
    """Counts of the lag histogram by upper edge."""
    found = re.findall(r'parley_loop_lag_seconds_bucket{le="([^"]+)"} (\S+)', figures)
    return {float(edge): float(count) for edge, count in found}


def total(figures: str, name: str) -> float:
    return sum(map(float, re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", figures, re.MULTILINE)))


def percentile(before: dict[float, float], after: dict[float, float], part: float) -> float:
    """Within the bucket as if evenly spread."""
    counts = {edge: after[edge] - before.get(edge, 0.0) for edge in sorted(after)}
    wanted, low, below = part * counts[float("inf")], 0.0, 0.0
    for edge, count in counts.items():
        if count >= wanted:
            return (
                low
                if edge == float("inf")
                else low + (edge - low) * (wanted - below) / max(1e-9, count - below)
            )
        low, below = edge, count
    return low


async def measure(gateway: Gateway, case: Case, num_sessions: int, seconds: float) -> Result:
    """Hold the sessions for so long; the first second and a half does not count."""
    loop, sounds = asyncio.get_running_loop(), pieces(case)
    callers = [Caller(case, sounds, i % len(sounds)) for i in range(num_sessions)]
    for caller in callers:
        await loop.create_connection(lambda made=caller: made, "127.0.0.1", gateway.port)
        await asyncio.wait_for(caller.is_in.wait(), 10)
    speaking = asyncio.create_task(_speak(callers))
    await asyncio.sleep(1.5)
    figures, cpu, begun = (
        await asyncio.to_thread(gateway.figures),
        gateway.cpu_s(),
        time.monotonic(),
    )
    await asyncio.sleep(seconds)
    used, spent = gateway.cpu_s() - cpu, time.monotonic() - begun
    after = await asyncio.to_thread(gateway.figures)
    rss = gateway.rss_mib()
    speaking.cancel()
    assert not any(caller.is_lost for caller in callers), "callers were hung up on"
    for caller in callers:
        caller.hang_up()
    low, high = lags(figures), lags(after)
    name = "parley_replies_total"
    return Result(
        used / spent,
        1000 * percentile(low, high, 0.5),
        1000 * percentile(low, high, 0.99),
        total(after, name) - total(figures, name),
        rss,
    )


async def _speak(callers: list[Caller]) -> None:
    """Everyone every 100 ms, spread evenly over them."""
    begun, sent = time.monotonic(), 0
    while True:
        due = int((time.monotonic() - begun) / PIECE_S * len(callers))
        while sent < due:
            callers[sent % len(callers)].say()
            sent += 1
        await asyncio.sleep(0.002)


async def wait_empty(gateway: Gateway) -> None:
    while total(await asyncio.to_thread(gateway.figures), "parley_sessions"):  # noqa: ASYNC110
        await asyncio.sleep(0.1)


async def run(gateway: Gateway, case: Case, num_sessions: int, seconds: float) -> Result:
    result = await measure(gateway, case, num_sessions, seconds)
    await wait_empty(gateway)
    per_second = 1e6 * result.cpu / num_sessions
    print(
        f"{case.name:24} {num_sessions:5} sessions  {result.cpu:6.1%} of a core  {per_second:6.0f} us per second of "
        f"sound  lag p50 {result.lag_p50_ms:5.1f} p99 {result.lag_p99_ms:5.1f} ms  {result.num_replies:4.0f} replies  "
        f"{result.rss_mib:4.0f} MiB",
        flush=True,
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sessions", default="25,50,100,150,200,300,400")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--compare", type=int, default=50, help="sessions for the four ways")
    parser.add_argument("--core", type=int, default=0)
    args = parser.parse_args()
    counts = [int(n) for n in args.sessions.split(",")]
    gateway = Gateway(args.core, max(counts) + 10)
    try:
        for case in CASES:
            asyncio.run(run(gateway, case, args.compare, args.seconds))
        held = 0
        for count in counts:
            result = asyncio.run(run(gateway, TEXT, count, args.seconds))
            if result.lag_p99_ms > 1000 * MAX_LAG_S:
                break
            held = count
        print(
            f"sessions on one core with a lag p99 under {1000 * MAX_LAG_S:.0f} ms: at least {held}"
        )
    finally:
        gateway.stop()


if __name__ == "__main__":
    main()
