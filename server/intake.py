"""Intake: what the model is to know of an item that a client made, checked as far as a header tells.

What a decoder must look at first becomes a job; until its answer comes, a promise stands among the pieces.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.context import Awaited, Picture, Words
from server.items import InputAudio, InputImage, InputText, InputVideo, UserMessage
from server.media.jobs import MediaType, Stills, StreamData
from server.media.sniff import image_size
from streaming.chunker import Chunker
from streaming.errors import ClientError
from streaming.media import (
    INPUT_SAMPLE_RATE,
    SAMPLE_BYTES,
    SLOT_SAMPLES,
    VideoFrame,
    input_samples,
)
from streaming.pcm import SoundReader, silence

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.context import Piece
    from server.items import Item
    from server.media.jobs import Decoded, DecodedFrame, MediaFault, MediaJob
    from server.settings import Settings
    from streaming.media import ClipPart

SHORTEST_SAMPLES = INPUT_SAMPLE_RATE // 10
"""Shorter sound is followed by silence: the model hears nothing in less."""
STEP_SAMPLES = INPUT_SAMPLE_RATE


@dataclass(slots=True)
class _Promise:
    """Where an answer of the decoders goes."""

    pieces: list[Piece]
    awaited: Awaited
    is_still: bool
    frames: list[DecodedFrame] = field(default_factory=list)
    pcm: bytearray = field(default_factory=bytearray)


class Intake:
    """Takes items in; owned by the session.

    Args:
        new_job_id: names jobs.
        add_job: takes each job for the decoders.
        max_turn_ms: sound that one item may hold.
    """

    def __init__(
        self,
        new_job_id: Callable[[], str],
        add_job: Callable[[MediaJob], None],
        max_turn_ms: int,
    ) -> None:
        self._new_job_id = new_job_id
        self._add_job = add_job
        self._max_turn_ms = max_turn_ms
        self._promises: dict[str, _Promise] = {}

    def read(self, item: Item, settings: Settings, where: str = "item") -> list[Piece]:
        """Return the pieces of a user's message; of any other item, nothing.

        Raises:
            ClientError: a part cannot be used.
        """
        pieces: list[Piece] = []
        if isinstance(item, UserMessage):
            for index, part in enumerate(item.content):
                at = f"{where}.content.{index}"
                match part:
                    case InputText():
                        pieces += [Words("user", part.text)] if part.text else []
                    case InputAudio():
                        pieces += self._read_sound(part, settings, at)
                    case InputImage():
                        self._read_image(part, settings, f"{at}.image_url", pieces)
                    case InputVideo():
                        self._read_film(part, settings, pieces)
        return pieces

    def receive(self, decoded: Decoded) -> MediaFault | None:
        """Take what a decoder made of a part; return what was wrong with it. Answers to other jobs are ignored."""
        promise = self._promises.get(decoded.key)
        if promise is None:
            return None
        promise.frames += decoded.frames
        promise.pcm += decoded.pcm
        if not decoded.is_job_done:
            return None
        del self._promises[decoded.key]
        at = next(i for i, piece in enumerate(promise.pieces) if piece is promise.awaited)
        promise.pieces[at : at + 1] = [] if decoded.fault else _kept(promise)
        return decoded.fault

    def _read_sound(self, part: InputAudio, settings: Settings, where: str) -> list[ClipPart]:
        encoded, sound = part.encoded, settings.input_format.sound
        if encoded is None:
            return []
        duration_ms = 1000 * len(encoded) // (sound.bytes_per_sample * sound.rate)
        if duration_ms > self._max_turn_ms:
            raise ClientError(
                "invalid_value",
                f"{duration_ms} ms of sound; the limit is {self._max_turn_ms}",
                param=f"{where}.audio",
            )
        reader = SoundReader(sound)
        pcm = reader.push(encoded) + reader.flush()
        part.encoded = None
        return make_clip(pcm, [])

    def _read_image(
        self, part: InputImage, settings: Settings, where: str, pieces: list[Piece]
    ) -> None:
        image, part.image = part.image, None
        if not image:
            return
        max_pixels = settings.frames.max_pixels
        if image_size(image, where).can_go_as_it_is(max_pixels):
            pieces.append(Picture(image))
            return
        job = Stills(self._new_job_id(), image, max_pixels)
        self._promise(job, len(image), pieces)

    def _read_film(self, part: InputVideo, settings: Settings, pieces: list[Piece]) -> None:
        video, part.video = part.video, None
        if not video:
            return
        frames = settings.frames
        job = StreamData(
            self._new_job_id(),
            MediaType(part.format),
            video,
            is_last=True,
            is_new=True,
            fps=frames.fps,
            max_pixels=frames.max_pixels,
        )
        self._promise(job, len(video), pieces)

    def _promise(self, job: Stills | StreamData, num_bytes: int, pieces: list[Piece]) -> None:
        awaited = Awaited(job.key, num_bytes)
        pieces.append(awaited)
        self._promises[job.key] = _Promise(pieces, awaited, isinstance(job, Stills))
        self._add_job(job)


def _kept(promise: _Promise) -> list[Piece]:
    if promise.is_still:
        return [Picture(frame.jpeg) for frame in promise.frames[:1]]
    return list(make_clip(bytes(promise.pcm), promise.frames))


def make_clip(pcm: bytes, frames: list[DecodedFrame]) -> list[ClipPart]:
    """Return the parts of a clip of sound at 16 kHz and pictures; nothing of nothing."""
    shown = [VideoFrame(input_samples(f.offset_ms), f.jpeg) for f in frames]
    num_samples = len(pcm) // SAMPLE_BYTES
    shown_until = max((f.capture_sample + SLOT_SAMPLES for f in shown), default=0)
    end = max(num_samples, shown_until)
    if not end:
        return []
    chunker = Chunker()
    parts: list[ClipPart] = []
    chunker.open(0, has_sound=bool(pcm))
    if pcm:
        end = max(end, SHORTEST_SAMPLES)
        pcm += silence(end - num_samples)
    for start in range(0, end, STEP_SAMPLES):
        stop = min(end, start + STEP_SAMPLES)
        for frame in shown:
            if start <= frame.capture_sample < stop:
                chunker.add_frame(frame, start)
        if pcm:
            parts += chunker.push(pcm[start * SAMPLE_BYTES : stop * SAMPLE_BYTES])
        else:
            parts += chunker.advance(stop - start)
    return [*parts, *chunker.close()]
