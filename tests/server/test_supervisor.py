"""Workers that start, die, hang, refuse and linger, as real processes without a model."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from server.config import ServerConfig
from server.metrics import Metrics
from server.supervisor import Supervisor, WorkerWillNotStart, start_worker, stop_process
from server.worker_client import WorkerClient, WorkerState
from streaming.packets import CommitTurn, OpenSession, SessionOpened, TextDelta, TurnDone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from streaming.packets import Reply

STAND_IN = Path(__file__).parents[2] / "benchmarks" / "stand_in_worker.py"
pytestmark = pytest.mark.slow


class Session:
    """A port that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.replies: list[Reply] = []
        self.changed = asyncio.Event()

    def receive_reply(self, reply: Reply) -> None:
        self.replies.append(reply)
        self.changed.set()

    def worker_lost(self) -> None:
        self.told.append("lost")
        self.changed.set()

    def worker_ready(self) -> None:
        self.told.append("ready")
        self.changed.set()

    async def until(self, is_so: Any) -> None:
        async with asyncio.timeout(15):
            while not is_so():
                self.changed.clear()
                await self.changed.wait()


class House:
    """One supervisor with its client, and whether anything changed."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        command = (sys.executable, str(STAND_IN))
        self.config = ServerConfig(worker_command=command, **settings)
        self.changed = asyncio.Event()
        self.states: list[WorkerState] = []
        self.client = WorkerClient(0, Metrics(), self._note)
        self.supervisor = Supervisor(self.config, self.client, Metrics(), folder, {})

    def _note(self) -> None:
        self.states.append(self.client.state)
        self.changed.set()

    async def until(self, state: WorkerState) -> None:
        async with asyncio.timeout(15):
            while self.client.state is not state:
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@asynccontextmanager
async def running(house: House) -> AsyncIterator[House]:
    task = asyncio.create_task(house.supervisor.run())
    try:
        yield house
    finally:
        await house.supervisor.stop()
        await asyncio.wait_for(task, 15)


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


async def gone(pid: int, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while is_alive(pid):  # another process tells nobody
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.02)
    return True


def test_a_worker_serves_dies_is_replaced_and_stops(folder: Path) -> None:
    async def scene() -> None:
        async with running(House(folder, worker_args=["--sound-seconds", "0"])) as house:
            await house.until(WorkerState.READY)
            session, stranger = Session(), Session()
            house.client.attach("sess_1", session)
            house.client.attach("sess_2", stranger)
            house.client.send([OpenSession("sess_1.0"), CommitTurn("sess_1.0", 0)])
            await session.until(lambda: any(isinstance(r, TurnDone) for r in session.replies))
            assert isinstance(session.replies[0], SessionOpened)
            assert [r.text for r in session.replies if isinstance(r, TextDelta)] == [
                "Good",
                " day",
                ".",
            ]
            assert stranger.replies == []
            first = house.supervisor.pid
            assert first is not None
            begun = time.monotonic()
            os.kill(first, signal.SIGKILL)
            await session.until(lambda: session.told == ["lost"])
            assert time.monotonic() - begun < 0.5
            house.client.send([OpenSession("sess_1.1")])  # to nobody: no harm
            await session.until(lambda: session.told == ["lost", "ready"])
            assert stranger.told == ["lost", "ready"]
            second = house.supervisor.pid
            assert second is not None and second != first
            house.client.detach("sess_1")
        assert await gone(second, 1)
        assert not os.listdir(folder)  # the socket is gone too

    asyncio.run(scene())


def test_a_worker_that_dies_at_each_start_ends_in_a_fault_after_growing_delays(
    folder: Path,
) -> None:
    async def scene() -> None:
        house = House(folder, worker_args=["--fault", "exit"], max_failed_starts=3)
        begun = time.monotonic()
        with pytest.raises(WorkerWillNotStart, match="3 times in a row .last exit status 70"):
            await asyncio.wait_for(house.supervisor.run(), 20)
        assert time.monotonic() - begun > 1.0  # at once, at once, after a second
        assert house.states.count(WorkerState.STARTING) == 3
        assert WorkerState.READY not in house.states

    asyncio.run(scene())


def test_delays_double_up_to_a_limit(folder: Path) -> None:
    async def scene() -> list[float]:
        supervisor = House(folder).supervisor
        return [supervisor._delay_s(n) for n in range(9)]

    assert asyncio.run(scene()) == [0, 0, 1, 2, 4, 8, 16, 30, 30]


def test_a_worker_that_refuses_its_settings_is_not_asked_again(folder: Path) -> None:
    async def scene() -> None:
        house = House(folder, worker_args=["--no-such-option"])
        with pytest.raises(WorkerWillNotStart, match="refuses its settings"):
            await asyncio.wait_for(house.supervisor.run(), 20)
        assert house.states.count(WorkerState.STARTING) == 1

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("fault", "limits"),
    [
        ("silent", {"tick_missing_s": 0.3, "tick_lost_s": 1.0}),
        ("stuck", {"step_stuck_s": 2.5}),
    ],
)
def test_a_worker_without_progress_is_stuck_then_replaced(
    folder: Path, capfd: pytest.CaptureFixture[str], fault: str, limits: dict[str, float]
) -> None:
    async def scene() -> None:
        async with running(House(folder, worker_args=["--fault", fault], **limits)) as house:
            await house.until(WorkerState.READY)
            session, first = Session(), house.supervisor.pid
            house.client.attach("sess_1", session)
            await session.until(lambda: session.told == ["lost", "ready"])
            assert WorkerState.STUCK in house.states
            assert house.supervisor.pid != first

    asyncio.run(scene())
    assert "most recent call first" in capfd.readouterr().err  # its stacks are in the log


def test_a_worker_that_loads_for_too_long_is_ended(folder: Path) -> None:
    async def scene() -> None:
        script = folder / "slow.py"
        script.write_text("import sys; sys.stdin.read(); import time; time.sleep(60)")
        house = House(folder, load_limit_s=0.2, max_failed_starts=1)
        house.config.__dict__["worker_command"] = (sys.executable, str(script))
        with pytest.raises(WorkerWillNotStart):
            await asyncio.wait_for(house.supervisor.run(), 20)

    asyncio.run(scene())


def test_a_worker_dies_with_its_gateway(folder: Path) -> None:
    """A gateway that is killed cannot clean up; the kernel does."""
    sleeper = folder / "sleeper.py"
    sleeper.write_text("import time\ntime.sleep(60)\n")
    gateway = folder / "gateway.py"
    gateway.write_text(
        "import asyncio, sys\n"
        f"sys.path.insert(0, {str(STAND_IN.parents[1])!r})\n"
        "from server.supervisor import start_worker\n"
        "async def main():\n"
        f"    child = await start_worker((sys.executable, {str(sleeper)!r}), 'unused', [], {{}})\n"
        "    print(child.pid, flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(main())\n"
    )

    async def scene() -> None:
        parent = await asyncio.create_subprocess_exec(
            sys.executable, gateway, stdout=asyncio.subprocess.PIPE
        )
        assert parent.stdout is not None
        pid = int(await asyncio.wait_for(parent.stdout.readline(), 15))
        parent.kill()
        await parent.wait()
        assert await gone(pid, 2)

    asyncio.run(scene())


def test_a_process_that_ignores_the_request_is_killed(folder: Path) -> None:
    script = folder / "deaf.py"
    script.write_text(
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(sys.argv[1], 'w').close()\ntime.sleep(60)\n"
    )

    async def scene() -> None:
        started = folder / "started"
        child = await start_worker((sys.executable, str(script)), started, [], {})
        async with asyncio.timeout(15):
            while not started.exists():  # noqa: ASYNC110  # another process tells nobody
                await asyncio.sleep(0.02)
        assert await stop_process(child, 0.2) == -signal.SIGKILL

    asyncio.run(scene())
