"""Every job is answered once, in order, in bounded time; a dead decoder costs one stream and nobody else."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from server.media.jobs import CloseStream, FaultCode, MediaType, Stills, StreamData
from tests.server.media.files import RECORDINGS, collect, cut, decode, picture, record, thirds
from tests.server.media.pools import pool_of, until

pytestmark = pytest.mark.slow  # each starts real processes

VP8 = RECORDINGS["vp8"]


def _piece(index: int, key: str = "k") -> StreamData:
    """A third of a recording."""
    piece = thirds(record(VP8))[index]
    return StreamData(key, MediaType.WEBM, piece, is_last=index == 2, is_new=index == 0)


STILL = Stills("still", picture("PNG"), 10_000)


def test_streams_of_several_sessions_are_decoded_side_by_side() -> None:
    async def run() -> None:
        async with pool_of() as (pool, answers):
            whole = record(VP8)
            expected = decode([whole], MediaType.WEBM)
            sessions = [f"s{index}" for index in range(4)]
            pieces = cut(whole, 100, 5_000, 9_000)
            for index, piece in enumerate(pieces):
                for session in sessions:
                    pool.submit(
                        session,
                        StreamData(
                            "k", MediaType.WEBM, piece, index == len(pieces) - 1, index == 0
                        ),
                    )
            for session in sessions:
                received = [answer for _ in pieces for answer in await answers.done(session)]
                assert collect(received) == expected
            await until(lambda: pool.num_running == 0)
            assert pool.counters.num_kills == pool.counters.num_faults == 0

    asyncio.run(run())


def test_stills_are_answered_by_their_ids_beside_an_open_stream() -> None:
    async def run() -> None:
        async with pool_of() as (pool, answers):
            await answers.to(pool, _piece(0))
            for name in "abc":
                pool.submit("s", Stills(name, picture("PNG", (8, 8)), 100))
            received = [(await answers.done("s"))[-1] for _ in "abc"]
            assert {answer.key for answer in received} == {*"abc"}
            assert all(answer.frames for answer in received)
            assert collect(await answers.to(pool, _piece(1))).frames

    asyncio.run(run())


def test_a_new_stream_of_the_same_key_replaces_the_open_one() -> None:
    async def run() -> None:
        async with pool_of() as (pool, answers):
            await answers.to(pool, _piece(0))
            received = [await answers.to(pool, _piece(index)) for index in range(3)]
            assert collect(sum(received, [])) == decode([record(VP8)], MediaType.WEBM)
            assert answers.of("s").empty()

    asyncio.run(run())


def test_nothing_comes_of_a_closed_stream_or_session_and_its_process_is_free_again() -> None:
    async def run() -> None:
        async with pool_of(max_processes=1) as (pool, answers):
            pool.submit("s", _piece(0))
            pool.submit("s", CloseStream("k"))
            pool.submit("s", _piece(1))  # of a stream that is not open
            pool.submit("t", _piece(0))
            pool.close_session("t")
            assert (await answers.to(pool, STILL, "u"))[-1].frames
            await until(lambda: pool.num_running == 0)
            assert answers.of("s").empty()
            assert answers.of("t").empty()
            assert pool.num_waiting == 0

    asyncio.run(run())


def test_a_process_serves_one_stream_after_the_other_until_it_has_done_its_share() -> None:
    async def run() -> None:
        async with pool_of(max_jobs=3) as (pool, answers):
            (first,) = pool.pids()
            for _ in range(2):
                await answers.to(pool, STILL)
                await until(lambda: pool.num_running == 0)
                assert pool.pids() == [first]
            await answers.to(pool, STILL)
            await until(lambda: pool.num_running == 0 and pool.num_idle == 1)
            assert first not in pool.pids()
            assert pool.counters.num_kills == 0

    asyncio.run(run())


# ---- more work than processes


def test_who_waits_too_long_is_dropped() -> None:
    async def run() -> None:
        async with pool_of(max_processes=1, wait_s=0.1) as (pool, answers):
            await answers.to(pool, _piece(0), "first")
            (dropped,) = await answers.to(pool, _piece(0), "second")
            assert dropped.fault is not None
            assert dropped.fault.code is FaultCode.DROPPED
            assert (pool.num_waiting, pool.counters.num_dropped) == (0, 1)
            assert collect(await answers.to(pool, _piece(1), "first")).frames

    asyncio.run(run())


def test_a_quiet_stream_gives_its_process_to_one_that_waits() -> None:
    async def run() -> None:
        async with pool_of(max_processes=1, quiet_s=0.0) as (pool, answers):
            await answers.to(pool, _piece(0), "quiet")
            assert collect(await answers.to(pool, _piece(0), "other")).frames
            (dropped,) = await answers.done("quiet")
            assert dropped.fault is not None
            assert dropped.fault.code is FaultCode.DROPPED
            assert pool.counters.num_kills == 0

    asyncio.run(run())


def test_one_session_cannot_take_all_processes() -> None:
    async def run() -> None:
        async with pool_of(max_processes=3, max_per_session=2) as (pool, answers):
            for index in range(10):
                pool.submit("greedy", _piece(0, f"k{index}"))
            assert (await answers.to(pool, STILL, "modest"))[-1].frames
            assert pool.num_waiting == 8

    asyncio.run(run())


def test_a_sessions_streams_do_not_keep_its_stills_waiting() -> None:
    async def run() -> None:
        async with pool_of(max_processes=4, max_per_session=2) as (pool, answers):
            for key in ("camera", "screen"):
                await answers.to(pool, _piece(0, key))
            assert (await answers.to(pool, STILL))[-1].frames

    asyncio.run(run())


@pytest.mark.parametrize("limit", ["session_bytes", "total_bytes"])
def test_what_waits_is_bounded_in_bytes(limit: str) -> None:
    async def run() -> None:
        async with pool_of(max_processes=1, **{limit: 50_000}) as (pool, answers):
            await answers.to(pool, _piece(0), "busy")
            for index in range(3):
                data = bytes(20_000)
                pool.submit("s", StreamData("k", MediaType.WEBM, data, False, is_new=index == 0))
            (dropped,) = await answers.done("s")
            assert dropped.fault is not None
            assert dropped.fault.code is FaultCode.DROPPED
            assert pool.num_waiting == 0

    asyncio.run(run())


# ---- F24: a decoder process is killed or stuck


def test_a_killed_decoder_costs_one_stream() -> None:
    async def run() -> None:
        async with pool_of(num_idle=2) as (pool, answers):
            await answers.to(pool, _piece(0), "victim")
            victim_pid = pool.pids()[-1]
            talker = await answers.to(pool, _piece(0), "talker")
            os.kill(victim_pid, signal.SIGKILL)
            (lost,) = await answers.to(pool, _piece(1), "victim")
            assert lost.fault is not None
            assert lost.fault.code is FaultCode.MEDIA_DECODE_ERROR
            for index in (1, 2):
                talker += await answers.to(pool, _piece(index), "talker")
            assert collect(talker) == decode([record(VP8)], MediaType.WEBM)
            await until(lambda: pool.num_idle == 2)  # filled again
            assert pool.counters.num_kills == 1
            assert collect(await answers.to(pool, _piece(0), "victim")).frames

    asyncio.run(run())


def test_a_stuck_decoder_is_killed_and_costs_one_stream() -> None:
    async def run() -> None:
        async with pool_of(num_idle=2, job_s=1.0) as (pool, answers):
            await answers.to(pool, _piece(0), "victim")
            os.kill(pool.pids()[-1], signal.SIGSTOP)
            pool.submit("victim", _piece(1))
            pool.submit("victim", _piece(2))
            talker = [await answers.to(pool, _piece(index), "talker") for index in range(3)]
            assert collect(sum(talker, [])) == decode([record(VP8)], MediaType.WEBM)
            (lost,) = await answers.done("victim")
            assert lost.fault is not None
            assert lost.fault.code is FaultCode.MEDIA_DECODE_ERROR
            assert pool.counters.num_kills == 1
            await until(lambda: pool.num_idle == 2)
            assert answers.of("victim").empty()

    asyncio.run(run())


def test_a_decoder_that_dies_idle_costs_nobody() -> None:
    async def run() -> None:
        async with pool_of() as (pool, answers):
            (pid,) = pool.pids()
            os.kill(pid, signal.SIGKILL)
            await until(lambda: not pool._idle[0].is_alive)
            assert (await answers.to(pool, STILL))[-1].frames
            assert pool.counters.num_kills == 0

    asyncio.run(run())


def test_a_lost_decoder_of_a_still_is_an_invalid_image() -> None:
    async def run() -> None:
        async with pool_of(job_s=0.3) as (pool, answers):
            (pid,) = pool.pids()
            os.kill(pid, signal.SIGSTOP)
            (lost,) = await answers.to(pool, STILL)
            assert lost.fault is not None
            assert lost.fault.code is FaultCode.INVALID_IMAGE

    asyncio.run(run())


def test_the_pool_ends_with_work_under_way() -> None:
    async def run() -> None:
        async with pool_of(num_idle=2, max_processes=2) as (pool, answers):
            await answers.to(pool, _piece(0), "open")
            os.kill(pool.pids()[-1], signal.SIGSTOP)
            pool.submit("open", _piece(1))
            pool.submit("second", _piece(0))
            pool.submit("waiting", _piece(0))

    asyncio.run(run())
