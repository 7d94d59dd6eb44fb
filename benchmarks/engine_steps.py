"""What one step of the engine costs: by batch size, by length of the conversation, and on the host.

    python -m benchmarks.engine_steps random:7b --device cuda --batches 1 8 32 64 [--eager]
    python -m benchmarks.engine_steps CHECKPOINT --batches 1 2 4 8 16 --contexts 1024 8192 32768

Decode steps through the engine's own runner, on sequences that hold as many keys and values as asked (zeros: their
values change no time). Rounds go through all cases in turn, so that a busy machine slows them alike; each figure is the
median. `host` is what a step takes beside its forward: planning, packing, sampling's bookkeeping, committing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from benchmarks.models import open_model
from streaming.engine.config import EngineConfig
from streaming.engine.engine import Engine
from streaming.engine.scheduler import Entry, StepPlan
from streaming.engine.sequence import DecodeInput, Pace, Phase, Role, Sequence
from streaming.packets import AppendText, CommitTurn, OpenSession, ReplyOptions

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Case:
    name: str
    call: Callable[[], object]
    ms: list[float] = field(default_factory=list)

    def run(self) -> None:
        start = time.perf_counter()
        self.call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ms.append(1000 * (time.perf_counter() - start))

    @property
    def median(self) -> float:
        return statistics.median(self.ms)


def decode_case(engine: Engine, role: Role, batch: int, context: int) -> Case:
    """A decode step of `batch` sequences that hold `context` tokens each."""
    pool, page_size = engine.scheduler.pools[role], engine.config.page_size
    entries = []
    for lane in range(batch):
        seq = Sequence(lane, f"s{lane}", role, lane, Pace())
        seq.pages = pool.allocate(context // page_size + 1)
        seq.num_computed = context
        seq.decode = DecodeInput(token_id=5, row_slot=0, position=context)
        entries.append(Entry(seq, context, 1))
    plan = StepPlan(role, Phase.DECODE, tuple(entries))
    for entry in (
        entries
    ):  # cases take turns: the pages are theirs only as long as the pool is not asked again
        pool.release(entry.seq.pages)
    return Case(
        f"{role.name.lower()} batch {batch} context {context}", lambda: engine.runner.run(plan)
    )


def measure_host(engine: Engine, num_sessions: int) -> float:
    """Milliseconds of host work per step while `num_sessions` replies run."""
    options = ReplyOptions(max_text_tokens=64, max_codes=100)
    for i in range(num_sessions):
        engine.submit(OpenSession(f"h{i}"), 0)
        engine.submit(AppendText(f"h{i}", 0, "Tell me a story."), 0)
        engine.submit(CommitTurn(f"h{i}", 0, options), 0)
    run, inside = engine.runner.run, 0.0

    def timed(plan: StepPlan):  # type: ignore[no-untyped-def]
        nonlocal inside
        start = time.perf_counter()
        output = run(plan)
        inside += time.perf_counter() - start
        return output

    engine.runner.run = timed  # type: ignore[method-assign]
    start, before = time.perf_counter(), engine.num_steps
    while engine.has_work(0) and engine.num_steps - before < 300:
        engine.step(0)
    total = time.perf_counter() - start
    engine.runner.run = run  # type: ignore[method-assign]
    return 1000 * (total - inside) / (engine.num_steps - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 8192, 32768])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lanes, longest = max(args.batches), max(args.contexts)
    page = 256  # what any kernel can live with
    tokens = max(longest, lanes * min(args.contexts)) + page * (lanes + 2)
    config = EngineConfig(
        device=args.device,
        use_graphs=not args.eager,
        num_lanes=lanes,
        num_pages=tokens // page,
        page_size=page,
        context_tokens=longest + page,
    )
    engine = Engine(open_model(args.model, args.device), config)
    roles = [role for role in (Role.THINKER, Role.TALKER) if role in engine.scheduler.pools]
    shapes = [(b, min(args.contexts)) for b in args.batches] + [(1, c) for c in args.contexts[1:]]
    cases = [decode_case(engine, role, *shape) for role in roles for shape in shapes]
    for _ in range(args.rounds):
        for case in cases:
            case.run()
    print(f"{'decode step':36} {'median':>10} {'/ first':>8} {'per sequence':>13}")
    for role in roles:
        mine = [c for c in cases if c.name.startswith(role.name.lower())]
        for case, (batch, _) in zip(mine, shapes, strict=True):
            ratio = case.median / mine[0].median
            each = case.median / batch
            print(f"{case.name:36} {case.median:7.2f} ms {ratio:8.2f} {each:10.2f} ms")
    for batch in args.batches:
        print(f"host, {batch} replies{'':20} {1000 * measure_host(engine, batch):7.0f} us per step")
        engine = Engine(engine.omni, config)


if __name__ == "__main__":
    main()
