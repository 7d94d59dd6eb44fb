"""One turn cut into stages: where the milliseconds from commit to first sound go. In one process, no network.

    stages     of a turn of each length, fed as it is spoken and all at once
    table      the same turns in one view: does the wait grow with what was said before the commit?
    sessions   commits at the same moment, replies followed to their end: waits, underruns, fairness

python -m benchmarks.latency CHECKPOINT --seconds 2.5 8.5 30.5 120.5 --sessions 1 4 16
python -m benchmarks.latency random:7b --device cuda --sessions 1 8 32 64
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.listeners import Listener, hearing
from benchmarks.models import RANDOM, open_model
from streaming.engine.config import EngineConfig
from streaming.engine.engine import Engine
from streaming.media import CHUNK_SAMPLES, LOOK_AHEAD_SAMPLES, ClipKind, ClipStart, MediaChunk
from streaming.packets import (
    AppendChunk,
    AudioDelta,
    CloseSession,
    CommitTurn,
    DoneReason,
    OpenClip,
    OpenSession,
    ReplyOptions,
    SessionFailed,
    TurnDone,
)

if TYPE_CHECKING:
    from benchmarks.listeners import Hearing
    from streaming.packets import Reply

ROWS_PER_SECOND = 25


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
        for reply in engine.step(now_ms()):
            tell_failure(reply)


def tell_failure(reply: Reply) -> None:
    """Say why there will be no sound: a conversation that is too long, say."""
    if isinstance(reply, SessionFailed) or (
        isinstance(reply, TurnDone) and reply.reason is DoneReason.FAILED
    ):
        print(f"           {reply.session_id} failed: {reply.code}: {reply.message}")


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


class Replies:
    """Replies to commits of the same moment, and who listens to them."""

    def __init__(self, engine: Engine, names: list[str], num_codes: int) -> None:
        self.engine = engine
        self.start_ms = now_ms()
        self.first_step = engine.num_steps
        self.listeners = {name: Listener(self.start_ms) for name in names}
        self.running = set(names)
        # Text no longer than the sound: a reply then ends with its sound.
        options = ReplyOptions(max_codes=num_codes, max_text_tokens=num_codes)
        for name in names:
            engine.submit(CommitTurn(name, 0, options), self.start_ms)

    def run_to_first_sound(self) -> tuple[float, int]:
        """Until all have sounded or ended; wall time and steps."""
        while any(self.listeners[name].is_silent for name in self.running) and self._step():
            pass
        return now_ms() - self.start_ms, self.engine.num_steps - self.first_step

    def run_to_end(self) -> None:
        """In real time: a reply far enough ahead of its playout waits for it."""
        while self.running and self._step():
            pass

    def _step(self) -> bool:
        """Do what can be done, waiting for it; False if nothing is left."""
        if not self.engine.has_work(now_ms()):
            wake_ms = self.engine.wake_ms(now_ms())
            if wake_ms is None:
                return False
            time.sleep(max(0.0, wake_ms - now_ms()) / 1000)
        for reply in self.engine.step(now_ms()):
            self._take(reply)
        return True

    def _take(self, reply: Reply) -> None:
        match reply:
            case AudioDelta(session_id=name):
                self.listeners[name].hear(now_ms(), len(reply.pcm) // 2)
            case TurnDone(session_id=name) | SessionFailed(session_id=name):
                tell_failure(reply)
                self.running.discard(name)
                self.listeners[name].end(now_ms())


def never_end(engine: Engine) -> None:
    """Random weights may end a reply before its first window."""
    talker = engine.omni.config.talker
    assert talker is not None
    with torch.inference_mode():
        engine.runner._suppressed[list(talker.stop_ids)] = True


def listen(
    engine: Engine, seconds: float, num_sessions: int, *, incremental: bool, num_codes: int
) -> Replies:
    """Let sessions hear so much speech each, then commit them all and print the stages up to the first sounds."""
    names = [f"{seconds}-{i}-{incremental}" for i in range(num_sessions)]
    rng = np.random.default_rng(0)
    for name in names:
        engine.submit(OpenSession(name), now_ms())
        pcm = (rng.standard_normal(int(16_000 * seconds)) * 2000).astype(np.int16).tobytes()
        feed(engine, name, pcm, incremental=incremental)
    timed = Timed(engine)
    replies = Replies(engine, names, num_codes)
    wall_ms, num_steps = replies.run_to_first_sound()
    in_runner = sum(timed.ms.values())
    told = hearing(list(replies.listeners.values()))
    print(
        f"{seconds:6.1f} s speech, {num_sessions:2d} sessions, "
        f"{'incremental' if incremental else 'at once':11s}: "
        f"first sound p50 {told.first_p50_ms:6.1f} p95 {told.first_p95_ms:6.1f} ms; "
        f"{num_steps} steps, host {1000 * (wall_ms - in_runner) / max(1, num_steps):.0f} us each"
    )
    for name, spent in timed.ms.most_common():
        print(f"           {name:16s} {spent:7.1f} ms in {timed.calls[name]} calls")
    del engine.runner.run
    return replies


def close(replies: Replies) -> None:
    for name in replies.listeners:
        replies.engine.submit(CloseSession(name), now_ms())
    work(replies.engine)  # what was still in the making belongs to nobody now


def first_sound_ms(engine: Engine, seconds: float, *, incremental: bool, repeats: int) -> float:
    """Of one session; the median of the repeats."""
    waits = []
    for _ in range(repeats):
        replies = listen(engine, seconds, 1, incremental=incremental, num_codes=100)
        waits += [listener.first_ms for listener in replies.listeners.values()]
        close(replies)
    return float(np.median(waits))


def print_growth(waits: list[tuple[float, float, float]]) -> None:
    """Rows of seconds of speech, milliseconds fed as it is spoken, milliseconds fed at once."""
    print("--- commit to first sound, one session; in brackets: times the shortest turn's")
    print("  speech        incremental            at once   at once / incremental")
    (_, shortest, shortest_at_once), *_ = waits
    for seconds, spoken, at_once in waits:
        print(
            f"{seconds:6.1f} s {spoken:8.1f} ms ({spoken / shortest:5.2f}) "
            f"{at_once:8.1f} ms ({at_once / shortest_at_once:5.2f}) {at_once / spoken:10.2f}"
        )


def print_fairness(told: list[tuple[int, Hearing]]) -> None:
    print("--- replies asked for at the same moment, followed to their end")
    print(
        "sessions  first sound p50       p95  max/p50   underruns in replies   silent   "
        "Jain's index  least and most sound (1 = fair share)"
    )
    for num, one in told:
        print(
            f"{num:8d} {one.first_p50_ms:13.1f} ms {one.first_p95_ms:6.1f} ms {one.spread:8.2f} "
            f"{one.num_underruns:11d} {one.num_broken:4d} of {num:<4d} {one.num_silent:6d} "
            f"{one.jain:14.3f} {one.least:7.2f} {one.most:5.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a checkpoint, or random:7b, random:3b, random:small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", choices=("plain", "int8"), default="plain")
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.5, 8.5, 30.5])
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--codes", type=int, default=250, help="of each reply followed to its end")
    parser.add_argument("--repeats", type=int, default=1, help="of each length of speech")
    parser.add_argument(
        "--context-tokens", type=int, help="longest conversation; default: the speech has room"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    lanes = max(16, *args.sessions)
    room = max(4096, 1024 + int(ROWS_PER_SECOND * max(args.seconds)))
    context = args.context_tokens or room
    config = EngineConfig(device=args.device, num_lanes=lanes, context_tokens=context)
    engine = Engine(open_model(args.model, args.device, args.weights), config)
    print(f"{lanes} lanes, conversations of up to {engine.context_tokens} tokens")
    if args.model.startswith(RANDOM):
        never_end(engine)
    for _ in engine.runner.warm_up():
        pass
    first_sound_ms(engine, 2.5, incremental=True, repeats=1)  # first calls
    print("---")
    waits = [
        (
            s,
            *(
                first_sound_ms(engine, s, incremental=i, repeats=args.repeats)
                for i in (True, False)
            ),
        )
        for s in sorted(args.seconds)
    ]
    print_growth(waits)
    never_end(engine)  # replies of equal length: only then are their shares of the sound comparable
    told = []
    for num_sessions in args.sessions:
        replies = listen(engine, 4.5, num_sessions, incremental=True, num_codes=args.codes)
        replies.run_to_end()
        told.append((num_sessions, hearing(list(replies.listeners.values()))))
        close(replies)
    print_fairness(told)


if __name__ == "__main__":
    main()
