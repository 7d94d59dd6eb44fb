"""A tab that is really hidden: sound and pictures keep flowing.

Playwright keeps every page visible, so this test drives a browser of its own over the DevTools protocol.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from websockets.sync.client import connect

from tests.demo.browser import CHROMIUM, FLAGS, GRANTED, INSTALL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from websockets.sync.client import ClientConnection

    from tests.demo.peer import Peer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs Chromium: {INSTALL}"),
]


class Tab:
    """One tab of a browser, by its DevTools session."""

    def __init__(self, socket: ClientConnection, ids: Iterator[int], url: str) -> None:
        self.socket, self.ids = socket, ids
        self.session: str | None = None
        self.target = self.send("Target.createTarget", url=url)["targetId"]
        attached = self.send("Target.attachToTarget", targetId=self.target, flatten=True)
        self.session = attached["sessionId"]

    def send(self, method: str, **params: Any) -> Any:
        number = next(self.ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        self.socket.send(
            json.dumps(message | ({"sessionId": self.session} if self.session else {}))
        )
        while True:
            answer = json.loads(self.socket.recv(timeout=10))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def look(self, expression: str) -> Any:
        return self.send("Runtime.evaluate", expression=expression, userGesture=True)["result"].get(
            "value"
        )

    def until(self, expression: str) -> None:
        limit = time.monotonic() + 10
        while not self.look(expression):
            assert time.monotonic() < limit, expression
            time.sleep(0.05)


@pytest.fixture
def devtools(tmp_path: Path) -> Iterator[ClientConnection]:
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--remote-debugging-port=0"]
    command += [f"--user-data-dir={tmp_path}", *FLAGS, GRANTED, "--mute-audio"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as browser:  # type: ignore[call-overload]
        port_file = tmp_path / "DevToolsActivePort"
        limit = time.monotonic() + 20
        while not port_file.exists() or "\n" not in port_file.read_text():
            assert time.monotonic() < limit, "Chromium did not start"
            time.sleep(0.05)
        port, path = port_file.read_text().split()
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as socket:
            yield socket
        browser.terminate()


def test_sound_and_pictures_flow_from_a_hidden_tab(devtools: ClientConnection, peer: Peer) -> None:
    ids = itertools.count(1)
    tab = Tab(devtools, ids, peer.url)
    tab.until("window.omniDebug?.state === 'idle'")
    tab.look("document.querySelector('[data-testid=start]').click()")
    tab.until("omniDebug.state === 'listening'")
    tab.look("document.querySelector('[data-testid=camera]').click()")
    tab.until("omniDebug.jpeg_up > 0")
    other = Tab(devtools, ids, "about:blank")
    other.send("Page.bringToFront")
    tab.until("document.visibilityState === 'hidden'")

    began, num_samples, num_jpegs = time.monotonic(), len(peer.last.pcm), len(peer.last.jpegs)
    time.sleep(3)
    seconds = time.monotonic() - began
    assert tab.look("document.visibilityState") == "hidden"
    assert (len(peer.last.pcm) - num_samples) / seconds == pytest.approx(32_000, rel=0.1)
    assert (len(peer.last.jpegs) - num_jpegs) / seconds > 1.4
