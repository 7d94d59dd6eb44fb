"""The example clients of the documentation do what they say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from streaming.pcm import read_wav, write_wav
from tests.e2e.house import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.house import House

SPEECH = ROOT / "tests" / "streaming" / "one_two_three.wav"
EXAMPLES = ROOT / "docs" / "examples"


def node() -> list[str]:
    """How a Node that has WebSockets is started, or nothing."""
    found = shutil.which("node")
    for flags in ([], ["--experimental-websocket"]):
        if (
            found
            and not subprocess.run(
                [found, *flags, "-e", "WebSocket"], capture_output=True
            ).returncode
        ):
            return [found, *flags]
    return []


def ask(command: list[str], house: House, folder: Path) -> str:
    question, reply = folder / "question.wav", folder / "reply.wav"
    question.write_bytes(write_wav(*read_wav(SPEECH.read_bytes())))
    told = subprocess.run(
        [*command, str(question), house.url, str(reply)],
        capture_output=True, text=True, timeout=30, env=os.environ | {"PARLEY_KEY": "unused"},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    pcm, rate = read_wav(reply.read_bytes())
    assert (rate, len(pcm)) == (24_000, 2 * 24_000)
    return told.stdout


def test_the_python_client_asks_and_hears(house: House, tmp_path: Path) -> None:
    said = ask([sys.executable, str(EXAMPLES / "client.py")], house, tmp_path)
    assert said == "Good day.\n[completed]\n"


def test_the_javascript_client_asks_and_hears(house: House, tmp_path: Path) -> None:
    command = node()
    if not command:
        pytest.skip("needs Node 20 or newer")
    said = ask([*command, str(EXAMPLES / "client.mjs")], house, tmp_path)
    assert said == "Good day.\n[completed]\n"


@pytest.mark.parametrize("name", ["client.py", "client.mjs"])
def test_they_stay_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 60
