"""Decoder processes, alone and in a pool whose answers a test can wait for."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.media.child import DecoderChild
from server.media.pool import DecoderPool, PoolLimits, running_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from server.media.jobs import Decoded, MediaJob

WAIT_S = 15.0
"""Bounds every wait; a shared machine may be slow."""


@dataclass
class Answers:
    """What was delivered, by session."""

    queues: dict[str, asyncio.Queue[Decoded]] = field(default_factory=dict)

    def deliver(self, session_id: str, decoded: Decoded) -> None:
        self.of(session_id).put_nowait(decoded)

    def of(self, session_id: str) -> asyncio.Queue[Decoded]:
        return self.queues.setdefault(session_id, asyncio.Queue())

    async def done(self, session_id: str) -> list[Decoded]:
        """The answers up to the end of a job."""
        answers: list[Decoded] = []
        async with asyncio.timeout(WAIT_S):
            while not answers or not answers[-1].is_job_done:
                answers.append(await self.of(session_id).get())
        return answers

    async def to(self, pool: DecoderPool, job: MediaJob, session_id: str = "s") -> list[Decoded]:
        """The answers to a job of a session that has no other."""
        pool.submit(session_id, job)
        return await self.done(session_id)


@asynccontextmanager
async def child() -> AsyncIterator[DecoderChild]:
    """A process that is killed afterwards."""
    started = await DecoderChild.start()
    try:
        yield started
    finally:
        started.kill()
        await started.ended()
        assert not started.is_alive


@asynccontextmanager
async def pool_of(**limits: float) -> AsyncIterator[tuple[DecoderPool, Answers]]:
    """A pool that is filled. Afterwards none of its tasks is left."""
    answers = Answers()
    before = asyncio.all_tasks()
    chosen = PoolLimits(**{"num_idle": 1, **limits})  # type: ignore[arg-type]  # names and kinds as there
    async with running_pool(answers.deliver, chosen) as pool:
        await until(lambda: pool.num_idle == chosen.num_idle)
        yield pool, answers
    assert asyncio.all_tasks() == before
    assert not pool.pids()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what no answer tells: bookkeeping after one."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  # the pool has no event for it, and need not
            await asyncio.sleep(0.002)
