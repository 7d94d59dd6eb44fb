"""A storm of callers from many addresses, dialling as fast as they can: `python -m tests.e2e.storm PORT`.

Each sends a handshake, reads the first line of the answer and hangs up. Prints how often each answer came, and how long
the storm lasted, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

from tests.e2e.wire import HANDSHAKE

NUM_DIALS, NUM_AT_ONCE, NUM_ADDRESSES = 10_000, 1_000, 200


async def dial(port: int, number: int, at_once: asyncio.Semaphore) -> str:
    address = f"127.0.1.{1 + number % NUM_ADDRESSES}"
    async with at_once:
        try:
            async with asyncio.timeout(10):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, local_addr=(address, 0)
                )
                writer.write(HANDSHAKE.format(path="/v1/realtime", port=port, more="").encode())
                status = (await reader.readline()).split()
                writer.transport.abort()
        except (OSError, TimeoutError) as fault:
            return type(fault).__name__
    return status[1].decode() if len(status) > 1 else "hung up"


async def storm(port: int) -> dict[str, float]:
    """How often each status, or kind of failure, was met; and `seconds`."""
    begun, at_once = time.monotonic(), asyncio.Semaphore(NUM_AT_ONCE)
    met = await asyncio.gather(*(dial(port, number, at_once) for number in range(NUM_DIALS)))
    return {**Counter(met), "seconds": time.monotonic() - begun}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(storm(int(sys.argv[1])))))  # noqa: T201
