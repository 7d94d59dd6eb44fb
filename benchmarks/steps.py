"""Time and working memory of every part against `transformers`, on the same weights, interleaved in one run.

    python benchmarks/steps.py                 # everything that takes no more than a few seconds
    python benchmarks/steps.py decoder dit     # some parts
    python benchmarks/steps.py --match int8    # cases whose name contains a word

Times are CPU time of one thread, so that a busy machine changes them less; each row is the median of pairs measured
alternately, ratio = reference / ours. Memory is the peak above what the process held before the call, in a fresh child
process for each side.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import logging
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

PARTS = ("decoder", "audio", "vision", "dit", "vocoder")
Side = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="PART")
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long to time a case")
    args = parser.parse_args()
    print(f"{'case':56} {'ours':>10} {'reference':>10} {'ratio':>6} {'pairs':>6}  memory MiB")
    for part in args.parts:
        for name in _case_names(part):
            if args.match in f"{part}: {name}":
                _report(part, name, args.seconds)


def _report(part: str, name: str, seconds: float) -> None:
    ours, theirs, ratios = _in_child(_time_case, part, name, seconds)
    memory = [_in_child(_measure_memory, part, name, side) for side in (0, 1)]
    print(
        f"{part + ': ' + name:56} {_ms(ours):>10} {_ms(theirs):>10} "
        f"{statistics.median(ratios):6.2f} {len(ratios):6d}  {memory[0]:.1f} / {memory[1]:.1f}",
        flush=True,
    )


def _case_names(part: str) -> list[str]:
    return list(_in_child(_list_cases, part))


def _in_child(function: Callable[..., object], *args: object):  # type: ignore[no-untyped-def]  # what it returns
    """Run in a fresh interpreter, so that no case inherits another's caches or memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def _list_cases(part: str) -> list[str]:
    return list(_module(part).CASES)


def _time_case(part: str, name: str, seconds: float) -> tuple[float, float, list[float]]:
    sides = _build(part, name)
    with torch.inference_mode():
        for side in sides:
            side()
        started = time.perf_counter()
        pairs: list[tuple[float, float]] = []
        while len(pairs) < 3 or time.perf_counter() - started < seconds:
            first = len(pairs) % 2  # neither side always goes second, into warm caches
            spent = {i: _cpu_seconds(sides[i]) for i in (first, 1 - first)}
            pairs.append((spent[0], spent[1]))
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return ours, theirs, [b / a for a, b in pairs]


def _cpu_seconds(side: Side) -> float:
    """CPU time of one call; short calls are repeated until the clock can see them."""
    calls, begin = 0, time.process_time()
    while True:
        side()
        calls += 1
        spent = time.process_time() - begin
        if spent > 0.005:
            return spent / calls


def _measure_memory(part: str, name: str, side: int) -> float:
    call = _build(part, name)[side]
    with torch.inference_mode():
        call()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = _status_kib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
        call()
        return max(0, _status_kib("VmHWM") - before) / 1024


def _status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def _build(part: str, name: str) -> tuple[Side, Side]:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    sides: tuple[Side, Side] = _module(part).CASES[name]()
    return sides


def _module(part: str):  # type: ignore[no-untyped-def]  # a module
    return importlib.import_module(f"benchmarks.parts.{part}")


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"


if __name__ == "__main__":
    main()
