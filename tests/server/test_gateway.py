"""What lives once per process: places, keys taken back, and ending in waves."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from server.config import ServerConfig
from server.connection import KEY_WITHDRAWN, SHUTTING_DOWN, Closing
from server.gateway import Gateway
from server.worker_client import WorkerState
from streaming.packets import Capacity

if TYPE_CHECKING:
    from pathlib import Path


class Visitor:
    """A connection as the gateway sees it."""

    def __init__(self, session_id: str, principal: str = "ana", *, is_idle: bool = True) -> None:
        self.session_id, self.principal, self.is_idle = session_id, principal, is_idle
        self.closings: list[Closing] = []
        self.house: Gateway | None = None

    def close(self, closing: Closing) -> None:
        self.closings.append(closing)
        if self.house is not None:
            self.house.connections.pop(self.session_id, None)


def gateway(**settings: Any) -> Gateway:
    return Gateway(ServerConfig(**settings), None)  # type: ignore[arg-type]  # nobody speaks here


def capacity(lanes: int, *voices: str) -> Capacity:
    return Capacity(lanes, 100, 16, 1024, voices)


def test_places_follow_the_workers_that_are_ready() -> None:
    made = gateway(num_workers=2)
    assert made.admission.num_places == 0 and made.least_busy() is None
    first, second = made.workers
    first.capacity, first.state = capacity(16, "Ethan"), WorkerState.READY
    made._workers_changed()
    assert made.admission.num_places == 12  # a quarter is for transcripts
    second.capacity, second.state = capacity(8), WorkerState.READY
    made._workers_changed()
    assert made.admission.num_places == 18
    first.state = WorkerState.STUCK
    made._workers_changed()
    assert made.admission.num_places == 6
    assert made.least_busy() is second
    assert made.voices.names == ("Chelsie",)  # the second has none


@pytest.mark.parametrize(
    ("settings", "places"), [({"sessions_per_worker": 5}, 5), ({"max_sessions": 3}, 3)]
)
def test_places_can_be_set(settings: dict[str, int], places: int) -> None:
    made = gateway(**settings)
    made.workers[0].capacity, made.workers[0].state = capacity(16, "Ethan"), WorkerState.READY
    made._workers_changed()
    assert made.admission.num_places == places
    assert made.is_ready and made.voices.names == ("Ethan",)


def test_who_loses_the_key_is_hung_up_on(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("ana=one\nbob=two\n")
    made = gateway(api_keys_file=file)
    ana, bob = Visitor("1", "ana"), Visitor("2", "bob")
    made.connections |= {"1": ana, "2": bob}  # type: ignore[dict-item]
    asyncio.run(made._refresh_keys())
    assert ana.closings == bob.closings == []
    file.write_text("ana=one\n")
    os.utime(file, ns=(1, 1))
    asyncio.run(made._refresh_keys())
    assert (ana.closings, bob.closings) == ([], [KEY_WITHDRAWN])
    file.write_text("not a key!\n")
    asyncio.run(made._refresh_keys())  # the keys stay as they were
    assert ana.closings == []


def test_draining_lets_the_busy_finish_and_the_window_end_it() -> None:
    async def scene() -> None:
        made = gateway()
        idle, busy, stubborn = (
            Visitor("1"),
            Visitor("2", is_idle=False),
            Visitor("3", is_idle=False),
        )
        for visitor in (idle, busy, stubborn):
            visitor.house = made
            made.connections[visitor.session_id] = visitor  # type: ignore[assignment]
        begun = time.monotonic()
        drain = asyncio.create_task(made.drain(1.0))
        await asyncio.sleep(0.6)
        assert idle.closings == [SHUTTING_DOWN] and not busy.closings
        assert made.admission.is_draining and not made.is_ready
        busy.is_idle = True
        await asyncio.sleep(0.2)
        assert busy.closings == [SHUTTING_DOWN] and not stubborn.closings
        await asyncio.wait_for(drain, 5)
        assert stubborn.closings == [SHUTTING_DOWN]
        assert time.monotonic() - begun >= 1.0

    asyncio.run(scene())


def test_a_session_shows_the_model_that_was_asked_for() -> None:
    made = gateway(model="/models/omni-tiny")
    assert made.model == "omni-tiny"
    assert made.shown_model(None) == "omni-tiny"
    assert made.shown_model("gpt-realtime") == "gpt-realtime"
    assert len(made.shown_model("x" * 1000)) == 128
