"""Holds a conversation in real Chromium and prints what it felt like: `python -m tests.demo.measure [--minutes 2]`.

The embedded checkpoint, the real server, the page as a person opens it, hands free: recorded questions go into the
microphone one after the other, each when the reply before has ended. Chromium shares the machine's cores with the
server, as it does for whoever tries the project on a laptop. One JSON line per turn, then a summary.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from typing import TYPE_CHECKING

import numpy as np
from playwright.sync_api import sync_playwright

from tests.demo.browser import GRANTED, Visitor, chromium
from tests.e2e.embedded import CHECKPOINT, QUESTIONS, question
from tests.e2e.house import House

if TYPE_CHECKING:
    from collections.abc import Iterator

# As `make serve` starts it.
SERVER = ("--weights", "int8", "--max-text-tokens", "96", "--max-codes", "1000")


def turns(visitor: Visitor, minutes: float) -> Iterator[dict[str, float | str]]:
    """Ask one question after the other until the time is up; per turn, what the page itself says of it."""
    ends_at = time.monotonic() + 60 * minutes
    names = sorted(path.name for path in QUESTIONS.glob("*-question.ogg"))
    for name in itertools.cycle(names):
        if time.monotonic() > ends_at:
            return
        before = visitor.figure("underruns")
        visitor.hold_turn(question(name))
        yield {
            "question": name,
            "first_sound_ms": round(visitor.figure("ttfa_ms")),
            "underruns": visitor.figure("underruns") - before,
        }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=2)
    options = arguments.parse_args()
    house = House(list(SERVER), model=CHECKPOINT, demo=True).wait_ready()
    try:
        with sync_playwright() as driver, chromium(driver, GRANTED) as browser:
            visitor = Visitor(browser.new_context(), f"http://127.0.0.1:{house.port}/")
            visitor.start()
            seen = []
            for turn in turns(visitor, options.minutes):
                print(json.dumps(turn), flush=True)
                seen.append(turn)
            first = [float(turn["first_sound_ms"]) for turn in seen]
            summary = {
                "turns": len(seen),
                "first_sound_ms": {
                    f"p{p}": round(float(np.percentile(first, p))) for p in (50, 95)
                },
                "underruns": sum(int(turn["underruns"]) for turn in seen),
                "turns_with_underrun": sum(turn["underruns"] != 0 for turn in seen),
                "errors": visitor.errors,
            }
            print(json.dumps(summary))
    finally:
        house.close()


if __name__ == "__main__":
    main()
