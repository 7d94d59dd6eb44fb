"""Starting a worker process and reaching it: one Unix socket, one child that dies with us."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from streaming.errors import WorkerLost
from streaming.packets import Hello, Loading, Ready, decode_reply, require_protocol
from streaming.transport import AsyncLink, serve_links

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from streaming.packets import Reply

STOP_TIMEOUT_S = 10.0
_PR_SET_PDEATHSIG = 1


@asynccontextmanager
async def running_worker(
    arguments: Sequence[str], on_loading: Callable[[Loading], None]
) -> AsyncIterator[tuple[AsyncLink[Reply], Ready]]:
    """Start `python -m streaming.engine` with `arguments`, wait until it is ready, stop it afterwards.

    Raises:
        WorkerLost: it ended before it was ready; its own message is on standard error.
        LinkError: it speaks another packet protocol.
    """
    dialled: asyncio.Queue[AsyncLink[Reply]] = asyncio.Queue(maxsize=1)
    finished = asyncio.Event()

    async def accept(link: AsyncLink[Reply]) -> None:
        dialled.put_nowait(link)
        await finished.wait()

    with tempfile.TemporaryDirectory(prefix="parley-") as folder:
        path = Path(folder) / "worker.sock"  # the folder is ours alone: mode 0700
        server = await serve_links(path, decode_reply, accept)
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "streaming.engine", str(path), *arguments,
            preexec_fn=_die_with_parent,
        )  # fmt: skip
        try:
            link = await _first(dialled, child)
            ready = await _until_ready(link, child, on_loading)
            yield link, ready
        finally:
            finished.set()
            server.close()
            await _stop(child)


async def _until_ready(
    link: AsyncLink[Reply],
    child: asyncio.subprocess.Process,
    on_loading: Callable[[Loading], None],
) -> Ready:
    while True:
        match await link.receive():
            case Hello() as hello:
                require_protocol(hello)
            case Loading() as loading:
                on_loading(loading)
            case Ready() as ready:
                return ready
            case None:
                status = await child.wait()
                raise WorkerLost(f"the worker ended before it was ready (exit status {status})")


async def _first(
    dialled: asyncio.Queue[AsyncLink[Reply]], child: asyncio.subprocess.Process
) -> AsyncLink[Reply]:
    """The link, unless the child ends first."""
    link, end = asyncio.ensure_future(dialled.get()), asyncio.ensure_future(child.wait())
    try:
        await asyncio.wait((link, end), return_when=asyncio.FIRST_COMPLETED)
        if link.done():
            return link.result()
        raise WorkerLost(f"the worker did not start (exit status {child.returncode})")
    finally:
        link.cancel()
        end.cancel()


async def _stop(child: asyncio.subprocess.Process) -> None:
    if child.returncode is not None:
        return
    child.terminate()
    try:
        await asyncio.wait_for(child.wait(), STOP_TIMEOUT_S)
    except TimeoutError:
        child.kill()
        await child.wait()


def _die_with_parent() -> None:
    """In the child, before it becomes the worker: a worker without gateway would keep the device."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:  # the parent died in between
        os._exit(1)
