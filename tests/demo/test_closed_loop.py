"""The page hears its own voice from real (virtual) devices and must not take it for a person.

    paplay ──▶ [mouth] ──▶ microphone ──▶ page ──▶ [speaker] ──▶ the room, 40 ms ──▶ [mouth]

Echo cancellation does nothing on a browser's fake devices, so this needs a sound server; without one it is skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.demo.browser import CHROMIUM, FLAGS, GRANTED, Visitor
from tests.demo.speech import say, write_wav

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Playwright

    from tests.demo.peer import Peer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("pulseaudio") is None or shutil.which("paplay") is None,
        reason="needs a sound server: apt-get install pulseaudio pulseaudio-utils",
    ),
]
MODULES = (
    "module-native-protocol-unix auth-anonymous=1",
    "module-null-sink sink_name=speaker",
    "module-null-sink sink_name=mouth",
    "module-remap-source master=mouth.monitor source_name=microphone",
    "module-loopback source=speaker.monitor sink=mouth latency_msec=40",
)
ENOUGH = 2  # interruptions of itself: no need to listen on
ANSWER = "The tide is coming in, slowly at first and then faster, until the boats begin to lift from the sand."


@pytest.fixture
def room(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment of a sound server of our own with one virtual room."""
    environment = os.environ | {
        "XDG_RUNTIME_DIR": str(tmp_path),
        "PULSE_RUNTIME_PATH": str(tmp_path / "pulse"),
    }
    command = [
        "pulseaudio",
        "-n",
        "--daemonize=no",
        "--exit-idle-time=-1",
        "--disallow-exit",
        "--use-pid-file=no",
    ]
    command += [f"--load={module}" for module in MODULES]
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    limit = time.monotonic() + 10
    while subprocess.run(["pactl", "info"], env=environment, capture_output=True).returncode:
        assert time.monotonic() < limit, "the sound server did not start"
        time.sleep(0.1)
    for default in (["set-default-sink", "speaker"], ["set-default-source", "microphone"]):
        subprocess.run(["pactl", *default], env=environment, check=True)
    yield environment
    server.terminate()
    server.wait()


def converse(
    driver: Playwright, peer: Peer, room: dict[str, str], wav: Path, strip: bool
) -> list[int]:
    """Three spoken turns; how often the page had cut itself off after each."""
    peer.script.answers = [ANSWER]
    flags = [flag for flag in FLAGS if "fake-device" not in flag]
    browser = driver.chromium.launch(
        executable_path=str(CHROMIUM), chromium_sandbox=False, env=room,
        args=[*flags, GRANTED], ignore_default_args=["--mute-audio"],
    )  # fmt: skip
    context = browser.new_context()
    context.add_init_script("addEventListener('DOMContentLoaded', () => (lab.useDevice = true))")
    if strip:
        context.add_init_script("""
          const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
          navigator.mediaDevices.getUserMedia = () =>
            ask({ audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false } });
        """)
    visitor = Visitor(context, peer.url)
    visitor.start()
    flushes = []
    for _ in range(3):
        num_before = visitor.figure("flushes")
        subprocess.run(["paplay", "--device=mouth", str(wav)], env=room, check=True)
        visitor.wait("speaking", 15)
        limit = time.monotonic() + 12
        while (
            visitor.state != "listening"
            and time.monotonic() < limit
            and visitor.figure("flushes") < ENOUGH
        ):
            visitor.page.wait_for_timeout(50)
        flushes.append(visitor.figure("flushes") - num_before)
        if sum(flushes) >= ENOUGH:
            break
    browser.close()
    return flushes


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    return write_wav(
        tmp_path / "question.wav", say("What is the sea doing?", 48_000, voice="en-gb"), 48_000
    )


def test_the_page_does_not_interrupt_itself(
    driver: Playwright, peer: Peer, room: dict[str, str], wav: Path
) -> None:
    first, *later = converse(driver, peer, room, wav, strip=False)
    assert first <= 1  # the canceller learns during the first second of sound
    assert later == [0, 0]


def test_without_echo_cancellation_it_would(
    driver: Playwright, peer: Peer, room: dict[str, str], wav: Path
) -> None:
    assert sum(converse(driver, peer, room, wav, strip=True)) >= ENOUGH
