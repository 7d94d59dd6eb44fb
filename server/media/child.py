"""The gateway's end of one decoder process."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from server.media.jobs import Decoded
from streaming.errors import ParleyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.media.jobs import MediaFault, MediaJob

LENGTH_BYTES = 4
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Of all answers to a job. A process that says more has been taken over by what it decoded."""
START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 5.0
ENVIRONMENT = {
    # Nothing of ours. Both keep address space, which is limited, from being reserved for threads that never run.
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}
PACKAGES = Path(__file__).parents[2]


class DecoderLost(ParleyError):
    """The process ended, or what it says is no answer; kill it."""


class DecoderChild:
    """One process. One job at a time; whoever gives it one puts a limit on the wait."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._decoder = msgspec.msgpack.Decoder(Decoded)
        self.num_jobs = 0

    @classmethod
    async def start(cls) -> DecoderChild:
        """Start a process and wait until it takes jobs. Call it in the main thread: the process dies with the thread.

        Raises:
            DecoderLost: it did not start.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "server.media.decoder_process", str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # libraries quote there what they decode
            env=ENVIRONMENT,
            cwd=PACKAGES,
        )  # fmt: skip
        child, is_ready = cls(process), False
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await child._receive(MAX_ANSWER_BYTES)
            is_ready = True
        except TimeoutError:
            raise DecoderLost(f"no decoder process within {START_TIMEOUT_S:g} s") from None
        finally:
            if not is_ready:
                child.kill()
                await child.ended()
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    async def run(self, job: MediaJob, take: Callable[[Decoded], None]) -> MediaFault | None:
        """Do a job; `take` gets the answers as they come. Return the last one's fault.

        Raises:
            DecoderLost: the process ended, or answers nonsense.
        """
        self.num_jobs += 1
        body = msgspec.msgpack.encode(job)
        with suppress(ConnectionError):  # the end of the answers tells
            self._stdin.writelines((len(body).to_bytes(LENGTH_BYTES, "little"), body))
            await self._stdin.drain()
        left = MAX_ANSWER_BYTES
        while True:
            decoded, length = await self._receive(left)
            if decoded.key != job.key:
                raise DecoderLost("an answer to something nobody asked")
            left -= length
            take(decoded)
            if decoded.is_job_done:
                return decoded.fault

    async def _receive(self, max_bytes: int) -> tuple[Decoded, int]:
        try:
            length = int.from_bytes(await self._stdout.readexactly(LENGTH_BYTES), "little")
            if length > max_bytes:
                raise DecoderLost(f"an answer of {length} bytes; the limit is {max_bytes}")
            return self._decoder.decode(await self._stdout.readexactly(length)), length
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.MsgspecError) as error:
            raise DecoderLost(f"the decoder process ended: {type(error).__name__}") from None

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._stdin.close()

    async def ended(self) -> None:
        """Wait until a killed process is gone."""
        with suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):
                await self._process.wait()
