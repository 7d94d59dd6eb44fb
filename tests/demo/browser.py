"""Drives the page in Chromium: launches it, speaks into its microphone, listens to its speakers, reads its state."""

from __future__ import annotations

import base64
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.demo.speech import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext, Page, Playwright

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
INSTALL = "apt-get install chromium espeak-ng fonts-noto-core"
INSTRUMENTS = Path(__file__).with_name("instruments.js")
FLAGS = (
    "--disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-fake-device-for-media-stream"
).split()
GRANTED = "--use-fake-ui-for-media-stream"
SILENT = 0.004  # peak below which the speakers count as silent


@contextmanager
def chromium(playwright: Playwright, *flags: str) -> Iterator[Browser]:
    browser = playwright.chromium.launch(
        executable_path=str(CHROMIUM), headless=True, chromium_sandbox=False, args=[*FLAGS, *flags]
    )
    yield browser
    browser.close()


class Visitor:
    """A person at the page, with a microphone on cue and an ear at the speakers."""

    # At most, whatever a wait allows: a page broken on purpose is given up sooner.
    patience_s = 60.0

    def __init__(self, context: BrowserContext, url: str) -> None:
        context.add_init_script(path=INSTRUMENTS)
        self.page: Page = context.new_page()
        self.console: list[str] = []
        self.requests: list[str] = []
        self.num_states = 0  # waited for so far
        self.page.on("console", lambda entry: self.console.append(f"{entry.type}: {entry.text}"))
        self.page.on("pageerror", lambda error: self.console.append(f"error: {error}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.set_default_timeout(1000 * min(8, self.patience_s))
        self.page.goto(url)

    def at(self, testid: str) -> Any:
        return self.page.get_by_test_id(testid)

    @property
    def state(self) -> str:
        return str(self.page.evaluate("document.documentElement.dataset.state"))

    @property
    def errors(self) -> list[str]:
        return [line for line in self.console if line.startswith("error")]

    def figure(self, name: str) -> Any:
        return self.page.evaluate(f"window.omniDebug.{name}")

    def wait(self, state: str, seconds: float = 8) -> None:
        """Waits for a state word; a strict policy forbids the built-in way, which needs eval."""

        def has_come() -> bool:
            states = self.page.evaluate("lab.states")
            fresh = states[self.num_states :]
            if state in fresh:
                self.num_states += fresh.index(state) + 1
            return state in fresh or (not fresh and self.state == state)

        self.until(
            has_come, seconds, lambda: f"{state} did not follow {self.page.evaluate('lab.states')}"
        )

    def until(
        self, condition: Any, seconds: float = 8, complain: Any = lambda: "it never happened"
    ) -> None:
        limit = time.monotonic() + min(seconds, self.patience_s)
        while not condition():
            assert time.monotonic() < limit, complain()
            self.page.wait_for_timeout(15)

    def start(self) -> None:
        self.at("start").click()
        self.wait("listening")

    def type(self, text: str) -> None:
        self.at("text-input").fill(text)
        self.at("send").click()

    def choose(self, *testids: str) -> None:
        """Ticks settings."""
        self.at("settings").click()
        for testid in testids:
            self.at(testid).check()
        self.at("close-settings").click()

    def speak(self, text: str = "What is the sea doing today?") -> dict[str, float]:
        """Begins to speak; returns when the words start and end, on the page's clock."""
        return self.utter(say(text, 24_000, voice="en-gb"))

    def utter(self, samples: np.ndarray) -> dict[str, float]:
        """The same with a recording, int16 at 24 kHz."""
        encoded = base64.b64encode(samples.tobytes()).decode()
        return dict(self.page.evaluate("([pcm, rate]) => lab.speak(pcm, rate)", [encoded, 24_000]))

    def hold_turn(self, samples: np.ndarray, patience_s: float = 60) -> None:
        """Asks aloud and listens to the whole reply; patient with a model on a machine that runs Chromium as well."""
        self.utter(samples)
        self.wait("hearing")
        self.wait("speaking", patience_s)
        self.wait("listening", patience_s)

    def now(self) -> float:
        return float(self.page.evaluate("performance.now()"))

    def keep_sound(self) -> None:
        self.page.evaluate("lab.keep = true; lab.tap.length = 0")

    def loud_times(self) -> list[float]:
        """When the speakers sounded, in the page's milliseconds."""
        return list(
            self.page.evaluate(f"lab.tap.filter((e) => e.peak > {SILENT}).map((e) => e.at)")
        )

    def heard(self) -> tuple[np.ndarray, int]:
        sound = self.page.evaluate("lab.tap.flatMap((e) => e.samples ?? [])")
        return np.array(sound, np.float32), int(self.page.evaluate("lab.rate"))
