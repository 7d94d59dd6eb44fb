"""One turn cut into stages: where the milliseconds from commit to first sound go. In one process, no network.

python -m benchmarks.latency CHECKPOINT --seconds 2.5 8.5 30.5 120.5 --sessions 1 4 16
python -m benchmarks.latency random:7b --device cuda --sessions 1 8 32 64
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

import numpy as np
import torch

from benchmarks.models import RANDOM, open_model
from streaming.engine.config import EngineConfig
from streaming.engine.engine import Engine
from streaming.media import CHUNK_SAMPLES, LOOK_AHEAD_SAMPLES, ClipKind, ClipStart, MediaChunk
from streaming.packets import (
    AppendChunk,
    AudioDelta,
    CommitTurn,
    OpenClip,
    OpenSession,
    ReplyOptions,
)


class Timed:
    """The engine's runner, with the time of each kind of plan written down."""

    def __init__(self, engine: Engine) -> None:
        self.ms: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        run = engine.runner.run

        def timed(plan):  # type: ignore[no-untyped-def]
            start = time.perf_counter()
            output = run(plan)
            name = f"{plan.role.name.lower()} {plan.phase.name.lower()}"
            self.ms[name] += 1000 * (time.perf_counter() - start)  # type: ignore[assignment]
            self.calls[name] += 1
            return output

        engine.runner.run = timed  # type: ignore[method-assign]


def now_ms() -> float:
    return time.perf_counter() * 1000


def work(engine: Engine) -> None:
    while engine.has_work(now_ms()):
        engine.step(now_ms())


def feed(engine: Engine, session_id: str, pcm: bytes, *, incremental: bool) -> None:
    """A clip; with `incremental` every closed chunk is computed before the next one comes."""
    engine.submit(OpenClip(session_id, 0, ClipStart(ClipKind.SOUND, 0)), now_ms())
    start, index, size = 0, 0, len(pcm) // 2
    while start < size:
        end = min(size, CHUNK_SAMPLES * (index + 1) + LOOK_AHEAD_SAMPLES)
        if incremental:
            work(engine)
        chunk = MediaChunk(index, start, pcm[2 * start : 2 * end], end == size)
        engine.submit(AppendChunk(session_id, 0, chunk), now_ms())
        start, index = end, index + 1


def first_sound(engine: Engine, names: list[str]) -> tuple[list[float], float, int]:
    """Milliseconds from commit to first sound per session; wall time and steps until the last one."""
    options = ReplyOptions(max_codes=100)
    start, steps = now_ms(), engine.num_steps
    for name in names:
        engine.submit(CommitTurn(name, 0, options), start)
    heard: dict[str, float] = {}
    while len(heard) < len(names) and engine.has_work(now_ms()):
        for reply in engine.step(now_ms()):
            if isinstance(reply, AudioDelta):
                heard.setdefault(reply.session_id, now_ms() - start)
    return sorted(heard.values()), now_ms() - start, engine.num_steps - steps


def never_end(engine: Engine) -> None:
    """Random weights may end a reply before its first window."""
    talker = engine.omni.config.talker
    assert talker is not None
    with torch.inference_mode():
        engine.runner._suppressed[list(talker.stop_ids)] = True


def measure(engine: Engine, seconds: float, num_sessions: int, *, incremental: bool) -> None:
    names = [f"{seconds}-{i}-{incremental}" for i in range(num_sessions)]
    rng = np.random.default_rng(0)
    for name in names:
        engine.submit(OpenSession(name), now_ms())
        pcm = (rng.standard_normal(int(16_000 * seconds)) * 2000).astype(np.int16).tobytes()
        feed(engine, name, pcm, incremental=incremental)
    timed = Timed(engine)
    heard, wall_ms, num_steps = first_sound(engine, names)
    in_runner = sum(timed.ms.values())
    p50, p95 = (np.percentile(heard, q) for q in (50, 95)) if heard else (np.nan, np.nan)
    print(
        f"{seconds:6.1f} s speech, {num_sessions:2d} sessions, "
        f"{'incremental' if incremental else 'at once':11s}: first sound p50 {p50:6.1f} p95 {p95:6.1f} ms; "
        f"{num_steps} steps, host {1000 * (wall_ms - in_runner) / max(1, num_steps):.0f} us each"
    )
    for name, spent in timed.ms.most_common():
        print(f"           {name:16s} {spent:7.1f} ms in {timed.calls[name]} calls")
    del engine.runner.run
    for name in names:
        engine.submit(_close(name), now_ms())


def _close(name: str):  # type: ignore[no-untyped-def]
    from streaming.packets import CloseSession

    return CloseSession(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a checkpoint, or random:7b, random:3b, random:small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.5, 8.5, 30.5])
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 4, 16])
    args = parser.parse_args()
    torch.set_num_threads(1)
    lanes = max(16, *args.sessions)
    config = EngineConfig(device=args.device, num_lanes=lanes, context_tokens=4096)
    engine = Engine(open_model(args.model, args.device), config)
    if args.model.startswith(RANDOM):
        never_end(engine)
    for _ in engine.runner.warm_up():
        pass
    measure(engine, 2.5, 1, incremental=True)  # first calls
    print("---")
    for seconds in args.seconds:
        for incremental in (True, False):
            measure(engine, seconds, 1, incremental=incremental)
    for num_sessions in args.sessions:
        measure(engine, 4.5, num_sessions, incremental=True)


if __name__ == "__main__":
    main()
