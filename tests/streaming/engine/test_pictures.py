"""Pictures are decoded beside the step loop, and nobody's commands change their order for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from streaming.engine.pictures import Pictures, PictureThread, decode_picture
from streaming.media import FramePair, VideoFrame
from streaming.packets import AppendImage, AppendPair, AppendText, CancelTurn, CommitTurn
from tests.streaming.engine.driving import picture, pixels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streaming.packets import Command

PNG = picture(40, 30)


class Outlet:
    """Where commands arrive, and a gate that a decode can be made to wait at."""

    def __init__(self) -> None:
        self.commands: list[Command | Pictures] = []
        self._changed = threading.Condition()

    def put(self, command: Command | Pictures) -> None:
        with self._changed:
            self.commands.append(command)
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.commands) >= count, timeout=20)


@pytest.fixture
def outlet() -> Outlet:
    return Outlet()


@pytest.fixture
def thread(outlet: Outlet) -> Iterator[PictureThread]:
    thread = PictureThread(outlet.put, max_pixels=10_000)
    yield thread
    thread.start() if not thread._thread.is_alive() else None
    thread.stop()


def test_each_session_keeps_its_order_and_others_pass(
    thread: PictureThread, outlet: Outlet
) -> None:
    for command in (
        AppendImage("a", 0, PNG), AppendText("a", 0, "what is it"), CommitTurn("a", 0),
        AppendText("b", 0, "hi"), CommitTurn("b", 0),
    ):  # fmt: skip
        thread.receive(command)
    # The thread has not begun: whoever shows no picture has passed, in order.
    assert [c.session_id for c in outlet.commands] == ["b", "b"]
    thread.start()
    outlet.wait_for(5)
    mine = [c for c in outlet.commands if c.session_id == "a"]
    assert [type(c) for c in mine] == [Pictures, AppendText, CommitTurn]
    thread.receive(AppendText("a", 1, "next"))
    assert outlet.commands[-1] == AppendText("a", 1, "next"), "nothing waits: passed on at once"


def test_a_cancel_never_waits_for_a_picture(thread: PictureThread, outlet: Outlet) -> None:
    thread.receive(AppendImage("a", 0, PNG))
    thread.receive(CancelTurn("a", 0))
    assert outlet.commands == [CancelTurn("a", 0)]


def test_pixels_arrive_as_they_were_and_faults_as_facts(
    thread: PictureThread, outlet: Outlet
) -> None:
    pair = FramePair(0, (VideoFrame(0, PNG), VideoFrame(8000, PNG)))
    thread.receive(AppendPair("a", 0, pair))
    thread.receive(AppendImage("a", 0, b"no picture"))
    thread.receive(AppendImage("a", 0, picture(101, 100)))
    thread.start()
    outlet.wait_for(3)
    good, broken, large = outlet.commands
    assert isinstance(good, Pictures)
    assert all(np.array_equal(p, pixels(PNG)) for p in good.pixels)
    assert len(good.pixels) == 2
    assert isinstance(broken, Pictures)
    assert "10 bytes are no readable JPEG / PNG / WEBP" in str(broken.fault)
    assert isinstance(large, Pictures)
    assert "100x101 pixels; the limit is 10000" in str(large.fault)


def test_size_is_refused_before_anything_is_decoded() -> None:
    with pytest.raises(ValueError, match="the limit is 100 in all"):
        decode_picture(PNG[:60], 100)  # only the header is there
