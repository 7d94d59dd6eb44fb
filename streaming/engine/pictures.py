"""Pictures as they were received to pixels, in a thread of their own: the step loop never decodes a file.

Three file formats; sizes are checked before anything is decoded.
"""

from __future__ import annotations

import io
import threading
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from streaming.packets import (
    AppendImage,
    AppendPair,
    CancelTurn,
    CloseSession,
    Command,
    HoldTurn,
    ReportPlayed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FORMATS = ("JPEG", "PNG", "WEBP")
Picture = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
URGENT = (CancelTurn, CloseSession, HoldTurn, ReportPlayed)
"""Never wait behind a picture: what they end is stale when it arrives."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """A command whose pictures have been decoded."""

    command: AppendPair | AppendImage
    pixels: tuple[Picture, ...] = ()
    """uint8 [H, W, 3] each."""
    fault: str | None = None
    """Why there are none."""

    @property
    def session_id(self) -> str:
        return self.command.session_id

    @property
    def turn_id(self) -> int:
        return self.command.turn_id


def decode_pictures(command: AppendPair | AppendImage, max_pixels: int) -> Pictures:
    """Decode what a command carries; a fault is part of the result."""
    if isinstance(command, AppendPair):
        files = [frame.jpeg for frame in command.pair.frames]
    else:
        files = [command.image]
    try:
        return Pictures(command, tuple(decode_picture(file, max_pixels) for file in files))
    except ValueError as fault:
        return Pictures(command, fault=str(fault))


def decode_picture(encoded: bytes, max_pixels: int) -> Picture:
    """Return uint8 [H, W, 3].

    Raises:
        ValueError: it is none of the formats, broken, or has more than `max_pixels`.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise ValueError(f"{width}x{height} pixels; the limit is {max_pixels} in all")
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as fault:
        raise ValueError(
            f"{len(encoded)} bytes are no readable {' / '.join(FORMATS)}: {fault}"
        ) from None
    except Image.DecompressionBombError as fault:
        raise ValueError(str(fault)) from None


class PictureThread:
    """Passes commands on in the order of each session, pictures decoded on the way.

    A session without a picture in work is passed on at once, in the caller's thread.
    """

    def __init__(self, deliver: Callable[[Command | Pictures], None], max_pixels: int) -> None:
        """`deliver` is called from the caller's thread and from this one; it must be safe for both."""
        self._deliver = deliver
        self._max_pixels = max_pixels
        self._changed = threading.Condition()
        self._queue: deque[Command] = deque()
        self._num_waiting: Counter[str] = Counter()
        """Commands of each session that have not been passed on."""
        self._is_stopping = False
        self._thread = threading.Thread(target=self._work, name="pictures", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    def receive(self, command: Command) -> None:
        """Take a command; returns at once."""
        with self._changed:
            has_picture = isinstance(command, AppendPair | AppendImage)
            must_wait = has_picture or bool(self._num_waiting[command.session_id])
            if must_wait and not isinstance(command, URGENT):
                self._num_waiting[command.session_id] += 1
                self._queue.append(command)
                self._changed.notify()
                return
            # Inside the lock, so that the thread cannot let a later command of the session overtake.
            self._deliver(command)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._is_stopping:
                    self._changed.wait()
                if self._is_stopping:
                    return
                command = self._queue.popleft()
            done: Command | Pictures = command
            if isinstance(command, AppendPair | AppendImage):
                done = decode_pictures(command, self._max_pixels)
            with self._changed:
                self._deliver(done)
                self._num_waiting[command.session_id] -= 1
                if not self._num_waiting[command.session_id]:
                    del self._num_waiting[command.session_id]
