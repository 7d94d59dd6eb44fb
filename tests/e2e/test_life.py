"""Starting, hanging, ending: what the processes do. Names as in docs/operations.md, section 11."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from streaming.pcm import read_wav
from tests.e2e.house import STAND_IN, House, is_alive, stale_events

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.e2e.house import Caller

VOICE = Path(__file__).parents[1] / "streaming" / "one_two_three.wav"


@contextmanager
def starting(*arguments: str, wrapper: Sequence[str] = (), **settings: Any) -> Iterator[House]:
    made = House(arguments, wrapper, worker_command=STAND_IN, model="stand-in", **settings)
    try:
        yield made
    finally:
        made.close()


async def closing(caller: Caller) -> tuple[int, str]:
    """Listen to the end; return how it was closed."""
    try:
        while True:
            await caller.next()
    except ConnectionClosed:
        return caller.socket.close_code or 0, caller.socket.close_reason or ""


def test_f2_a_worker_that_hangs_is_found_by_its_silence(tmp_path: Path) -> None:
    with starting("--pace", "1", tick_missing_s=1.5, tick_lost_s=2.5, abort_grace_s=0.2) as house:
        house.wait_ready()

        async def scene() -> None:
            async with house.call() as caller:
                await caller.type("Hello")
                await caller.send("response.create")
                await caller.until("response.output_audio.delta")
                first, begun = house.worker_pid, time.monotonic()
                os.kill(first, signal.SIGSTOP)
                done = (await caller.until("response.done"))["response"]
                assert done["status"] == "failed"
                assert time.monotonic() - begun < 6
                assert (await caller.ask("Again"))["status"] == "completed"
                assert house.worker_pid != first and not is_alive(first)

        asyncio.run(scene())
        assert '"worker hangs"' in house.text


def test_f3_a_worker_that_dies_at_each_start_ends_the_gateway_with_70() -> None:
    with starting("--fault", "exit", max_failed_starts=3) as house:
        port = int(house.wait_for_line(r'"listening".*"port": (\d+)')[1])
        house.port = port
        assert house.http("/healthz")[0] == 200
        status, _, headers = house.http("/readyz")
        assert (status, headers["retry-after"]) == (503, "2")

        async def knock() -> int:
            try:
                async with house.call():
                    return 101
            except InvalidStatus as refusal:
                assert refusal.response.headers["retry-after"]
                return refusal.response.status_code

        assert asyncio.run(knock()) == 503
        assert house.process.wait(15) == 70
    assert "failed to start 3 times in a row" in house.text


def test_a_worker_that_is_behind_takes_nobody_new_and_keeps_whom_it_has() -> None:
    async def knock(house: House) -> int:
        try:
            async with house.call() as caller:
                await caller.until("session.created")
                return 101
        except InvalidStatus as refusal:
            assert refusal.response.headers["retry-after"] == "5"
            return refusal.response.status_code

    async def scene(house: House) -> None:
        async with house.call() as caller:
            assert (await caller.ask("Hello"))["status"] == "completed"
            house.wait_until(lambda: house.figure("parley_worker_lateness_seconds") == 60, 5)
            await asyncio.sleep(1.1)  # judged once a second
            assert await knock(house) == 503
            assert house.http("/readyz")[0] == 200
            assert (await caller.ask("Still there?"))["status"] == "completed"
        house.wait_until(lambda: house.figure("parley_worker_lateness_seconds") == 0, 5)
        await asyncio.sleep(1.1)
        assert await knock(house) == 101

    with starting("--fault", "late") as house:
        asyncio.run(scene(house.wait_ready()))


def test_settings_that_the_worker_refuses_are_told_once() -> None:
    with starting("--no-such-option", "1") as house:
        assert house.process.wait(15) == 70
    assert house.text.count('"worker started"') == 1
    assert "refuses its settings" in house.text


def test_f25_nobody_is_cut_off_by_a_request_to_end() -> None:
    async def scene(house: House) -> None:
        async with house.call() as idle, house.call() as speaking, house.call() as hearing:
            format_ = {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}
            await speaking.configure(audio=format_)
            pcm, _ = read_wav(VOICE.read_bytes())
            for start in range(0, 32_000, 3200):
                await speaking.append(pcm[start : start + 3200])
            await speaking.until("input_audio_buffer.speech_started")
            await idle.until("session.created")
            await hearing.type("Hello")
            await hearing.send("response.create")
            await hearing.until("response.output_audio.delta")
            house.process.send_signal(signal.SIGTERM)
            asked = time.monotonic()
            assert await asyncio.wait_for(closing(idle), 6) == (1001, "Server is shutting down.")
            assert time.monotonic() - asked < 6
            with pytest.raises(InvalidStatus) as refusal:
                async with house.call():
                    pass
            assert refusal.value.response.status_code == 503
            assert house.http("/readyz")[0] == 503
            for start in range(32_000, len(pcm) + 48_000, 3200):
                await speaking.append(pcm[start : start + 3200].ljust(3200, b"\0"))
            for caller in (speaking, hearing):
                assert await asyncio.wait_for(closing(caller), 10) == (
                    1001,
                    "Server is shutting down.",
                )
                (done,) = (e["response"] for e in caller.heard if e["type"] == "response.done")
                assert done["status"] == "completed"
                assert len(caller.sound_heard()) == 2 * 24_000

    with starting("--sound-seconds", "1", "--pace", "2") as house:
        house.wait_ready()
        worker = house.worker_pid
        asyncio.run(scene(house))
        assert house.process.wait(10) == 0
        assert not is_alive(worker)


def test_f33_fifty_interruptions_by_speech_leave_nothing_stale() -> None:
    async def scene(house: House) -> None:
        pcm, _ = read_wav(VOICE.read_bytes())
        said = pcm[:25_600] + bytes(25_600)  # 0.8 s each
        async with house.call() as caller:
            await caller.configure(
                audio={"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}
            )
            begun = time.monotonic()
            for _ in range(51):
                await caller.speak(said)
                await caller.until("response.created")
                await caller.until("response.output_audio.delta")
            assert time.monotonic() - begun < 40
            await caller.send("response.cancel")
            await caller.until("response.done")
        done = [e["response"] for e in caller.heard if e["type"] == "response.done"]
        reasons = [response["status_details"]["reason"] for response in done]
        assert reasons == ["turn_detected"] * 50 + ["client_cancelled"]
        assert stale_events(caller.heard) == []

    with starting("--sound-seconds", "100", "--pace", "1") as house:
        house.wait_ready()
        house.wait_until(lambda: house.figure("parley_decoders_idle") == 2)
        tasks = house.figure("parley_tasks")
        asyncio.run(scene(house))
        house.wait_until(lambda: house.figure("parley_tasks") == tasks, 5)
        assert house.figure("parley_session_faults_total") == 0


def test_f26_asked_twice_it_hurries() -> None:
    async def scene(house: House) -> None:
        async with house.call() as hearing:
            await hearing.send("response.create")
            await hearing.until("response.output_audio.delta")
            house.process.send_signal(signal.SIGTERM)
            house.wait_for_line('"draining"', 10)
            house.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(closing(hearing), 5) == (1001, "Server is shutting down.")

    with starting("--sound-seconds", "100", "--pace", "1") as house:
        house.wait_ready()
        worker = house.worker_pid
        asyncio.run(scene(house))
        assert house.process.wait(10) == 0
        assert not is_alive(worker)


def test_f26_asked_while_loading_it_ends() -> None:
    with starting("--load-seconds", "60") as house:
        house.wait_for_line('"state": "loading"')
        worker, begun = house.worker_pid, time.monotonic()
        assert house.stop() == 0
        assert time.monotonic() - begun < 12
        assert not is_alive(worker)


def test_f27_a_killed_gateway_leaves_no_worker_and_no_taken_port(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with starting(worker_socket_dir=tmp_path) as house:
        house.wait_ready()
        worker, port = house.worker_pid, house.port
        house.process.kill()
        killed = time.monotonic()
        house.wait_until(lambda: not is_alive(worker), 2)
        assert time.monotonic() - killed < 2
    with starting(worker_socket_dir=tmp_path, port=port) as again:
        again.wait_ready()
        assert again.port == port


def test_a_taken_port_is_told_before_anything_is_loaded() -> None:
    with starting() as house:
        port = int(house.wait_for_line(r'"listening".*"port": (\d+)')[1])
        with starting(port=port) as second:
            assert second.process.wait(15) == 2
        assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in second.text
        assert '"worker started"' not in second.text


@pytest.mark.parametrize("output", [">/dev/full", ">&-"])
def test_f18_a_log_that_cannot_be_written_stops_nobody(output: str) -> None:
    wrapper = ["sh", "-c", f'exec "$@" {output}', "sh"]
    with starting(wrapper=wrapper) as house:
        house.wait_ready()

        async def scene() -> str:
            async with house.call() as caller:
                return str((await caller.ask("Hello"))["status"])

        assert asyncio.run(scene()) == "completed"
        assert (house.figure("parley_log_lines_dropped") > 0) == ("full" in output)
        assert house.stop() == 0


def test_f19_without_descriptors_it_refuses_and_recovers() -> None:
    with starting(wrapper=["prlimit", "--nofile=80"]) as house:
        house.wait_ready()
        house.wait_until(lambda: house.figure("parley_decoders_idle") == 2)

        async def scene() -> None:
            async with house.call() as talker:
                await talker.until("session.created")
                crowd = []
                for _ in range(80):
                    try:
                        crowd.append(await asyncio.open_connection("127.0.0.1", house.port))
                    except OSError:
                        break
                used = house.cpu_s()
                await asyncio.sleep(1)
                assert house.cpu_s() - used < 0.5  # the accept loop does not spin
                assert (await talker.ask("Still there?"))["status"] == "completed"
                for _, writer in crowd:
                    writer.close()
            async with asyncio.timeout(10):
                async with house.call() as late:
                    assert (await late.ask("And now?"))["status"] == "completed"

        asyncio.run(scene())


def test_a_certificate_of_our_own_serves_wss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with starting("--tls-self-signed") as house:
        house.wait_ready()
        assert house.url.startswith("wss://")

        async def scene() -> str:
            async with house.call() as caller:
                return str((await caller.ask("Hello"))["status"])

        assert asyncio.run(scene()) == "completed"
    assert (tmp_path / "parley" / "tls" / "certificate.pem").is_file()
